# SPDX-License-Identifier: Apache-2.0
"""What a connection's names mean, and what was asked of the database and is not answered.

Owns the table of protocol statements and portals and the queue of outstanding messages. A name means what it
will mean when all that was forwarded succeeds; every change is written down at the message that makes it, and
taken back when that message fails or is skipped. Whoever reads a name must ask `is_settled` first: within the
segment (up to a Sync) that changed it, what follows a failure is skipped with it; in a later one it is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agent.protocols.postgres_forms import Format
from agent.protocols.sql import Column, Plan, Reading, Rewriting
from agent.protocols.sql_made import Parameter
from policy.model import Verdict
from policy.operation import Operation

if TYPE_CHECKING:
    from agent.protocols.postgres_query_record import Exchange

MAX_OUTSTANDING: Final = 16_384  # messages whose answers are awaited; beyond it the client waits
MAX_STATEMENTS: Final = 8_192  # protocol statements of one connection
MAX_PORTALS: Final = 1_024  # portals of one connection
MAX_NAME: Final = 63  # bytes: the server cuts longer names off, and two of them could be one


class Kind:
    """What an entry of the queue awaits. Plain numbers: an enum's members are looked up at every use."""

    PARSE: Final = 0
    BIND: Final = 1
    DESCRIBE_STATEMENT: Final = 2
    DESCRIBE_PORTAL: Final = 3
    EXECUTE: Final = 4
    CLOSE: Final = 5
    SYNC: Final = 6
    QUERY: Final = 7
    CALL: Final = 8


