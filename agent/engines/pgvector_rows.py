# SPDX-License-Identifier: Apache-2.0
"""DataRow messages: cells replaced, vectors digested for the record, row ids taken out.

Owns the bytes of a run of DataRow messages (PostgreSQL docs, 54.7: 'D', Int32 length, Int16 columns, for
each Int32 length or -1 and the value). What is done to which column was decided before (``pgvector_plan``).
A run that nothing is done to is passed on as the very object that came. Bias: a run that is not what
the RowDescription announced is not released.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct, error
from typing import TYPE_CHECKING, Final

from agent.engines import pgvector_values as values
from agent.engines.pgvector_cells import Cell, Counts, Texts
from agent.engines.pgvector_values import Shape
from agent.protocols.big_endian import int16_at, int32_at
from agent.protocols.http import Refusal
from agent.protocols.session import Masked
from agent.protocols.sql import Column
from agent.protocols.sql_made import Released

if TYPE_CHECKING:
    from mypy_extensions import i64  # the compiled form's own integers; where nothing is compiled, any int

DATA_ROW: Final = 0x44
MAX_IDS: Final = 10_000  # kept for evidence from one run
_NEGATIVE: Final = 1 << 31  # a length from here on is a negative number: NULL
_SIZE: Final = Struct("!i")
_NULL: Final = _SIZE.pack(-1)


@dataclass(slots=True)
class Step:
    """What is done to one column. `shape`: it holds vectors, which the record has as digests."""

    cell: Cell | None = None
    shape: Shape | None = None
    binary: bool = False
    key: int = 0  # type OID where it is part of the row's id, else 0


class RowPlan:
    """The rows of one form of result. Between two calls of `release` it holds nothing of them."""

    __slots__ = ("_counts", "_each", "_ids", "_keys_alone", "_last", "_plain", "_steps", "_texts", "_width")

    def __init__(
        self,
        steps: Sequence[Step],
        counts: Counts,
        each: Counter[tuple[str, str]],
        texts: Texts | None,
    ) -> None:
        """`each`: what was taken out of every row in the database already, counted a row at a time.

        `texts`: no cell does anything in a run that lacks what personal data needs.
        """
        self._steps = list(steps)
        self._counts = counts
        self._each = each
        self._texts = texts
        self._width = len(self._steps)
        used = [at for at, one in enumerate(self._steps) if one.cell or one.shape or one.key]
        self._last = used[-1] + 1 if used else 0
        self._ids = sum(1 for one in self._steps if one.key)
        self._keys_alone = not any(one.cell or one.shape for one in self._steps)
        self._plain = not self._each and not any(one.shape or one.key for one in self._steps)

    @property
    def columns(self) -> Sequence[Column] | None:
        """Always the server's own: masks keep the type of a column."""
        return None

    def release(self, run: bytes) -> Released:
        if not self._last and not self._each:
            return Released(run, run, -1)
        if self._texts is not None and self._plain and self._texts.lacks(run):
            return Released(run, run, -1)
        if self._counts:
            self._counts.clear()
        try:
            return self._read_keys(run) if self._keys_alone else self._walk(run)
        except (error, IndexError) as caught:
            raise Refusal("unproven-answer", "the database's rows are not what it announced") from caught

    def _end_of(self, run: bytes, at: i64) -> i64:
        """Where the message that begins at `at` ends. Raises IndexError where it is no row of this result."""
        end = at + 1 + int32_at(run, at + 1)
        width: i64 = self._width
        if run[at] != DATA_ROW or int16_at(run, at + 5) != width or end > len(run) or end < at + 7:
            raise IndexError
        return end

    def _walk(self, run: bytes) -> Released:
        released: list[bytes] = []
        recorded: list[bytes] = []
        ids: list[str] = []
        at: i64 = 0
        done: i64 = 0
        rows = cut = 0
        steps = self._steps[: self._last]
        while at < len(run):
            end = self._end_of(run, at)
            rows += 1
            here: i64 = at + 7
            edits: list[tuple[int, int, bytes | None, bytes | None]] = []
            keys: list[str] = []
            for step in steps:
                size = int32_at(run, here)
                start = here + 4
                here = start + size if size < _NEGATIVE else start
                if here > end:
                    raise IndexError
                if size >= _NEGATIVE:
                    continue
                if step.cell is not None or step.shape is not None:
                    value = run[start:here]
                    shown = value if step.cell is None else step.cell(value)
                    kept = shown
                    if step.shape is not None and shown is not None:
                        kept = values.digested(step.shape, shown, step.binary)
                        cut += 1
                    if shown is not value or kept is not value:
                        edits.append((start - 4, here, shown, kept))
                    if step.key and shown is not None and len(ids) < MAX_IDS:
                        keys.append(_id(step, shown))
                elif step.key and len(ids) < MAX_IDS:
                    keys.append(_id(step, run[start:here]))
            if keys and len(keys) == self._ids:
                ids.append(",".join(keys))
            if edits:
                released.append(run[done:at])
                recorded.append(run[done:at])
                released.append(_edited(run, at, end, [(a, b, c) for a, b, c, _ in edits]))
                recorded.append(_edited(run, at, end, [(a, b, c) for a, b, _, c in edits]))
                done = end
            at = end
        return self._made(run, done, released, recorded, rows, ids, cut)

    def _read_keys(self, run: bytes) -> Released:
        """A run that nothing is changed in: only what is told of its rows is read, checked as in `_walk`."""
        ids: list[str] = []
        at: i64 = 0
        rows: i64 = 0
        whole: i64 = len(run)
        steps, many = self._steps[: self._last], self._ids
        while at < whole:
            end = self._end_of(run, at)
            rows += 1
            here: i64 = at + 7
            found: str | None = None
            count = 0
            for step in steps:
                size = int32_at(run, here)
                start = here + 4
                here = start + size if size < _NEGATIVE else start
                if here > end:
                    raise IndexError
                if step.key and size < _NEGATIVE and len(ids) < MAX_IDS:
                    one = _id(step, run[start:here])
                    found = one if found is None else f"{found},{one}"
                    count += 1
            if found is not None and count == many:
                ids.append(found)
            at = end
        return self._made(run, 0, [], [], rows, ids, 0)

    def _made(
        self,
        run: bytes,
        done: int,
        released: list[bytes],
        recorded: list[bytes],
        rows: int,
        ids: list[str],
        cut: int,
    ) -> Released:
        for what, count in self._each.items():
            self._counts[what] += count * rows
        masks: tuple[Masked, ...] = ()
        if self._counts:
            masks = tuple(Masked(what, how, count) for (what, how), count in sorted(self._counts.items()))
        if not released:
            return Released(run, run, rows, tuple(ids), cut, masks)
        rest = run[done:]
        shown = b"".join((*released, rest))
        if shown == run:
            shown = run  # only the record differs
        return Released(shown, b"".join((*recorded, rest)), rows, tuple(ids), cut, masks)


def _id(step: Step, value: bytes) -> str:
    try:
        if not step.binary:
            return value.decode()
    except UnicodeDecodeError:
        return value.hex()
    try:
        return values.text_of(step.key, value, True)
    except values.Unreadable:
        return value.hex()


def _edited(run: bytes, at: int, end: int, edits: list[tuple[int, int, bytes | None]]) -> bytes:
    """One message with cells replaced, its length set anew."""
    pieces = []
    done = at + 5
    for start, stop, value in edits:
        pieces.append(run[done:start])
        pieces.append(_NULL if value is None else _SIZE.pack(len(value)) + value)
        done = stop
    pieces.append(run[done:end])
    body = b"".join(pieces)
    return b"D" + _SIZE.pack(len(body) + 4) + body
