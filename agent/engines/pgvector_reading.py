# SPDX-License-Identifier: Apache-2.0
"""A text as the session sees it, and the `Operation` that it is.

Owns the translation from resolved statements to the policy's vocabulary: rows, offsets, fields, probes,
vectors. Bias: a count that cannot be told exceeds every limit; a column that cannot be told is any column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from agent.engines.sql_tree import Amount, Change, Resolved, Statement
from agent.engines.sql_utility import ENDS
from agent.protocols.sql import Fault
from agent.protocols.sql_made import Parameter
from policy.model import ANY_COLLECTION, Action
from policy.operation import Operation

ENGINE: Final = "pgvector"
MANY: Final = 1_000_000
FAR: Final = 2**62
MAX_METHOD: Final = 100
READS: Final = frozenset({Action.SEARCH, Action.READ, Action.SCAN, Action.COUNT})
WRITES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_INTEGERS: Final = {20: 8, 21: 2, 23: 4}
"""Bytes of int8, int2, int4 by type OID."""
_NAMES_EARLIER: Final = frozenset({"EXECUTE", "FETCH", "MOVE", "EXPLAIN"})


@dataclass(frozen=True)
class PgReading:
    """What a text means; see `agent.protocols.sql.Reading`. `resolved` is for the rewriting and the plans."""

    text: str
    resolved: Resolved
    guard: str
    size: int  # bytes of the text

    @cached_property
    def least(self) -> Operation:
        """The operation as far as the text tells it."""
        return _counted(self, _base(self), None, 0)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        return tuple(one.command for one in self.resolved.statements)

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        return self.resolved.statements

    @property
    def fault(self) -> Fault | None:
        return self.resolved.fault

    @cached_property
    def reads_parameters(self) -> bool:
        """Counts that are parameters, and what is written (its size is in its parameters)."""
        return any(
            any(amount.parameter is not None for amount in (one.limit, one.count, *one.offsets))
            or (one.writes and one.parameters)
            for one in self.statements
        )

    @cached_property
    def forgets(self) -> frozenset[str]:
        found: set[str] = set()
        for one in self.statements:
            if one.command in ("PREPARE", "DEALLOCATE"):
                found.add(one.name or "*")
            elif one.command == "DISCARD":
                found.add("*")
        return frozenset({"*"}) if self.resolved.unknown else frozenset(found)

    @cached_property
    def closes(self) -> frozenset[str]:
        found: set[str] = set()
        for one in self.statements:
            if one.command in ("DECLARE CURSOR", "CLOSE CURSOR"):
                found.add(one.name or "*")
            elif one.command in ENDS or one.command in ("DISCARD", "PREPARE TRANSACTION"):
                found.add("*")
        return frozenset({"*"}) if self.resolved.unknown else frozenset(found)

    @cached_property
    def changes(self) -> frozenset[Change]:
        """The end of a transaction is not among them: `Conversation.settle` knows whether it changes any."""
        return frozenset(
            change for one in self.statements if one.command not in ENDS for change in one.changes
        )

    @cached_property
    def copies(self) -> Literal["in", "out"] | None:
        return next((one.copies for one in self.statements if one.copies), None)

    @cached_property
    def names_earlier(self) -> bool:
        """It says EXECUTE or FETCH: what it means depends on what this connection prepared."""
        return any(one.command in _NAMES_EARLIER and _names(one) for one in self.statements)


def _names(one: Statement) -> bool:
    if one.command == "EXPLAIN":
        return one.inner is not None and one.inner.command == "EXECUTE"
    return True


def operation(reading: PgReading, parameters: Sequence[Parameter] | None, max_rows: int) -> Operation:
    """`parameters` None: not known yet, counts are the least they can be."""
    if max_rows == 0 and (parameters is None or not reading.reads_parameters):
        return reading.least
    return _counted(reading, reading.least, parameters, max_rows)


def _counted(
    reading: PgReading, base: Operation, parameters: Sequence[Parameter] | None, max_rows: int
) -> Operation:
    """`base` with the rows, offsets and bytes that parameters tell."""
    top_k: int | None = None
    unbounded = reading.resolved.unknown is not None
    offset: int | None = None
    for one in reading.statements:
        for amount in one.offsets:
            value = _value(amount, parameters)
            offset = max(offset or 0, FAR if value is None else value)
        if not one.actions & READS:
            continue
        rows = _rows(one, parameters, max_rows)
        if rows is None:
            unbounded = True
        else:
            top_k = (top_k or 0) + rows
    size = reading.size
    if parameters is not None and base.rows:  # what is written; a search is not measured by its vector
        size += sum(len(one.value) for one in parameters if one.value is not None)
    return base.asking(top_k, unbounded, offset, size)


def _rows(one: Statement, parameters: Sequence[Parameter] | None, max_rows: int) -> int | None:
    """The most rows a statement can return; None: no bound is known."""
    if one.command in ("EXPLAIN", "MOVE") or (one.command in WRITES and one.outputs is None):
        return 0
    bounds: list[int] = []
    if one.most is not None:
        bounds.append(one.most)
    for amount in (one.limit,) if not one.ties else ():
        _add(bounds, amount, parameters)
    _add(bounds, one.count, parameters)
    if max_rows > 0:
        bounds.append(max_rows)
    return min(bounds) if bounds else None


def _add(bounds: list[int], amount: Amount, parameters: Sequence[Parameter] | None) -> None:
    if amount.all:
        return
    value = _value(amount, parameters)
    if value is not None and 0 <= value < FAR:
        bounds.append(value)


def _value(amount: Amount, parameters: Sequence[Parameter] | None) -> int | None:
    """The count; None: not told, or NULL, which is no bound. Without parameters: the least, 0."""
    if amount.literal is not None:
        return amount.literal
    if amount.parameter is None:
        return 0 if amount.all else None
    if parameters is None:
        return 0
    if not 0 < amount.parameter <= len(parameters):
        return None
    return _integer(parameters[amount.parameter - 1])


def _integer(one: Parameter) -> int | None:
    """LIMIT's parameter is an int8 unless it was declared otherwise."""
    if one.value is None:
        return None
    if one.format == 1:
        size = _INTEGERS.get(one.type or 20)
        return int.from_bytes(one.value, "big", signed=True) if size == len(one.value) else None
    text = one.value.strip()
    return int(text) if 0 < len(text) < 20 and text.lstrip(b"+").isdigit() else None


