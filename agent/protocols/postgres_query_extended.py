# SPDX-License-Identifier: Apache-2.0
"""Extended query in enforce: Parse, Bind, Describe, Execute and Close (PostgreSQL docs, 54.2.3).

Owns what becomes of each of these messages. Bias: fail closed. A name that this connection did not give by
Parse or Bind is not known, also where SQL's PREPARE or DECLARE gave it: what it would run was judged for
SQL's EXECUTE and FETCH alone. A function gives False where it must wait for an answer, and has done nothing.
"""

from __future__ import annotations

from typing import Final

from agent.protocols.postgres_forms import (
    Bind,
    Execute,
    Named,
    read_bind,
    read_execute,
    read_named,
    read_parse,
    write_execute,
    write_named,
    write_parse,
)
from agent.protocols.postgres_messages import HEADER, Front
from agent.protocols.postgres_query_decide import DecidingSide, Refused, Unconfirmed
from agent.protocols.postgres_query_state import MAX_NAME, Entry, Kind, Portal, Statement
from agent.protocols.session import Output
from agent.protocols.sql_made import Parameter

MAX_KEPT_BIND: Final = 256  # bytes
MAX_KEPT_FORM: Final = 64  # bytes of a Describe or an Execute whose form is kept
MAX_KEPT_FORMS: Final = 256
MAX_LOOKED_AT: Final = 256  # outstanding messages; behind more of them an unknown name waits
_CLOSE_NOTHING = {
    "statement": write_named(Front.CLOSE, Named("statement", b"vecward-nothing")),
    "portal": write_named(Front.CLOSE, Named("portal", b"vecward-nothing")),
}


