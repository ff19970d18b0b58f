# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 connection in enforce: read strictly, judged, forwarded in normal form, masked, recorded.

Owns the order of one client connection: one exchange at a time, refusals in their place, answers in
full. Must not know any engine's paths or any rule. Bias: fail closed. What cannot be read is answered
with the engine's own error, recorded as an exchange of its own, and ends the connection; nothing of it is
forwarded. A broken answer is never completed: what was not released is replaced by an error, what was
released in part is cut by a reset.

`ProtocolError` is raised only where no exchange could carry the reason: bytes from an idle server, and
too many pipelined bytes. The sides: client bytes here, judging in http1_decide.py, answers in
http1_answer.py.
"""

from __future__ import annotations

from typing import Final

from agent.protocols import budget
from agent.protocols.http import Engine, Headers, Request
from agent.protocols.http1_body import ChunkedBody, LengthBody
from agent.protocols.http1_decide import DecidingSide, Phase
from agent.protocols.http1_exchange import NOWHERE, UNREAD_ROUTE, Exchange
from agent.protocols.http1_form import CONTINUE, check_nominated, own_response, recorded_request
from agent.protocols.http1_head import HeadBuffer, RequestHead, request_heads
from agent.protocols.session import Bounds, Judge, Output, ProtocolError
from agent.protocols.target import parse_target

_STATUS: Final = {
    "head-too-large": 431,
    "too-many-headers": 431,
    "target-too-long": 414,
    "body-too-large": 413,
    "request-encoding": 415,
    "expect": 417,
    "version": 505,
    "method-refused": 405,
}


class Http1Session(DecidingSide):
    """`Session` for one HTTP/1.1 connection of a guard in enforce.

    `credential`: headers that replace the client's own credentials, None to pass the client's.
    """

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        guard: str,
        bounds: Bounds | None = None,
        credential: Headers | None = None,
    ) -> None:
        bounds = bounds if bounds is not None else Bounds()
        super().__init__(engine, judge, guard, bounds, credential)
        self._heads = HeadBuffer(bounds, "client")
        self._parser = request_heads(bounds)
        self._known_head: RequestHead | None = None  # the last head that was accepted, and what it gave
        self._known_target = NOWHERE
        self._known_request = Request("", "", (), (), ())
        self._known_route = UNREAD_ROUTE
        self._known_record: dict[str, str] = {}
        self._later = bytearray()
        self._later_hold: budget.Hold | None = None
        self._count = 0
        self._client_ended = False

    @property
    def protocol(self) -> str:
        return "http1"

    @property
    def is_reading(self) -> bool:
        """A request has begun to come, or was not answered yet."""
        return len(self._heads) > 0 or self._phase in (Phase.BODY, Phase.JUDGE, Phase.STREAM, Phase.WAIT)

    def client_data(self, data: bytes) -> Output:
        out = Output()
        self._take_client(out, data)
        return out

    def server_data(self, data: bytes) -> Output:
        out = Output()
        if self._phase is not Phase.CLOSED:
            self._take_server(out, data)
            self._next_request(out)
        return out

    def client_eof(self) -> Output:
        out = Output()
        self._client_ended = True
        if self._phase in (Phase.IDLE, Phase.DRAIN):
            self._close(out)
        elif self._phase in (Phase.BODY, Phase.STREAM):  # the request was never whole
            if self._phase is Phase.STREAM and self._exchange is not None:
                self._recorder.abort(out, self._exchange, "the client closed inside the request body")
            self._close(out, reset=self._phase is Phase.STREAM)
        return out

    def server_eof(self) -> Output:
        out = Output()
        if self._phase is not Phase.CLOSED:
            self._end_server(out)
            self._close(out, reset=out.close == "reset")
        return out

    def abandon(self, reason: str) -> Output:
        out = Output()
        exchange = self._exchange
        if exchange is not None and exchange.sent and self._phase is not Phase.CLOSED:
            self._recorder.abort(out, exchange, reason)
        self._phase = Phase.CLOSED
        return out

    def refuse_all(self, message: str) -> Output:
        out = self.abandon(message)
        exchange = self._exchange
        self._close(out, reset=exchange is not None and exchange.released)
        if out.close == "both" and not (self._failed and exchange is None):
            status, reason = (400, "protocol") if self._failed else (403, "refused")
            response = self._engine.refuse(status, reason, message, None)
            out.to_client += own_response(response, True, exchange is not None and exchange.head_only)
        return out

    def _close(self, out: Output, reset: bool = False) -> None:
        self._phase = Phase.CLOSED
        self._heads.drop()
        self._later.clear()
        self._later_hold = None
        out.close = "reset" if reset else "both"

    # What the client sends.

    def _take_client(self, out: Output, data: bytes) -> None:
        while data:
            phase = self._phase
            if phase is Phase.IDLE:
                data = self._take_head(out, data)
            elif phase is Phase.BODY or phase is Phase.STREAM or phase is Phase.DRAIN:
                data = self._take_body(out, data)
            elif phase is Phase.CLOSED:
                return
            else:
                self._later += data
                if len(self._later) > self._bounds.pipelined:
                    self._failed = True
                    raise ProtocolError(
                        "pipelined",
                        f"more than {self._bounds.pipelined} bytes wait behind the request under way",
                    )
                if len(self._later) > budget.FREE:
                    self._hold_later()
                return

    def _hold_later(self) -> None:
        if self._later_hold is None:
            self._later_hold = self._bounds.budget.hold()
        if not self._later_hold.resize(len(self._later)):
            self._failed = True
            raise ProtocolError(budget.REASON, self._bounds.budget.message)

    def _next_request(self, out: Output) -> None:
        """Go on with what came while an exchange was under way."""
        if self._phase is Phase.IDLE and self._later:
            waiting = bytes(self._later)
            self._later.clear()
            self._later_hold = None
            self._take_client(out, waiting)
        if self._phase is Phase.IDLE and self._client_ended and out.close == "no":
            self._close(out)

    def _take_head(self, out: Output, data: bytes) -> bytes:
        exchange: Exchange | None = None
        try:
            got = self._heads.take(data)
            if got is None:
                return b""
            data, end = got
            exchange = self._begin()
            head, length = self._parser.parse(data[:end])
            exchange.length = length
            if head is not self._known_head:
                self._read_head(head)
            self._start(exchange, head, length)
        except ProtocolError as error:
            exchange = exchange if exchange is not None else self._begin()
            self._refuse(
                out, exchange, _STATUS.get(error.reason, 400), error.reason, error.message, close=True
            )
            return b""
        rest = data[end:]
        if head.chunked:
            self._reader = ChunkedBody(self._bounds, "client")
        elif length and (length != len(rest) or length > self._bounds.stream_above):
            self._reader = LengthBody(length)
        else:  # there is no body, or it is all here and nothing else
            if rest and length:
                exchange.pieces.add([rest])
                exchange.size = len(rest)
                rest = b""
            self._reader = None
            self._phase = Phase.JUDGE
            if exchange.size <= budget.FREE or self._may_hold(out, exchange):
                self._decide(out, exchange)
            return rest
        self._phase = Phase.BODY
        if length is not None and length > self._bounds.stream_above:
            self._decide_early(out, exchange)
        if head.expect and not rest and (self._phase is Phase.BODY or self._phase is Phase.STREAM):
            out.to_client.append(CONTINUE)
        return rest

    def _begin(self) -> Exchange:
        self._count += 1
        self._exchange = exchange = Exchange(self._count)
        return exchange

    def _read_head(self, head: RequestHead) -> None:
        """Check what a head asks of us, and take it as the known one. Raises `ProtocolError`."""
        self._known_head = None
        target = parse_target(head.target, head.host, head.method)
        request = Request(head.method, target.path, target.segments, target.query, head.headers)
        if head.method in ("CONNECT", "TRACE"):
            raise ProtocolError("method-refused", f"{head.method} is not accepted")
        if head.upgrade is not None and head.upgrade.lower() != "h2c":
            raise ProtocolError("upgrade", "this connection cannot be upgraded to another protocol")
        if head.nominated:
            check_nominated(head.nominated, self._credential_names)
        encoding = request.header("content-encoding")
        if encoding is not None and encoding.lower() != "identity":
            raise ProtocolError(
                "request-encoding", "an encoded request body cannot be judged: send it as identity"
            )
        self._check_credentials_once(head.headers)
        self._known_target = target
        self._known_request = request
        self._known_route = self._engine.route(request)
        self._known_record = recorded_request(head, target, self._recorder.credentials)
        self._known_head = head

    def _start(self, exchange: Exchange, head: RequestHead, length: int | None) -> None:
        """Fill an exchange from the known head."""
        exchange.head = head
        exchange.keep_alive = head.keep_alive
        exchange.target = self._known_target
        exchange.route = self._known_route
        exchange.recorded = self._known_record
        request = self._known_request
        if length is not None and length > self._bounds.stream_above:
            # The body may pass unread: its length is all that the engine can know of its size.
            request = request.with_headers((*request.headers, ("content-length", str(length))))
        exchange.request = request

    def _check_credentials_once(self, headers: Headers) -> None:
        found = [name for name, _ in headers if name in self._credential_names]
        if len(found) > 1 and len(set(found)) != len(found):
            raise ProtocolError("two-credentials", "a credential header is given twice")

    def _take_body(self, out: Output, data: bytes) -> bytes:
        exchange, reader = self._exchange, self._reader
        if exchange is None or reader is None:
            raise RuntimeError("a body is read outside an exchange")
        try:
            pieces, rest = reader.feed(data)
        except ProtocolError as error:
            self._break_body(out, exchange, error)
            return b""
        if self._phase is Phase.STREAM:
            self._stream(out, exchange, b"".join(pieces), reader.done)
            return rest
        exchange.size += sum(map(len, pieces))
        if self._phase is Phase.DRAIN:
            if reader.done or exchange.size > self._bounds.body:
                self._close(out)
            return b""
        exchange.pieces.add(pieces)
        if exchange.size > budget.FREE and not self._may_hold(out, exchange):
            return rest
        if reader.done:
            self._phase = Phase.JUDGE
            self._decide(out, exchange)
        elif exchange.size > self._bounds.stream_above and not exchange.looked_early:
            self._decide_early(out, exchange)
        if self._phase is Phase.BODY and exchange.size > self._bounds.body:
            self._refuse_large(out, exchange)
        return rest

    def _break_body(self, out: Output, exchange: Exchange, error: ProtocolError) -> None:
        if self._phase is Phase.DRAIN:
            self._close(out)
        elif self._phase is Phase.STREAM:
            self._recorder.abort(out, exchange, error.reason)
            self._close(out, reset=True)
        else:
            self._phase = Phase.JUDGE  # where the body ends is not known: there is nothing to read on to
            self._refuse(out, exchange, 400, error.reason, error.message, close=True)
