# SPDX-License-Identifier: Apache-2.0
"""The resolved form of SQL: what each statement of a text touches, shows, probes and writes.

Owns values only. ``sql_parse`` makes the nodes, ``sql_walk`` resolves them against a catalog
(``sql_catalog``), ``pgvector`` turns them into an `Operation`, the rewriting and the column plans
read them. A node is a plain ``dict`` as libpg_query's JSON gives it (the keys are those of
pg_query.proto in camel case: ``{"SelectStmt": {"fromClause": [...]}}``); nodes are shared and never
changed in place: copy with `sql_parse.copy` before rewriting. Bias: what could not be resolved is
said (`Statement.unknown`), never left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from agent.protocols.sql import Fault
from policy.model import Action

Node = Mapping[str, Any]
Path = tuple[str | int, ...]
"""Way to a node from the root ``{"stmts": [{"stmt": {...}}, ...]}``: ("stmts", 0, "stmt", "SelectStmt")."""

VectorKind = Literal["vector", "halfvec", "sparsevec", "bit"]
Kind = Literal["r", "p", "v", "m", "f", "S", "t", "i", "I", "c"]
"""pg_class.relkind: table, partitioned, view, materialised view, foreign table, sequence, ..."""


# What the catalog knows.


@dataclass(frozen=True, slots=True)
class Attribute:
    """A column of a relation (pg_attribute)."""

    name: str
    number: int  # attnum, from 1; dropped columns leave gaps
    type: int  # OID
    vector: VectorKind | None = (
        None  # also for arrays and domains over one of these types; bit only as bit(n)
    )
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation of this database (pg_class). Compared by OID."""

    oid: int
    schema: str = field(compare=False)
    name: str = field(compare=False)
    kind: Kind = field(compare=False)
    collection: str = field(
        compare=False
    )  # as policy names it: "documents" in public, else "schema.name"; "" for system catalogs
    columns: tuple[Attribute, ...] = field(default=(), compare=False)
    key: frozenset[int] = field(
        default=frozenset(), compare=False
    )  # attribute numbers of the primary key; empty: there is none
    bases: frozenset[int] = field(default=frozenset(), compare=False)
    """OIDs of what it stands on: a view's relations, all the way down; a parent's children (partitions and
    inheritance); a child's parents, because its rows are theirs too."""
    opaque: bool = field(
        default=False, compare=False
    )  # a view that could not be read, a foreign table, a table with a rule on SELECT

    def column(self, name: str) -> Attribute | None:
        return next((one for one in self.columns if one.name == name), None)


# Where an output or a probe comes from.

Via = Literal["column", "value", "distance", "count"]
"""How much of the column comes through, from most to least usable for masking:
column    the column itself, unchanged (RowDescription then carries its OID and attribute number);
value     any expression over it: a cast, array_agg, subvector, ||, CASE, a whole row, row_to_json;
distance  an operand of a distance operator or function, and arithmetic over that;
count     only whether or how often it is there: count(x), x IS NULL, GROUPING."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A column that an expression reads. `attribute` 0: the whole row, any column of the relation."""

    relation: int  # OID; 0: of something that could not be resolved
    attribute: int
    name: str  # of the column, as the relation calls it; "*" for the whole row
    vector: bool
    via: Via = "column"


@dataclass(frozen=True, slots=True)
class Output:
    """One column of a result, in order, with stars expanded by the catalog.

    `origins` empty: constants and parameters only. Through views, subqueries and CTEs the origins are
    those of the tables beneath. `opaque`: what it may show is not known (treat as any column).
    """

    name: str
    origins: frozenset[Origin]
    target: Path | None  # of the ResTarget (shared by all outputs of one star); None: VALUES, TABLE, utility
    star: bool = False  # comes from a star
    opaque: bool = False

    @property
    def column(self) -> Origin | None:
        """The one column that this output is, unchanged; None for an expression."""
        if len(self.origins) != 1 or self.opaque:
            return None
        (origin,) = self.origins
        return origin if origin.via == "column" and origin.attribute else None

    @property
    def vector(self) -> bool:
        """A raw vector, or a part of one, can be in it."""
        return self.opaque or any(one.vector and one.via in ("column", "value") for one in self.origins)

    @property
    def distance(self) -> bool:
        return any(one.via == "distance" for one in self.origins)


# What a statement touches.

Change = Literal["catalog", "path", "role"]
Use = Literal["read", "insert", "update", "delete", "merge", "copy-in", "copy-out", "truncate", "lock", "ddl"]


@dataclass(frozen=True, slots=True)
class Reference:
    """One mention of a relation in a statement.

    `path` leads to the RangeVar: in FROM to the wrapper ``{"RangeVar": {...}}``, in the `relation` of
    INSERT, UPDATE, DELETE, MERGE, COPY to the inner dict. `within` leads to the statement body it stands
    in ((..., "SelectStmt"), (..., "UpdateStmt")): whose WHERE a filter would go to.
    """

    path: Path
    within: Path
    relation: Relation | None  # None: there is no such name in the catalog
    name: str  # as written, folded: "documents", "app.documents"
    alias: str  # how the statement calls it: the alias, else the relation's own name
    use: Use
    only: bool = False  # FROM ONLY t
    outer: bool = False  # stands on the nullable side of an outer join
    system: bool = False  # of pg_catalog or information_schema
    column_aliases: bool = False  # FROM t AS x(a, b)
    sampled: Path | None = None  # of the RangeTableSample around it


