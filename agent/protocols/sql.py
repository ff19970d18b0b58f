# SPDX-License-Identifier: Apache-2.0
"""SQL as values: what a PostgreSQL session hands to its engine, and what the engine gives back.

The session owns the wire: messages, names of protocol statements and portals, order, pipelines. The
engine owns the meaning: what a text reads and writes, what it becomes under a verdict, what each
column of a result may show. Neither has a socket or a clock. Bias: in enforce what cannot be read is
``unknown``, and what cannot be proven maskable is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent.protocols.sql_made import Described, Parameter, Released
from policy.model import Verdict
from policy.operation import Operation

Rows = Sequence[Sequence[str | None]]  # a result in text format, as our own catalog queries get it


@dataclass(frozen=True, slots=True)
class Column:
    """One field of a RowDescription, in order."""

    name: str
    table: int  # OID of the relation it comes from, 0 when it is an expression
    attribute: int  # number of the column in that relation, 0 when it is an expression
    type: int
    size: int
    modifier: int
    format: Literal[0, 1]


@dataclass(frozen=True, slots=True)
class Fault:
    """The error that the database itself would give to a text."""

    sqlstate: str
    message: str
    position: int | None = None  # in the text, in characters from 1
    of_catalog: bool = True  # by a catalog, which may be older than the database's own


class Reading(Protocol):
    """What a text (one Parse, or a whole simple Query string) means on this connection now.

    Immutable. Values that depend on parameters come with `Conversation.operation`.
    """

    @property
    def text(self) -> str: ...

    @property
    def methods(self) -> tuple[str, ...]:
        """The command of each statement in order: ("SELECT",), ("BEGIN", "INSERT", "COMMIT"), ()."""
        ...

    @property
    def fault(self) -> Fault | None:
        """Why the database would not run it, whoever asks; None: it might, or that is not known."""
        ...

    @property
    def reads_parameters(self) -> bool:
        """False: `operation` gives the same whatever the parameters are."""
        ...

    @property
    def forgets(self) -> frozenset[str]:
        """Protocol statements whose name may mean another thing after it (PREPARE, DEALLOCATE); "*": all."""
        ...

    @property
    def closes(self) -> frozenset[str]:
        """The same for portals (DECLARE, CLOSE, end of a transaction gives "*")."""
        ...

    @property
    def changes(self) -> frozenset[Literal["catalog", "path", "role"]]:
        """What `Conversation.learn` must be told again before the next text is read."""
        ...

    @property
    def copies(self) -> Literal["in", "out"] | None:
        """A COPY that streams rows over this connection."""
        ...


@dataclass(frozen=True, slots=True)
class Rewriting:
    """The text as it is forwarded under a verdict: the reading's own where nothing had to change."""

    reading: Reading
    text: str
    max_rows: int | None = (
        None  # the most rows an Execute may ask for (clamp without a rewrite); None: no bound
    )
    notices: tuple[str, ...] = ()  # to tell the client (NOTICE): what was clamped


class Plan(Protocol):
    """What happens to the rows of one result. Made once per RowDescription (or CopyOutResponse)."""

    @property
    def columns(self) -> Sequence[Column] | None:
        """The RowDescription the client gets where it differs from the server's (a masked vector as text)."""
        ...

    def release(self, run: bytes) -> Released:
        """`run`: whole DataRow or CopyData messages. Raises Refusal (agent/protocols/http.py)."""
        ...


@dataclass(frozen=True, slots=True)
class Where:
    """What a connection's startup said, and what is known of the server (ParameterStatus by name)."""

    user: str
    database: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    named: str | None = None  # the user that the client named, where that is another


class Conversation(Protocol):
    """The engine's memory of one connection: SQL-level PREPARE and cursors, search path, role, catalog."""

    @property
    def wants(self) -> str | None:
        """A catalog query to be sent by us on this connection, as one simple Query, at the next ReadyForQuery
        in status I or T before anything else is read; None: nothing is needed. Never sent in observe."""
        ...

    def doubt_names(self) -> bool:
        """Let `wants` ask whether the catalog still stands. False: it cannot be asked at this moment."""
        ...

    def doubt_late(self, reading: Reading) -> bool:
        """As `doubt_names`, where a transaction has run nothing yet, in which `wants` asks for nothing: SET
        TRANSACTION may come. False too where nothing is due, and for a reading that may stand before it."""
        ...

    def learn(self, results: Sequence[Rows] | None) -> None:
        """The results of `wants`, one per statement in it; None when it failed (then names stay unknown)."""
        ...

    def status(self, name: str, value: str) -> None:
        """A ParameterStatus passed by."""
        ...

    def read(self, text: str) -> Reading:
        """Cached by text and state. Never raises for bad SQL: then the reading is unknown."""
        ...

    def operation(
        self, reading: Reading, parameters: Sequence[Parameter] | None, max_rows: int = 0
    ) -> Operation:
        """`parameters` None: at Parse, when they are not known (limits then count as the least they can be).
        `max_rows`: of the Execute, 0 for all."""
        ...

    def rewrite(self, reading: Reading, operation: Operation, verdict: Verdict) -> Rewriting:
        """Filters, clamps, columns. Raises Refusal where a restriction cannot be carried."""
        ...

    def check(self, rewriting: Rewriting, parameters: Sequence[Parameter], verdict: Verdict) -> None:
        """At Bind: written values against mandatory filters. Raises Refusal."""
        ...

    def plan(
        self, rewriting: Rewriting, statement: int, columns: Sequence[Column] | None, verdict: Verdict
    ) -> Plan:
        """For the rows of the `statement`-th statement (from 0). `columns` None: COPY. Raises Refusal."""
        ...

    def settle(self, reading: Reading, statement: int, tag: str | None) -> None:
        """A statement ended: its CommandComplete tag, or None when it failed or was skipped."""
        ...

    def ended(self, status: Literal["I", "T", "E"]) -> None:
        """A ReadyForQuery: the transaction status."""
        ...

    def error(self, fields: Mapping[str, str], verdict: Verdict) -> Mapping[str, str]:
        """ErrorResponse or NoticeResponse fields (by their one-letter code) as the client may see them."""
        ...

    def describe(self, reading: Reading, parameters: Sequence[Parameter], masked: bool) -> Described:
        """The request of an exchange for the record: JSON of the statement and its decoded parameters.
        `masked`: its recorded form is wanted too."""
        ...


class SqlEngine(Protocol):
    """One SQL database engine. Sans-I/O; one instance per worker and guard, shared by its sessions."""

    @property
    def name(self) -> str: ...

    @property
    def masked_fields_known(self) -> frozenset[str]: ...

    def converse(self, guard: str, where: Where) -> Conversation: ...
