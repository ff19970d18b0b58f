# SPDX-License-Identifier: Apache-2.0
"""One cell of a result under its masks: bytes of a known type and format in, bytes of the same out.

Owns what a mask does to a value of each type; which cell it is for is ``pgvector_plan``'s. The type of a
column never changes: what the mask's word cannot stand in becomes NULL. Bias: a value that cannot be read
becomes NULL, and counts as masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from agent.engines import pgvector_values as values
from agent.engines.pgvector_hidden import Treatment
from agent.engines.pgvector_written import holds_text
from agent.protocols.http import Refusal
from policy.mask import REDACTED, apply
from policy.model import Mask, MaskAs, Scalar
from policy.recognise import Recogniser, recogniser

Cell = Callable[[bytes], bytes | None]
"""A value that is not NULL as it leaves; None: as NULL."""
Counts = Counter[tuple[str, str]]

_JSON: Final = frozenset({values.JSON, values.JSONB})


def hide(treatment: Treatment, kind: int, key: bytes, counts: Counts) -> Cell:
    """A hidden column: the mask's word in a text, NULL in any other type."""
    what = (treatment.what, treatment.told)
    how = treatment.how

    def cell(value: bytes) -> bytes | None:
        counts[what] += 1
        if kind not in values.PLAIN_TEXT or how not in ("redact", "partial", "hmac"):
            return None
        if how == "redact":
            return REDACTED.encode()
        try:
            return str(apply(how, value.decode(), key)).encode()
        except UnicodeDecodeError:
            return None

    return cell


def check(kind: int, binary: bool, key: str, wanted: Scalar) -> Cell:
    """The column of a mandatory filter: a row that has another value is not released. Raises Refusal."""

    def cell(value: bytes) -> bytes | None:
        try:
            is_it = holds_text(kind, values.text_of(kind, value, binary), wanted)
        except values.Unreadable:
            is_it = (
                binary and kind not in values.TEXT_TYPES
            )  # a type we do not read in binary: SQL has filtered
        if not is_it:
            raise Refusal(
                "filter-broken", f"the database returned a row outside of the policy's filter on {key}"
            )
        return value

    return cell


class Texts:
    """Personal data in the texts of a result, by the masks of a verdict."""

    def __init__(self, masks: Sequence[Mask], key: bytes, counts: Counts) -> None:
        self._found: list[tuple[Recogniser, MaskAs]] = [(recogniser(one.pii), one.how) for one in masks]
        self._key = key
        self._counts = counts

    def lacks(self, run: bytes) -> bool:
        """No cell of the run can hold any."""
        return all(found.lacks(run) for found, _ in self._found)

    def cell(self, kind: int, binary: bool) -> Cell | None:
        """None: nothing is looked for in a type."""
        if kind in values.SHAPELESS:
            return None
        if kind in values.PLAIN_TEXT:
            return self._plain
        if kind in _JSON:
            versioned = binary and kind == values.JSONB
            return lambda value: self._json(value, versioned)
        if kind in values.WHOLE_NUMBERS or kind == values.NUMERIC:
            return lambda value: self._number(kind, value, binary)
        return self._other

    def _plain(self, value: bytes) -> bytes | None:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            self._counts["pii:unreadable", "drop"] += 1
            return None
        changed = False
        for found, how in self._found:
            text, counts = found.redact(text, how, self._key)
            changed |= self._take(counts, how)
        return text.encode() if changed else value

    def _json(self, value: bytes, versioned: bool) -> bytes | None:
        if all(found.lacks(value) for found, _ in self._found) and b"\\" not in value:
            return value
        try:
            tree: object = msgspec.json.decode(value[1:] if versioned else value)
        except (msgspec.DecodeError, RecursionError):
            self._counts["pii:unreadable", "drop"] += 1
            return None
        changed = False
        for found, how in self._found:
            tree, counts = found.redact_value(tree, how, self._key)
            changed |= self._take(counts, how)
        if not changed:
            return value
        return (b"\x01" if versioned else b"") + msgspec.json.encode(tree)

    def _number(self, kind: int, value: bytes, binary: bool) -> bytes | None:
        try:
            text = values.text_of(kind, value, binary)
        except values.Unreadable:
            return None
        return None if self._finds(text) else value

    def _other(self, value: bytes) -> bytes | None:
        """Arrays, ranges, composites, types of extensions: NULL where a finding stands in them."""
        return None if self._finds(value.decode("utf-8", "replace")) else value

    def _finds(self, text: str) -> bool:
        finds = False
        for found, how in self._found:
            finds |= self._take(found.redact(text, how, self._key)[1], how)
        return finds

    def _take(self, counts: Mapping[str, int], how: MaskAs) -> bool:
        for kind, count in counts.items():
            self._counts[f"pii:{kind}", how] += count
        return bool(counts)


def chain(cells: Sequence[Cell]) -> Cell | None:
    """One cell after the other, until one makes NULL."""
    if len(cells) < 2:
        return cells[0] if cells else None

    def cell(value: bytes) -> bytes | None:
        now: bytes | None = value
        for one in cells:
            if now is None:
                return None
            now = one(now)
        return now

    return cell
