# SPDX-License-Identifier: Apache-2.0
"""One HTTP exchange under way, and the records it leaves.

Owns what is known of an exchange between its head and its end, and the recorded form of bodies by
level. Decides nothing. Bias: where the recorded form of a body cannot be made without vectors in it, the body
stays out and its hash stands for it.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Final

from agent.protocols.budget import Hold
from agent.protocols.coding import decode_body
from agent.protocols.http import Answer, Engine, Request, Response, Route
from agent.protocols.http1_body import Pieces
from agent.protocols.http1_form import CREDENTIALS, recorded_headers
from agent.protocols.http1_head import RequestHead, ResponseHead
from agent.protocols.session import Abort, Chunk, Intent, Output, ProtocolError, Result
from agent.protocols.target import Target
from policy.model import ANY_COLLECTION, Action, RecordLevel, Verdict
from policy.operation import Operation

EMPTY_SHA256: Final = sha256().digest()
UNREAD_ROUTE: Final = Route(method="unreadable", known=False)
NOWHERE: Final = Target("", (), (), "")
HASHED: Final = 16 * 1024
"""Bytes of an answer up to which it is hashed as it came also where another is released. What no client got
proves nothing to anyone, and hashing it costs as much as all else of a long answer without its vectors."""


class Exchange:
    """From a request's head to the last byte of its answer."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.head: RequestHead | None = None  # None: it could not be read
        self.length: int | None = None  # of the request's body, where its head tells
        self.recorded: dict[str, str] = {}  # the head as evidence keeps it, but for the length
        self.target = NOWHERE
        self.request: Request | None = None
        self.route = UNREAD_ROUTE
        self.operation: Operation | None = None
        self.verdict: Verdict | None = None
        self.pieces = Pieces()  # of the body, while it is collected
        self.size = 0
        self.hold: Hold | None = None  # of the body, until the exchange is over
        self.lookups = 0
        self.looked_early = False
        self.sent = False  # the head went to the server
        self.released = False  # a byte of the answer went to the client
        self.keep_alive = False
        self.informational = 0

    @property
    def touched(self) -> bool:
        """The answer must be read before it is released: also when it is not known what was decided."""
        return self.verdict is None or self.verdict.touches_answer

    @property
    def head_only(self) -> bool:
        return self.head is not None and self.head.method == "HEAD"