NAMES: Final = (
    "parse", "bind", "describe-statement", "describe-portal", "execute", "close", "sync", "query", "call"
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Statement:
    """A protocol statement as it stands in the database, or will when its Parse succeeds."""

    name: bytes
    source: bytes  # as the client sent it
    declared: tuple[int, ...]  # types as the client sent them
    segment: int
    reading: Reading
    operation: Operation
    verdict: Verdict
    rewriting: Rewriting
    standing: bytes | None  # the text the database has; None: not known, it must be parsed again
    turn: int  # when `verdict` was given
    epoch: int  # when `reading` was made
    types: tuple[int, ...] = ()  # as ParameterDescription told
    columns: tuple[Column, ...] | None = None  # as RowDescription told
    rowless: bool = False  # NoData was told instead
    whole: Operation | None = None  # the operation with all its rows, where parameters change nothing
    shape: tuple[tuple[Format, ...], tuple[Column, ...] | None, tuple[Column, ...]] | None = None
    plan: tuple[Rewriting, object, Verdict, Plan] | None = None  # the last one made, and what it was made of
    head: dict[str, str] | None = None  # what the record calls it; the very same dict each time

    def __post_init__(self) -> None:
        if self.name:
            self.head = {"statement-name": self.name.decode("utf-8", "replace")}


class Portal:
    """A statement with its values, as it was judged when it was bound."""

    __slots__ = (
        "columns", "described", "epoch", "name", "operation", "parameters", "reading", "results", "rewriting",
        "rows", "segment", "size", "statement", "turn", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        name: bytes,
        statement: Statement,
        segment: int,
        reading: Reading,
        parameters: tuple[Parameter, ...],
        results: tuple[Format, ...],
        rows: int,
        operation: Operation,
        verdict: Verdict,
        rewriting: Rewriting,
        turn: int,
        epoch: int,
        size: int,
    ) -> None:
        """`rows`: the most rows it was judged for, 0 for all. `size`: bytes of its values."""
        self.name = name
        self.statement = statement
        self.segment = segment
        self.reading = reading
        self.parameters = parameters
        self.results = results
        self.rows = rows
        self.operation = operation
        self.verdict = verdict
        self.rewriting = rewriting
        self.turn = turn
        self.epoch = epoch
        self.size = size
        self.described = False  # a Describe of it was forwarded
        self.columns: tuple[Column, ...] | None = None


class Entry:
    """One message to the database whose answer is awaited, in order."""

    __slots__ = (
        "all_rows", "effects", "error", "exchange", "index", "kind", "operation", "ours", "portal", "reading",
        "rewriting", "sqlstate", "statement", "undo", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        kind: int,
        ours: bool = False,
        statement: Statement | None = None,
        portal: Portal | None = None,
        exchange: Exchange | None = None,
        reading: Reading | None = None,
        operation: Operation | None = None,
        verdict: Verdict | None = None,
        rewriting: Rewriting | None = None,
        error: bytes | None = None,
        sqlstate: str | None = None,
    ) -> None:
        """`ours`: we put it in, its answer is not the client's. `error`: it stands for a refused message,
        and its error is replaced by this one, of `sqlstate`."""
        self.kind = kind
        self.ours = ours
        self.statement = statement
        self.portal = portal
        self.exchange = exchange
        self.reading = reading
        self.operation = operation
        self.verdict = verdict
        self.rewriting = rewriting
        self.error = error
        self.sqlstate = sqlstate
        self.undo: list[_Change] | None = None
        self.effects = False  # what it executes may change what later texts and names mean
        self.index = 0  # of the statements in its text, the one that is answered now
        self.all_rows = False  # a clamp stops it, but the client asked for all: it must look complete


class _Change:
    __slots__ = ("name", "new", "old", "table")

    def __init__(
        self, table: dict[bytes, object], name: bytes, old: object | None, new: object | None
    ) -> None:
        self.table = table
        self.name = name
        self.old = old
        self.new = new


class Names:
    """Statements and portals by name, with the changes that outstanding messages make."""

    __slots__ = ("finished", "held", "portals", "segment", "statements")

    def __init__(self) -> None:
        self.statements: dict[bytes, Statement] = {}
        self.portals: dict[bytes, Portal] = {}
        self.segment = 0  # of the messages that the client sends now
        self.finished = 0  # segments before this one are answered
        self.held = 0  # bytes of texts and values, never less than what the tables refer to

    def is_settled(self, thing: Statement | Portal) -> bool:
        """Whether what the name means can no longer be taken back without taking back the reader too."""
        return thing.segment == self.segment or thing.segment < self.finished

    def put(self, entry: Entry, thing: Statement | Portal) -> None:
        table: dict[bytes, object] = self.statements if isinstance(thing, Statement) else self.portals  # type: ignore[assignment]
        self._change(entry, table, thing.name, thing)

    def drop_statement(self, entry: Entry, name: bytes) -> None:
        if name in self.statements:
            self._change(entry, self.statements, name, None)  # type: ignore[arg-type]

    def drop_portal(self, entry: Entry, name: bytes) -> None:
        if name in self.portals:
            self._change(entry, self.portals, name, None)  # type: ignore[arg-type]

    def forget(self, entry: Entry, statements: Iterable[str], portals: Iterable[str]) -> None:
        """What an executed text may give another meaning: "*" is all of them."""
        for name in statements:
            for known in list(self.statements) if name == "*" else (_bytes(name),):
                self.drop_statement(entry, known)
        for name in portals:
            for known in list(self.portals) if name == "*" else (_bytes(name),):
                self.drop_portal(entry, known)

    def _change(self, entry: Entry, table: dict[bytes, object], name: bytes, new: object | None) -> None:
        old = table.get(name)
        if new is None:
            del table[name]
        else:
            table[name] = new
        if entry.undo is None:
            entry.undo = []
        entry.undo.append(_Change(table, name, old, new))

    def take_back(self, failed: list[Entry], later: Iterable[Entry]) -> None:
        """Undo the changes of messages that failed or were skipped; `later` are still outstanding."""
        for entry in reversed(failed):
            for change in reversed(entry.undo or ()):
                self._undo(change, later)

    @staticmethod
    def _undo(change: _Change, later: Iterable[Entry]) -> None:
        for entry in later:
            for other in entry.undo or ():
                if other.table is change.table and other.name == change.name:
                    other.old = change.old  # it stands; only what it would fall back to was wrong
                    return
        if change.old is None:
            change.table.pop(change.name, None)
        else:
            change.table[change.name] = change.old

    def end_segment(self, status: str) -> None:
        """A Sync was answered. Outside a transaction no portal outlives it."""
        self.finished += 1
        if status == "I" and self.portals:
            for name in [n for n, p in self.portals.items() if p.segment < self.finished]:
                del self.portals[name]

    def measure(self) -> int:
        """Bytes held now; costs a walk."""
        self.held = sum(len(s.source) for s in self.statements.values()) + sum(
            p.size for p in self.portals.values()
        )
        return self.held


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


Queue = deque[Entry]  # outstanding messages in order; no class of its own, which could not be compiled


def cut_segment(queue: Queue) -> list[Entry]:
    """Take out everything up to the next Sync, which stays: what the server skips after an error."""
    taken: list[Entry] = []
    while queue and queue[0].kind != Kind.SYNC:
        taken.append(queue.popleft())
    return taken


def has_sync(queue: Queue) -> bool:
    return any(entry.kind == Kind.SYNC for entry in queue)


def shaped(statement: Statement, results: tuple[Format, ...]) -> tuple[Column, ...] | None:
    """The statement's columns in the formats that a Bind asks for; the same object for the same formats."""
    columns = statement.columns
    if columns is None or not any(results):
        return columns
    shape = statement.shape
    if shape is not None and shape[0] == results and shape[1] is columns:
        return shape[2]
    if len(results) == 1:
        made = tuple(replace(c, format=results[0]) for c in columns)
    elif len(results) == len(columns):
        made = tuple(replace(c, format=f) for c, f in zip(columns, results, strict=True))
    else:
        return None  # the database refuses such a Bind
    statement.shape = (results, columns, made)
    return made
