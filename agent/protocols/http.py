# SPDX-License-Identifier: Apache-2.0
"""HTTP as values: what a session hands to an engine, and what an engine gives back.

Version-neutral: http1 makes these today, http2 later. Header names are lower case; a value is
latin-1 text. `path` is normalised (one leading slash, no empty or dot segments, unreserved
characters decoded, nothing encoded that decodes to a slash); `segments` are its fully decoded parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from agent.protocols.session import Masked
from policy.model import Verdict
from policy.operation import Operation

Headers = tuple[tuple[str, str], ...]


class Request:
    """Not changed once made. As `Response` and `Answer` no dataclass: filling one costs 0.5 us a request."""

    __slots__ = ("body", "headers", "method", "path", "query", "segments")

    def __init__(
        self,
        method: str,
        path: str,
        segments: tuple[str, ...],
        query: tuple[tuple[str, str], ...],
        headers: Headers,
        body: bytes | None = None,
    ) -> None:
        """`query`: decoded, in order, duplicates kept. `body` None: there is none, or it is not read yet."""
        self.method: Final = method
        self.path: Final = path
        self.segments: Final = segments
        self.query: Final = query
        self.headers: Final = headers
        self.body: Final = body

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def with_headers(self, headers: Headers) -> Request:
        return Request(self.method, self.path, self.segments, self.query, headers, self.body)

    def with_body(self, body: bytes | None) -> Request:
        return Request(self.method, self.path, self.segments, self.query, self.headers, body)


class Response:
    """Not changed once made."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status: Final = status
        self.headers: Final = headers
        self.body: Final = body

    def header(self, name: str) -> str | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Lookup:
    """A request of our own that the engine needs answered before it can tell the operation.

    The session sends it on the same database connection, and hands the answer to `Engine.learn`.
    In observe nothing of ours is sent: there the request is judged by `unresolved`, the best that can
    be said of it with the name not looked up (without it: an unknown operation on ``*``).
    """

    request: Request
    key: str
    unresolved: Operation | None = None


class Refusal(Exception):
    """The request is HTTP but ambiguous or malformed for this engine (duplicate keys, bad JSON).

    Raised by engines only out of `operation`, `rewrite` and `mask`; never forwarded.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Route:
    """What the request line alone tells.

    `reads_body`: the body changes the operation. `streamable`: the body may pass unread when no rule
    reads it. `answer_rows`: a 2xx answer can hold rows or payload (else it is passed as it is).
    """

    method: str  # "POST /collections/{c}/points/query"; engine's own name, used in Operation.method
    known: bool
    reads_body: bool = False
    streamable: bool = False
    answer_rows: bool = False


class Answer:
    """An answer after masking, with what evidence wants to know of it. Not changed once made."""

    __slots__ = ("body", "ids", "masks", "rows")

    def __init__(
        self, body: bytes, ids: tuple[str, ...] = (), rows: int = 0, masks: tuple[Masked, ...] = ()
    ) -> None:
        self.body: Final = body
        self.ids: Final = ids
        self.rows: Final = rows
        self.masks: Final = masks


class Engine(Protocol):
    """One HTTP database engine. Sans-I/O; one instance per worker and guard, shared by its sessions."""

    @property
    def name(self) -> str: ...

    @property
    def credential_headers(self) -> frozenset[str]:
        """Lower case; never recorded, replaced by the held credential."""
        ...

    @property
    def masked_fields_known(self) -> frozenset[str]:
        """Roots that a mask's dotted field may start with."""
        ...

    def route(self, request: Request) -> Route: ...

    def operation(self, request: Request, route: Route) -> Operation | Lookup:
        """Judge what it asks. Raises Refusal where two readings are possible."""
        ...

    def learn(self, lookup: Lookup, response: Response) -> None:
        """Take the answer of a Lookup into the name cache (also when it failed: then unknown)."""
        ...

    def rewrite(self, request: Request, operation: Operation, verdict: Verdict) -> Request:
        """The request in normal form as it is forwarded: clamps, vectors off, fields, filters."""
        ...

    def mask(self, request: Request, operation: Operation, verdict: Verdict, response: Response) -> Answer:
        """Check and strip the answer. Raises Refusal when it cannot prove what it would release."""
        ...

    def observe(self, request: Request, operation: Operation, response: Response) -> Answer:
        """Ids and row count of an answer that is not changed; learns names that pass by. No raise."""
        ...

    def refuse(self, status: int, reason: str, message: str, rule: str | None) -> Response:
        """The engine's own error form, which its official client raises as an ordinary exception."""
        ...

    def digest(self, body: bytes) -> tuple[bytes, int]:
        """The body with each vector replaced by its dimension and SHA-256, and how many were."""
        ...
