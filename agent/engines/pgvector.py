# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL with pgvector as a `SqlEngine`.

Owns what one connection knows: its catalog and search path, what it prepared and declared under SQL's own
names, and when that must be learnt anew. The meaning of texts is ``sql_walk``'s, the rewriting, plans and
records are ``pgvector_rewrite``'s, ``pgvector_plan``'s and ``pgvector_describe``'s. Bias: where what a name
means could have changed, nothing is read until it is known again; a prepared statement or cursor that is in
doubt is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.engines import pgvector_errors, pgvector_written
from agent.engines import sql_catalog_queries as queries
from agent.engines import sql_catalog_read as reading_of
from agent.engines.pgvector_catalogs import BELIEVED, Catalogs
from agent.engines.pgvector_hidden import Hidden
from agent.engines.pgvector_kept import Kept
from agent.engines.pgvector_limits import clamp_of
from agent.engines.pgvector_reading import ENGINE, PgReading, operation
from agent.engines.sql_catalog import EMPTY, Catalog, Scope
from agent.engines.sql_catalog_read import Trouble
from agent.engines.sql_tree import Resolved, Statement
from agent.engines.sql_utility import ENDS, FIRST, OUTSIDE, is_utf8
from agent.engines.sql_views import with_views
from agent.engines.sql_walk import Memory, resolve
from agent.protocols.http import Refusal
from agent.protocols.sql import Column, Plan, Reading, Rewriting, Rows, Where
from agent.protocols.sql_made import Described, Parameter
from policy.model import Limit, Verdict
from policy.operation import Operation

MAX_REMEMBERED: Final = 1000
"""Statements and cursors of SQL's own names that one connection may have; what is beyond is unknown."""
RETRY: Final = 5.0
"""Seconds after a catalog query failed before it is asked again."""
REMEMBERED: Final = frozenset({"PREPARE", "DECLARE CURSOR"})

Want = Literal["whole", "check", "session"]
_TEXTS: Final[dict[Want, str]] = {
    "whole": queries.WHOLE_TEXT, "check": queries.CHECK_TEXT, "session": queries.SESSION_TEXT,
}  # fmt: skip
Restriction = tuple[Hidden, Limit | None]


@dataclass(slots=True)
class Remembered:
    """What PREPARE or DECLARE stands for, and the restrictions that it was brought under."""

    statement: Statement
    under: frozenset[Restriction]
    holds: bool = False  # a cursor WITH HOLD


@dataclass(slots=True)
class Under:
    """The restrictions a text was rewritten under: since it was last executed, and the last before."""

    reading: PgReading  # held, so that its id stays its own
    since: list[Restriction] = field(default_factory=list)
    last: Restriction | None = None

    def settled(self) -> frozenset[Restriction]:
        """Those that the execution which ended now may have been under."""
        found = frozenset(self.since or ([] if self.last is None else [self.last]))
        self.last = self.since[-1] if self.since else self.last
        self.since.clear()
        return found


class PgvectorEngine:
    name: Final = ENGINE
    masked_fields_known: Final = frozenset({"*"})  # any column may be named

    def __init__(self, guard: str, *, hmac_key: bytes, clock: Callable[[], float]) -> None:
        self._guard = guard
        self.key = hmac_key
        self.clock = clock
        self.kept = Kept(hmac_key)
        self.catalogs: Catalogs[PgReading] = Catalogs(clock)

    def converse(self, guard: str, where: Where) -> PgvectorConversation:
        return PgvectorConversation(self, guard or self._guard, where)


