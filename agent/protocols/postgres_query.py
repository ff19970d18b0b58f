# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's query phase in enforce: simple and extended query, pipelines, portals and COPY.

Owns what a client sends after startup, message by message (PostgreSQL docs, 54.2 Message Flow). Nothing is
forwarded that was not judged, except what cannot act: Sync, Flush, Close and Terminate. Where what a message
means depends on an answer that is not here yet, it and what is behind it wait. Bias: fail closed.

Texts and names are read as the database would read them after all that was forwarded before succeeded. That
is sound within a segment, since a failure skips its rest; across a Sync, and behind texts that change what
names mean, the answer is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from agent.protocols.postgres_forms import read_empty, read_query, write_query
from agent.protocols.postgres_messages import HEADER, Front, error_response, message
from agent.protocols.postgres_query_decide import Refused, Unconfirmed
from agent.protocols.postgres_query_extended import ExtendedSide
from agent.protocols.postgres_query_record import MAX_SLICE, denied
from agent.protocols.postgres_query_state import MAX_OUTSTANDING, Entry, Kind
from agent.protocols.session import Abort, Intent, Output, ProtocolError, Result

READ_AHEAD: Final = 128 * 1024  # bytes that may wait before the client is not read on; a password fits
_FLUSH = message(Front.FLUSH)
_SYNC = message(Front.SYNC)
_SYNC_ENTRY = Entry(Kind.SYNC)  # they are all alike
_COPY_KINDS = frozenset(
    (Front.COPY_DATA, Front.COPY_DONE, Front.COPY_FAIL, Front.SYNC, Front.FLUSH, Front.TERMINATE)
)
_ENDS = frozenset((Front.SYNC, Front.TERMINATE))
# What is read by what names mean, and what often stands before it in a segment. Not Describe and Execute: a
# catalog query would take their unnamed portal away.
_READ = frozenset((Front.QUERY, Front.PARSE, Front.BIND, Front.CLOSE))
_UNJUDGED = frozenset((Front.SYNC, Front.FLUSH, Front.TERMINATE))


