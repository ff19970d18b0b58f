# SPDX-License-Identifier: Apache-2.0
"""The first packets of a PostgreSQL connection in enforce: encryption on either side, then what is asked for.

Owns the answers to SSLRequest and GSSENCRequest, direct TLS, TLS towards the database, and the judgement of a
startup or a cancel. Bias: nothing reaches the database before the judge allowed the session, and no byte that
came in the clear is taken for one that came over TLS (CVE-2021-23214). A cancel request is forwarded as it
came, on a connection of its own, to the same database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from hashlib import sha256
from typing import Final, Literal

from agent.protocols.postgres_auth import AuthRefused, ClientAuth, Custody, RelayedAuth, UpstreamAuth
from agent.protocols.postgres_messages import (
    SSL_REQUEST,
    CancelRequest,
    EncryptionRequest,
    Framer,
    StartupMessage,
    client_limits,
    error_response,
    read_startup,
    server_limits,
)
from agent.protocols.postgres_query_record import denied
from agent.protocols.postgres_startup import Login, cancel_operation, read_login, startup_operation
from agent.protocols.session import (
    Bounds,
    Intent,
    LoginJudge,
    Output,
    ProtocolError,
    Result,
    Secured,
    TlsTerms,
)
from agent.protocols.sql import SqlEngine
from policy.login import ANY_LOGIN
from policy.model import Verdict
from policy.operation import Operation

ALPN: Final = "postgresql"  # of direct TLS (54.2.9)
TLS_RECORD: Final = b"\x16"  # first byte of a ClientHello
_ASK_TLS: Final = b"\0\0\0\x08" + SSL_REQUEST.to_bytes(4, "big")
_EMPTY: Final = sha256(b"").digest()


class Phase(Enum):
    """What is awaited. Of the client: OPENING, CLIENT_TLS, PASSWORD. Of the database: the others."""

    OPENING = auto()
    CLIENT_TLS = auto()
    SERVER_ANSWER = auto()  # to our SSLRequest
    SERVER_TLS = auto()
    AUTHENTICATION = auto()
    PASSWORD = auto()  # of the client's own; what the database says meanwhile waits
    SETTLING = auto()  # from AuthenticationOk to the first ReadyForQuery
    LEARNING = auto()  # the engine's own catalog queries
    CANCELLING = auto()
    QUERIES = auto()
    OVER = auto()


class Opening:
    """The state of a connection up to the startup packet, and how it is refused."""

    def __init__(
        self,
        engine: SqlEngine,
        judge: LoginJudge,
        guard: str,
        bounds: Bounds,
        custody: Custody,
        random: Callable[[int], bytes],
        terms: TlsTerms | None = None,
    ) -> None:
        """`random(n)` gives n random bytes."""
        self._engine = engine
        self._judge = judge
        self._guard = guard
        self._bounds = bounds
        self._custody = custody
        self._random = random
        self._terms = terms or TlsTerms()
        self._phase = Phase.OPENING
        self._prefix = b""  # of the client, while there are packets without a kind
        self._asked: set[str] = set()  # encryption requests that were answered
        self._direct = False
        self._tls: set[str] = set()  # the sides that speak it
        self._front = Framer("client", client_limits(bounds.body))
        self._back = Framer("server", server_limits(bounds.body))
        self._login: Login | None = None
        self._packet = b""  # that waits for the database's TLS
        self._after = Phase.AUTHENTICATION  # the phase once it was sent
        self._upstream: UpstreamAuth | RelayedAuth = RelayedAuth(presents=self._terms.presents)
        self._client: ClientAuth | None = None  # until the client has proven its password
        self._open = False  # the exchange of startup (or cancel) has no result yet

    # -- Securing ----------------------------------------------------------------------------------

    def begin_tls(self, side: Literal["client", "server"]) -> bytes:
        if side == "client" and self._direct:
            hello, self._prefix = self._prefix, b""
            return hello
        if self._prefix if side == "client" else self._back.waiting:
            raise ProtocolError("plain-before-tls", "unencrypted bytes behind the agreement to use TLS", side)
        return b""

    def secured(self, secured: Secured) -> Output:
        out = Output()
        self._tls.add(secured.side)
        if secured.side == "server":
            self._send_packet(out)
            return out
        if secured.alpn != ALPN and (self._direct or secured.alpn is not None):
            raise ProtocolError("alpn", "direct TLS needs the application protocol `postgresql`")
        self._phase = Phase.OPENING
        self._guarded(out, self._read_packets)
        return out

    # -- the client's first packets ----------------------------------------------------------------

    def _read_packets(self, out: Output) -> None:
        if self._prefix[:1] == TLS_RECORD and not self._asked and not self._tls:
            if self._terms.client == "no":
                raise ProtocolError("tls-without-key", "TLS on a guard that holds no certificate and key")
            self._direct, self._phase = True, Phase.CLIENT_TLS
            out.secure = "client"
            return
        while self._phase is Phase.OPENING and (found := read_startup(self._prefix)) is not None:
            packet, self._prefix = found
            match packet:
                case EncryptionRequest():
                    self._answer_encryption(out, packet)
                case CancelRequest():
                    self._cancel(out, packet)
                case StartupMessage():
                    self._start(out, packet)

    def _answer_encryption(self, out: Output, asked: EncryptionRequest) -> None:
        if self._tls or asked.kind in self._asked:
            raise ProtocolError("encryption-twice", "encryption is asked for where it was agreed or refused")
        self._asked.add(asked.kind)
        if asked.kind == "gss" or self._terms.client == "no":
            out.to_client.append(b"N")
            return
        out.to_client.append(b"S")
        out.secure = "client"
        self._phase = Phase.CLIENT_TLS

    def _start(self, out: Output, startup: StartupMessage) -> None:
        operation = startup_operation(self._engine.name, self._guard, len(startup.raw))
        try:
            if self._terms.client == "required" and "client" not in self._tls:
                text = "this database is spoken to over TLS: set sslmode=require"
                raise AuthRefused("28000", "tls-required", text)
            login = self._login = read_login(startup, self._custody)
        except AuthRefused as refused:
            self._intend(out, operation, denied(self._judge(operation), refused.text), startup.raw, {})
            raise
        self._front.feed(self._prefix)
        self._prefix = b""
        self._judge.begin(login.named)
        operation = startup_operation(self._engine.name, self._guard, len(startup.raw), login.sets_role)
        if self._is_allowed(out, operation, startup.raw, login.head(self._custody.auth)):
            if self._custody.auth != "relay":
                self._upstream = UpstreamAuth(self._custody, login.upstream.encode(), self._random)
            if self._custody.auth == "password":
                self._client = ClientAuth(self._custody, login.user, self._random)
            self._forward(out, login.packet, Phase.AUTHENTICATION)

    def _cancel(self, out: Output, cancel: CancelRequest) -> None:
        """The key is the database's own, which the client has: nothing is mapped."""
        if self._prefix:
            raise ProtocolError("cancel-length", "something stands behind a cancel request")
        operation = cancel_operation(self._engine.name, self._guard, cancel)
        self._judge.begin(ANY_LOGIN)
        if self._is_allowed(out, operation, cancel.raw[:12], {"process": str(cancel.pid)}, quiet=True):
            self._forward(out, cancel.raw, Phase.CANCELLING)

    def _is_allowed(
        self, out: Output, operation: Operation, judged: bytes, head: dict[str, str], *, quiet: bool = False
    ) -> bool:
        """Record the intent; a refusal is said and ends the connection. `judged` is hashed, never kept."""
        verdict = self._judge(operation)
        self._intend(out, operation, verdict, judged, head)
        if verdict.outcome == "allow":
            return True
        if not quiet:
            out.to_client.append(error_response("42501", verdict.message, severity="FATAL"))
        self._finish(out, "refused", {"sqlstate": "42501"}, verdict.message)
        self._phase, out.close = Phase.OVER, "both"
        return False

    def _intend(
        self, out: Output, operation: Operation, verdict: Verdict, judged: bytes, head: dict[str, str]
    ) -> None:
        digest = sha256(judged).digest()
        out.records.append(Intent(1, operation, verdict, head, None, digest, operation.bytes))
        self._open = True

    def _forward(self, out: Output, packet: bytes, then: Phase) -> None:
        self._packet, self._after = packet, then
        if self._terms.server:
            out.to_server.append(_ASK_TLS)
            self._phase = Phase.SERVER_ANSWER
        else:
            self._send_packet(out)

    def _send_packet(self, out: Output) -> None:
        out.to_server.append(self._packet)
        self._packet, self._phase = b"", self._after

    def _take_tls_answer(self, out: Output, data: bytes) -> None:
        if data[:1] == b"N":
            raise AuthRefused(
                "08006", "upstream-tls", "the database does not speak TLS, and the guard asks it to"
            )
        if data != b"S":
            raise ProtocolError("plain-before-tls", "an answer to SSLRequest that is not one byte", "server")
        out.secure = "server"
        self._phase = Phase.SERVER_TLS

    # -- the end of the exchange -------------------------------------------------------------------

    def _guarded(self, out: Output, step: Callable[[Output], None]) -> None:
        """Run a step; what it refuses is said to the client, recorded, and ends the connection."""
        was_open = self._open
        try:
            step(out)
        except ProtocolError:
            self._open = was_open  # nobody sees `out`: what it recorded has not happened
            raise
        except AuthRefused as refused:
            out.to_client.append(error_response(refused.sqlstate, refused.text, severity="FATAL"))
            head = {"sqlstate": refused.sqlstate, "reason": refused.reason}
            self._finish(out, "refused", head, refused.text)
            self._phase, out.close, out.secure = Phase.OVER, "both", "no"

    def _finish(
        self,
        out: Output,
        outcome: Literal["answered", "refused", "failed"],
        head: Mapping[str, str],
        reason: str | None = None,
    ) -> None:
        """The result of the startup or cancel. Without a body: it would hold the cancel key."""
        if self._open:
            self._open = False
            out.records.append(Result(1, outcome, None, head, None, _EMPTY, 0, _EMPTY, 0, reason=reason))
