# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL connection in observe: every byte passes as it came, at once; the parser only looks.

Owns the tap on both directions from the first byte on: startup, authentication and what follows. Bias: never
break a client. Bytes do not go through the parser. Whatever it does not understand, TLS that the database
itself answers, and our own bugs included, turns the connection opaque with all its bytes. What is said while
the two authenticate is seen and never recorded.
"""

from __future__ import annotations

from enum import Enum

from agent.protocols.opaque import OpaqueSession, Tally
from agent.protocols.postgres_forms import read_parameter_status, read_ready
from agent.protocols.postgres_messages import (
    HEADER,
    Back,
    CancelRequest,
    EncryptionRequest,
    Framer,
    Front,
    StartupMessage,
    client_limits,
    error_response,
    read_startup,
    server_limits,
)
from agent.protocols.postgres_watch import WatchingSide
from agent.protocols.session import Bounds, LoginJudge, Output, ProtocolError
from agent.protocols.sql import Conversation, SqlEngine, Where
from policy.login import Login

_TLS_HANDSHAKE = 0x16


class _Phase(Enum):
    STARTUP = 0  # a packet of the client is awaited
    ENCRYPTION = 1  # one byte of the database: whether it will encrypt
    AUTHENTICATION = 2
    QUERY = 3
    CANCEL = 4  # nothing more comes


class PostgresTap:
    """`Session` for one connection of a guard in observe."""

    def __init__(
        self, engine: SqlEngine, judge: LoginJudge, guard: str, bounds: Bounds | None = None, n_from: int = 1
    ) -> None:
        self._engine = engine
        self._judge = judge
        self._guard = guard
        self._bounds = bounds if bounds is not None else Bounds()
        self._n_from = n_from
        self._opaque: OpaqueSession | None = None
        self._phase = _Phase.STARTUP
        self._early = b""  # of the client's startup packet
        self._early_server = b""  # an answer to an encryption request that is not whole
        self._front = Framer("client", client_limits(self._bounds.body))
        self._back = Framer("server", server_limits(self._bounds.body))
        self._conversation: Conversation | None = None
        self._where: Where | None = None
        self._watching: WatchingSide | None = None
        self._ended: set[str] = set()

    @property
    def protocol(self) -> str:
        return "postgres"

    @property
    def is_reading(self) -> bool:
        """Something has begun that a drain waits for; what passes unread has no beginning."""
        if self._opaque is not None:
            return False
        if self._watching is not None:
            return self._watching.is_reading
        return bool(self._early) or self._phase not in (_Phase.STARTUP, _Phase.CANCEL)

    @property
    def tally(self) -> Tally | None:
        """What passed unread, once the connection has turned opaque."""
        return self._opaque.tally if self._opaque is not None else None

    def client_data(self, data: bytes) -> Output:
        out = Output()
        if self._opaque is None:
            try:
                self._read_client(out, data)
            except ProtocolError as error:
                self._turn_opaque(out, error.reason)
            except Exception as bug:  # our bug must not become the client's
                self._turn_opaque(out, f"tap failed: {type(bug).__name__}")
        if self._opaque is not None:
            self._opaque.pass_client(out, data)
        else:
            out.to_server.append(data)
        return out

    def server_data(self, data: bytes) -> Output:
        out = Output()
        if self._opaque is None:
            try:
                self._read_server(out, data)
            except ProtocolError as error:
                self._turn_opaque(out, error.reason)
            except Exception as bug:
                self._turn_opaque(out, f"tap failed: {type(bug).__name__}")
        if self._opaque is not None:
            self._opaque.pass_server(out, data)
        else:
            out.to_client.append(data)
        return out

    def client_eof(self) -> Output:
        out = Output()
        self._ended.add("client")
        out.close = "both" if len(self._ended) == 2 else "server-eof"
        return out

    def server_eof(self) -> Output:
        out = Output()
        if self._watching is not None and self._opaque is None:
            self._watching.abort_all(out, "the database closed the connection")
        self._ended.add("server")
        out.close = "both" if len(self._ended) == 2 else "client-eof"
        return out

    def abandon(self, reason: str) -> Output:
        out = Output()
        if self._watching is not None and self._opaque is None:
            self._watching.abort_all(out, reason)
        return out

    def refuse_all(self, message: str) -> Output:
        out = self.abandon(message)
        if self._opaque is None and self._watching is None:
            out.to_client.append(error_response("28000", message, severity="FATAL"))
            out.close = "both"
        else:
            out.close = "reset"
        return out

    def _turn_opaque(self, out: Output, reason: str, protocol: str = "postgres") -> None:
        if self._watching is not None:
            self._watching.abort_all(out, f"relayed unread: {reason}")
            self._watching = None
        self._opaque = OpaqueSession(reason, protocol)
        self._opaque.announce(out)
        self._early = self._early_server = b""
        self._front.rest()
        self._back.rest()

    # -- before the first ReadyForQuery ----------------------------------------------------------------

    def _read_client(self, out: Output, data: bytes) -> None:
        if self._phase is _Phase.QUERY and self._watching is not None:
            self._watching.watch_client(out, data)
        elif self._phase is _Phase.STARTUP:
            self._read_startup(out, self._early + data)
        elif self._phase is _Phase.AUTHENTICATION:
            self._front.feed(data)
            while (taken := self._front.take()) is not None:
                if taken.kind not in (Front.PASSWORD, Front.TERMINATE):
                    raise ProtocolError("early", "the client went on before it was authenticated")
        else:
            raise ProtocolError("early", "the client spoke where the database was to answer")

    def _read_startup(self, out: Output, data: bytes) -> None:
        if data[:1] == bytes((_TLS_HANDSHAKE,)):
            self._turn_opaque(out, "tls is not read", "tls")
            return
        self._early = data
        found = read_startup(data)
        if found is None:
            return
        packet, rest = found
        self._early = b""
        match packet:
            case EncryptionRequest():
                self._phase = _Phase.ENCRYPTION
            case CancelRequest():
                self._phase = _Phase.CANCEL
            case StartupMessage():
                self._begin(packet)
                self._phase = _Phase.AUTHENTICATION
        if rest:
            self._read_client(out, rest)

    def _begin(self, packet: StartupMessage) -> None:
        parameters = {_text(k): _text(v) for k, v in packet.parameters}
        if parameters.get("replication", "false").lower() not in ("false", "off", "no", "0"):
            raise ProtocolError("replication", "a replication connection")
        user = parameters.get("user", "")
        self._where = Where(user, parameters.get("database", "") or user, parameters)
        self._conversation = self._engine.converse(self._guard, self._where)
        self._judge.begin(Login(user, self._where.database))

    def _read_server(self, out: Output, data: bytes) -> None:
        match self._phase:
            case _Phase.QUERY if self._watching is not None:
                self._watching.watch_server(out, data)
            case _Phase.AUTHENTICATION:
                self._read_authentication(out, data)
            case _Phase.ENCRYPTION:
                self._read_encryption(out, data)
            case _:
                raise ProtocolError("server-first", "the database spoke before the client", "server")

    def _read_encryption(self, out: Output, data: bytes) -> None:
        if data[:1] == b"N":
            self._phase = _Phase.STARTUP
            if len(data) > 1:
                raise ProtocolError("early", "the database said more than it was asked", "server")
        elif data[:1] == b"S":
            self._turn_opaque(out, "tls is not read", "tls")
        elif data[:1] == b"G":
            self._turn_opaque(out, "gss encryption is not read", "gss")
        else:
            raise ProtocolError("encryption", "an answer to an encryption request that is none", "server")

    def _read_authentication(self, out: Output, data: bytes) -> None:
        back, conversation, where = self._back, self._conversation, self._where
        if conversation is None or where is None:
            raise RuntimeError("authentication before startup")
        back.feed(data)
        while (taken := back.take()) is not None:
            if taken.kind == Back.PARAMETER_STATUS:
                conversation.status(*read_parameter_status(taken.raw[HEADER:]))
            elif taken.kind == Back.READY_FOR_QUERY:
                conversation.ended(read_ready(taken.raw[HEADER:]))
                self._phase = _Phase.QUERY
                self._watching = WatchingSide(
                    self._engine, conversation, self._judge, self._guard, where, self._bounds, self._n_from
                )
                rest = back.rest()
                if rest:
                    self._watching.watch_server(out, rest)
                early = self._front.rest()
                if early:
                    self._watching.watch_client(out, early)
                return


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
