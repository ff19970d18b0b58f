# SPDX-License-Identifier: Apache-2.0
"""The deciding side of a PostgreSQL connection in enforce: what a text means now, and whether it may run.

Owns verdicts, refusals and what a statement must be in the database before it may be used. Every Query,
Parse, Bind and Execute is judged under the policy of its own moment. A text that was rewritten otherwise
before is parsed again under its name, unseen by the client. Bias: fail closed. What the conversation cannot
know at this place of the pipeline is refused; the `Intent` stands in the output before any byte it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from agent.protocols.http import Refusal
from agent.protocols.postgres_forms import Named, Parse, write_named, write_parse
from agent.protocols.postgres_messages import Front, error_response
from agent.protocols.postgres_query_answers import AnsweringSide
from agent.protocols.postgres_query_link import INSUFFICIENT_PRIVILEGE, POISON, POISON_CALL, POISON_QUERY
from agent.protocols.postgres_query_record import Exchange, denied
from agent.protocols.postgres_query_state import MAX_PORTALS, MAX_STATEMENTS, Entry, Kind, Portal, Statement
from agent.protocols.session import Output
from agent.protocols.sql import Fault, Reading, Rewriting
from agent.protocols.sql_made import Parameter
from policy.model import Verdict
from policy.operation import Operation

# What ends an aborted transaction: all that the database still runs in one.
EXITS: Final = frozenset({"ROLLBACK", "COMMIT", "ABORT", "END", "ROLLBACK TO"})
# What leaves client_encoding alone.
_PLAIN: Final = frozenset(
    {"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "TABLE", "BEGIN", "FETCH", "COPY"}
)
_POISONS: Final = {Kind.QUERY: POISON_QUERY, Kind.CALL: POISON_CALL}
_Known = tuple[Reading, Operation, Verdict, Rewriting]


class Refused(Exception):
    """Judged, and not allowed. Raised and caught within this package."""

    def __init__(
        self, reading: Reading | None, operation: Operation, verdict: Verdict, fault: Fault | None = None
    ) -> None:
        """`fault`: what the client is told instead."""
        super().__init__(verdict.message)
        self.fault = fault
        self.reading = reading
        self.operation = operation
        self.verdict = verdict


class Unconfirmed(Exception):
    """The catalog is to be asked before the message at hand is read. Of this package, too."""


class DecidingSide(AnsweringSide):
    """The part of a session between a whole message of the client and the database."""

    _calm: Reading | None = None  # the last one that was forwarded and can change nothing
    _confirmed = False  # the catalog was asked since the message at hand was first read
    _turn = 0  # counts reads: what was judged in this one was judged under the policy of this moment

    # -- what a text means ---------------------------------------------------------------------------

    def _read_text(self, source: bytes, *, asked: bool = False) -> Reading:
        """Raises Refused where what the text means cannot be known here.

        `asked`: right before this message the conversation wanted nothing.
        """
        reading = self._conversation.read(source.decode("utf-8", "surrogateescape"))
        message = None
        if (
            not asked
            and self._conversation.wants is not None
            and not (self._status == "E" and reading.methods and EXITS.issuperset(reading.methods))
        ):
            message = (
                "what names mean has changed in this pipeline and is not known again before its end:"
                " send a Sync (or leave the failed transaction) first"
            )
        elif self._moved and not source.isascii():
            message = "client_encoding may be changing in this pipeline: send a Sync before text beyond ASCII"
        if message is not None:
            operation = self._recorder.unknown("unreadable", len(source))
            raise Refused(reading, operation, denied(self._judge(operation), message))
        return reading

    def _confirm(self, reading: Reading) -> None:
        """Raises Unconfirmed where a transaction waited for its first query, and the catalog is due."""
        if (
            self._status == "T"
            and not (self._queue or self._open or self._confirmed)
            and self._conversation.doubt_late(reading)
        ):
            raise Unconfirmed

    def _allow(self, reading: Reading, operation: Operation) -> Verdict:
        verdict = self._judge(operation)
        if verdict.outcome != "allow":
            raise Refused(reading, operation, verdict)
        return verdict

    def _rewrite(self, reading: Reading, operation: Operation, verdict: Verdict) -> Rewriting:
        try:
            return self._conversation.rewrite(reading, operation, verdict)
        except Refusal as refusal:
            raise Refused(reading, operation, denied(verdict, refusal.message)) from None

    def _decide_text(self, source: bytes, parameters: tuple[Parameter, ...] | None) -> _Known:
        asked = not (self._queue or self._open or self._confirmed)  # by `_must_wait`
        reading = self._read_text(source, asked=asked)
        self._confirm(reading)
        operation = self._conversation.operation(reading, parameters)
        if reading.fault is not None:
            self._say_fault(reading, operation, reading.fault)
        verdict = self._allow(reading, operation)
        return reading, operation, verdict, self._rewrite(reading, operation, verdict)

    def _say_fault(self, reading: Reading, operation: Operation, fault: Fault) -> None:
        """Refuse what the database would not run with the database's own error, unless a rule denies it.

        Raises Refused, or Unconfirmed where the catalog may be older than the database's. Returns where it
        cannot be asked in this place: the refusal is then an ordinary one.
        """
        verdict = self._judge(operation)
        if verdict.outcome != "deny" or verdict.rule is not None:
            return
        if fault.of_catalog and not self._confirmed:
            if self._open or self._status == "E" or not self._conversation.doubt_names():
                return
            raise Unconfirmed
        raise Refused(reading, operation, replace(verdict, message=fault.message), fault)

    def _decide_rows(
        self,
        reading: Reading,
        operation: Operation,
        parameters: Sequence[Parameter],
        known: Statement | Portal,
    ) -> tuple[Verdict, Rewriting]:
        """A verdict of now, and the rewriting under it: the known ones where nothing has changed."""
        same = operation is known.operation and reading is known.reading
        if same and known.turn == self._turn:
            verdict, rewriting = known.verdict, known.rewriting
        else:
            verdict = self._allow(reading, operation)
            if same and (verdict is known.verdict or verdict == known.verdict):
                verdict, rewriting = known.verdict, known.rewriting
            else:
                rewriting = self._rewrite(reading, operation, verdict)
        try:
            self._conversation.check(rewriting, parameters, verdict)
        except Refusal as refusal:
            raise Refused(reading, operation, denied(verdict, refusal.message)) from None
        return verdict, rewriting

    # -- statements ----------------------------------------------------------------------------------

    def _refresh(self, statement: Statement) -> None:
        """What a statement means may have changed since it was last read."""
        if statement.epoch == self._epoch:
            return
        reading = self._read_text(statement.source)
        if reading is not statement.reading:
            statement.reading = reading
            statement.whole = None
        statement.epoch = self._epoch

    def _decide_bind(self, statement: Statement, parameters: tuple[Parameter, ...]) -> tuple[int, _Known]:
        """The verdict on a portal, and the rows it is for: 0 is all, 1 where all would be too many."""
        self._confirm(statement.reading)
        self._refresh(statement)
        reading = statement.reading
        operation = statement.whole
        if operation is None or reading.reads_parameters:
            operation = self._conversation.operation(reading, parameters, 0)
            if operation == statement.operation:
                operation = statement.operation
            if not reading.reads_parameters:
                statement.whole = operation
        try:
            verdict, rewriting = self._decide_rows(reading, operation, parameters, statement)
            rows = 0
        except Refused as refused:
            # A portal need not give all its rows: each Execute is judged for those that it asks for.
            least = self._conversation.operation(reading, parameters, 1)
            if least == operation:
                raise
            operation, rows = least, 1
            try:
                verdict, rewriting = self._decide_rows(reading, operation, parameters, statement)
            except Refused:
                raise refused from None
        statement.operation, statement.verdict, statement.rewriting = operation, verdict, rewriting
        statement.turn = self._turn
        return rows, (reading, operation, verdict, rewriting)

    def _decide_execute(self, portal: Portal, rows: int) -> None:
        """Bring the portal's verdict up to this moment and to the rows that are asked for."""
        if portal.turn == self._turn and portal.epoch == self._epoch and portal.rows == rows:
            return
        text = portal.rewriting.text
        reading = portal.reading
        if portal.epoch != self._epoch:
            reading = self._read_text(portal.statement.source)
        operation = portal.operation
        if rows != portal.rows or reading is not portal.reading:
            operation = self._conversation.operation(reading, portal.parameters, rows)
            if operation == portal.operation:
                operation = portal.operation
        verdict, rewriting = self._decide_rows(reading, operation, portal.parameters, portal)
        if rewriting.text != text and rows:
            # Bound for all its rows it may be stricter than this Execute alone would have to be.
            whole = self._conversation.operation(reading, portal.parameters, 0)
            verdict = self._allow(reading, whole)
            rewriting = self._rewrite(reading, whole, verdict)
        if rewriting.text != text:
            message = "the policy has changed since this portal was bound: bind it again"
            raise Refused(reading, operation, denied(verdict, message))
        portal.reading, portal.operation, portal.verdict, portal.rewriting = (
            reading,
            operation,
            verdict,
            rewriting,
        )
        portal.rows, portal.turn, portal.epoch = rows, self._turn, self._epoch

    def _stand(self, out: Output, statement: Statement, rewriting: Rewriting) -> Statement:
        """Make the database's statement of this name the one that `rewriting` says."""
        text = rewriting.text.encode("utf-8", "surrogateescape")
        if text == statement.standing:
            return statement
        name, types = statement.name, statement.types or statement.declared
        if name:
            out.to_server.append(write_named(Front.CLOSE, Named("statement", name)))
            self._queue.append(Entry(Kind.CLOSE, ours=True))
        out.to_server.append(write_parse(Parse(name, text, types)))
        statement.standing = None  # if this fails nothing is known of what stands there
        made = replace(
            statement, standing=text, segment=self._names.segment, columns=None, rowless=False, plan=None
        )
        entry = Entry(
            Kind.PARSE,
            ours=True,
            statement=made,
            reading=made.reading,
            operation=made.operation,
            verdict=made.verdict,
            rewriting=rewriting,
        )
        self._names.put(entry, made)
        self._queue.append(entry)
        return made

    def _has_room(
        self, table: dict[bytes, Statement] | dict[bytes, Portal], name: bytes, size: int
    ) -> str | None:
        """Why nothing more can be held, or None."""
        names = self._names
        most = MAX_PORTALS if table is names.portals else MAX_STATEMENTS
        if len(table) >= most and name not in table:
            return f"more than {most} {'portals' if table is names.portals else 'prepared statements'}"
        names.held += size
        if names.held > self._bounds.body and names.measure() + size > self._bounds.body:
            return f"statements and portals of more than {self._bounds.body} bytes"
        return None

    # -- refusals ------------------------------------------------------------------------------------

    def _begin(
        self,
        out: Output,
        reading: Reading | None,
        parameters: Sequence[Parameter],
        operation: Operation,
        verdict: Verdict,
        rewriting: Rewriting | None,
        head: dict[str, str] | None,
    ) -> Exchange:
        self._last = verdict
        return self._recorder.begin(out, reading, parameters, operation, verdict, rewriting, head)

    def _refuse(
        self,
        out: Output,
        kind: int,
        refused: Refused,
        parameters: Sequence[Parameter] = (),
        head: dict[str, str] | None = None,
    ) -> None:
        """Put in the place of a message one that the database fails at, and its error by ours."""
        verdict = refused.verdict
        if verdict.outcome == "allow":
            verdict = denied(verdict, verdict.message)
        exchange = self._begin(out, refused.reading, parameters, refused.operation, verdict, None, head)
        detail = f"Refused by rule {verdict.rule}." if verdict.rule is not None else ""
        fault = refused.fault or Fault(INSUFFICIENT_PRIVILEGE, verdict.message)
        error = error_response(fault.sqlstate, fault.message, detail=detail, position=fault.position)
        self._poison(
            out, Entry(kind, exchange=exchange, error=error, sqlstate=fault.sqlstate, verdict=verdict)
        )

    def _fail(self, out: Output, sqlstate: str, text: str) -> None:
        """What the database itself would not know: an error without an exchange."""
        self._poison(out, Entry(Kind.PARSE, error=error_response(sqlstate, text)))

    def _poison(self, out: Output, entry: Entry) -> None:
        poison = _POISONS.get(entry.kind)
        if poison is None:
            poison = POISON
            entry.kind = Kind.PARSE
            self._open = True
            self._skipping = True  # it fails, or something before it did: the rest is skipped either way
        elif entry.kind == Kind.QUERY:
            self._names.drop_statement(entry, b"")
            self._names.drop_portal(entry, b"")
        out.to_server.append(poison)
        self._queue.append(entry)

    def _has_effects(self, entry: Entry, reading: Reading) -> None:
        """What the text that is forwarded now may change."""
        if reading is self._calm:
            return
        if reading.forgets or reading.closes:
            self._names.forget(entry, reading.forgets, reading.closes)
        if reading.forgets or reading.closes or reading.changes:
            entry.effects = True
            self._unsettled += 1
            self._epoch += 1
        if not _PLAIN.issuperset(reading.methods) or reading.changes:
            self._moved = True
        if reading.copies == "in":
            self._copy = entry
        elif not (entry.effects or self._moved):
            self._calm = reading  # and it has changed nothing else either
