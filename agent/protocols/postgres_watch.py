# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's query phase in observe: what passes is followed and recorded, and nothing is held or changed.

Owns the reading of a client's messages beside the bytes. It asks the database nothing and refuses nothing:
what the outputs of this side say to send is thrown away by ``postgres_tap``. Bias: what cannot be followed
raises, and the tap turns opaque; what is merely not known (a name that SQL gave) is recorded as unknown.
"""

from __future__ import annotations

from agent.protocols.http import Refusal
from agent.protocols.postgres_forms import (
    read_bind,
    read_execute,
    read_named,
    read_parse,
    read_query,
    read_row_description,
)
from agent.protocols.postgres_messages import HEADER, Back, Front
from agent.protocols.postgres_query_answers import AnsweringSide
from agent.protocols.postgres_query_extended import names_of, parameters_of
from agent.protocols.postgres_query_record import MAX_SLICE, Exchange
from agent.protocols.postgres_query_state import (
    MAX_OUTSTANDING,
    MAX_PORTALS,
    MAX_STATEMENTS,
    Entry,
    Kind,
    Portal,
    Statement,
    shaped,
)
from agent.protocols.session import Output, ProtocolError
from agent.protocols.sql import Column, Plan, Reading, Rewriting
from agent.protocols.sql_made import Parameter
from policy.model import Verdict


class WatchingSide(AnsweringSide):
    """Follows one connection from its first ReadyForQuery on."""

    def _on_call(self, out: Output, raw: bytes) -> None:
        if not self._queue or self._queue[0].kind != Kind.CALL:
            self._unexpected(raw[0])

    def watch_client(self, out: Output, data: bytes) -> None:
        """Records of what the client has sent go to `out`. Raises ProtocolError where it cannot be read."""
        front = self._front
        front.feed(data)
        while (taken := front.take()) is not None:
            kind = taken.kind
            if self._skipping and kind != Front.SYNC:
                continue
            if len(self._queue) >= MAX_OUTSTANDING:
                raise ProtocolError(
                    "pipelined", f"more than {MAX_OUTSTANDING} messages wait for their answers"
                )
            self._watch(out, kind, taken.raw)
        self._count_held("client")

    def watch_server(self, out: Output, data: bytes) -> None:
        passed = Output()
        try:
            self._read_answers(passed, data)
            self._count_held("server")
        finally:  # what was recorded before an error stands: the bytes pass
            out.records += passed.records

    def abort_all(self, out: Output, reason: str) -> None:
        for entry in self._queue:
            if entry.exchange is not None:
                self._recorder.abort(out, entry.exchange, reason)
                entry.exchange = None

    # -- what the other side does in enforce, and not here -------------------------------------------

    def _go_on(self, out: Output) -> None:
        return

    def _ask_catalog(self, out: Output, *, again: bool = False) -> None:
        return

    def _shown_error(self, raw: bytes, fields: dict[str, str], verdict: Verdict | None) -> bytes:
        return raw

    def _on_columns(self, out: Output, raw: bytes) -> None:
        queue = self._queue
        if not queue:
            self._unexpected(raw[0])
        columns = read_row_description(raw[HEADER:])
        entry = queue[0]
        if entry.kind in (Kind.DESCRIBE_STATEMENT, Kind.DESCRIBE_PORTAL):
            self._learn_columns(entry, columns)
            queue.popleft()
        elif entry.kind == Kind.QUERY and entry.exchange is not None:
            entry.exchange.plan = self._watching_plan(entry, entry.exchange, columns)
            entry.exchange.add(raw)
        else:
            self._unexpected(raw[0])

    def _on_rows(self, out: Output, kind: int, run: bytes, count: int) -> None:
        entry = self._queue[0] if self._queue else None
        if (
            entry is None
            or entry.exchange is None
            or entry.kind not in (Kind.EXECUTE, Kind.QUERY)
            or self._copy_out is not (kind == Back.COPY_DATA)
        ):
            self._unexpected(kind)
        exchange = entry.exchange
        if exchange.plan is None and entry.portal is not None:
            columns = entry.portal.columns or shaped(entry.portal.statement, entry.portal.results)
            if columns is not None:
                exchange.plan = self._watching_plan(entry, exchange, columns)
        try:
            released = None if exchange.plan is None else exchange.plan.release(run)
        except Refusal:
            released = None
        if released is None:
            exchange.add(run, run, b"")  # it may hold vectors that nothing cut: its hash stands for it
            exchange.rows += count
        else:
            released.released = run
            exchange.add_released(run, released, count)
        if exchange.held >= MAX_SLICE:
            exchange.stream(out)

    def _watching_plan(
        self, entry: Entry, exchange: Exchange, columns: tuple[Column, ...] | None
    ) -> Plan | None:
        if exchange.rewriting is None:
            return None
        try:
            return self._conversation.plan(exchange.rewriting, entry.index, columns, exchange.verdict)
        except Refusal:
            return None

    def _on_copy_in(self, out: Output, raw: bytes) -> None:
        entry = self._queue[0] if self._queue else None
        if entry is None or entry.kind not in (Kind.EXECUTE, Kind.QUERY):
            self._unexpected(raw[0])
        while len(self._queue) > 1 and self._queue[1].kind == Kind.SYNC:
            del self._queue[1]  # the database passes over it inside the COPY
            self._names.segment -= 1
        if len(self._queue) > 1:
            raise ProtocolError("copy", "a message inside COPY FROM STDIN")
        self._copy, self._copying = entry, True

    def _on_copy_out(self, out: Output, raw: bytes) -> None:
        entry = self._queue[0] if self._queue else None
        if entry is None or entry.exchange is None or self._copy_out:
            self._unexpected(raw[0])
        self._copy_out = True
        entry.exchange.plan = self._watching_plan(entry, entry.exchange, None)
        entry.exchange.add(raw)

    # -- the client ----------------------------------------------------------------------------------

    def _watch(self, out: Output, kind: int, raw: bytes) -> None:
        names = self._names
        if self._copying and kind in (
            Front.COPY_DATA,
            Front.COPY_DONE,
            Front.COPY_FAIL,
            Front.SYNC,
            Front.FLUSH,
        ):
            self._watch_copy(out, kind, raw)
            return
        match kind:
            case Front.SYNC:
                self._queue.append(Entry(Kind.SYNC))
                names.segment += 1
                self._skipping = False
            case Front.QUERY:
                text = read_query(raw[HEADER:])
                reading = self._conversation.read(text.decode("utf-8", "surrogateescape"))
                entry = self._begin_watching(out, Kind.QUERY, reading, (), 0, None)
                names.drop_statement(entry, b"")
                names.drop_portal(entry, b"")
                self._forget(entry, reading)
            case Front.PARSE:
                self._watch_parse(raw)
            case Front.BIND:
                self._watch_bind(raw)
            case Front.DESCRIBE:
                named = read_named(raw[HEADER:], "Describe")
                if named.of == "portal":
                    portal = names.portals.get(named.name)
                    of = None if portal is None else portal.statement
                    self._queue.append(Entry(Kind.DESCRIBE_PORTAL, statement=of, portal=portal))
                else:
                    statement = names.statements.get(named.name)
                    self._queue.append(Entry(Kind.DESCRIBE_STATEMENT, statement=statement))
            case Front.EXECUTE:
                self._watch_execute(out, raw)
            case Front.CLOSE:
                named = read_named(raw[HEADER:], "Close")
                entry = Entry(Kind.CLOSE)
                if named.of == "portal":
                    names.drop_portal(entry, named.name)
                else:
                    names.drop_statement(entry, named.name)
                self._queue.append(entry)
            case Front.FUNCTION_CALL:
                operation = self._recorder.unknown("FunctionCall", len(raw))
                verdict = self._judge(operation)
                exchange = self._recorder.begin(out, None, (), operation, verdict, None)
                self._queue.append(Entry(Kind.CALL, exchange=exchange))
            case Front.FLUSH | Front.TERMINATE | Front.COPY_DATA | Front.COPY_DONE | Front.COPY_FAIL:
                pass  # outside a COPY the database passes over its data too
            case _:
                raise ProtocolError("unexpected", f"a {chr(kind)!r} message after startup")

    def _watch_copy(self, out: Output, kind: int, raw: bytes) -> None:
        if kind == Front.COPY_DATA and self._copy is not None and self._copy.exchange is not None:
            self._recorder.piece(out, self._copy.exchange, raw)
        elif kind in (Front.COPY_DONE, Front.COPY_FAIL):
            self._copying = False

    def _begin_watching(
        self,
        out: Output,
        kind: int,
        reading: Reading | None,
        parameters: tuple[Parameter, ...],
        rows: int,
        portal: Portal | None,
    ) -> Entry:
        if reading is None:
            operation = self._recorder.unknown("Execute", 0)
        else:
            operation = self._conversation.operation(reading, parameters, rows)
        verdict = self._judge(operation)
        rewriting = None if reading is None else Rewriting(reading, reading.text)
        head = names_of(portal.statement.name, portal.name) if portal is not None else None
        exchange = self._recorder.begin(out, reading, parameters, operation, verdict, rewriting, head)
        statement = None if portal is None else portal.statement
        entry = Entry(kind, False, statement, portal, exchange, reading, operation, verdict, rewriting)
        self._queue.append(entry)
        return entry

    def _forget(self, entry: Entry, reading: Reading) -> None:
        if reading.forgets or reading.closes:
            self._names.forget(entry, reading.forgets, reading.closes)

    def _watch_parse(self, raw: bytes) -> None:
        form = read_parse(raw[HEADER:])
        names = self._names
        names.held += len(form.text)
        if len(names.statements) >= MAX_STATEMENTS or (
            names.held > self._bounds.body and names.measure() > self._bounds.body
        ):
            raise ProtocolError("statements", "more prepared statements than can be kept")
        reading = self._conversation.read(form.text.decode("utf-8", "surrogateescape"))
        operation = self._conversation.operation(reading, None)
        statement = Statement(
            name=form.statement,
            source=form.text,
            declared=form.types,
            segment=names.segment,
            reading=reading,
            operation=operation,
            verdict=self._judge(operation),
            rewriting=Rewriting(reading, reading.text),
            standing=form.text,
            turn=0,
            epoch=0,
        )
        entry = Entry(Kind.PARSE, statement=statement)
        names.put(entry, statement)
        self._queue.append(entry)

    def _watch_bind(self, raw: bytes) -> None:
        form = read_bind(raw[HEADER:])
        names = self._names
        entry = Entry(Kind.BIND)
        statement = names.statements.get(form.statement)
        if statement is None:
            names.drop_portal(entry, form.portal)  # a statement of SQL's PREPARE, or none at all
        else:
            names.held += len(raw)
            if len(names.portals) >= MAX_PORTALS or (
                names.held > self._bounds.body and names.measure() > self._bounds.body
            ):
                raise ProtocolError("portals", "more portals than can be kept")
            portal = Portal(
                form.portal, statement, names.segment, statement.reading,
                parameters_of(form, statement.types or statement.declared), form.results, 0,
                statement.operation, statement.verdict, statement.rewriting, 0, 0, len(raw),
            )  # fmt: skip
            entry.statement, entry.portal = statement, portal
            names.put(entry, portal)
        self._queue.append(entry)

    def _watch_execute(self, out: Output, raw: bytes) -> None:
        form = read_execute(raw[HEADER:])
        portal = self._names.portals.get(form.portal)
        if portal is None:
            self._begin_watching(out, Kind.EXECUTE, None, (), form.max_rows, None)
            return
        reading = self._conversation.read(portal.statement.reading.text)
        entry = self._begin_watching(out, Kind.EXECUTE, reading, portal.parameters, form.max_rows, portal)
        self._forget(entry, reading)