class Recorder:
    """Makes the records of a session's exchanges. One a session; holds no exchange."""

    __slots__ = ("_engine", "_guard", "_known", "_known_head", "credentials")

    def __init__(self, engine: Engine, guard: str) -> None:
        self._engine = engine
        self._guard = guard
        self.credentials = CREDENTIALS | engine.credential_headers
        self._known: ResponseHead | None = None  # the answer head last recorded, and its recorded form
        self._known_head: dict[str, str] = {}

    def unreadable(self, exchange: Exchange, size: int = 0) -> Operation:
        """The operation of a request that the engine could not be asked about, or would not read."""
        return Operation(
            engine=self._engine.name,
            guard=self._guard,
            method=exchange.route.method,
            actions=frozenset({Action.UNKNOWN}),
            collections=frozenset({ANY_COLLECTION}),
            bytes=size,
            partial=True,
        )

    def form(self, level: RecordLevel, body: bytes) -> tuple[bytes | None, int]:
        """The recorded form of a body, and how many vectors were cut from it."""
        if level == "meta" or level == "hashes":
            return None, 0
        if level == "full" or not body:
            return body, 0
        return self._engine.digest(body)

    def intent(self, out: Output, exchange: Exchange, body: bytes | None) -> None:
        """Record that an exchange is about to be forwarded or refused. `body` None: it is streamed."""
        operation, verdict = exchange.operation, exchange.verdict
        if operation is None or verdict is None:
            raise RuntimeError("an exchange is recorded before it is judged")
        recorded, cut = (None, 0) if body is None else self.form(verdict.level, body)
        head = exchange.recorded
        if exchange.length is not None:
            head = {**head, "content-length": str(exchange.length)}
        if body is None:
            digest, size = b"", exchange.length or 0
        else:
            digest, size = _sha256(body), len(body)
        out.records.append(
            Intent(exchange.n, operation, verdict, head, recorded, digest, size, cut, recorded is body)
        )

    def refused(self, out: Output, exchange: Exchange, response: Response, reason: str, failed: bool) -> None:
        """Record an answer of our own making."""
        verdict = exchange.verdict
        recorded = response.body if verdict is not None and verdict.level in ("masked", "full") else None
        out.records.append(
            Result(
                n=exchange.n,
                outcome="failed" if failed else "refused",
                status=response.status,
                head=recorded_headers(response.headers, self.credentials),
                body=recorded,
                sha256=EMPTY_SHA256,
                bytes=0,
                released_sha256=sha256(response.body).digest(),
                released_bytes=len(response.body),
                reason=reason,
            )
        )

    def piece(self, out: Output, exchange: Exchange, side: str, data: bytes) -> None:
        """Record a piece of a body that is passed on before the whole is known."""
        full = exchange.verdict is not None and exchange.verdict.level == "full"
        # Only whole bodies can be digested: below "full", a piece may hold vectors and stays out.
        out.records.append(
            Chunk(
                exchange.n,
                "request" if side == "request" else "response",
                data if full else None,
                sha256(data).digest(),
                len(data),
                full,
            )
        )

    def abort(self, out: Output, exchange: Exchange, reason: str) -> None:
        out.records.append(Abort(exchange.n, reason))

    def answered(
        self,
        out: Output,
        exchange: Exchange,
        head: ResponseHead,
        body: bytes,
        bound: int,
        answer: Answer | None,
        digest: bytes | None = None,
    ) -> None:
        """Record a whole answer. `answer` is the masked one, None when `body` is released as it came.

        `digest`: SHA-256 of `body` where it is known already. A long body that nobody gets is not hashed.
        """
        verdict = exchange.verdict
        level: RecordLevel = "hashes" if verdict is None else verdict.level
        seen: Answer | None = answer
        released = body if answer is None else answer.body
        changed = released is not body
        if digest is None:
            digest = b"" if changed and len(body) > HASHED else _sha256(body)
        released_digest = _sha256(released) if changed else digest
        plain: bytes | None = released
        if answer is None:
            if head.encoding is not None:
                plain = self._try_decode(body, head.encoding, bound)
            seen = self._watch(exchange, head, plain)
        if plain is None:
            recorded, cut = (body, 0) if level == "full" else (None, 0)
        else:
            recorded, cut = self.form(level, plain)
        out.records.append(
            Result(
                n=exchange.n,
                outcome="answered",
                status=head.status,
                head=self._answer_head(head),
                body=recorded,
                sha256=digest,
                bytes=len(body),
                released_sha256=released_digest,
                released_bytes=len(released),
                ids=seen.ids if seen is not None else (),
                rows=seen.rows if seen is not None else 0,
                vectors_cut=cut,
                masks=seen.masks if seen is not None else (),
                whole=recorded is released,
            )
        )

    def streamed(
        self,
        out: Output,
        exchange: Exchange,
        head: ResponseHead,
        size: int,
        digest: bytes,
        reason: str | None,
    ) -> None:
        """Record the end of an answer that was passed on in pieces."""
        out.records.append(
            Result(
                n=exchange.n,
                outcome="answered",
                status=head.status,
                head=self._answer_head(head),
                body=None,
                sha256=digest,
                bytes=size,
                released_sha256=digest,
                released_bytes=size,
                reason=reason,
            )
        )

    def _answer_head(self, head: ResponseHead) -> dict[str, str]:
        if head is not self._known:
            self._known = head
            self._known_head = recorded_headers(head.headers, self.credentials)
        return self._known_head

    def _watch(self, exchange: Exchange, head: ResponseHead, body: bytes | None) -> Answer | None:
        # Also where no rows can be: the answer to a created collection tells its name.
        if not exchange.route.known or not body or not 200 <= head.status < 300:
            return None
        if exchange.request is None or exchange.operation is None:
            return None
        return self._engine.observe(
            exchange.request, exchange.operation, Response(head.status, head.headers, body)
        )

    @staticmethod
    def _try_decode(body: bytes, encoding: str, bound: int) -> bytes | None:
        try:
            return decode_body(body, encoding, bound)
        except ProtocolError:
            return None


def _sha256(body: bytes) -> bytes:
    return sha256(body).digest() if body else EMPTY_SHA256


def denied(verdict: Verdict, message: str) -> Verdict:
    """`verdict` turned into a refusal that no rule of the policy made (the request cannot be read)."""
    return replace(verdict, outcome="deny", rule=None, where=None, message=message)