class QueryPhase(ExtendedSide):
    """`Session` from the first ReadyForQuery on.

    The constructor: engine, its conversation, judge, guard, where (user, database and startup parameters),
    bounds, and the number of the first exchange.
    """

    _stalled: bytes | None = None  # read, but what it means is not known yet
    _aside = 0  # Syncs in the middle of a COPY FROM STDIN: read by the database if the COPY fails
    _client_ended = False
    _never: AbstractSet[int] = frozenset()  # exchanges of an output that was lost
    _unended: Sequence[int] = ()  # exchanges whose Result was lost with it
    _ended = False  # the end was passed on to the database

    @property
    def protocol(self) -> str:
        return "postgres"

    @property
    def waits(self) -> bool:
        """The client should not be read on: much of what it sent waits for an answer of the database."""
        return self._stalled is not None and self._front.waiting > READ_AHEAD

    @property
    def is_reading(self) -> bool:
        return super().is_reading or self._open or self._stalled is not None or self._catalog.under_way

    def client_data(self, data: bytes) -> Output:
        out = Output()
        try:
            self._front.feed(data)
            self._read_client(out)
            self._count_held("client", len(self._stalled) if self._stalled is not None else 0)
        except ProtocolError:
            self._lose(out)
            raise
        return out

    def server_data(self, data: bytes) -> Output:
        out = Output()
        try:
            self._read_answers(out, data)
            self._count_held("server", len(self._stalled) if self._stalled is not None else 0)
        except ProtocolError:
            self._lose(out)
            raise
        return out

    def _lose(self, out: Output) -> None:
        """The output of a read that ends in an error is never seen: nothing in it has happened."""
        self._never = {record.n for record in out.records if isinstance(record, Intent)}
        ended = {record.n for record in out.records if isinstance(record, Result)}
        self._unended = sorted(ended - self._never)

    def client_eof(self) -> Output:
        out = Output()
        self._client_ended = True
        self._pass_end(out)
        return out

    def server_eof(self) -> Output:
        # An answer cut short must not look whole; after a FATAL its exchange has ended.
        cut = bool(self._queue) and self._queue[0].exchange is not None
        out = self.abandon("the database closed the connection")
        out.close = "reset" if cut else "both"
        return out

    def abandon(self, reason: str) -> Output:
        out = Output(records=[Abort(n, reason) for n in self._unended])
        self._unended = ()
        for entry in self._queue:
            if entry.exchange is not None and entry.exchange.n not in self._never:
                self._recorder.abort(out, entry.exchange, reason)
            entry.exchange = None
        return out

    def refuse_all(self, message: str) -> Output:
        out = self.abandon(message)
        out.to_client.append(error_response("08P01", message, severity="FATAL"))
        out.close = "both"
        return out

    def _pass_end(self, out: Output) -> None:
        if self._client_ended and not self._ended and self._stalled is None:
            self._ended = True
            out.close = "server-eof"

    # -- one message after the other -----------------------------------------------------------------

    def _go_on(self, out: Output) -> None:
        while self._aside and self._copy is None:
            self._aside -= 1
            self._take_sync(out)
        if self._stalled is not None:
            self._read_client(out)
            if self._client_ended:
                self._pass_end(out)

    def _read_client(self, out: Output) -> None:
        self._turn += 1
        front = self._front
        while True:
            taken = self._stalled
            if taken is None:
                taken = front.take_raw()
                if taken is None:
                    break
            else:
                self._stalled = None
            kind = taken[0]
            if self._skipping and kind not in _ENDS:
                continue
            try:
                done = not self._must_wait(kind) and self._take(out, kind, taken)
            except Unconfirmed:
                done = False
                self._ask_catalog(out)  # where something is outstanding, once that is answered
                self._confirmed = self._catalog.under_way
                if not (self._confirmed or self._queue):
                    raise RuntimeError("a catalog that wants to be asked was not") from None
            if done:
                self._confirmed = False
            else:
                self._stalled = taken
                if self._open and not self._flushed:
                    # What is waited for may stand in the database's buffer up to a Sync.
                    self._flushed = True
                    out.to_server.append(_FLUSH)
                break
        if self._stalled is not None and front.waiting > self._bounds.body + self._bounds.pipelined:
            raise ProtocolError(
                "pipelined", f"more than {self._bounds.pipelined} bytes wait for an answer of the database"
            )

    def _must_wait(self, kind: int) -> bool:
        """Raises Unconfirmed."""
        if self._copying:
            return False
        if self._catalog.under_way or self._copy is not None:
            return True
        if kind in _UNJUDGED:
            return False
        if self._unsettled or len(self._queue) >= MAX_OUTSTANDING:
            return True
        # Between segments the catalog can be asked: as soon as everything is answered, or, where nothing is
        # outstanding, before what comes after a while is read by what names meant then.
        if self._open or not (self._queue or kind in _READ) or self._conversation.wants is None:
            return False
        if not (self._queue or self._confirmed):
            raise Unconfirmed
        return bool(self._queue)

    def _take(self, out: Output, kind: int, raw: bytes) -> bool:
        """False: it must wait, and nothing was done."""
        if self._copying and kind not in _COPY_KINDS:
            raise ProtocolError("copy", f"a {chr(kind)!r} message inside COPY FROM STDIN")
        match kind:
            case Front.BIND:
                return self._take_bind(out, raw)
            case Front.EXECUTE:
                return self._take_execute(out, raw)
            case Front.SYNC:
                if len(raw) != HEADER:
                    read_empty(raw[HEADER:], "Sync", "client")
                self._take_sync(out)
            case Front.DESCRIBE:
                return self._take_describe(out, raw)
            case Front.PARSE:
                return self._take_parse(out, raw)
            case Front.QUERY:
                self._take_query(out, raw)
            case Front.CLOSE:
                return self._take_close(out, raw)
            case Front.FLUSH:
                read_empty(raw[HEADER:], "Flush", "client")
                out.to_server.append(raw)
            case Front.COPY_DATA | Front.COPY_DONE | Front.COPY_FAIL:
                self._take_copy(out, kind, raw)
            case Front.TERMINATE:
                read_empty(raw[HEADER:], "Terminate", "client")
                out.to_server.append(raw)
            case Front.FUNCTION_CALL:
                operation = self._recorder.unknown("FunctionCall", len(raw))
                verdict = denied(self._judge(operation), "function calls of the protocol cannot be judged")
                self._refuse(out, Kind.CALL, Refused(None, operation, verdict))
            case _:
                raise ProtocolError("unexpected", f"a {chr(kind)!r} message after startup")
        return True

    def _take_sync(self, out: Output) -> None:
        if self._copying:
            # The database passes over it, unless the COPY has failed by then.
            self._aside += 1
            return
        out.to_server.append(_SYNC)
        self._queue.append(_SYNC_ENTRY)
        self._names.segment += 1
        self._open = self._skipping = self._flushed = False

    def _take_query(self, out: Output, raw: bytes) -> None:
        source = read_query(raw[HEADER:])
        try:
            reading, operation, verdict, rewriting = self._decide_text(source, ())
        except Refused as refused:
            self._refuse(out, Kind.QUERY, refused)
            return
        exchange = self._begin(out, reading, (), operation, verdict, rewriting, None)
        exchange.limit = rewriting.max_rows
        entry = Entry(
            Kind.QUERY,
            exchange=exchange,
            reading=reading,
            operation=operation,
            verdict=verdict,
            rewriting=rewriting,
        )
        self._names.drop_statement(entry, b"")
        if reading.methods:
            self._names.drop_portal(entry, b"")
        self._has_effects(entry, reading)
        text = rewriting.text.encode("utf-8", "surrogateescape")
        out.to_server.append(raw if text == source else write_query(text))
        self._queue.append(entry)
        self._flushed = False

    # -- COPY FROM STDIN -----------------------------------------------------------------------------

    def _take_copy(self, out: Output, kind: int, raw: bytes) -> None:
        copy = self._copy
        if not self._copying or copy is None:
            return  # the database passes over it too
        if kind == Front.COPY_DATA:
            if not self._copied:
                self._copied = True
                self._aside = 0  # those before any data are read inside the COPY for sure
            run, _ = self._front.take_run(kind, MAX_SLICE)
            for piece in (raw, run):
                if piece:
                    if copy.exchange is not None:
                        self._recorder.piece(out, copy.exchange, piece)
                    out.to_server.append(piece)
            return
        if kind == Front.COPY_DONE:
            read_empty(raw[HEADER:], "CopyDone", "client")
        elif raw.find(0, HEADER) != len(raw) - 1:
            raise ProtocolError("message-form", "a CopyFail message with a text that does not end with it")
        self._copying = self._copied = False
        self._aside = 0
        if copy.kind == Kind.EXECUTE:
            self._copy = None  # no second COPY can follow; in a Query one may
        out.to_server.append(raw)
