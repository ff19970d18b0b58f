# SPDX-License-Identifier: Apache-2.0
"""The seam between bytes and everything else: what a protocol session takes and gives.

A session owns the parsing state of one client connection and its database connection. It has no
socket, clock, task, file or log: bytes in, one `Output` out. It calls its `Judge` synchronously.
Bias: in enforce, what is not understood raises `ProtocolError` and nothing of it is forwarded; in
observe, it becomes an opaque relay and no byte is lost. ``agent/relay.py`` writes the records of an
`Output` as evidence before it writes any of its bytes to a socket.

What is made for every request is a plain class: compiled, its fields are a structure's, while those of a
dataclass or a msgspec struct are looked up by name, some hundred times an exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent.protocols.budget import Budget
from policy.login import Login
from policy.model import Verdict
from policy.operation import Operation

Blob = bytes  # classes below have a field named "bytes"
Digest = bytes


class ProtocolError(Exception):
    """The peer sent what the protocol, or our bounds, do not allow. The only error a session raises.

    ``reason`` is a stable short word for metrics and evidence ("two-content-lengths");
    ``side`` is whose bytes they were.
    """

    def __init__(self, reason: str, message: str, side: Literal["client", "server"] = "client") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.side = side


class Judge(Protocol):
    """The policy as one subject meets it. Total: never raises, denies what it cannot decide."""

    def __call__(self, operation: Operation) -> Verdict: ...

    def reads_body(self, operation: Operation) -> bool:
        """Whether any rule could need what only the body tells (False: it may be streamed)."""
        ...


class LoginJudge(Judge, Protocol):
    """One that is told whom the client named when it began its session."""

    def begin(self, login: Login) -> None:
        """What is judged from now on is judged by it."""
        ...


class _Value:
    """Equal to another of its class whose fields are equal."""

    __slots__ = ()

    def _fields(self) -> tuple[object, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and type(other) is type(self) and other._fields() == self._fields()

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._fields()}"


class Intent(_Value):
    """Before an exchange is forwarded, or refused. `body` is the recorded form, by level."""

    __slots__ = ("body", "bytes", "head", "n", "operation", "sha256", "vectors_cut", "verdict", "whole")

    def __init__(
        self,
        n: int,
        operation: Operation,
        verdict: Verdict,
        head: Mapping[str, str],
        body: Blob | None,
        sha256: Digest,
        bytes: int,  # noqa: A002 - the field's name
        vectors_cut: int = 0,
        whole: bool = False,
    ) -> None:
        self.n = n  # number of the exchange in its session, from 1
        self.operation = operation
        self.verdict = verdict
        self.head = head  # normalised request head, credentials taken out
        self.body = body  # recorded form (None at level meta and hashes, or when streamed)
        self.sha256 = sha256  # of the body as the client sent it (b"" when streamed)
        self.bytes = bytes
        self.vectors_cut = vectors_cut  # vectors replaced by dimension and digest in `body`
        self.whole = whole  # `body` is as the client sent it: `sha256` is of it

    def _fields(self) -> tuple[object, ...]:
        return (
            self.n, self.operation, self.verdict, self.head, self.body, self.sha256, self.bytes,
            self.vectors_cut, self.whole,
        )  # fmt: skip


class Chunk(_Value):
    """A piece of a body that is passed on before the whole is known."""

    __slots__ = ("bytes", "data", "n", "sha256", "side", "whole")

    def __init__(
        self,
        n: int,
        side: Literal["request", "response"],
        data: Blob | None,
        sha256: Digest,
        bytes: int,  # noqa: A002 - the field's name
        whole: bool = False,
    ) -> None:
        self.n = n
        self.side: Literal["request", "response"] = side
        self.data = data  # None where the level keeps bodies out
        self.sha256 = sha256  # of the piece as it is passed on
        self.bytes = bytes
        self.whole = whole  # `data` is that piece, not a shorter form of it

    def _fields(self) -> tuple[object, ...]:
        return self.n, self.side, self.data, self.sha256, self.bytes, self.whole


@dataclass(frozen=True, slots=True)
class Masked:
    """What was taken out of an answer: `what` is "vectors", "payload.ssn", "pii:email", "scores"..."""

    what: str
    how: str
    count: int


class Result(_Value):
    """The end of an exchange, before its last byte is released."""

    __slots__ = (
        "body", "bytes", "head", "ids", "masks", "n", "outcome", "reason", "released_bytes",
        "released_sha256", "rows", "sha256", "status", "vectors_cut", "whole",
    )  # fmt: skip

    def __init__(
        self,
        n: int,
        outcome: Literal["answered", "refused", "failed"],
        status: int | None,
        head: Mapping[str, str],
        body: Blob | None,
        sha256: Digest,
        bytes: int,  # noqa: A002 - the field's name
        released_sha256: Digest,
        released_bytes: int,
        ids: tuple[str, ...] = (),
        rows: int = 0,
        vectors_cut: int = 0,
        masks: tuple[Masked, ...] = (),
        reason: str | None = None,
        whole: bool = False,
    ) -> None:
        self.n = n
        self.outcome: Literal["answered", "refused", "failed"] = outcome
        self.status = status
        self.head = head
        self.body = body
        self.sha256 = sha256  # of the whole body as the server sent it; b"" where a long one was changed
        self.bytes = bytes
        self.released_sha256 = released_sha256  # of the whole body as the client gets it
        self.released_bytes = released_bytes
        self.ids = ids
        self.rows = rows
        self.vectors_cut = vectors_cut
        self.masks = masks
        self.reason = reason  # for refused and failed
        self.whole = whole  # `body` is as the client gets it: `released_sha256` is of it

    def _fields(self) -> tuple[object, ...]:
        return (
            self.n, self.outcome, self.status, self.head, self.body, self.sha256, self.bytes,
            self.released_sha256, self.released_bytes, self.ids, self.rows, self.vectors_cut, self.masks,
            self.reason, self.whole,
        )  # fmt: skip


class Abort(_Value):
    """An exchange that ended without a result: a side went away, or broke the protocol."""

    __slots__ = ("n", "reason")

    def __init__(self, n: int, reason: str) -> None:
        self.n = n
        self.reason = reason

    def _fields(self) -> tuple[object, ...]:
        return self.n, self.reason


class Opaque(_Value):
    """From here on the connection is relayed unread (observe, or a tunnel)."""

    __slots__ = ("protocol", "reason")

    def __init__(self, reason: str, protocol: str) -> None:
        self.reason = reason
        self.protocol = protocol  # what it looked like: "tls", "http2", "unknown", "http1"

    def _fields(self) -> tuple[object, ...]:
        return self.reason, self.protocol


Record = Intent | Chunk | Result | Abort | Opaque


class Output(_Value):
    """What the relay must do now, in this order: write `records`, then both byte lists, then close."""

    __slots__ = ("close", "held", "records", "secure", "to_client", "to_server")

    def __init__(
        self,
        to_server: list[bytes] | None = None,
        to_client: list[bytes] | None = None,
        records: list[Record] | None = None,
        close: Literal["no", "client-eof", "server-eof", "both", "reset"] = "no",
        held: bool = False,
        secure: Literal["no", "client", "server"] = "no",
    ) -> None:
        """`close`: client-eof: send FIN to the client after the bytes; server-eof: send FIN to the database;
        both: flush, then close both; reset: abort both at once, so that nothing looks whole. `held`: a
        verdict of hold is pending, `resume` will continue. `secure`: after the bytes of this output were
        written, that side begins a TLS handshake (see `Securing`)."""
        self.to_server: list[bytes] = [] if to_server is None else to_server
        self.to_client: list[bytes] = [] if to_client is None else to_client
        self.records: list[Record] = [] if records is None else records
        self.close: Literal["no", "client-eof", "server-eof", "both", "reset"] = close
        self.held = held
        self.secure: Literal["no", "client", "server"] = secure

    def _fields(self) -> tuple[object, ...]:
        return self.to_server, self.to_client, self.records, self.close, self.held, self.secure


@dataclass(frozen=True, slots=True)
class TlsTerms:
    """What TLS a session may have of its relay, by its guard's configuration."""

    client: Literal["no", "offered", "required"] = "no"  # no: there is no certificate to answer with
    server: bool = False  # the database is spoken to over TLS, or not at all
    presents: bool = False  # with a certificate of the guard's own