class ExtendedSide(DecidingSide):
    """Statements and portals."""

    _last_bind: tuple[bytes, Bind] | None = None  # what a small one says, for when it comes again
    _flushed = False  # a Flush of ours was sent behind the last message

    def _is_doubtful(self, table: object, name: bytes) -> bool:
        """Whether a name that is not known now would be, if something outstanding failed."""
        queue = self._queue
        return len(queue) > MAX_LOOKED_AT or any(
            change.table is table and change.name == name for entry in queue for change in entry.undo or ()
        )

    def _forward(self, out: Output, raw: bytes, entry: Entry) -> None:
        out.to_server.append(raw)
        self._queue.append(entry)
        self._open = True
        self._flushed = False

    def _take_parse(self, out: Output, raw: bytes) -> bool:
        form = read_parse(raw[HEADER:])
        head = {"phase": "parse"}
        if form.statement:
            head["statement-name"] = form.statement.decode("utf-8", "replace")
        try:
            reading, operation, verdict, rewriting = self._decide_text(form.text, None)
        except Refused as refused:
            self._refuse(out, Kind.PARSE, refused, (), head)
            return True
        names = self._names
        full = self._has_room(names.statements, form.statement, len(form.text))
        if full is not None or len(form.statement) > MAX_NAME:
            self._fail(out, "54000", full or f"the name of a prepared statement has over {MAX_NAME} bytes")
            return True
        text = rewriting.text.encode("utf-8", "surrogateescape")
        statement = Statement(
            name=form.statement,
            source=form.text,
            declared=form.types,
            segment=names.segment,
            reading=reading,
            operation=operation,
            verdict=verdict,
            rewriting=rewriting,
            standing=text,
            turn=self._turn,
            epoch=self._epoch,
        )
        entry = Entry(
            Kind.PARSE,
            statement=statement,
            reading=reading,
            operation=operation,
            verdict=verdict,
            rewriting=rewriting,
        )
        names.put(entry, statement)
        self._forward(
            out,
            raw if text == form.text else write_parse(form.__class__(form.statement, text, form.types)),
            entry,
        )
        return True

    def _take_bind(self, out: Output, raw: bytes) -> bool:
        last = self._last_bind
        if last is not None and last[0] == raw:
            form = last[1]
        else:
            form = read_bind(raw[HEADER:])
            self._last_bind = (raw, form) if len(raw) <= MAX_KEPT_BIND else None
        names = self._names
        statement = names.statements.get(form.statement)
        if statement is None:
            if self._is_doubtful(names.statements, form.statement):
                return False
            self._fail(out, "26000", _no_statement(form.statement))
            return True
        if not names.is_settled(statement):
            return False
        parameters = parameters_of(form, statement.types or statement.declared)
        try:
            rows, (reading, operation, verdict, rewriting) = self._decide_bind(statement, parameters)
        except Refused as refused:
            head = {"phase": "bind", **names_of(form.statement, form.portal)}
            self._refuse(out, Kind.BIND, refused, parameters, head)
            return True
        full = self._has_room(names.portals, form.portal, len(raw))
        if full is not None or len(form.portal) > MAX_NAME:
            self._fail(out, "54000", full or f"the name of a portal has over {MAX_NAME} bytes")
            return True
        statement = self._stand(out, statement, rewriting)
        portal = Portal(
            form.portal, statement, names.segment, reading, parameters, form.results, rows, operation,
            verdict, rewriting, self._turn, self._epoch, len(raw),
        )  # fmt: skip
        entry = Entry(Kind.BIND, False, statement, portal, None, reading, operation, verdict, rewriting)
        names.put(entry, portal)
        self._forward(out, raw, entry)
        return True

    def _take_describe(self, out: Output, raw: bytes) -> bool:
        form = _describe_form(raw)
        names = self._names
        if form.of == "portal":
            portal = names.portals.get(form.name)
            if portal is None:
                if self._is_doubtful(names.portals, form.name):
                    return False
                self._describe_cursor(out, raw, form.name)
                return True
            if not names.is_settled(portal):
                return False
            portal.described = True
            entry = Entry(
                Kind.DESCRIBE_PORTAL, False, portal.statement, portal, None, portal.reading, portal.operation,
                portal.verdict, portal.rewriting,
            )  # fmt: skip
            self._forward(out, raw, entry)
            return True
        statement = names.statements.get(form.name)
        if statement is None:
            if self._is_doubtful(names.statements, form.name):
                return False
            self._fail(out, "26000", _no_statement(form.name))
            return True
        if not names.is_settled(statement):
            return False
        try:
            self._refresh(statement)
            reading = statement.reading
            operation = self._conversation.operation(reading, None)
            if operation == statement.operation:
                operation = statement.operation
            verdict, rewriting = self._decide_rows(reading, operation, (), statement)
        except Refused as refused:
            head = {"phase": "describe", **names_of(form.name, b"")}
            self._refuse(out, Kind.DESCRIBE_STATEMENT, refused, (), head)
            return True
        statement = self._stand(out, statement, rewriting)
        entry = Entry(
            Kind.DESCRIBE_STATEMENT, False, statement, None, None, reading, operation, verdict, rewriting
        )
        self._forward(out, raw, entry)
        return True

    def _describe_cursor(self, out: Output, raw: bytes, name: bytes) -> None:
        """A cursor of SQL's DECLARE, as psycopg asks for it: what may be fetched from it may be described."""
        source = b'FETCH 0 FROM "' + name.replace(b'"', b'""') + b'"'
        try:
            if not name:
                raise LookupError
            if not (self._queue or self._open or self._confirmed) and self._conversation.wants is not None:
                raise Unconfirmed  # `_must_wait` does not for a Describe
            reading, operation, verdict, rewriting = self._decide_text(source, ())
        except (Refused, LookupError):
            self._fail(out, "34000", _no_portal(name))  # none that is known
            return
        text = rewriting.text.encode("utf-8", "surrogateescape")
        statement = Statement(
            b"", source, (), self._names.segment, reading, operation, verdict, rewriting, text, self._turn,
            self._epoch,
        )  # fmt: skip
        entry = Entry(
            Kind.DESCRIBE_PORTAL, False, statement, None, None, reading, operation, verdict, rewriting
        )
        self._forward(out, raw, entry)

    def _take_execute(self, out: Output, raw: bytes) -> bool:
        form = _execute_form(raw)
        portal = self._names.portals.get(form.portal)
        if portal is None:
            if self._is_doubtful(self._names.portals, form.portal):
                return False
            self._fail(out, "34000", _no_portal(form.portal))
            return True
        if not self._names.is_settled(portal):
            return False
        statement = portal.statement
        head = statement.head if not portal.name else names_of(statement.name, portal.name)
        try:
            self._decide_execute(portal, form.max_rows)
        except Refused as refused:
            self._refuse(out, Kind.EXECUTE, refused, portal.parameters, head)
            return True
        reading, verdict, rewriting = portal.reading, portal.verdict, portal.rewriting
        exchange = self._begin(out, reading, portal.parameters, portal.operation, verdict, rewriting, head)
        self._describe_first(out, portal)
        entry = Entry(
            Kind.EXECUTE, False, statement, portal, exchange, reading, portal.operation, verdict, rewriting
        )
        most, asked = rewriting.max_rows, form.max_rows
        clamped = most is not None and (asked == 0 or asked > most)
        if clamped and most is not None:
            entry.all_rows = asked == 0
            raw = write_execute(Execute(form.portal, most))
        self._forward(out, raw, entry)
        self._has_effects(entry, reading)
        if entry.all_rows:
            # For the client it is at its end: the rows behind the clamp are nobody's.
            closing = Entry(Kind.CLOSE, ours=True)
            self._names.drop_portal(closing, form.portal)
            self._forward(out, write_named(Front.CLOSE, Named("portal", form.portal)), closing)
        return True

    def _describe_first(self, out: Output, portal: Portal) -> None:
        """Rows need a description for their plan: ask for it where the client did not."""
        statement = portal.statement
        told = statement.columns is not None or statement.rowless
        if portal.described or (told and not portal.verdict.touches_answer):
            return
        portal.described = True
        entry = Entry(
            Kind.DESCRIBE_PORTAL, True, statement, portal, None, portal.reading, portal.operation,
            portal.verdict, portal.rewriting,
        )  # fmt: skip
        self._forward(out, write_named(Front.DESCRIBE, Named("portal", portal.name)), entry)

    def _take_close(self, out: Output, raw: bytes) -> bool:
        form = read_named(raw[HEADER:], "Close")
        names = self._names
        table = names.statements if form.of == "statement" else names.portals
        known = table.get(form.name)
        entry = Entry(Kind.CLOSE)
        if known is None:
            if self._is_doubtful(table, form.name):
                return False
            # It may be a name of SQL's PREPARE or DECLARE, of which the conversation goes on knowing.
            self._forward(out, _CLOSE_NOTHING[form.of], entry)
            return True
        if not names.is_settled(known):
            return False
        if form.of == "statement":
            names.drop_statement(entry, form.name)
        else:
            names.drop_portal(entry, form.name)
        self._forward(out, raw, entry)
        return True


