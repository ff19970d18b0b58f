# SPDX-License-Identifier: Apache-2.0
"""One client connection and its database connection: feed the session, record, then write.

The only module that holds both sockets. It owns the order that evidence depends on: the records of
an `Output` are written before any byte of it, and outputs leave in the order the session made them.
It parses nothing and decides nothing. Bias: in enforce, an exception anywhere closes both sides and
is counted; in observe, evidence that cannot be written never holds a byte back. Memory is bounded by
the session's bounds and by the transports' high-water marks: a full side pauses the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, cast

from agent.host import Host, Refuse
from agent.judge import SessionJudge
from agent.messages import GuardSettings
from agent.protocols.session import Intent, Opaque, Output, ProtocolError, Record, Secured, Securing, Session
from agent.secure import secure_side
from agent.sides import ServerSide, address_of, close_gently, pause, send, send_eof, send_reset, socket_cookie
from agent.tally import Tally
from agent.tls_layer import TlsError
from policy.model import RecordMode, Subject

DIAL_TIMEOUT: Final = 10.0  # seconds for the database to answer a SYN on this host
LINGER: Final = 2.0  # seconds in which a refused client may read why
HIGH_WATER: Final = 1 << 20  # bytes queued on one side before the other is paused
MAX_UNRECORDED: Final = 32  # outputs that wait for their records before both sides are paused
_STRICTNESS: dict[RecordMode, int] = {"best-effort": 0, "strict": 1, "strict-sync": 2}


class _Waiting:
    """An output in the queue; called with whether its records are written."""

    __slots__ = ("ok", "output", "relay")

    def __init__(self, relay: Relay, output: Output, ok: bool | None) -> None:
        self.relay, self.output, self.ok = relay, output, ok  # None: not known yet

    def __call__(self, ok: bool) -> None:
        self.ok = ok
        self.relay.recorded()


class Relay:
    """Lives from accept to the last close. `subject` is None until identity answered."""

    def __init__(self, host: Host, guard: GuardSettings, client: asyncio.Transport) -> None:
        self.host = host
        self.guard = guard
        self.subject: Subject | None = None
        self.id = host.new_session_id()
        self.client_addr = address_of(client.get_extra_info("peername"))
        self.server_addr = address_of(client.get_extra_info("sockname"))
        self.accepted = socket_cookie(client)
        self.enforcing = guard.mode == "enforce"
        self.bytes_in = self.bytes_out = 0
        self.tally = Tally()
        self.admitted = self.tunnelled = False  # tunnelled: a rule lets it pass unread
        self._client: asyncio.Transport | None = client
        self._server: asyncio.Transport | None = None
        self._session: Session | None = None
        self._early = self._early_server = b""  # before the session stood; reading pauses after the first
        self._queue: deque[_Waiting] = deque()
        self._mode: RecordMode = "strict"
        self._timer: asyncio.TimerHandle | None = None
        self._protocol: str | None = None
        self._unread: tuple[tuple[str, int, bytes], ...] | None = None
        self._opened = self._draining = self._paces = self._eof_early = False
        self._closing: str | None = None
        self._client_full = self._server_full = self._behind = self._securing = self._waits = False
        self.tls: tuple[Secured, ...] = ()  # the sides that speak TLS
        self.judge: SessionJudge | None = None
        client.set_write_buffer_limits(HIGH_WATER)
        self._start_task = asyncio.get_running_loop().create_task(self._start())

    @property
    def is_open(self) -> bool:
        return self._client is not None

    @property
    def is_unnamed(self) -> bool:
        """Its first bytes may still bring a certificate."""
        return not self.tls and not self.tally.requests

    # -- from accept to the first byte -------------------------------------------------------------

    async def _start(self) -> None:
        try:
            self.subject = await self.host.identify(self)
            self.host.journal.open_session(self.id, self.host.card(self))
            if not self.is_open:  # gone already, but its name is known
                self.host.journal.close_session(self.id, self._summary())
                self.host.forget(self)
                return
            self._opened = True
            self.host.admit(self)
            self.admitted = True
            await self._dial()
            self._session = self.host.open_protocol(self)
            self._paces = hasattr(self._session, "waits")  # PostgreSQL's: the client may have to wait
            if self._client is None:
                self._end("client-gone")
                return
            if self.enforcing:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self.host.first_request, self.end, "first-request-timeout")
            self._client.resume_reading()
            if self._early:
                early, self._early = self._early, b""
                self._feed(self._session.client_data, early)
            if self._early_server and not self._closing:
                early, self._early_server = self._early_server, b""
                pause(self._server, False)
                self._feed(self._session.server_data, early)
            if self._eof_early:
                self.client_eof()
        except Refuse as refused:
            self.host.count(f"refused_{refused.reason}")
            self._end(refused.reason, reset=True)
        except Exception as error:
            self.host.report_bug(error)
            self._end("internal-error", reset=True)

    async def _dial(self) -> None:
        """Connect to exactly the address and port that the client dialled (docs/architecture.md)."""
        host, port = self.server_addr
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                await loop.create_connection(lambda: ServerSide(self), host, port)
        except TimeoutError:
            raise Refuse("database-timeout", "the database did not accept in time") from None
        except OSError as error:
            raise Refuse("database-refused", f"the database refused: {error.strerror}") from None

    def attach_server(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(HIGH_WATER)
        self._server = transport
        if self._client is None or self._closing:
            transport.abort()

    # -- bytes -------------------------------------------------------------------------------------

    def from_client(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self._session is not None:
            self._feed(self._session.client_data, data)
        elif not self._closing and self._client is not None:
            # uvloop begins to read after connection_made, whatever was asked there.
            self._early += data
            self._client.pause_reading()

    def from_server(self, data: bytes) -> None:
        if self._session is not None:
            self._feed(self._session.server_data, data)
        elif not self._closing and self._server is not None:
            self._early_server += data  # a database that speaks first
            pause(self._server, True)

    def client_eof(self) -> None:
        if self._session is not None:
            self._feed(self._session.client_eof)
        else:
            self._eof_early = True

    def server_eof(self) -> None:
        if self._session is None:
            self._end("database-gone", reset=True)
        else:
            self._feed(self._session.server_eof)

    def _feed(self, method: Callable[..., Output], *arguments: object) -> None:
        if self._closing:
            return
        try:
            self._apply(method(*arguments))
            if self._paces and self._waits != (waits := getattr(self._session, "waits", False)):
                self._waits = waits
                self._regulate()
        except ProtocolError as error:
            self.host.count(f"protocol_{error.side}_{error.reason}")
            self._end(error.reason, reset=error.side == "server", message=error.message)
        except Exception as bug:
            self.host.report_bug(bug)
            self._end("internal-error", reset=True)

    def _apply(self, output: Output) -> None:
        if output.records:
            mode = self._take_note(output.records)
            waiting = _Waiting(self, output, None)
            self._queue.append(waiting)
            self.host.journal.put(self.id, output.records, mode, waiting)
            if len(self._queue) > MAX_UNRECORDED and not self._behind:
                self._behind = True
                self._regulate()
        elif self._queue:
            self._queue.append(_Waiting(self, output, True))
        else:
            self._write(output)

    def recorded(self) -> None:
        while self._queue and self._queue[0].ok is not None:
            head = self._queue.popleft()
            if not head.ok and self.enforcing:
                self._refuse_unrecorded()
                return
            self._write(head.output)
        if self._behind and len(self._queue) <= MAX_UNRECORDED // 2:
            self._behind = False
            self._regulate()
        if self._closing and not self._queue:
            self._finish()

    def _refuse_unrecorded(self) -> None:
        """A strict record was not written: nothing behind it may pass, also where a close is under way."""
        self._queue.clear()
        if not self._closing:
            self.host.count("refused_evidence")
        self._end("evidence", reset=True)
        self._cut()
        if not self._queue:
            self._finish()

    def _write(self, output: Output) -> None:
        if (pieces := output.to_server) and self._server is not None:
            send(self._server, pieces)
        if (pieces := output.to_client) and self._client is not None:
            self.bytes_out += send(self._client, pieces)
        if output.secure != "no":
            self._feed(self._begin_tls, output.secure)
        match output.close:
            case "no":
                if self._draining and self._is_idle():
                    self._end("drained")
            case "client-eof":
                send_eof(self._client)
            case "server-eof":
                send_eof(self._server)
            case how:
                self._end("closed" if how == "both" else how, reset=how == "reset")

    def _take_note(self, records: list[Record]) -> RecordMode:
        """Count what is recorded; returns the mode in which it must be written: the strictest in it."""
        strictest: RecordMode | None = None
        for record in records:
            self.tally.note(record)
            if type(record) is Intent:
                self._mode = record.verdict.mode
            if self._timer is not None and type(record) in (Intent, Opaque):
                self._timer.cancel()
                self._timer = None
            if strictest is None or _STRICTNESS[self._mode] > _STRICTNESS[strictest]:
                strictest = self._mode
        return (strictest or self._mode) if self.enforcing else "best-effort"

    # -- backpressure ------------------------------------------------------------------------------

    def client_full(self, full: bool) -> None:
        self._client_full = full
        self._regulate()

    def server_full(self, full: bool) -> None:
        self._server_full = full
        self._regulate()

    def _regulate(self) -> None:
        pause(self._server, self._client_full or self._behind)
        pause(self._client, self._server_full or self._behind or self._securing or self._waits)

    # -- TLS ---------------------------------------------------------------------------------------

    def _begin_tls(self, side: Literal["client", "server"]) -> Output:
        """Put TLS under a side: from here on its transport is the layer's, and its bytes are decrypted."""
        transport = self._client if side == "client" else self._server
        if transport is None or self._session is None:
            return Output()  # gone meanwhile: its loss ends this relay
        layer = self.host.tls_layer(self, side)
        early = cast("Securing", self._session).begin_tls(side)
        secure = secure_side(transport, layer, self, side)
        if side == "client":
            self._client = secure
        else:
            self._server, self._securing = secure, True  # what the client says waits in its socket
            self._regulate()
        secure.begin(early)
        return Output()

    def tls_stands(self, secured: Secured) -> None:
        self.tls += (secured,)
        if secured.side == "server":
            self._securing = False
            self._regulate()
        self._feed(self._take_secured, secured)

    def _take_secured(self, secured: Secured) -> Output:
        self.host.secured(self, secured)
        self.host.journal.amend_session(self.id, self.host.card(self))  # before what it says of is judged
        return cast("Securing", self._session).secured(secured)

    def tls_failed(self, side: Literal["client", "server"], error: TlsError, heard: bool) -> None:
        if self._closing:
            return
        self.host.count(f"protocol_{side}_{error.reason}")
        message = f"towards the database, {error.message}" if side == "server" else None
        self._end(error.reason, reset=heard, message=message)

    # -- the end -----------------------------------------------------------------------------------

    def client_lost(self) -> None:
        self._client = None
        self._end("client-gone", reset=True)

    def server_lost(self, reset: bool = False) -> None:
        self._server = None
        waited = getattr(self._session, "is_opening", False)  # PostgreSQL's: the client waits to be let in
        # An answer cut short must not look whole; what passes unread ends as the database ended it.
        unread = reset and self.tally.opaque is not None and not self._queue
        self._end("database-gone", reset=not waited and (self.tally.open > 0 or unread), waited=waited)

    def end(self, reason: str) -> None:
        """Close both sides now (kill, policy, timeout)."""
        self._end(reason, reset=True)

    def drain(self) -> None:
        """Close as soon as no exchange is under way, also none whose request is still coming."""
        self._draining = True
        if self._is_idle():
            self._end("drained")

    def _is_idle(self) -> bool:
        reading = getattr(self._session, "is_reading", False)  # what passes unread has no exchanges
        return not (self.tally.open or self._queue or self._early or reading)

    def _end(
        self, reason: str, *, reset: bool = False, message: str | None = None, waited: bool = False
    ) -> None:
        if self._closing:
            return
        self._closing = reason
        if self._timer is not None:
            self._timer.cancel()
        last = Output()
        if self._session is not None:
            try:
                if waited or (message is not None and self.enforcing):
                    said = self._session.server_eof() if waited else self._session.refuse_all(message or "")
                    last.records += said.records
                    last.to_client += said.to_client
                last.records += self._session.abandon(reason).records
            except Exception as error:
                self.host.report_bug(error)
        if reset:
            self._cut()
        self._record_end(last)

    def _cut(self) -> None:
        send_reset(self._client)
        send_reset(self._server)
        self._client = self._server = None

    def _record_end(self, last: Output) -> None:
        self._apply(last if self._opened else Output(to_client=last.to_client))
        if not self._queue:
            self._finish()

    def _finish(self) -> None:
        """Everything recorded is written and released: close what is still open."""
        if self._server is not None:
            self._server.close()
        if self._client is not None:
            close_gently(self._client, LINGER)  # its own end of file closes it earlier
        self._client = self._server = None
        self._end_session()
        if self._opened:
            self._opened = False
            self.host.journal.close_session(self.id, self._summary())
        self.host.forget(self)

    def _end_session(self) -> None:
        if self._session is None:
            return
        self._protocol = self._session.protocol
        # Only sessions that may turn opaque have a tally (agent/protocols/opaque.py).
        passed = getattr(self._session, "tally", None)
        if passed is not None:
            self._unread = (
                ("client", passed.client_bytes, passed.client_sha256),
                ("server", passed.server_bytes, passed.server_sha256),
            )
        self._session = None

    def _summary(self) -> dict[str, Any]:
        summary = self.tally.summary(self._closing or "closed", self._protocol, self.bytes_in, self.bytes_out)
        if self._unread is not None:
            summary["unread"] = {side: {"bytes": n, "sha256": digest} for side, n, digest in self._unread}
        return summary
