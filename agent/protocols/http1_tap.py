# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 connection in observe: every byte passes as it came; the parser only looks.

Owns the tap on both directions. Bias: never break a client. Bytes do not go through the parser: they wait
beside it (a request until its `Intent` is made, an answer not at all) and are forwarded verbatim. Whatever
goes wrong in the tap, our own bugs included, turns the connection opaque with all its bytes.

No request of ours is sent here: a look-up could meet a server that closes after it, and the client would
notice. A name that no passing answer has told is judged by `Lookup.unresolved`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from agent.protocols.budget import FREE
from agent.protocols.http import Engine, Lookup, Refusal, Request
from agent.protocols.http1_answer import Arriving
from agent.protocols.http1_body import BodyReader, ChunkedBody, CloseBody, LengthBody
from agent.protocols.http1_exchange import Exchange, Recorder
from agent.protocols.http1_form import own_response, recorded_request
from agent.protocols.http1_head import HeadBuffer, request_heads, response_heads
from agent.protocols.opaque import OpaqueSession, Tally
from agent.protocols.session import Bounds, Judge, Output, ProtocolError, Result
from agent.protocols.target import parse_target
from policy.model import Verdict

MAX_WAITING = 64  # pipelined requests without an answer; beyond it the connection is relayed unread


class Http1Tap:
    """`Session` for one HTTP/1.1 connection of a guard in observe."""

    def __init__(self, engine: Engine, judge: Judge, guard: str, bounds: Bounds | None = None) -> None:
        self._engine = engine
        self._judge = judge
        self._bounds = bounds if bounds is not None else Bounds()
        self._recorder = Recorder(engine, guard)
        self._opaque: OpaqueSession | None = None
        self._unsent: deque[bytes] = deque()  # client bytes as they came, not forwarded yet
        self._cleared = 0  # of those, how many may go
        self._heads = HeadBuffer(self._bounds, "client")
        self._answer_heads = HeadBuffer(self._bounds, "server")
        self._parser = request_heads(self._bounds)
        self._answer_parser = response_heads(self._bounds)
        self._reader: BodyReader | None = None
        self._current: Exchange | None = None  # its request is not whole
        self._waiting: deque[Exchange] = deque()  # their answers are not whole, in order
        self._arriving: Arriving | None = None
        self._count = 0
        self._ended: set[str] = set()

    @property
    def protocol(self) -> str:
        return "http1"

    @property
    def tally(self) -> Tally | None:
        """What passed unread, once the connection has turned opaque."""
        return self._opaque.tally if self._opaque is not None else None

    @property
    def is_reading(self) -> bool:
        """A request has begun to come, or was not answered yet."""
        return bool(self._opaque is None and (self._unsent or self._current or self._waiting))

    def client_data(self, data: bytes) -> Output:
        out = Output()
        if self._opaque is not None:
            self._opaque.pass_client(out, data)
            return out
        self._unsent.append(data)
        try:
            self._read_client(out, data)
        except ProtocolError as error:
            self._turn_opaque(out, error.reason)
        except Exception as bug:  # our bug must not become the client's
            self._turn_opaque(out, f"tap failed: {type(bug).__name__}")
        self._forward(out)
        return out

    def server_data(self, data: bytes) -> Output:
        out = Output()
        if self._opaque is not None:
            self._opaque.pass_server(out, data)
            return out
        try:
            self._read_server(out, data)
        except ProtocolError as error:
            self._turn_opaque(out, error.reason)
        except Exception as bug:
            self._turn_opaque(out, f"tap failed: {type(bug).__name__}")
        out.to_client.append(data)
        self._forward(out)
        return out

    def client_eof(self) -> Output:
        out = Output()
        if self._opaque is None and self._unsent:
            self._turn_opaque(out, "the client closed inside a request")
        self._forward(out)
        self._end(out, "client")
        return out

    def server_eof(self) -> Output:
        out = Output()
        if self._opaque is None:
            arriving = self._arriving
            if arriving is not None and arriving.reader is not None and arriving.reader.end():
                try:
                    self._complete(out, self._waiting[0], arriving)
                    self._waiting.popleft()
                except Exception as bug:
                    self._turn_opaque(out, f"tap failed: {type(bug).__name__}")
            self._abort_all(out, "the database closed before the end of its answer")
        self._forward(out)
        self._end(out, "server")
        return out

    def abandon(self, reason: str) -> Output:
        out = Output()
        self._abort_all(out, reason)
        return out

    def refuse_all(self, message: str) -> Output:
        out = self.abandon(message)
        if self._count == 0 and self._opaque is None:
            out.to_client += own_response(self._engine.refuse(403, "refused", message, None), True, False)
            out.close = "both"
        else:
            out.close = "reset"
        return out

    def _end(self, out: Output, side: str) -> None:
        self._ended.add(side)
        if len(self._ended) == 2:
            out.close = "both"
        else:
            out.close = "server-eof" if side == "client" else "client-eof"  # towards the other side

    def _abort_all(self, out: Output, reason: str) -> None:
        for exchange in self._waiting:
            self._recorder.abort(out, exchange, reason)
        if self._current is not None and self._current.sent and self._current not in self._waiting:
            self._recorder.abort(out, self._current, reason)
        self._waiting.clear()
        self._current = None
        self._arriving = None

    def _turn_opaque(self, out: Output, reason: str) -> None:
        self._abort_all(out, f"relayed unread: {reason}")
        self._opaque = OpaqueSession(reason, "http1")
        self._opaque.announce(out)
        self._heads.drop()
        self._answer_heads.drop()

    def _forward(self, out: Output) -> None:
        """Forward the client's own bytes: those that are judged, or all when nothing is read any more."""
        unsent = self._unsent
        while unsent and (self._cleared > 0 or self._opaque is not None):
            piece = unsent.popleft()
            if self._cleared >= len(piece):
                self._cleared -= len(piece)
                out.to_server.append(piece)
            elif self._cleared > 0:
                out.to_server.append(piece[: self._cleared])
                unsent.appendleft(piece[self._cleared :])
                self._cleared = 0
            elif self._opaque is not None:
                self._opaque.pass_client(out, piece)

    # Requests.

    def _read_client(self, out: Output, data: bytes) -> None:
        while data:
            exchange, reader = self._current, self._reader
            if exchange is None:
                got = self._heads.take(data)
                if got is None:
                    return
                data, end = got
                self._begin(out, data[:end])
                data = data[end:]
                continue
            if reader is None:
                raise RuntimeError("a body is read without framing")
            pieces, rest = reader.feed(data)
            used = len(data) - len(rest)
            data = rest
            self._take_pieces(out, exchange, pieces, used)
            if reader.done:
                if not exchange.sent:
                    self._judge_whole(out, exchange)
                self._current = self._reader = None

    def _begin(self, out: Output, data: bytes) -> None:
        head, length = self._parser.parse(data)
        if head.method == "CONNECT":
            raise ProtocolError("connect", "CONNECT makes the connection a tunnel")
        if len(self._waiting) >= MAX_WAITING:
            raise ProtocolError("pipelined", f"more than {MAX_WAITING} requests wait for their answers")
        self._count += 1
        exchange = Exchange(self._count)
        exchange.head, exchange.length, exchange.size = head, length, len(data)
        try:
            exchange.target = target = parse_target(head.target, head.host, head.method)
            exchange.request = Request(head.method, target.path, target.segments, target.query, head.headers)
            exchange.route = self._engine.route(exchange.request)
        except ProtocolError as error:  # the framing is sound, only what is asked is not
            exchange.request = Request(head.method, head.target, (), (), head.headers)
            exchange.target = replace(exchange.target, path=head.target)
            self._cannot_tell(exchange, error.message)
        exchange.recorded = recorded_request(head, exchange.target, self._recorder.credentials)
        if head.chunked:
            self._reader = ChunkedBody(self._bounds, "client")
        elif length:
            self._reader = LengthBody(length)
        else:
            self._judge_whole(out, exchange)
            return
        self._current = exchange
        if head.expect or (length or 0) > self._held_bound(exchange):
            self._judge_head(out, exchange)

    def _take_pieces(self, out: Output, exchange: Exchange, pieces: list[bytes], used: int) -> None:
        if exchange.sent:
            if pieces:
                self._recorder.piece(out, exchange, "request", b"".join(pieces))
            self._cleared += used
            return
        exchange.size += used
        exchange.pieces.add(pieces)
        if exchange.size > self._held_bound(exchange):
            self._judge_head(out, exchange)
        elif exchange.size > FREE and not self._may_hold(exchange):
            self._judge_head(out, exchange, f": {self._bounds.budget.message}")

    def _may_hold(self, exchange: Exchange) -> bool:
        if exchange.hold is None:
            exchange.hold = self._bounds.budget.hold()
        return exchange.hold.resize(exchange.size)

    def _held_bound(self, exchange: Exchange) -> int:
        reads = exchange.route.reads_body and not exchange.route.streamable
        return self._bounds.body if reads else self._bounds.stream_above

    def _judge_whole(self, out: Output, exchange: Exchange) -> None:
        body = exchange.pieces.take()
        if body and exchange.request is not None:
            exchange.request = exchange.request.with_body(body)
        if exchange.verdict is None:
            self._decide(exchange)
        self._send(out, exchange, body)

    def _judge_head(self, out: Output, exchange: Exchange, why: str = "") -> None:
        """The body is not waited for: judge by the head, and record the body in pieces."""
        if exchange.verdict is None:
            if exchange.route.reads_body and not exchange.route.streamable:
                self._cannot_tell(exchange, f"the body was not read{why}")
            else:
                self._decide(exchange)
        self._send(out, exchange, None)
        exchange.hold = None
        piece = exchange.pieces.take()
        if piece:
            self._recorder.piece(out, exchange, "request", piece)

    def _send(self, out: Output, exchange: Exchange, body: bytes | None) -> None:
        self._recorder.intent(out, exchange, body)
        self._cleared += exchange.size
        exchange.sent = True
        self._waiting.append(exchange)

    def _decide(self, exchange: Exchange) -> None:
        request = exchange.request
        if request is None:
            raise RuntimeError("a request is judged before it is read")
        try:
            operation = self._engine.operation(request, exchange.route)
        except Refusal as refusal:
            self._cannot_tell(exchange, refusal.message)
            return
        if isinstance(operation, Lookup):
            unresolved = operation.unresolved
            if unresolved is None:
                self._cannot_tell(exchange, f"the name of {operation.key} is not known yet")
                return
            operation = unresolved
        exchange.operation = operation
        exchange.verdict = self._judge(operation)

    def _cannot_tell(self, exchange: Exchange, message: str) -> None:
        size = len(exchange.request.body or b"") if exchange.request is not None else 0
        exchange.operation = operation = self._recorder.unreadable(exchange, size)
        verdict: Verdict = self._judge(operation)
        exchange.verdict = replace(verdict, message=message)

    # Answers.

    def _read_server(self, out: Output, data: bytes) -> None:
        while data:
            if not self._waiting:
                raise ProtocolError("unsolicited", "the database sent bytes that answer no request", "server")
            exchange, arriving = self._waiting[0], self._arriving
            if arriving is None:
                got = self._answer_heads.take(data)
                if got is None:
                    return
                data, end = got
                arriving = self._begin_answer(exchange, data[:end])
                data = data[end:]
                if arriving is None:
                    continue
            if arriving.reader is not None and data and not arriving.reader.done:
                pieces, data = arriving.reader.feed(data)
                self._keep(out, exchange, arriving, pieces)
            if arriving.reader is None or arriving.reader.done:
                self._complete(out, exchange, arriving)
                self._waiting.popleft()  # last: an exchange that could not be completed is still to abort

    def _begin_answer(self, exchange: Exchange, data: bytes) -> Arriving | None:
        head, length = self._answer_parser.parse(data)
        if head.status == 101:
            raise ProtocolError("upgrade", "the connection changed its protocol", "server")
        if head.status < 200:
            return None
        reader: BodyReader | None = None
        if not exchange.head_only and head.status not in (204, 304):
            if head.chunked:
                reader = ChunkedBody(self._bounds, "server")
            elif length is None:
                reader = CloseBody()
            elif length:
                reader = LengthBody(length)
        self._arriving = arriving = Arriving(head, length, reader)
        return arriving

    def _keep(self, out: Output, exchange: Exchange, arriving: Arriving, pieces: list[bytes]) -> None:
        """Keep a copy for the record; what is released before the whole is known leaves its hash first."""
        piece = b"".join(pieces)
        arriving.size += len(piece)
        arriving.passes(piece)
        whole = arriving.reader is not None and arriving.reader.done
        if not whole or arriving.passed:
            if piece:
                self._recorder.piece(out, exchange, "response", piece)
            arriving.passed = True
        bound = self._bounds.body if exchange.route.answer_rows else self._bounds.stream_above
        if arriving.dropped:
            return
        if arriving.size > bound or not arriving.may_hold(self._bounds):
            arriving.pieces.take()
            arriving.hold = None
            arriving.dropped = True
        else:
            arriving.pieces.add([piece])

    def _complete(self, out: Output, exchange: Exchange, arriving: Arriving) -> None:
        self._arriving = None
        head, body = arriving.head, arriving.pieces.take()
        if not arriving.dropped:
            self._recorder.answered(out, exchange, head, body, self._bounds.body, None, arriving.digest)
            result = out.records[-1]
            full = exchange.verdict is not None and exchange.verdict.level == "full"
            if full and arriving.passed and isinstance(result, Result):
                result.body = None  # it is in the chunks
            return
        self._recorder.streamed(out, exchange, head, arriving.size, arriving.digest, None)
