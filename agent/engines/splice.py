# SPDX-License-Identifier: Apache-2.0
"""Answers read and written without parsing their vectors.

Owns the byte-level cut of long arrays of numbers out of an answer, and putting back those that stay.
It must not decide which go: engines walk the small tree that remains, by path, so that a payload key
named like a vector is told from a vector. Bias: what cannot be read is not released.

Sound for the reason `body` gives: each cut is replaced by ``NaN``, which JSON has not, and the decoder
must report as many in value places as were cut; otherwise the whole answer is parsed. Only the bytes
between ``[`` and the next ``]`` that hold no quote, brace or bracket are cut: no string, object or
nested array can be in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from agent.engines.census import MAX_VALUES, has_many_arrays, is_crowded
from agent.protocols.http import Refusal

LONG: Final = 160  # bytes from which an array of an answer is cut out unread

Raw = msgspec.Raw


@dataclass(slots=True)
class Reading:
    """A decoded answer; arrays that were cut stand in it as `msgspec.Raw`."""

    tree: Any
    cut: int

    def write(self, tree: Any) -> bytes:
        return write_answer(tree)


def write_answer(tree: Any) -> bytes:
    """The one form of a tree that was looked through: a name that the database wrote twice stands once.

    What was masked must be what is released: bytes of which only the last of two names was read are not.
    Raises Refusal when it cannot be written (a number no decoder agrees on).
    """
    try:
        return msgspec.json.encode(tree)
    except (OverflowError, UnicodeEncodeError, RecursionError, TypeError, ValueError) as error:
        raise Refusal("unproven-answer", "the database's answer cannot be written again") from error


def cut_answer(raw: bytes) -> tuple[list[bytes], list[memoryview]]:
    """Long innermost arrays without any quote or brace, not copied, and the n + 1 pieces around them."""
    pieces: list[bytes] = []
    cuts: list[memoryview] = []
    view = memoryview(raw)
    done = 0
    at = raw.find(b"[")
    while at >= 0:
        end = raw.find(b"]", at)
        if end < 0:
            break
        if end - at >= LONG:
            start = raw.rfind(b"[", at, end)
            if (
                end - start >= LONG
                and raw.find(b'"', start, end) < 0
                and raw.find(b"{", start, end) < 0
                and raw.find(b"}", start, end) < 0
            ):
                pieces.append(raw[done:start])
                cuts.append(view[start : end + 1])
                done = end + 1
        at = raw.find(b"[", end)
    pieces.append(raw[done:])
    return pieces, cuts


class _Restorer:
    """Hands out the cut arrays in the order the decoder meets their places."""

    def __init__(self, cuts: list[memoryview]) -> None:
        self.cuts = cuts
        self.next = 0

    def __call__(self, name: str) -> Raw:
        if name != "NaN" or self.next >= len(self.cuts):
            raise ValueError(f"{name} is not JSON")
        self.next += 1
        return Raw(self.cuts[self.next - 1])


def read_answer(raw: bytes, *, opens_numbers: bool = False) -> Reading:
    """The answer as a tree. `opens_numbers`: read every array (numbers may be masked as text).

    Raises Refusal when it is not JSON.
    """
    # One byte is found at the speed of memory, three are not.
    if not opens_numbers and (b"N" not in raw or b"NaN" not in raw) and not has_many_arrays(raw):
        pieces, cuts = cut_answer(raw)
        if cuts:
            restorer = _Restorer(cuts)
            small = b"NaN".join(pieces)
            check_values(small)
            try:
                tree = json.loads(small.decode("utf-8"), parse_constant=restorer)
                if restorer.next == len(cuts):
                    return Reading(tree, len(cuts))
            except (ValueError, RecursionError):
                pass  # perhaps numbers inside a string: the whole answer decides
    try:
        return Reading(decode(raw), 0)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Refusal("unproven-answer", "the database's answer is not JSON") from error


def decode(raw: bytes) -> Any:
    """`msgspec.json.decode` of an answer or a part of it. Raises Refusal when it holds too many values."""
    check_values(raw)
    return msgspec.json.decode(raw)


def check_values(raw: bytes) -> None:
    """Raises Refusal where a tree of an answer would have more than MAX_VALUES values."""
    if is_crowded(raw):
        message = f"the database's answer has more than {MAX_VALUES} values and has to be read"
        raise Refusal("too-many-values", message)


def open_numbers(tree: Any) -> Any:
    """The tree with every cut array read. Raises Refusal when one is not JSON."""
    try:
        return decode(msgspec.json.encode(tree))
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise Refusal("unproven-answer", "the database's answer is not JSON") from error
