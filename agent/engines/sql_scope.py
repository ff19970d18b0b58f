# SPDX-License-Identifier: Apache-2.0
"""What names mean inside of one statement, and what the walk over it has found so far.

Owns the values that the walk passes around: `Value` (where an expression's value comes from), `Item` (an
entry of FROM), `Frame` (one level of a query) and `Facts` (what is collected). Bias: a column name that
several entries could have comes from all of them; one that none has makes the statement unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from agent.engines.sql_catalog import Scope
from agent.engines.sql_tree import (
    NO_OFFSET,
    UNLIMITED,
    Amount,
    Call,
    Node,
    Origin,
    Output,
    Path,
    Reference,
    Relation,
    Via,
    Write,
)
from agent.protocols.sql import Fault
from policy.model import Action

MANY: Final = 1_000_000
"""Query vectors, where they come from rows: as many as there are."""
READING: Final = frozenset({Action.SEARCH, Action.READ, Action.SCAN, Action.COUNT})
SYSTEM_COLUMNS: Final = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid"})


@dataclass(frozen=True, slots=True)
class Value:
    """Where the value of an expression comes from. `opaque`: it may be anything."""

    origins: frozenset[Origin] = frozenset()
    opaque: bool = False

    @property
    def distance(self) -> bool:
        """A distance is in it."""
        return any(one.via == "distance" for one in self.origins)

    @property
    def searches(self) -> bool:
        """It is made of distances alone: to sort by it is the search itself."""
        return (
            self.distance
            and not self.opaque
            and all(one.via in ("distance", "count") for one in self.origins)
        )


NOTHING: Final = Value()
ANYTHING: Final = Value(opaque=True)


def through(value: Value, via: Via) -> Value:
    """The value after something was made of it: a column is then a value, or a distance, or a count."""
    if not value.origins:
        return value
    if via == "value":
        if all(one.via != "column" for one in value.origins):
            return value
        return Value(
            frozenset(_as(one, "value") if one.via == "column" else one for one in value.origins),
            value.opaque,
        )
    return Value(frozenset(_as(one, via) for one in value.origins), value.opaque)


def _as(one: Origin, via: Via) -> Origin:
    return Origin(one.relation, one.attribute, one.name, one.vector, via)


def union(values: Iterable[Value]) -> Value:
    found = list(values)
    if len(found) == 1:
        return found[0]
    if not found:
        return NOTHING
    return Value(frozenset().union(*(one.origins for one in found)), any(one.opaque for one in found))


Cell = tuple[str, Value]


@dataclass(slots=True)
class Item:
    """An entry of FROM. `open`: it may have columns that `cells` does not name; they are of this value."""

    name: str
    cells: list[Cell]
    schema: str | None = None  # of a relation without alias: schema.table.column
    relation: Relation | None = None
    open: Value | None = None
    system: bool = False
    guessed: bool = False  # a relation without a catalog: any name may be a column of it
    starless: bool = False  # the alias of USING: it adds nothing to a star
    used: frozenset[str] = frozenset()  # columns that USING took: they are in `Frame.merged` instead
    rows: Rows | None = None  # of a subquery: how many it gives

    def find(self, name: str) -> Value | None:
        found = [value for cell, value in self.cells if cell == name]
        return union(found) if found else None

    def other(self, name: str) -> Value:
        """A column that `cells` does not name, of an entry that is open."""
        if self.guessed:
            return Value(frozenset({Origin(0, 0, name, False, "column")}))
        return self.open or NOTHING

    @property
    def whole(self) -> Value:
        """The row as one value."""
        value = union(value for _, value in self.cells)
        if self.open is not None:
            value = union((value, self.open))
        return through(value, "value")


@dataclass(slots=True)
class Frame:
    """One level of a query: its FROM, the CTEs it sees, and the level around it."""

    parent: Frame | None = None
    items: list[Item] = field(default_factory=list)
    merged: list[Cell] = field(default_factory=list)  # columns of USING and NATURAL JOIN
    ctes: dict[str, Cte] = field(default_factory=dict)

    def levels(self) -> Iterable[Frame]:
        level: Frame | None = self
        while level is not None:
            yield level
            level = level.parent

    def cte(self, name: str) -> Cte | None:
        return next((level.ctes[name] for level in self.levels() if name in level.ctes), None)


@dataclass(slots=True)
class Cte:
    """A WITH query. `cells` None: it is not resolved yet (WITH RECURSIVE may look ahead)."""

    name: str
    node: Node
    path: Path
    frame: Frame
    recursive: bool
    cells: list[Cell] | None = None
    open: Value | None = None
    rows: Rows | None = None
    busy: bool = False
    again: bool = False  # it was used while it was resolved


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows a query can return: by its LIMIT, and whatever that says."""

    limit: Amount = UNLIMITED
    most: int | None = None
    ties: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a query gives."""

    outputs: tuple[Output, ...]
    open: bool = False  # it has columns that cannot be told (a star over a system relation)
    rows: Rows = field(default_factory=Rows)
    offset: Amount = NO_OFFSET

    @property
    def cells(self) -> list[Cell]:
        return [(one.name, Value(one.origins, one.opaque)) for one in self.outputs]

    @property
    def value(self) -> Value:
        return union(value for _, value in self.cells)


@dataclass(slots=True)
class Facts:
    """What is collected over one statement, with everything inside of it."""

    scope: Scope
    actions: set[Action] = field(default_factory=set)
    references: list[Reference] = field(default_factory=list)
    probes: set[Origin] = field(default_factory=set)
    thresholds: bool = False
    offsets: list[Amount] = field(default_factory=list)
    queries: set[str] = field(default_factory=set)  # the query vectors, each by its text
    distances: int = 0  # how often one was taken
    many: bool = False  # query vectors come from rows
    filtered: bool = False
    writes: list[Write] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    parameters: set[int] = field(default_factory=set)
    relations: set[Relation] = field(default_factory=set)
    carries: bool = True
    everything: bool = False
    row_lock: bool = False
    unknown: str | None = None
    fault: Fault | None = None
    setting: tuple[str, str | None] | None = None
    probing: int = 0  # depth of subqueries whose rows only decide, and are not returned

    def puzzle(self, why: str, fault: Fault | None = None) -> None:
        """The statement cannot be judged; the first reason is kept. `fault`: why it would not run."""
        if self.unknown is None:
            self.unknown, self.fault = why, fault

    def act(self, action: Action) -> None:
        if not self.probing or action not in READING:
            self.actions.add(action)

    def probe(self, value: Value) -> None:
        self.probes |= value.origins
        if value.opaque:
            self.probes.add(Origin(0, 0, "*", True, "value"))

    def touch(self, relation: Relation) -> None:
        for one in self.scope.catalog.under(relation):
            self.relations.add(one)
        if relation.opaque:
            self.everything = True
            self.carries = False


def look_up(facts: Facts, frame: Frame, name: str) -> Value:
    """A column by its bare name: the innermost level that has it, else a whole row of that name."""
    maybe: list[Value] = []
    for level in frame.levels():
        found = [value for cell, value in level.merged if cell == name]
        for item in level.items:
            if name in item.used:
                continue
            value = item.find(name)
            if value is not None:
                found.append(value)
        if found:
            return union((*found, *maybe))
        if name in SYSTEM_COLUMNS and any(item.relation or item.system for item in level.items):
            return union(maybe)
        maybe += [item.other(name) for item in level.items if item.open is not None]
    for level in frame.levels():
        for item in level.items:
            if item.name == name:
                return union((item.whole, *maybe))
    if not maybe:
        fault = Fault("42703", f'column "{name}" does not exist')
        facts.puzzle(f"there is no column {name!r} that is known", fault)
        return ANYTHING
    return union(maybe)


def find_item(frame: Frame, schema: str | None, name: str) -> Item | None:
    """An entry of FROM by its name; innermost first."""
    for level in frame.levels():
        for item in level.items:
            if item.name == name and schema in (None, item.schema):
                return item
    return None
