# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL values on the wire: what a cell's bytes are, in text and in binary format.

Owns decoding by type OID and nothing else: no rows, no policy. Formats: pgvector's ``vector_send``,
``halfvec_send``, ``sparsevec_send`` and the text forms of its README; ``array_send``, ``bit_send``,
``uuid_send`` of PostgreSQL. Bias: a value that does not have the form of its type is `Unreadable`; who
asks decides what that means (a mask takes the cell whole, a digest says dimension 0).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from struct import Struct, error
from typing import Final, Literal

BOOL, BYTEA, CHAR, NAME, INT8, INT2, INT4, TEXT, OID = 16, 17, 18, 19, 20, 21, 23, 25, 26
JSON, XML, FLOAT4, FLOAT8, UNKNOWN, BPCHAR, VARCHAR, BIT, VARBIT = (
    114,
    142,
    700,
    701,
    705,
    1042,
    1043,
    1560,
    1562,
)
NUMERIC, UUID, JSONB, JSONPATH = 1700, 2950, 3802, 4072
FLOAT4_ARRAY, FLOAT8_ARRAY, NUMERIC_ARRAY = 1021, 1022, 1231
DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL = 1082, 1083, 1114, 1184, 1186

TEXT_TYPES: Final = frozenset({CHAR, NAME, TEXT, JSON, XML, UNKNOWN, BPCHAR, VARCHAR, JSONPATH})
"""Types whose binary form is their text in the client's encoding."""
PLAIN_TEXT: Final = frozenset({TEXT, BPCHAR, VARCHAR, UNKNOWN})
"""Types of which any text is a value: what a mask writes can stand there."""
WHOLE_NUMBERS: Final = {INT2: Struct("!h"), INT4: Struct("!i"), INT8: Struct("!q"), OID: Struct("!I")}
FLOATS: Final = {FLOAT4: Struct("!f"), FLOAT8: Struct("!d")}
SHAPELESS: Final = frozenset(
    {BOOL, BYTEA, FLOAT4, FLOAT8, BIT, VARBIT, DATE, TIME, TIMESTAMP, TIMESTAMPTZ, INTERVAL}
)
"""Types in which no personal data is looked for: truths, bytes, times, floats."""

Shape = Literal["vector", "halfvec", "sparsevec", "bit", "numbers"]
"""How a vector's value is written; "numbers": float4[] and float8[]. Arrays of vectors have the shape of
their elements: their bytes say that they are arrays."""
FIXED_SHAPES: Final[Mapping[int, Shape]] = {FLOAT4_ARRAY: "numbers", FLOAT8_ARRAY: "numbers"}
"""Shapes of types that have the same OID in every database."""

_U16: Final = Struct("!H").unpack_from
_I32: Final = Struct("!i").unpack_from
_ARRAY: Final = Struct("!iiI").unpack_from  # dimensions, has nulls, element type
_LENGTH: Final = Struct("!ii").unpack_from  # of one dimension: how many, lower bound
MAX_DIMENSIONS: Final = 6  # of an array: MAXDIM of PostgreSQL


class Unreadable(ValueError):
    """The bytes are not a value of their type."""


def dimension(shape: Shape, value: bytes, binary: bool) -> int:
    """How many numbers a vector has; 0 where its bytes do not say."""
    try:
        return _binary_dimension(shape, value) if binary else _text_dimension(shape, value)
    except (error, ValueError):
        return 0


def _binary_dimension(shape: Shape, value: bytes) -> int:
    if shape in ("vector", "halfvec"):
        dim = int(_U16(value)[0])
        if len(value) == 4 + dim * (4 if shape == "vector" else 2):
            return dim
    elif shape == "sparsevec":
        dim, stored = _LENGTH(value)
        if len(value) == 12 + 8 * stored:
            return int(dim)
    elif shape == "bit":
        bits = int(_I32(value)[0])
        if len(value) == 4 + (bits + 7) // 8:
            return bits
    return _elements(value)


def _elements(value: bytes) -> int:
    """Of ``array_send``."""
    dimensions = _ARRAY(value)[0]
    if not 0 < dimensions <= MAX_DIMENSIONS:
        return 0
    many = 1
    for at in range(dimensions):
        many *= max(0, _LENGTH(value, 12 + 8 * at)[0])
    return many


def _text_dimension(shape: Shape, value: bytes) -> int:
    if shape == "sparsevec" and not value.endswith(b"}"):
        return int(value.rpartition(b"/")[2])
    if shape == "bit" and not value.startswith(b"{"):
        return len(value)
    return value.count(b",") + 1 if len(value) > 2 else 0


def digested(shape: Shape, value: bytes, binary: bool) -> bytes:
    """The recorded form of a vector: ``{"dim":N,"sha256":"..."}`` over its bytes as they were sent."""
    sha = hashlib.sha256(value).hexdigest()
    return b'{"dim":%d,"sha256":"%s"}' % (dimension(shape, value, binary), sha.encode())


def text_of(kind: int, value: bytes, binary: bool) -> str:
    """A value as PostgreSQL writes it in text, of the types a key or a text column has.

    Raises Unreadable for other types in binary format, and for what is not UTF-8.
    """
    try:
        if not binary or kind in TEXT_TYPES:
            return value.decode()
        if kind == JSONB:
            if value[:1] != b"\x01":
                raise Unreadable("jsonb of another version than 1")
            return value[1:].decode()
        if (number := WHOLE_NUMBERS.get(kind)) is not None:
            return str(number.unpack(value)[0])
        if (fraction := FLOATS.get(kind)) is not None:
            return repr(fraction.unpack(value)[0])
        if kind == UUID:
            return str(uuid.UUID(bytes=value))
        if kind == BOOL:
            return "t" if value != b"\x00" else "f"
        if kind == NUMERIC:
            return numeric_text(value)
    except (error, ValueError) as caught:
        raise Unreadable(f"not a value of type {kind}") from caught
    raise Unreadable(f"type {kind} is not read in binary format")


_NUMERIC: Final = Struct("!hhHh").unpack_from  # digits, weight, sign, scale


def numeric_text(value: bytes) -> str:
    """``numeric_send``: base-10000 digits. Special values by their names. Raises ValueError, struct.error."""
    many, weight, sign, scale = _NUMERIC(value)
    if sign == 0xC000:
        return "NaN"
    if sign in (0xD000, 0xF000):
        return "Infinity" if sign == 0xD000 else "-Infinity"
    if len(value) != 8 + 2 * many or not 0 <= scale <= 16383 or not -8192 <= weight <= 32767:
        raise ValueError("not a numeric")
    digits = Struct(f"!{many}h").unpack_from(value, 8)
    whole = "".join(f"{digits[i] if i < many else 0:04d}" for i in range(weight + 1)).lstrip("0") or "0"
    rest = "".join(
        f"{digits[i] if 0 <= i < many else 0:04d}" for i in range(weight + 1, weight + 2 + (scale + 3) // 4)
    )
    shown = f"{whole}.{rest[:scale]}" if scale else whole
    return f"-{shown}" if sign == 0x4000 else shown
