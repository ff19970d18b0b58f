# SPDX-License-Identifier: Apache-2.0
"""The deciding side of an HTTP/1.1 connection in enforce: judge, then refuse or forward in normal form.

Owns look-ups, verdicts, refusals and the serialised request. Parses no client bytes. Bias: fail closed; an
`Intent` stands in the output before any byte of its request, and a refusal is recorded like an answer.
"""

from __future__ import annotations

from abc import abstractmethod
from enum import Enum
from typing import Final

from agent.protocols.budget import REASON
from agent.protocols.http import Engine, Headers, Lookup, Refusal, Request, Response
from agent.protocols.http1_answer import AnswerSide
from agent.protocols.http1_body import BodyReader
from agent.protocols.http1_exchange import Exchange, Recorder, denied
from agent.protocols.http1_form import (
    CHUNKED,
    CREDENTIALS,
    LAST_CHUNK,
    READ_DROPS,
    REQUEST_DROPS,
    chunk_frame,
    close_head,
    own_response,
    request_block,
)
from agent.protocols.http1_head import RequestHead
from agent.protocols.session import Bounds, Judge, Output
from agent.protocols.target import parse_target
from policy.model import Verdict
from policy.operation import Operation

MAX_LOOKUPS: Final = 4  # a request names at most a few collections; more is a resolver that does not converge
_IDENTITY: Headers = (("accept-encoding", "identity"),)
_IDENTITY_DROPS: Final = frozenset({"accept-encoding"})


class Phase(Enum):
    """Where the client's side stands."""

    IDLE = 0  # a head is awaited
    BODY = 1  # a body is collected
    JUDGE = 2  # the body is whole, an answer to a lookup is awaited
    STREAM = 3  # a body is passed on as it comes
    WAIT = 4  # all is sent, the answer is awaited
    DRAIN = 5  # refused and answered: the rest of the body is thrown away, then the connection ends
    CLOSED = 6