@dataclass(frozen=True, slots=True)
class Write:
    """What an INSERT, UPDATE, MERGE or COPY FROM writes into `reference`."""

    reference: Reference
    columns: tuple[str, ...]  # names of the target columns, in order
    source: Literal["values", "query", "default", "set", "copy"]
    rows: int | None  # of VALUES; None: cannot be told
    values: tuple[tuple[Path, ...], ...] = ()
    """Paths of the expressions: for "values" one tuple a row, for "set" one tuple; a value that has no
    expression of its own (SET (a, b) = (SELECT ...)) has the path of the whole."""
    conflict: Path | None = None  # of the OnConflictClause
    conflict_columns: tuple[str, ...] = ()  # columns that ON CONFLICT DO UPDATE sets
    flows: frozenset[Origin] = frozenset()  # columns of relations whose values go into what is written
    flows_opaque: bool = False  # ... and anything else may


@dataclass(frozen=True, slots=True)
class Amount:
    """A LIMIT, OFFSET or FETCH count. All None and not `known`: an expression that cannot be judged."""

    path: Path | None  # of the count's node; None: not written
    literal: int | None = None
    parameter: int | None = None  # n of $n
    all: bool = False  # not written, LIMIT ALL, LIMIT NULL, FETCH ALL

    @property
    def known(self) -> bool:
        return self.literal is not None or self.parameter is not None or self.all


UNLIMITED: Final = Amount(None, all=True)
NO_OFFSET: Final = Amount(None, literal=0)


@dataclass(frozen=True, slots=True)
class Call:
    """A function, procedure or operator that the allow-list knows to do something, or does not know."""

    name: str  # "schema.name" as far as resolved
    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a text, judged whole: with everything inside it."""

    command: str  # "SELECT", "INSERT", "CREATE TABLE", "BEGIN"...; what EXPLAIN and PREPARE wrap is `inner`
    path: Path  # ("stmts", i, "stmt")
    span: tuple[int, int]  # bytes of the text in UTF-8, from and to
    actions: frozenset[Action]
    references: tuple[Reference, ...] = ()
    outputs: tuple[Output, ...] | None = None  # None: it returns no rows, or rows that are not of tables
    probes: frozenset[Origin] = frozenset()
    """Columns in WHERE, ON, GROUP BY, HAVING, ORDER BY, DISTINCT, windows, set operations, aggregates'
    FILTER and ORDER BY, LIMIT, ON CONFLICT; not a vector column that is only an operand of a distance
    in ORDER BY, because that is the search itself."""
    thresholds: bool = False  # a distance is compared (WHERE, HAVING, ON, CASE)
    limit: Amount = UNLIMITED  # of the outermost level
    ties: bool = False  # FETCH ... WITH TIES
    offset: Amount = NO_OFFSET
    offsets: tuple[Amount, ...] = ()  # of all levels
    most: int | None = (
        None  # the most rows whatever the limit says (aggregate: 1; VALUES; by key); None: no bound
    )
    queries: int = 0  # query vectors
    filtered: bool = False
    writes: tuple[Write, ...] = ()
    calls: tuple[Call, ...] = ()  # those that make it unknown, admin or writing
    parameters: frozenset[int] = frozenset()  # numbers of $n in it
    collections: frozenset[str] = frozenset()  # as policy names them; "*" with `everything`
    relations: frozenset[Relation] = frozenset()  # all it touches, also beneath views
    everything: bool = False  # it may touch relations that nothing in it names: collections are *
    carries_filter: bool = True  # every row it reaches is reached through a reference that can be narrowed
    unknown: str | None = None  # why it cannot be judged (action unknown)
    fault: Fault | None = None  # where that is an error of the database's own
    inner: Statement | None = (
        None  # of EXPLAIN, PREPARE, DECLARE, COPY (query), CREATE TABLE AS; the statement
    )
    # that EXECUTE or FETCH names, as it was when it was prepared or declared
    name: str | None = None  # of PREPARE, EXECUTE, DEALLOCATE, DECLARE, FETCH, CLOSE, or of an extension
    count: Amount = UNLIMITED  # of FETCH
    row_lock: bool = False  # SELECT ... FOR UPDATE/SHARE
    analyze: bool = False  # EXPLAIN ANALYZE
    setting: tuple[str, str | None] | None = None  # SET name = value, lower case; None: not a constant, RESET
    changes: frozenset[Change] = frozenset()  # what is to be learnt anew after it
    copies: Literal["in", "out"] | None = None  # COPY over this connection


@dataclass(frozen=True, slots=True)
class Resolved:
    """A whole text against one state of the connection."""

    text: str
    tree: Node | None  # the root; None: it could not be parsed
    statements: tuple[Statement, ...]
    unknown: str | None = None  # why the text as a whole cannot be judged
    fault: Fault | None = None  # where that is an error of the database's own
    version: int = 0  # of the catalog it was resolved against
