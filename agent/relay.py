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
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from typing import Protocol as Interface

from agent.messages import GuardSettings
from agent.protocols.session import Abort, Intent, Opaque, Output, ProtocolError, Record, Result, Session
from policy.model import RecordMode, Subject

DIAL_TIMEOUT = 10.0  # seconds for the database to answer a SYN on this host
LINGER = 2.0  # seconds in which a refused client may read why
HIGH_WATER = 1 << 20  # bytes queued on one side before the other is paused
_LINGER_RESET = struct.pack("ii", 1, 0)


class Refuse(Exception):
    """This connection may not go on; `reason` is a stable short word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Journal(Interface):
    """What the relay needs of ``agent/evidence/recorder.py``."""

    def open_session(self, session_id: str, card: dict[str, Any]) -> None: ...

    def close_session(self, session_id: str, summary: dict[str, Any]) -> None: ...

    def put(
        self,
        session_id: str,
        records: Sequence[Record],
        mode: RecordMode,
        release: Callable[[bool], None],
    ) -> None: ...


class Host(Interface):
    """What the relay needs of the worker that accepted it."""

    @property
    def journal(self) -> Journal: ...

    @property
    def first_request(self) -> float: ...

    def new_session_id(self) -> str: ...

    async def identify(self, guard: str, client: tuple[str, int], server: tuple[str, int]) -> Subject: ...

    def admit(self, relay: Relay) -> None:
        """Raises Refuse where this subject may not even connect."""
        ...

    def open_protocol(self, relay: Relay) -> Session: ...

    def card(self, relay: Relay) -> dict[str, Any]: ...

    def count(self, name: str, by: int = 1) -> None: ...

    def report_bug(self, error: BaseException) -> None: ...

    def forget(self, relay: Relay) -> None: ...


class _Waiting:
    """An output whose records are being written."""

    __slots__ = ("ok", "output", "ready")

    def __init__(self, output: Output, ready: bool) -> None:
        self.output = output
        self.ready = ready
        self.ok = True


class Relay:
    """Lives from accept to the last close. `subject` is None until identity answered."""

    def __init__(self, host: Host, guard: GuardSettings, client: asyncio.Transport) -> None:
        self.host = host
        self.guard = guard
        self.subject: Subject | None = None
        self.id = host.new_session_id()
        self.client_addr = address_of(client.get_extra_info("peername"))
        self.server_addr = address_of(client.get_extra_info("sockname"))
        self.enforcing = guard.mode == "enforce"
        self.bytes_in = 0
        self.bytes_out = 0
        self.tally = Tally()
        self.admitted = False
        self._client: asyncio.Transport | None = client
        self._server: asyncio.Transport | None = None
        self._session: Session | None = None
        self._early = b""  # what came before the session stood; at most one read, then reading is paused
        self._eof_early = False
        self._queue: deque[_Waiting] = deque()
        self._mode: RecordMode = "strict"
        self._timer: asyncio.TimerHandle | None = None
        self._opened = False
        self._closing: str | None = None
        self._draining = False
        client.set_write_buffer_limits(HIGH_WATER)
        self._start_task = asyncio.get_running_loop().create_task(self._start())

    @property
    def is_open(self) -> bool:
        return self._client is not None

    # -- from accept to the first byte -------------------------------------------------------------

    async def _start(self) -> None:
        try:
            self.subject = await self.host.identify(self.guard.name, self.client_addr, self.server_addr)
            if not self.is_open:
                self.host.forget(self)
                return
            self.host.journal.open_session(self.id, self.host.card(self))
            self._opened = True
            self.host.admit(self)
            self.admitted = True
            await self._dial()
            self._session = self.host.open_protocol(self)
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
            if self._eof_early:
                self._feed(self._session.client_eof)
        except Refuse as refused:
            self.host.count(f"refused_{refused.reason}")
            self._end(refused.reason, reset=True)
        except Exception as error:
            self.host.report_bug(error)
            self._end("internal-error", reset=True)

    async def _dial(self) -> None:
        """Connect to exactly the address and port that the client dialled (architecture.md §1)."""
        host, port = self.server_addr
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                await loop.create_connection(lambda: _ServerSide(self), host, port)
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
        # Before the session stands nothing was asked: HTTP servers do not speak first.

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

    def _feed(self, method: Callable[..., Output], *arguments: bytes) -> None:
        if self._closing:
            return
        try:
            self._apply(method(*arguments))
        except ProtocolError as error:
            self.host.count(f"protocol_{error.side}_{error.reason}")
            self._end(error.reason, reset=error.side == "server", message=error.message)
        except Exception as error:
            self.host.report_bug(error)
            self._end("internal-error", reset=True)

    def _apply(self, output: Output) -> None:
        if output.records:
            mode = self._take_note(output.records)
            waiting = _Waiting(output, ready=False)
            self._queue.append(waiting)
            self.host.journal.put(self.id, output.records, mode, lambda ok: self._recorded(waiting, ok))
        elif self._queue:
            self._queue.append(_Waiting(output, ready=True))
        else:
            self._write(output)

    def _recorded(self, waiting: _Waiting, ok: bool) -> None:
        waiting.ready = True
        waiting.ok = ok
        while self._queue and self._queue[0].ready:
            head = self._queue.popleft()
            if not head.ok and self.enforcing:
                self._queue.clear()
                self.host.count("refused_evidence")
                self._end("evidence", reset=True)
                return
            self._write(head.output)
        if self._closing and not self._queue:
            self._finish()

    def _write(self, output: Output) -> None:
        if output.to_server and self._server is not None:
            self._server.writelines(output.to_server)
        if output.to_client and self._client is not None:
            self.bytes_out += sum(map(len, output.to_client))
            self._client.writelines(output.to_client)
        match output.close:
            case "no":
                if self._draining and not self._queue and self.tally.open == 0:
                    self._end("drained")
            case "client-eof":
                _send_eof(self._client)
            case "server-eof":
                _send_eof(self._server)
            case "both":
                self._end("closed")
            case "reset":
                self._end("reset", reset=True)

    def _take_note(self, records: Sequence[Record]) -> RecordMode:
        """Count what is recorded; returns the mode in which it must be written."""
        for record in records:
            self.tally.note(record)
            if type(record) is Intent:
                self._mode = record.verdict.mode
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
        return self._mode if self.enforcing else "best-effort"

    # -- backpressure ------------------------------------------------------------------------------

    def client_full(self, full: bool) -> None:
        _pause(self._server, full)

    def server_full(self, full: bool) -> None:
        _pause(self._client, full)

    # -- the end -----------------------------------------------------------------------------------

    def client_lost(self) -> None:
        self._client = None
        self._end("client-gone", reset=True)

    def server_lost(self) -> None:
        self._server = None
        # An answer cut short must not look whole: with an exchange open the client gets a reset.
        self._end("database-gone", reset=self.tally.open > 0)

    def end(self, reason: str) -> None:
        """Close both sides now (kill, policy, timeout)."""
        self._end(reason, reset=True)

    def drain(self) -> None:
        """Close as soon as no exchange is under way."""
        self._draining = True
        if self.tally.open == 0 and not self._queue:
            self._end("drained")

    def _end(self, reason: str, *, reset: bool = False, message: str | None = None) -> None:
        if self._closing:
            return
        self._closing = reason
        if self._timer is not None:
            self._timer.cancel()
        records: list[Record] = []
        if self._session is not None:
            try:
                if message is not None and self.enforcing:
                    refusal = self._session.refuse_all(message)
                    records += refusal.records
                    if self._client is not None and not self._queue:
                        self._client.writelines(refusal.to_client)
                records += self._session.abandon(reason).records
            except Exception as error:
                self.host.report_bug(error)
        if reset:
            _reset(self._client)
            _reset(self._server)
            self._client = self._server = None
        self._record_end(records)

    def _record_end(self, records: list[Record]) -> None:
        if records and self._opened:
            waiting = _Waiting(Output(), ready=False)
            self._queue.append(waiting)
            mode = self._take_note(records)
            self.host.journal.put(self.id, records, mode, lambda ok: self._recorded(waiting, ok))
        elif not self._queue:
            self._finish()

    def _finish(self) -> None:
        """Everything recorded is written and released: close what is still open."""
        if self._server is not None:
            self._server.close()
        if self._client is not None:
            self._close_client(self._client)
        self._client = self._server = None
        self._session = None
        if self._opened:
            self._opened = False
            self.host.journal.close_session(self.id, self.tally.summary(self, self._closing or "closed"))
        self.host.forget(self)


    def _close_client(self, client: asyncio.Transport) -> None:
        """Close so that the last bytes arrive: with unread input a close would reset and lose them.

        The client's own end of file closes earlier (``ClientSide.eof_received``).
        """
        if client.is_closing() or not client.can_write_eof():
            client.close()
            return
        client.write_eof()
        asyncio.get_running_loop().call_later(LINGER, client.abort)


class Tally:
    """What the session record sums up."""

    __slots__ = ("allowed", "denied", "held", "masked", "opaque", "open", "requests", "rows", "tls", "would")

    def __init__(self) -> None:
        self.requests = self.allowed = self.denied = self.held = self.masked = self.would = self.rows = self.open = 0
        self.opaque: str | None = None
        self.tls = False

    def note(self, record: Record) -> None:
        if type(record) is Intent:
            self.requests += 1
            self.open += 1
            self.allowed += record.verdict.outcome in ("allow", "tunnel")
            self.denied += record.verdict.outcome == "deny"
            self.held += record.verdict.outcome == "hold"
            self.would += record.verdict.would is not None
        elif type(record) is Result:
            self.open -= 1
            self.rows += record.rows
            self.masked += bool(record.masks)
        elif type(record) is Abort:
            self.open -= 1
        elif type(record) is Opaque:
            self.opaque = record.reason
            self.tls = record.protocol == "tls"

    def summary(self, relay: Relay, reason: str) -> dict[str, Any]:
        return {
            "reason": reason,
            "requests": self.requests,
            "allowed": self.allowed,
            "denied": self.denied,
            "held": self.held,
            "masked": self.masked,
            "would": self.would,
            "rows": self.rows,
            "bytes_in": relay.bytes_in,
            "bytes_out": relay.bytes_out,
            "opaque": self.opaque,
            "tls": self.tls,
        }


class ClientSide(asyncio.Protocol):
    """The accepted socket."""

    __slots__ = ("_accept", "_relay")

    def __init__(self, accept: Callable[[asyncio.Transport], Relay | None]) -> None:
        self._accept = accept
        self._relay: Relay | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses
        self._relay = self._accept(stream)
        if self._relay is None:
            _reset(stream)

    def data_received(self, data: bytes) -> None:
        if self._relay is not None:
            self._relay.from_client(data)

    def eof_received(self) -> bool:
        if self._relay is None:
            return False
        self._relay.client_eof()
        return self._relay.is_open

    def pause_writing(self) -> None:
        if self._relay is not None:
            self._relay.client_full(True)

    def resume_writing(self) -> None:
        if self._relay is not None:
            self._relay.client_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._relay is not None:
            self._relay.client_lost()


class _ServerSide(asyncio.Protocol):
    """The connection to the database."""

    __slots__ = ("_relay",)

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._relay.attach_server(transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._relay.from_server(data)

    def eof_received(self) -> bool:
        self._relay.server_eof()
        return True

    def pause_writing(self) -> None:
        self._relay.server_full(True)

    def resume_writing(self) -> None:
        self._relay.server_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.server_lost()


def address_of(name: tuple[Any, ...]) -> tuple[str, int]:
    """A socket name as (address, port), v4-mapped addresses as IPv4."""
    host = str(name[0])
    return (host[7:] if host.startswith("::ffff:") and "." in host else host), int(name[1])


def _pause(transport: asyncio.Transport | None, full: bool) -> None:
    if transport is None or transport.is_closing():
        return
    if full:
        transport.pause_reading()
    else:
        transport.resume_reading()


def _send_eof(transport: asyncio.Transport | None) -> None:
    if transport is not None and transport.can_write_eof() and not transport.is_closing():
        transport.write_eof()


def _reset(transport: asyncio.Transport | None) -> None:
    """Close with a RST: the peer must not take what it has for the whole."""
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        except OSError:
            pass  # already closed: there is nothing to reset
    transport.abort()