class PgvectorConversation:
    """One connection. `wants` is asked only where nothing is outstanding; `read` begins something."""

    def __init__(self, engine: PgvectorEngine, guard: str, where: Where) -> None:
        self._engine = engine
        self._catalogs = engine.catalogs
        self._guard = guard
        self._database = where.database
        self._scope = Scope(EMPTY, guess=True)
        self._number = 0  # of the scope, for the cache; 0: there is no catalog
        self._private = False  # the catalog was told inside of the transaction that is open
        self._strings = True  # standard_conforming_strings
        self._utf8 = True  # client_encoding
        self._path: str | None = None  # search_path as a ParameterStatus last told it
        self._checked = 0.0  # when the catalog was last told or confirmed to this connection
        self._asked: Want | None = None
        self._asked_at = 0.0
        self._dirty: Want | None = "session"
        self._failed_at: float | None = None
        self._trouble: str | None = None
        self._status: Literal["I", "T", "E"] = "I"
        self._idle = True
        self._moved = False  # the open transaction set a path or a role, or changed the catalog
        self._changed = False  # ... the catalog
        self._ran = False  # the open transaction has run a query: SET TRANSACTION can come no more
        self._rewritten = False
        self._memory: dict[tuple[str, str], Remembered] = {}
        self._under: dict[int, Under] = {}
        for name, value in where.parameters.items():
            self.status(name, value)

    # What names mean.

    @property
    def wants(self) -> str | None:
        want = self._want()
        self._asked = want
        if want == "check":
            self._asked_at = self._engine.clock()
        return None if want is None else _TEXTS[want]

    def _want(self) -> Want | None:
        if self._status == "E":
            return None
        if self._failed_at is not None and self._engine.clock() - self._failed_at < RETRY:
            return None
        held = self._catalogs.find(self._database)
        if self._dirty == "whole" or (held is None and not self._private):
            return "whole"
        if self._private:
            return self._dirty
        if self._number == 0 or held is not self._scope.catalog:
            if self._may_ask():
                # Another worker's clients may have changed it: who comes new is not told what stood before.
                return "check" if self._number == 0 or self._is_due() else "session"
            return self._dirty
        if self._dirty is not None:
            return self._dirty
        return "check" if self._may_ask() and self._is_due() else None

    def doubt_names(self) -> bool:
        self._dirty = self._dirty or "check"
        return self._want() is not None

    def doubt_late(self, reading: Reading) -> bool:
        if self._ran or FIRST.issuperset(reading.methods):
            return False
        held = self._catalogs.find(self._database)
        return (held is not self._scope.catalog or self._is_due()) and self.doubt_names()

    def _is_due(self) -> bool:
        """Inside of a transaction an answer is this connection's alone, and so is its age."""
        since = self._engine.clock() - self._checked
        return self._catalogs.is_due(self._database) and (self._status == "I" or since > BELIEVED)

    def _may_ask(self) -> bool:
        """Outside of a transaction, or in one that has run a query: otherwise SET TRANSACTION would fail."""
        return self._idle and (self._status == "I" or self._ran)

    def learn(self, results: Sequence[Rows] | None) -> None:
        want, self._asked = self._asked, None
        if results is None or want is None:
            self._fail("the database did not answer a question about its catalog")
            return
        try:
            self._learn(want, results)
        except Trouble as trouble:
            self._fail(str(trouble))

    def _fail(self, why: str) -> None:
        self._failed_at, self._trouble = self._engine.clock(), why
        self._scope, self._number = Scope(Catalog(0, "", trouble=why)), self._catalogs.number()

    def _learn(self, want: Want, results: Sequence[Rows]) -> None:
        standing = reading_of.read_session(results)
        session = len(queries.SESSION)
        catalogs, outside = self._catalogs, self._status == "I"
        catalog = self._scope.catalog if self._private else catalogs.find(self._database)
        if want == "whole":
            catalog = self._read_catalog(results[session:], standing.path)
            if outside:
                catalogs.put(self._database, catalog)
            self._private = not outside
        elif want == "check" and not self._stands(catalog, _cell(results[session]), outside):
            self._dirty = "whole"
            return
        if catalog is None:
            self._dirty = "whole"
            return
        temporary = reading_of.read_temporary(standing, catalog)
        self._scope = Scope(catalog, standing.path, temporary, standing.temporary_schema)
        plain = not temporary and not self._private
        self._number = catalogs.scope(catalog, standing.path) if plain else catalogs.number()
        self._checked = self._engine.clock()
        self._strings = standing.strings == "on"
        self._utf8 = is_utf8(standing.encoding) or standing.encoding == "SQL_ASCII"
        self._path = standing.search_path
        self._dirty = self._failed_at = self._trouble = None

    def _stands(self, catalog: Catalog | None, fingerprint: str, outside: bool) -> bool:
        """Inside of a transaction it may be an old one's: that tells only about this connection."""
        if outside:
            took = self._engine.clock() - self._asked_at
            return self._catalogs.stands(self._database, fingerprint, took)
        return catalog is not None and catalog.fingerprint == fingerprint

    def _read_catalog(self, results: Sequence[Rows], path: tuple[str, ...]) -> Catalog:
        catalog, views = reading_of.read_catalog(self._catalogs.number(), _cell(results[0]), results[1:])
        return with_views(catalog, views, path)

    def status(self, name: str, value: str) -> None:
        match name:
            case "client_encoding":
                self._utf8 = is_utf8(value) or value.upper() == "SQL_ASCII"
            case "standard_conforming_strings":
                self._strings = value == "on"
            case "search_path":
                if self._path is not None and value != self._path:
                    self._doubt("session")
                self._path = value

    def _doubt(self, want: Want) -> None:
        if self._number and self._dirty != "whole":
            self._dirty = want

    # What a text means.

    def read(self, text: str) -> Reading:
        self._idle = False
        found = self._catalogs.cache.get((self._number, text))
        if found is not None and not (self._memory and found.names_earlier) and self._utf8 and self._strings:
            return found
        why = self._unreadable(text)
        if why is not None:
            return PgReading(text, Resolved(text, None, (), why), self._guard, len(text))
        if found is None:
            found = self._resolve(text, None)
            self._catalogs.cache.put((self._number, text), found)
        if self._memory and found.names_earlier:
            return self._resolve(text, {key: one.statement for key, one in self._memory.items()})
        return found

    def _resolve(self, text: str, memory: Memory | None) -> PgReading:
        size = len(text.encode("utf-8", "surrogateescape"))
        return PgReading(text, resolve(text, self._scope, memory), self._guard, size)

    def _unreadable(self, text: str) -> str | None:
        if not self._utf8 and not text.isascii():
            return "texts beyond ASCII can be read in UTF-8 alone (client_encoding)"
        if not self._strings and "\\" in text:
            return "a text with backslashes can be read with standard_conforming_strings = on alone"
        return None

    def operation(
        self, reading: Reading, parameters: Sequence[Parameter] | None, max_rows: int = 0
    ) -> Operation:
        return operation(_ours(reading), parameters, max_rows)

    # Bringing it under a verdict.

    def rewrite(self, reading: Reading, operation: Operation, verdict: Verdict) -> Rewriting:
        ours = _ours(reading)
        under = (Hidden.of(verdict), clamp_of(verdict))
        self._same_as_prepared(ours, under)
        made = self._engine.kept.rewrite(ours.resolved, verdict)
        if not REMEMBERED.isdisjoint(ours.methods):
            if len(self._under) >= MAX_REMEMBERED:
                self._under.clear()
            self._under.setdefault(id(ours), Under(ours)).since.append(under)
        self._rewritten = self._rewritten or made.changed
        return Rewriting(ours, made.text, notices=made.notices)

    def _same_as_prepared(self, reading: PgReading, under: Restriction) -> None:
        """EXECUTE and FETCH run what was rewritten earlier: under the same restrictions, or not at all."""
        if not reading.names_earlier:
            return
        for one in reading.statements:
            target = one.inner if one.command == "EXPLAIN" else one
            if target is None or target.command not in ("EXECUTE", "FETCH", "MOVE") or target.name is None:
                continue
            kind = "prepared" if target.command == "EXECUTE" else "cursor"
            held = self._memory.get((kind, target.name))
            if held is not None and held.under != {under}:
                raise Refusal("policy-changed", f"{target.name} was made under another policy: make it again")

    def check(self, rewriting: Rewriting, parameters: Sequence[Parameter], verdict: Verdict) -> None:
        if not verdict.filters and verdict.vectors and verdict.fields is None:
            return  # neither of them asks anything of a parameter
        resolved = _ours(rewriting.reading).resolved
        pgvector_written.check_parameters(resolved, parameters, verdict)
        pgvector_written.check_queries(resolved, parameters, verdict)

    def plan(
        self, rewriting: Rewriting, statement: int, columns: Sequence[Column] | None, verdict: Verdict
    ) -> Plan:
        ours = _ours(rewriting.reading)
        vectors = self._scope.catalog.vectors
        return self._engine.kept.plan(ours.resolved, statement, columns, verdict, vectors)

    # What happened.

    def settle(self, reading: Reading, statement: int, tag: str | None) -> None:
        ours = _ours(reading)
        if statement >= len(ours.statements):
            return
        one = ours.statements[statement]
        if tag is None:
            return  # it failed: what stood before stands
        if one.command not in OUTSIDE:
            self._ran = True
        self._remember(ours, one)
        if one.command in ENDS:
            if self._moved:
                self._doubt("whole" if self._changed and one.command != "COMMIT" else "session")
            return
        if one.changes:
            self._moved = True
            if "catalog" in one.changes:
                self._changed = True
                self._doubt("whole")
            else:
                self._doubt("session")

    def _remember(self, reading: PgReading, one: Statement) -> None:
        memory, name = self._memory, one.name
        match one.command:
            case "PREPARE" | "DECLARE CURSOR":
                kind = "prepared" if one.command == "PREPARE" else "cursor"
                memory.pop((kind, name or ""), None)
                if name and one.inner is not None and len(memory) < MAX_REMEMBERED:
                    under = self._under.get(id(reading), Under(reading)).settled()
                    memory[kind, name] = Remembered(one.inner, under, _holds(reading, one))
            case "DEALLOCATE" | "CLOSE CURSOR":
                kind = "prepared" if one.command == "DEALLOCATE" else "cursor"
                for key in [key for key in memory if key[0] == kind and name in (None, key[1])]:
                    del memory[key]
            case "DISCARD":
                memory.clear()
            case "COMMIT" | "ROLLBACK" | "ROLLBACK TO" | "PREPARE TRANSACTION":
                kept = one.command == "COMMIT"
                for key in [
                    k for k, held in memory.items() if k[0] == "cursor" and not (kept and held.holds)
                ]:
                    del memory[key]

    def ended(self, status: Literal["I", "T", "E"]) -> None:
        was, self._status = self._status, status
        self._idle = True
        if status != "I":
            return
        if self._memory:
            for key in [k for k, held in self._memory.items() if k[0] == "cursor" and not held.holds]:
                del self._memory[key]
        if self._changed:
            self._catalogs.doubt(self._database)
        if self._private or self._moved:
            self._private = False
            self._doubt("check" if self._changed else "session")
            if self._changed or self._dirty == "whole":
                self._dirty = "check"
        if was != "I" or self._moved:
            self._moved = self._changed = False
        self._ran = False

    def error(self, fields: Mapping[str, str], verdict: Verdict) -> Mapping[str, str]:
        return pgvector_errors.show_error(fields, verdict, self._rewritten, self._engine.key)

    def describe(self, reading: Reading, parameters: Sequence[Parameter], masked: bool) -> Described:
        return self._engine.kept.describe(reading.text, parameters, self._scope.catalog.vectors, masked)


def _ours(reading: Reading) -> PgReading:
    if not isinstance(reading, PgReading):
        raise Refusal("reading", "the statement was not read by this engine")
    return reading


def _cell(rows: Rows) -> str:
    """The one value of a result of one row and one column. Raises Trouble."""
    if len(rows) != 1 or len(rows[0]) != 1:
        raise Trouble("the database's answer about its state cannot be read")
    return rows[0][0] or ""


def _holds(reading: PgReading, one: Statement) -> bool:
    """DECLARE ... WITH HOLD (CURSOR_OPT_HOLD, nodes/parsenodes.h)."""
    if one.command != "DECLARE CURSOR" or reading.resolved.tree is None:
        return False
    node = reading.resolved.tree["stmts"][one.path[1]]["stmt"].get("DeclareCursorStmt", {})
    return bool(node.get("options", 0) & 0x20)