class DecidingSide(AnswerSide):
    """The part of a session between a whole request (or a large one's head) and the database."""

    def __init__(
        self, engine: Engine, judge: Judge, guard: str, bounds: Bounds, credential: Headers | None
    ) -> None:
        super().__init__(engine, Recorder(engine, guard), bounds)
        self._judge = judge
        self._credential = credential
        self._phase = Phase.IDLE
        self._reader: BodyReader | None = None
        self._credential_names = engine.credential_headers | {"authorization", "proxy-authorization"}
        self._block = ""  # head as forwarded, for `_block_of`: a request head, and whether its answer is read
        self._block_of: tuple[RequestHead, bool] | None = None
        self._drops = REQUEST_DROPS
        if credential is not None:
            self._credential_names |= {name for name, _ in credential}
            self._drops |= self._credential_names

    @abstractmethod
    def _close(self, out: Output, reset: bool = False) -> None: ...

    @property
    def _request_sent(self) -> bool:
        return self._phase is Phase.WAIT

    def _finish(self, out: Output, close: bool) -> None:
        """The answer is out: the next request, or the end."""
        self._exchange = None
        if close:
            self._close(out)
        else:
            self._phase = Phase.IDLE

    def _decide_early(self, out: Output, exchange: Exchange) -> None:
        """A large body: refuse, or pass it on unread, by the head alone; else go on collecting it."""
        exchange.looked_early = True
        route, request = exchange.route, exchange.request
        if request is not None and (route.streamable or not route.reads_body):
            operation = self._operation(out, exchange, request)
            if operation is None:
                return
            stream = route.streamable and not self._judge.reads_body(operation)
            if stream or not route.reads_body:
                verdict = self._judge(operation)
                if verdict.outcome in ("deny", "hold"):
                    self._deny(out, exchange, operation, verdict)
                    return
                if stream and not verdict.filters and not verdict.clamps:
                    self._start_stream(out, exchange, request, operation, verdict)
                    return
        if (exchange.length or 0) > self._bounds.body:
            self._refuse_large(out, exchange)

    def _refuse_large(self, out: Output, exchange: Exchange) -> None:
        message = f"a request body that has to be read may have at most {self._bounds.body} bytes"
        self._refuse(out, exchange, 413, "body-too-large", message, close=True)

    def _may_hold(self, out: Output, exchange: Exchange) -> bool:
        """Count what there is of a body against the worker's budget. False: no room, it was refused."""
        if exchange.hold is None:
            exchange.hold = self._bounds.budget.hold()
        if exchange.hold.resize(exchange.size):
            return True
        early = self._phase is Phase.BODY
        self._refuse(out, exchange, 503, REASON, self._bounds.budget.message, close=early)
        return False

    def _decide(self, out: Output, exchange: Exchange) -> None:
        """The request is whole: judge it, and refuse or forward it."""
        request = exchange.request
        if request is None or self._lookup is not None:
            return
        whole = exchange.pieces.take()
        if whole:
            request = Request(
                request.method, request.path, request.segments, request.query, request.headers, whole
            )
            exchange.request = request
        operation = self._operation(out, exchange, request)
        if operation is None:
            return
        verdict = self._judge(operation)
        if verdict.outcome == "deny" or verdict.outcome == "hold":
            self._deny(out, exchange, operation, verdict)
            return
        try:
            rewritten = self._engine.rewrite(request, operation, verdict)
        except Refusal as refusal:
            self._refuse(out, exchange, 400, refusal.reason, refusal.message, close=False)
            return
        exchange.operation, exchange.verdict = operation, verdict
        self._recorder.intent(out, exchange, request.body if request.body is not None else b"")
        body = rewritten.body
        if body is None and exchange.length is None:
            framing = ""
        else:
            framing = f"content-length: {len(body) if body else 0}\r\n"
        out.to_server.append(self._forwarded_head(exchange, rewritten, verdict, framing))
        if body:
            out.to_server.append(body)
        exchange.sent = True
        self._phase = Phase.WAIT

    def _operation(self, out: Output, exchange: Exchange, request: Request) -> Operation | None:
        """Ask the engine what is asked. None: refused, or a lookup was sent first."""
        try:
            operation = self._engine.operation(request, exchange.route)
        except Refusal as refusal:
            early = self._phase is Phase.BODY
            self._refuse(out, exchange, 400, refusal.reason, refusal.message, close=early)
            return None
        if isinstance(operation, Operation):
            return operation
        exchange.lookups += 1
        if exchange.lookups > MAX_LOOKUPS:
            message = f"the names in the request need more than {MAX_LOOKUPS} look-ups"
            self._refuse(out, exchange, 502, "lookups", message, close=self._phase is Phase.BODY, failed=True)
            return None
        self._send_lookup(out, exchange, operation)
        return None

    def _send_lookup(self, out: Output, exchange: Exchange, lookup: Lookup) -> None:
        """Send a request of our own, with the credential that the client's request will go with."""
        if exchange.request is None or exchange.head is None:
            raise RuntimeError("a lookup is sent outside an exchange")
        credential = self._credential
        if credential is None:
            names = self._credential_names | CREDENTIALS
            credential = tuple([(k, v) for k, v in exchange.request.headers if k in names])
        request = lookup.request
        body = request.body
        framing = f"content-length: {len(body)}\r\n" if body is not None else ""
        dropped = REQUEST_DROPS | self._credential_names | READ_DROPS
        target = parse_target(request.path, "", request.method)
        block = request_block(request, target, exchange.head.host, dropped, credential + _IDENTITY)
        out.to_server.append(close_head(block, framing))
        if body:
            out.to_server.append(body)
        self._lookup = lookup

    def _learnt(self, out: Output, lookup: Lookup, response: Response) -> None:
        self._engine.learn(lookup, response)
        exchange = self._exchange
        if exchange is None:
            return
        if self._phase is Phase.JUDGE:
            self._decide(out, exchange)
        elif self._phase is Phase.BODY:
            self._decide_early(out, exchange)

    def _deny(self, out: Output, exchange: Exchange, operation: Operation, verdict: Verdict) -> None:
        exchange.operation, exchange.verdict = operation, verdict
        message = verdict.message
        if verdict.outcome == "hold":  # a session that cannot be resumed must not let it through
            message = f"this needs an approval, which cannot be asked for on this connection: {message}"
        if verdict.rule is not None and verdict.rule not in message:
            message = f"{message} (rule {verdict.rule})"
        self._refuse(
            out, exchange, 403, "denied", message, close=self._phase is Phase.BODY, rule=verdict.rule
        )

    def _refuse(
        self,
        out: Output,
        exchange: Exchange,
        status: int,
        reason: str,
        message: str,
        close: bool,
        rule: str | None = None,
        failed: bool = False,
    ) -> None:
        """Answer a request that is not forwarded, in its place in the order, and record it."""
        body = exchange.request.body if exchange.request is not None else None
        if exchange.verdict is None:
            exchange.operation = self._recorder.unreadable(exchange, len(body or b""))
            exchange.verdict = denied(self._judge(exchange.operation), message)
        self._recorder.intent(out, exchange, b"" if body is None and self._reader is None else body)
        response = self._engine.refuse(status, reason, message, rule)
        self._recorder.refused(out, exchange, response, reason, failed)
        close = close or not exchange.keep_alive
        out.to_client += own_response(response, close, exchange.head_only)
        draining = self._phase is Phase.BODY and exchange.head is not None and self._reader is not None
        self._exchange = None
        if draining and self._reader is not None and not self._reader.done and reason != "body-too-large":
            # A client that is still sending would lose the answer to a reset: read on, within bounds.
            exchange.size = 0
            exchange.hold = None
            exchange.pieces.take()
            self._exchange, self._phase = exchange, Phase.DRAIN
        elif close:
            self._close(out)
        else:
            self._phase = Phase.IDLE

    def _forwarded_head(self, exchange: Exchange, request: Request, verdict: Verdict, framing: str) -> bytes:
        if exchange.head is None:
            raise RuntimeError("an unread request is forwarded")
        head, target, read = exchange.head, exchange.target, verdict.touches_answer
        plain = (
            request.headers is head.headers and request.query is target.query and request.path is target.path
        )
        if plain and self._block_of is not None and self._block_of[0] is head and self._block_of[1] is read:
            return close_head(self._block, framing)
        extra: Headers = self._credential or ()
        dropped = self._drops | head.nominated
        if read or exchange.route.answer_rows:
            extra += _IDENTITY
            dropped |= READ_DROPS if read else _IDENTITY_DROPS
        block = request_block(request, target, head.host, dropped, extra)
        if plain:
            self._block, self._block_of = block, (head, read)
        return close_head(block, framing)

    def _start_stream(
        self, out: Output, exchange: Exchange, request: Request, operation: Operation, verdict: Verdict
    ) -> None:
        """Forward the head now and the body as it comes."""
        try:
            rewritten = self._engine.rewrite(request, operation, verdict)
        except Refusal as refusal:
            self._refuse(out, exchange, 400, refusal.reason, refusal.message, close=True)
            return
        exchange.operation, exchange.verdict = operation, verdict
        self._recorder.intent(out, exchange, None)
        framing = CHUNKED if exchange.length is None else f"content-length: {exchange.length}\r\n"
        out.to_server.append(self._forwarded_head(exchange, rewritten, verdict, framing))
        exchange.sent = True
        self._phase = Phase.STREAM
        exchange.hold = None
        self._stream(out, exchange, exchange.pieces.take(), False)

    def _stream(self, out: Output, exchange: Exchange, piece: bytes, done: bool) -> None:
        chunked = exchange.head is not None and exchange.head.chunked
        if piece:
            self._recorder.piece(out, exchange, "request", piece)
            if chunked:
                out.to_server += chunk_frame(piece)
            else:
                out.to_server.append(piece)
        if done:
            if chunked:
                out.to_server.append(LAST_CHUNK)
            self._phase = Phase.WAIT