def _base(reading: PgReading) -> Operation:
    """All that does not depend on parameters."""
    statements = reading.statements
    unknown = reading.resolved.unknown is not None
    actions: frozenset[Action] = frozenset().union(*(one.actions for one in statements))
    collections: frozenset[str] = frozenset().union(*(one.collections for one in statements))
    if unknown:
        actions |= {Action.UNKNOWN}
        collections |= {ANY_COLLECTION}
    if len(actions) > 1:
        actions -= {Action.SESSION}
    return Operation(
        ENGINE,
        reading.guard,
        "; ".join(reading.methods)[:MAX_METHOD] or ("unreadable" if unknown else "(empty)"),
        actions or frozenset({Action.SESSION}),
        collections,
        vectors=any(map(_vectors, statements)),
        fields=_fields(statements),
        probed=frozenset(
            probe.name
            for one in statements
            for probe in one.probes
            if not (probe.vector and probe.via == "distance")
        ),
        thresholds=any(one.thresholds for one in statements),
        filtered=any(one.filtered for one in statements),
        carries_filter=not unknown
        and all(one.carries_filter or one.actions <= {Action.SESSION} for one in statements),
        queries=min(sum(one.queries for one in statements), MANY),
        rows=min(sum(map(_written, statements)), MANY),
        bytes=reading.size,
    )


def _returning(one: Statement) -> Statement:
    """PREPARE and DECLARE show nothing yet, and what they prepare does."""
    return one.inner if one.inner is not None and one.command in ("PREPARE", "DECLARE CURSOR") else one


def _vectors(one: Statement) -> bool:
    return any(output.vector for output in _returning(one).outputs or ())


def _fields(statements: Sequence[Statement]) -> frozenset[str] | None:
    """The columns that come out; None: all there are."""
    found: set[str] = set()
    for one in statements:
        for output in _returning(one).outputs or ():
            if output.opaque or output.star:
                return None
            found |= {origin.name for origin in output.origins if not origin.vector}
    return frozenset(found)


def _written(one: Statement) -> int:
    """Rows of VALUES; a COPY or a query may write any number; UPDATE does not say."""
    if one.command in ("EXPLAIN",) and not one.analyze:
        return 0
    total = 0
    for write in one.writes:
        if write.source in ("values", "default", "query", "copy"):
            total += MANY if write.rows is None else write.rows
    return total