_DESCRIBES: Final[dict[bytes, Named]] = {}
_EXECUTES: Final[dict[bytes, Execute]] = {}
"""What whole small messages say, of all connections: a client that repeats itself sends the same bytes."""


def _describe_form(raw: bytes) -> Named:
    form = _DESCRIBES.get(raw)
    if form is None:
        form = read_named(raw[HEADER:], "Describe")
        if len(raw) <= MAX_KEPT_FORM:
            if len(_DESCRIBES) >= MAX_KEPT_FORMS:
                _DESCRIBES.clear()
            _DESCRIBES[raw] = form
    return form


def _execute_form(raw: bytes) -> Execute:
    form = _EXECUTES.get(raw)
    if form is None:
        form = read_execute(raw[HEADER:])
        if len(raw) <= MAX_KEPT_FORM:
            if len(_EXECUTES) >= MAX_KEPT_FORMS:
                _EXECUTES.clear()
            _EXECUTES[raw] = form
    return form


def parameters_of(form: Bind, types: tuple[int, ...]) -> tuple[Parameter, ...]:
    """The values of a Bind with their types, as far as those are known."""
    if not form.values:
        return ()
    known = len(types)
    found: list[Parameter] = []
    for i, value in enumerate(form.values):
        found.append(Parameter(types[i] if i < known else 0, form.format_of(i), value))
    return tuple(found)


def _no_statement(name: bytes) -> str:
    if not name:
        return "unnamed prepared statement does not exist"
    return f'prepared statement "{name.decode("utf-8", "replace")}" does not exist'


def _no_portal(name: bytes) -> str:
    return f'portal "{name.decode("utf-8", "replace")}" does not exist'


def names_of(statement: bytes, portal: bytes) -> dict[str, str]:
    head: dict[str, str] = {}
    if statement:
        head["statement-name"] = statement.decode("utf-8", "replace")
    if portal:
        head["portal"] = portal.decode("utf-8", "replace")
    return head
