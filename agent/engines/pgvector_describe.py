# SPDX-License-Identifier: Apache-2.0
"""A statement and its parameters as evidence keeps them: JSON that a person reads, vectors recognised.

Owns the request body of a SQL exchange: ``{"statement": "...", "parameters": [...]}``, text and binary
parameters decoded by their type; and its digest, vectors replaced by dimension and SHA-256, in parameters
and in the literals of the statement. It must not judge. Bias: what cannot be decoded is kept as base64;
a literal that looks like a vector is taken for one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from struct import Struct, error
from typing import Any, Final

import msgspec

from agent.engines import pgvector_values as values
from agent.engines.sql_tree import VectorKind
from agent.protocols.sql import Parameter

LEAST: Final = 8  # numbers from which a list counts as a vector in recorded forms, as in engines/body.py
_NUMBER: Final = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_LIST: Final = rf"\s*+{_NUMBER}\s*+(?:,\s*+{_NUMBER}\s*+){{{LEAST - 1},}}+"
_VECTOR: Final = re.compile(rf"\[{_LIST}\]|\{{{_LIST}\}}")
_PAIR: Final = rf"\s*+[0-9]++\s*+:\s*+{_NUMBER}\s*+"
_SPARSE: Final = re.compile(rf"\{{(?:{_PAIR}(?:,{_PAIR})*+)?\}}/([0-9]+)")
_BITS: Final = re.compile(r"(?<=')[01]{64,}+(?=')")
_HALF: Final = Struct("!e")
_FLOAT: Final = Struct("!f")


def describe(text: str, parameters: Sequence[Parameter], vectors: Mapping[int, VectorKind]) -> bytes:
    """The body for the record, vectors as they are. `vectors`: OIDs of the database's vector types."""
    made: dict[str, Any] = {"statement": text}
    if parameters:
        made["parameters"] = [_parameter(one, vectors) for one in parameters]
    return msgspec.json.encode(made)


def _parameter(one: Parameter, vectors: Mapping[int, VectorKind]) -> Any:
    if one.value is None:
        return None
    kind = vectors.get(one.type)
    try:
        if one.format == 1 and kind in ("vector", "halfvec") and (numbers := _numbers(kind, one.value)):
            return numbers
        if one.format == 1 and one.type in (0, values.UNKNOWN):
            raise values.Unreadable("no type")
        return values.text_of(one.type, one.value, one.format == 1)
    except values.Unreadable:
        return {"base64": base64.b64encode(one.value).decode(), "type": one.type}


def _numbers(kind: str, value: bytes) -> str | None:
    """A binary vector in pgvector's text form."""
    width = _FLOAT if kind == "vector" else _HALF
    try:
        many = int.from_bytes(value[:2], "big")
        if len(value) != 4 + many * width.size:
            return None
        return "[" + ",".join(f"{number[0]:.9g}" for number in width.iter_unpack(value[4:])) + "]"
    except error:
        return None


def digest(body: bytes) -> tuple[bytes, int]:
    """A described statement with each vector as ``{"dim":N,"sha256":"..."}``, and how many there were.

    Within the statement's text the replacement stands where the literal stood. Never raises.
    """
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body, 0
    if not isinstance(tree, dict):
        return body, 0
    count = 0
    statement = tree.get("statement")
    if isinstance(statement, str):
        tree["statement"], count = _shorten(statement)
    given = tree.get("parameters")
    if isinstance(given, list):
        for at, one in enumerate(given):
            found = _digested(one)
            if found is not None:
                given[at] = found
                count += 1
            elif isinstance(one, str):
                given[at], more = _shorten(one)
                count += more
    return (msgspec.json.encode(tree), count) if count else (body, 0)


def _digested(one: Any) -> dict[str, Any] | None:
    """A parameter that is a vector and nothing else. A binary value that is not read counts as one."""
    if isinstance(one, dict):
        raw = one.get("base64")
        return _short(str(raw), len(str(raw)) * 3 // 16) if raw is not None and len(str(raw)) > 64 else None
    if not isinstance(one, str):
        return None
    text = one.strip()
    if _VECTOR.fullmatch(text):
        return _short(text, text.count(",") + 1)
    if (sparse := _SPARSE.fullmatch(text)) is not None:
        return _short(text, int(sparse[1]))
    return None


def _short(text: str, dim: int) -> dict[str, Any]:
    return {"dim": dim, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _shorten(text: str) -> tuple[str, int]:
    def vector(match: re.Match[str]) -> str:
        return msgspec.json.encode(_short(match[0], match[0].count(",") + 1)).decode()

    def sparse(match: re.Match[str]) -> str:
        return msgspec.json.encode(_short(match[0], int(match[1]))).decode()

    def bits(match: re.Match[str]) -> str:
        return msgspec.json.encode(_short(match[0], len(match[0]))).decode()

    text, first = _VECTOR.subn(vector, text)
    text, second = _SPARSE.subn(sparse, text)
    text, third = _BITS.subn(bits, text)
    return text, first + second + third
