# SPDX-License-Identifier: Apache-2.0
"""The first session of every connection: waits for the first bytes, then hands over for good.

Owns the choice between HTTP/1.1, an opaque relay and a refusal in the protocol that the client speaks.
Bias: in enforce what is not HTTP/1.1 is refused and nothing of it is forwarded; in observe it is relayed
unread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from agent.protocols.detect import PREFIX, detect
from agent.protocols.http import Engine, Headers
from agent.protocols.http1 import Http1Session
from agent.protocols.http1_form import own_response
from agent.protocols.http1_tap import Http1Tap
from agent.protocols.opaque import OpaqueSession, Tally
from agent.protocols.postgres import PostgresSession
from agent.protocols.postgres_auth import Custody
from agent.protocols.postgres_tap import PostgresTap
from agent.protocols.session import (
    Bounds,
    Judge,
    LoginJudge,
    Output,
    ProtocolError,
    Secured,
    Session,
    TlsTerms,
)
from agent.protocols.sql import SqlEngine

Mode = Literal["observe", "enforce"]

_REASONS = {
    "tls": ("tls-without-key", "TLS on a guard that holds no certificate and key: connect without TLS"),
    "http2": ("http2", "HTTP/2 is not spoken here: use HTTP/1.1"),
    "unknown": ("unknown-protocol", "the first bytes are no protocol that this guard speaks"),
}
# A fatal handshake_failure alert (RFC 8446 section 6), in the record version every client reads.
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x28"
_HTTP2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_HTTP_1_1_REQUIRED = 0xD  # RFC 9113 section 7


def open_session(
    engine: Engine,
    judge: Judge,
    guard: str,
    mode: Mode,
    bounds: Bounds | None = None,
    credential: Headers | None = None,
    terms: TlsTerms | None = None,
) -> Sniffing:
    """The session for a new connection to a guard.

    `credential`: headers the guard holds in place of the client's own (enforce only), lower-case names.
    """
    bounds = bounds if bounds is not None else Bounds()
    return Sniffing(engine, judge, guard, mode, bounds, credential, terms or TlsTerms())


def open_sql_session(
    engine: SqlEngine,
    judge: LoginJudge,
    guard: str,
    mode: Mode,
    bounds: Bounds,
    custody: Custody,
    random: Callable[[int], bytes],
    terms: TlsTerms | None = None,
) -> PostgresSession | PostgresTap:
    """The session for a new connection to a guard of a SQL engine. `random(n)`: n random bytes, for nonces.

    In observe nothing is held, answered or changed: TLS that the database itself answers passes unread.
    """
    if mode == "observe":
        return PostgresTap(engine, judge, guard, bounds)
    return PostgresSession(engine, judge, guard, bounds, custody, random, terms)


def open_tunnel(reason: str) -> OpaqueSession:
    """The session for a connection that a tunnel rule relays unread, in either mode."""
    return OpaqueSession(reason, "unknown")


class Sniffing:
    """`Session` that becomes another one after at most `detect.PREFIX` bytes."""

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        guard: str,
        mode: Mode,
        bounds: Bounds,
        credential: Headers | None,
        terms: TlsTerms,
    ) -> None:
        self._engine = engine
        self._judge = judge
        self._guard = guard
        self._mode: Mode = mode
        self._bounds = bounds
        self._credential = credential
        self._terms = terms
        self._tls: frozenset[str] = frozenset()  # the sides that speak it
        self._awaited: Literal["client", "server"] | None = None  # a handshake is under way there
        self._eof = False  # of the client, while the database's handshake is
        self._prefix = b""
        self._seen = "unknown"
        self._chosen: Session | None = None

    @property
    def protocol(self) -> str:
        return self._chosen.protocol if self._chosen is not None else self._seen

    @property
    def is_reading(self) -> bool:
        """A request has begun to come, or was not answered yet."""
        return bool(self._prefix) or bool(getattr(self._chosen, "is_reading", False))

    @property
    def tally(self) -> Tally | None:
        """What passed unread, once the connection is opaque."""
        chosen = self._chosen
        return chosen.tally if isinstance(chosen, OpaqueSession | Http1Tap) else None

    def client_data(self, data: bytes) -> Output:
        if self._chosen is not None:
            return self._chosen.client_data(data)
        self._prefix += data
        if self._awaited is not None:
            if len(self._prefix) > self._bounds.pipelined:
                message = f"more than {self._bounds.pipelined} bytes before the database's TLS stood"
                raise ProtocolError("too-much-before-tls", message)
            return Output()
        seen = detect(self._prefix[:PREFIX])
        if seen == "more":
            return Output()
        self._seen = seen
        side = self._to_secure()
        if side is not None:
            self._awaited = side
            return Output(secure=side)
        return self._choose()

    def _to_secure(self) -> Literal["client", "server"] | None:
        """Which side must speak TLS before anything passes. Raises ProtocolError: nothing may pass."""
        bare = "client" not in self._tls
        if self._seen == "tls" and bare and self._terms.client != "no":
            return "client"
        if self._mode == "enforce":
            if self._terms.client == "required" and bare:
                raise ProtocolError("tls-required", "this guard is spoken to over TLS, with a certificate")
            if self._seen != "http1":
                raise ProtocolError(*_REASONS[self._seen])
        if self._seen == "tls" and bare:
            return None  # the client's own TLS goes to the database as it is
        return "server" if self._terms.server and "server" not in self._tls else None

    def _choose(self) -> Output:
        if self._seen == "http1":
            self._chosen = self._http1()
        else:
            self._chosen = OpaqueSession(f"{self._seen} is not read", self._seen)
        prefix, self._prefix = self._prefix, b""
        out = self._chosen.client_data(prefix)
        if self._eof:
            ending = self._chosen.client_eof()
            out.records += ending.records
            out.to_server += ending.to_server
            out.to_client += ending.to_client
            out.close = ending.close if out.close == "no" else out.close
        return out

    def begin_tls(self, side: Literal["client", "server"]) -> bytes:
        if side == "server":
            return b""
        prefix, self._prefix = self._prefix, b""
        return prefix

    def secured(self, secured: Secured) -> Output:
        self._awaited = None
        self._tls |= {secured.side}
        if secured.side == "server":
            return self._choose()
        self._seen = "unknown"  # what is spoken inside comes now
        return Output()

    def server_data(self, data: bytes) -> Output:
        if self._chosen is None:
            if self._mode == "enforce" or self._awaited is not None:
                raise ProtocolError("server-first", "the database spoke before the client", "server")
            return self._relay("the database spoke first", data)
        return self._chosen.server_data(data)

    def client_eof(self) -> Output:
        if self._chosen is None:
            if self._awaited == "server":
                self._eof = True
                return Output()
            if self._mode == "enforce":
                return Output(close="both")
            out = self._relay("the client closed before it said what it speaks", b"")
            out.close = self._eof_of("client")
            return out
        return self._chosen.client_eof()

    def server_eof(self) -> Output:
        if self._chosen is None:
            if self._mode == "enforce" or self._awaited is not None:
                return Output(close="both")
            out = self._relay("the database closed first", b"")
            out.close = self._eof_of("server")
            return out
        return self._chosen.server_eof()

    def abandon(self, reason: str) -> Output:
        return self._chosen.abandon(reason) if self._chosen is not None else Output()

    def refuse_all(self, message: str) -> Output:
        """The refusal in the protocol the client spoke: a TLS alert, GOAWAY, or the engine's HTTP error."""
        if self._chosen is not None:
            return self._chosen.refuse_all(message)
        out = Output(close="both")
        if self._awaited == "client":
            return out  # in the middle of a handshake nothing can be said
        if self._seen == "tls" and "client" not in self._tls:
            out.to_client.append(_TLS_ALERT)
        elif self._seen == "http2":
            debug = message.encode("utf-8", "replace")[:256]
            goaway = bytes(4) + _HTTP_1_1_REQUIRED.to_bytes(4, "big") + debug
            frame = len(goaway).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + goaway
            out.to_client.append(_HTTP2_SETTINGS + frame)
        else:
            out.to_client += own_response(self._engine.refuse(403, "refused", message, None), True, False)
        return out

    def _http1(self) -> Session:
        if self._mode == "observe":
            return Http1Tap(self._engine, self._judge, self._guard, self._bounds)
        return Http1Session(self._engine, self._judge, self._guard, self._bounds, self._credential)

    def _relay(self, reason: str, data: bytes) -> Output:
        """Turn opaque, with what the client has said so far and `data` from the server."""
        self._chosen = opaque = OpaqueSession(reason, "unknown")
        prefix, self._prefix = self._prefix, b""
        out = Output()
        opaque.announce(out)
        if prefix:
            opaque.pass_client(out, prefix)
        if data:
            opaque.pass_server(out, data)
        return out

    def _eof_of(
        self, side: Literal["client", "server"]
    ) -> Literal["no", "client-eof", "server-eof", "both", "reset"]:
        if self._chosen is None:
            return "both"
        return self._chosen.client_eof().close if side == "client" else self._chosen.server_eof().close