@dataclass(frozen=True, slots=True)
class Secured:
    """A TLS handshake that ended well, every check the configuration asks for included."""

    side: Literal["client", "server"]
    version: str  # "TLSv1.2", "TLSv1.3"
    cipher: str
    alpn: str | None  # what was agreed on: "http/1.1", "postgresql"
    subject: str | None  # of the peer's verified certificate, RFC 4514; None: it showed none
    certificate: bytes  # the peer's own, DER, verified or not (RFC 5929 section 4); b"": it showed none


class Session(Protocol):
    """One client connection's protocol state. Any exception but ProtocolError is a bug."""

    @property
    def protocol(self) -> str: ...

    def client_data(self, data: bytes) -> Output: ...

    def server_data(self, data: bytes) -> Output: ...

    def client_eof(self) -> Output: ...

    def server_eof(self) -> Output: ...

    def abandon(self, reason: str) -> Output:
        """Both sides are gone or will be closed: the Abort records of what was under way."""
        ...

    def refuse_all(self, message: str) -> Output:
        """The engine's own error for a connection that must end (no identity, agent unreachable)."""
        ...


class Securing(Session, Protocol):
    """A session that may put TLS under a side: every one that can give an `Output` with `secure`.

    It then waits: it forwards nothing to that side and reads nothing of it as plain text until `secured`.
    The relay cuts both sides when the handshake fails (after `refuse_all`, where it was the database's).
    """

    def begin_tls(self, side: Literal["client", "server"]) -> bytes:
        """Called once the output with `secure` was written. Returns what came of that side meanwhile and
        belongs to the handshake: a ClientHello that told what the client speaks. Whatever is called
        `client_data` (or `server_data`) afterwards was decrypted. Raises ProtocolError where plain bytes
        wait that nobody may take for encrypted ones (CVE-2021-23214).
        """
        ...

    def secured(self, secured: Secured) -> Output:
        """The handshake ended well. The judge knows `secured.subject` already."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may make us hold. Sizes in bytes; each error names its bound."""

    head: int = 64 * 1024
    headers: int = 128
    target: int = 16 * 1024
    body: int = 64 * 1024 * 1024
    chunk_line: int = 256  # a chunk-size line, extensions are refused anyway
    pipelined: int = 1024 * 1024  # client bytes waiting behind the exchange under way
    stream_above: int = 1024 * 1024  # bodies that nothing reads are passed on in chunks above this
    budget: Budget = field(default_factory=Budget)  # of all connections of the worker, which shares one
