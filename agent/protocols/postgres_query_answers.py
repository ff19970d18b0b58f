# SPDX-License-Identifier: Apache-2.0
"""The answering side of a PostgreSQL connection in enforce: what the database says, in the order asked.

Owns the matching of answers to outstanding messages (PostgreSQL docs, 54.2 Message Flow), errors and what
stands between statements. Forwards nothing of the client. Bias: fail closed. A message that answers nothing
outstanding is a ProtocolError.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from agent.protocols.postgres_forms import (
    read_parameter_description,
    read_parameter_status,
    read_ready,
    read_report,
)
from agent.protocols.postgres_messages import HEADER, Back
from agent.protocols.postgres_query_link import head_of
from agent.protocols.postgres_query_record import MAX_SLICE, RELEASE_AT
from agent.protocols.postgres_query_rows import RowsSide
from agent.protocols.postgres_query_state import Entry, Kind, cut_segment
from agent.protocols.session import Bounds, Judge, Output, ProtocolError
from agent.protocols.sql import Conversation, SqlEngine, Where


class AnsweringSide(RowsSide):
    """The part of a session between the database's bytes and the client."""

    def __init__(
        self,
        engine: SqlEngine,
        conversation: Conversation,
        judge: Judge,
        guard: str,
        where: Where,
        bounds: Bounds,
        n_from: int,
    ) -> None:
        super().__init__(engine, conversation, judge, guard, where, bounds, n_from)
        self._answers: dict[int, Callable[[Output, bytes], None]] = {
            Back.PARSE_COMPLETE: self._on_parsed,
            Back.CLOSE_COMPLETE: self._on_closed,
            Back.NO_DATA: self._on_no_data,
            Back.PARAMETER_DESCRIPTION: self._on_types,
            Back.EMPTY_QUERY: self._on_empty,
            Back.PORTAL_SUSPENDED: self._on_suspended,
            Back.ERROR: self._on_error,
            Back.NOTICE: self._on_notice,
            Back.NOTIFICATION: self._pass,
            Back.PARAMETER_STATUS: self._on_status,
            Back.COPY_IN: self._on_copy_in,
            Back.COPY_OUT: self._on_copy_out,
            Back.COPY_DONE: self._on_copy_done,
            Back.FUNCTION_CALL: self._on_call,
        }

    def _on_call(self, out: Output, raw: bytes) -> None:
        self._unexpected(raw[0])  # none was ever forwarded

    @abstractmethod
    def _go_on(self, out: Output) -> None:
        """Read what the client has sent and had to wait."""

    def _read_answers(self, out: Output, data: bytes) -> None:
        self._back.feed(data)
        self._read_server(out)
        if self._queue:
            exchange = self._queue[0].exchange
            if exchange is not None and exchange.held >= RELEASE_AT:
                exchange.stream(out)
        self._go_on(out)

    def _read_server(self, out: Output) -> None:
        back = self._back
        while True:
            kind = back.begins()
            if kind < 0:
                return
            if (kind == Back.DATA_ROW or kind == Back.COPY_DATA) and not self._catalog.under_way:
                run, count = back.take_run(kind, MAX_SLICE)
                if not count:
                    return
                self._on_rows(out, kind, run, count)
                continue
            taken = back.take_raw()
            if taken is None:
                return
            if self._catalog.under_way:
                self._on_catalog(out, kind, taken)
                continue
            match kind:  # the usual ones
                case Back.BIND_COMPLETE:
                    self._empty(out, taken, Kind.BIND)
                case Back.ROW_DESCRIPTION:
                    self._on_columns(out, taken)
                case Back.COMMAND_COMPLETE:
                    self._on_complete(out, taken)
                case Back.READY_FOR_QUERY:
                    self._on_ready(out, taken)
                case _:
                    answer = self._answers.get(kind)
                    if answer is None:
                        self._unexpected(kind)
                    answer(out, taken)

    # -- messages that end an entry without rows ---------------------------------------------------

    def _take_head(self, raw: bytes, wanted: int) -> Entry:
        queue = self._queue
        if not queue or queue[0].kind != wanted or queue[0].error is not None:
            self._unexpected(raw[0])  # a refused message that succeeds ends here too
        return queue.popleft()

    def _empty(self, out: Output, raw: bytes, wanted: int) -> None:
        if len(raw) != HEADER:
            raise ProtocolError("message-form", f"a {chr(raw[0])!r} message that is not empty", "server")
        if not self._take_head(raw, wanted).ours and self._muted is None:
            out.to_client.append(raw)

    def _on_parsed(self, out: Output, raw: bytes) -> None:
        self._empty(out, raw, Kind.PARSE)

    def _on_closed(self, out: Output, raw: bytes) -> None:
        self._empty(out, raw, Kind.CLOSE)

    def _on_types(self, out: Output, raw: bytes) -> None:
        if not self._queue or self._queue[0].kind != Kind.DESCRIBE_STATEMENT:
            self._unexpected(raw[0])
        entry = self._queue[0]
        if entry.statement is not None:
            entry.statement.types = read_parameter_description(raw[HEADER:])
        if not entry.ours and self._muted is None:
            out.to_client.append(raw)

    def _on_no_data(self, out: Output, raw: bytes) -> None:
        queue = self._queue
        if not queue or queue[0].kind not in (Kind.DESCRIBE_STATEMENT, Kind.DESCRIBE_PORTAL):
            self._unexpected(raw[0])
        entry = queue.popleft()
        self._learn_columns(entry, None)
        if not entry.ours and self._muted is None:
            out.to_client.append(raw)

    # -- errors ------------------------------------------------------------------------------------

    def _on_error(self, out: Output, raw: bytes) -> None:
        fields = read_report(raw[HEADER:])
        queue = self._queue
        entry = queue[0] if queue else None
        if fields.get("V", fields.get("S", "")) in ("FATAL", "PANIC"):
            self._on_fatal(out, entry, raw, fields)
            return
        if entry is None:
            self._unexpected(raw[0])
        self._copy_out = False
        if entry.kind == Kind.SYNC:
            if self._muted is None:
                out.to_client.append(self._shown_error(raw, fields, self._last))
            return
        if entry.kind in (Kind.QUERY, Kind.CALL):
            self._fail_query(entry, raw, fields)
            return
        failed = [queue.popleft(), *cut_segment(queue)]
        if not queue:
            self._skipping = True
        self._fail_entry(out, entry, raw, fields)
        for skipped in failed[1:]:
            if skipped.exchange is not None:
                outcome = "failed" if skipped.error is None else "refused"
                skipped.exchange.finish(out, outcome, "skipped: an earlier message of the pipeline failed")  # type: ignore[arg-type]
        for gone in failed:
            if gone.kind == Kind.EXECUTE and gone.reading is not None:
                self._conversation.settle(gone.reading, 0, None)
            self._release_entry(gone)
        self._names.take_back(failed, queue)
        self._epoch += 1

    def _fail_query(self, entry: Entry, raw: bytes, fields: dict[str, str]) -> None:
        exchange, reading = entry.exchange, entry.reading
        self._copying = False
        if reading is not None and entry.error is None:
            for statement in range(entry.index, max(len(reading.methods), entry.index + 1)):
                self._conversation.settle(reading, statement, None)
        if exchange is None:
            return
        if entry.error is not None:
            exchange.add(b"", entry.error)
            exchange.sqlstate = entry.sqlstate
        else:
            exchange.add(raw, self._shown_error(raw, fields, exchange.verdict))
            exchange.sqlstate = fields.get("C")

    def _fail_entry(self, out: Output, entry: Entry, raw: bytes, fields: dict[str, str]) -> None:
        """The error of an extended message: the database's own, or ours in its place."""
        exchange = entry.exchange
        if self._muted is not None:
            return
        if (
            exchange is None
            and entry.error is None
            and entry.operation is not None
            and entry.verdict is not None
        ):
            # Nothing was recorded of it when it was forwarded; errors tell things too.
            exchange = self._recorder.begin(
                out, entry.reading, (), entry.operation, entry.verdict, entry.rewriting, head_of(entry)
            )
        shown = entry.error if entry.error is not None else self._shown_error(raw, fields, entry.verdict)
        if exchange is None:
            out.to_client.append(shown)
        elif entry.error is not None:
            exchange.sqlstate = entry.sqlstate
            exchange.add(b"", shown)
            exchange.finish(out, "refused", exchange.verdict.message)
        else:
            exchange.sqlstate = fields.get("C")
            exchange.add(raw, shown)
            exchange.finish(out, "failed", "error")

    def _on_fatal(self, out: Output, entry: Entry | None, raw: bytes, fields: dict[str, str]) -> None:
        """The database ends the connection, which it may do at any time."""
        exchange = None if entry is None else entry.exchange
        shown = self._shown_error(raw, fields, self._last if entry is None else entry.verdict or self._last)
        if exchange is None or entry is None:
            out.to_client.append(shown)
            return
        exchange.sqlstate = fields.get("C")
        exchange.add(raw, shown)
        exchange.finish(out, "failed", "the database ended the connection")
        entry.exchange = None

    # -- between the statements --------------------------------------------------------------------

    def _on_ready(self, out: Output, raw: bytes) -> None:
        status = read_ready(raw[HEADER:])
        queue = self._queue
        entry = queue[0] if queue else None
        if entry is None or entry.kind not in (Kind.SYNC, Kind.QUERY, Kind.CALL) or self._copy_out:
            self._unexpected(raw[0])
        queue.popleft()
        if entry.kind == Kind.SYNC:
            self._names.end_segment(status)
        else:
            self._end_query(out, entry)
            if status == "I" and not self._open and not queue:
                self._names.portals.clear()
        self._release_entry(entry)
        self._status = status
        if not queue:
            self._moved = False
        self._conversation.ended(status)
        if self._muted is None or self._muted == entry.kind:
            self._muted = None
            out.to_client.append(raw)
        self._ask_catalog(out)

    def _end_query(self, out: Output, entry: Entry) -> None:
        exchange = entry.exchange
        if exchange is None:
            return
        if entry.error is not None:
            if exchange.sqlstate is None:
                self._unexpected(Back.READY_FOR_QUERY)
            exchange.finish(out, "refused", exchange.verdict.message)
        elif exchange.sqlstate is not None:
            exchange.finish(out, "failed", "error")
        else:
            exchange.finish(out, "answered")

    def _ask_catalog(self, out: Output, *, again: bool = False) -> None:
        """Run what the conversation wants to know, where nothing of the client is under way."""
        if self._queue or self._open or self._status == "E":
            return
        query = self._catalog.begin(again=again)
        if query is None:
            return
        out.to_server.append(query)
        # A simple Query takes the unnamed statement and portal away.
        unnamed = self._names.statements.get(b"")
        if unnamed is not None:
            unnamed.standing = None
        self._names.portals.pop(b"", None)

    def _on_catalog(self, out: Output, kind: int, raw: bytes) -> None:
        if kind == Back.ERROR and read_report(raw[HEADER:]).get("V", "") in ("FATAL", "PANIC"):
            out.to_client.append(raw)
        status = self._catalog.take(kind, raw)
        if status == "more":
            return
        if status == "pass":
            self._answers[kind](out, raw)
            return
        self._status = status
        self._conversation.ended(status)
        self._epoch += 1
        self._ask_catalog(out, again=True)

    def _pass(self, out: Output, raw: bytes) -> None:
        """It may come at any time, also inside an answer whose pieces wait."""
        exchange = self._queue[0].exchange if self._queue else None
        if exchange is not None and exchange.pieces:
            exchange.add(raw)
        else:
            out.to_client.append(raw)

    def _on_notice(self, out: Output, raw: bytes) -> None:
        entry = self._queue[0] if self._queue else None
        if self._muted is not None and entry is not None:
            return
        verdict = self._last if entry is None or entry.verdict is None else entry.verdict
        shown = self._shown_error(raw, read_report(raw[HEADER:]), verdict)
        if entry is not None and entry.exchange is not None and entry.error is None:
            entry.exchange.add(raw, shown)
        else:
            out.to_client.append(shown)

    def _on_status(self, out: Output, raw: bytes) -> None:
        name, value = read_parameter_status(raw[HEADER:])
        self._conversation.status(name, value)
        if name == "application_name":
            self._recorder.rename(value)
        self._epoch += 1
        self._pass(out, raw)
