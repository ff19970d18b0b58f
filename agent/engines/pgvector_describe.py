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
import json
import re
from collections.abc import Mapping, Sequence
from struct import Struct, error
from typing import Any, Final

import msgspec

from agent.engines import pgvector_values as values
from agent.engines.sql_tree import VectorKind
from agent.protocols.sql_made import Described, Parameter

LEAST: Final = 8  # numbers from which a list counts as a vector in recorded forms, as in engines/body.py
_NUMBER: Final = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_LIST: Final = rf"\s*+{_NUMBER}\s*+(?:,\s*+{_NUMBER}\s*+){{{LEAST - 1},}}+"
_VECTOR: Final = re.compile(rf"\[{_LIST}\]|\{{{_LIST}\}}")
_PAIR: Final = rf"\s*+[0-9]++\s*+:\s*+{_NUMBER}\s*+"
_SPARSE: Final = re.compile(rf"\{{(?:{_PAIR}(?:,{_PAIR})*+)?\}}/([0-9]+)")
_BITS: Final = re.compile(r"(?<=')[01]{64,}+(?=')")
_NUMERALS: Final = b"0123456789+-.eE, \t\n\r\f\v"
_encoder: Final = msgspec.json.Encoder()
_HALF: Final = Struct("!e")
_FLOAT: Final = Struct("!f")


class Stated:
    """A statement's text as JSON, and, once that is asked for, with its literal vectors replaced.

    Bytes that are not UTF-8 (lone surrogates in `text`) are escaped in what is kept, ``\\udcff``; `sent` is
    the JSON with the bytes as they came, for the digest.
    """

    __slots__ = ("_masked", "_plain", "_text", "cut", "sent", "short", "whole")

    def __init__(self, text: str) -> None:
        self.sent: bytes | None = None
        try:
            self.whole = _encoder.encode(text)
        except UnicodeEncodeError:
            self.sent = json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape")
            text = text.encode("utf-8", "backslashreplace").decode()
            self.whole = _encoder.encode(text)
        self.short = self.whole
        self._text = text
        self.cut = 0
        self._plain: Described | None = None
        self._masked: Described | None = None

    def alone(self, masked: bool) -> Described:
        """Without parameters; the same one each time."""
        if not masked:
            if self._plain is None:
                body = _alone(self.whole)
                self._plain = Described(body, body, 0, self.sent and _alone(self.sent))
            return self._plain
        if self._masked is None:
            short, self.cut = _shorten(self._text)
            if self.cut:
                self.short = _encoder.encode(short)
            sent = self.sent and _alone(self.sent)
            self._masked = Described(_alone(self.whole), _alone(self.short), self.cut, sent)
        return self._masked


def describe(
    stated: Stated, parameters: Sequence[Parameter], vectors: Mapping[int, VectorKind], masked: bool
) -> Described:
    """A statement with its parameters for the record. `vectors`: OIDs of the database's vector types.

    `masked`: its recorded form too, with each vector as ``{"dim":N,"sha256":"..."}``; within the statement's
    text that stands where the literal stood.
    """
    alone = stated.alone(masked)
    if not parameters:
        return alone
    told = [_parameter(one, vectors) for one in parameters]
    body = _body(stated.whole, told)
    sent = stated.sent and _body(stated.sent, told)
    if not masked:
        return Described(body, body, 0, sent)
    cut = stated.cut
    for at, one in enumerate(told):
        told[at], more = _shown(one)
        cut += more
    return Described(body, _body(stated.short, told) if cut else body, cut, sent)


def _alone(statement: bytes) -> bytes:
    return b'{"statement":' + statement + b"}"


def _body(statement: bytes, parameters: list[Any]) -> bytes:
    return b'{"statement":' + statement + b',"parameters":' + _encoder.encode(parameters) + b"}"


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


def _shown(one: Any) -> tuple[Any, int]:
    """A decoded parameter in its recorded form, and how many vectors were replaced in it."""
    if isinstance(one, str):
        if (found := _digested(one)) is not None:
            return found, 1
        return _shorten(one)
    if isinstance(one, dict):  # a binary value that is not read: a long one counts as a vector
        raw = str(one["base64"])
        return (_short(raw, len(raw) * 3 // 16), 1) if len(raw) > 64 else (one, 0)
    return one, 0


def _digested(one: str) -> msgspec.Raw | None:
    """A text that is a vector and nothing else."""
    text = one.strip()
    if _looks_like_vector(text) or _VECTOR.fullmatch(text):
        return _short(text, text.count(",") + 1)
    if (sparse := _SPARSE.fullmatch(text)) is not None:
        return _short(text, int(sparse[1]))
    return None


def _looks_like_vector(text: str) -> bool:
    """Whether nothing but numerals and commas, a vector's many, stands between brackets: told in one pass,
    where `_VECTOR` takes 20 times as long to say what each number is."""
    if not text.startswith("[") or text.count(",") < LEAST - 1:
        return False
    return text.encode().translate(None, _NUMERALS) == b"[]"


def _short(text: str, dim: int) -> msgspec.Raw:
    return msgspec.Raw(
        b'{"dim":%d,"sha256":"%s"}' % (dim, hashlib.sha256(text.encode()).hexdigest().encode())
    )


def _shorten(text: str) -> tuple[str, int]:
    def vector(match: re.Match[str]) -> str:
        return bytes(_short(match[0], match[0].count(",") + 1)).decode()

    def sparse(match: re.Match[str]) -> str:
        return bytes(_short(match[0], int(match[1]))).decode()

    def bits(match: re.Match[str]) -> str:
        return bytes(_short(match[0], len(match[0]))).decode()

    text, first = _VECTOR.subn(vector, text)
    text, second = _SPARSE.subn(sparse, text)
    text, third = _BITS.subn(bits, text)
    return text, first + second + third
