# SPDX-License-Identifier: Apache-2.0
"""The answering side of an HTTP/1.1 connection in enforce: read, masked, recorded, released.

Owns the database's bytes of one connection. Bias: fail closed. An answer that must be read is released
whole and masked or not at all; framing that could be read in two ways ends the exchange; what follows a
whole answer is dropped with the connection. Answers that nothing reads are collected up to
`Bounds.stream_above` and passed in pieces above it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from hashlib import sha256
from typing import Final, Protocol

from agent.protocols.budget import FREE, REASON, Hold
from agent.protocols.coding import decode_body
from agent.protocols.http import Answer, Engine, Headers, Lookup, Refusal, Response
from agent.protocols.http1_body import BodyReader, ChunkedBody, CloseBody, LengthBody, Pieces
from agent.protocols.http1_exchange import EMPTY_SHA256, Exchange, Recorder
from agent.protocols.http1_form import (
    CHANGED_DROPS,
    CHUNKED,
    LAST_CHUNK,
    RESPONSE_DROPS,
    chunk_frame,
    close_head,
    notices,
    own_response,
    response_block,
)
from agent.protocols.http1_head import HeadBuffer, ResponseHead, response_heads
from agent.protocols.session import Bounds, Output, ProtocolError, Result

MAX_INFORMATIONAL: Final = 8  # 1xx answers before one answer; more is a flood
_CHANGED: Final = RESPONSE_DROPS | CHANGED_DROPS


class Rolling(Protocol):
    """A hash that goes on."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class Arriving:
    """An answer that is not whole yet."""

    __slots__ = (
        "chunked",
        "dropped",
        "head",
        "hold",
        "keep_alive",
        "length",
        "passed",
        "pieces",
        "reader",
        "rolling",
        "size",
    )

    def __init__(self, head: ResponseHead, length: int | None, reader: BodyReader | None) -> None:
        self.head = head
        self.length = length
        self.keep_alive = head.keep_alive
        self.reader = reader
        self.pieces = Pieces()
        self.size = 0
        self.hold: Hold | None = None  # of what is kept until it is whole
        self.dropped = False  # too large to keep for the record
        self.passed = False  # it goes out in pieces
        self.chunked = False  # and those are chunks of ours
        self.rolling: Rolling | None = None  # of what has passed

    def may_hold(self, bounds: Bounds) -> bool:
        """Count what there is of it against the worker's budget; what is whole is about to go."""
        if self.size <= FREE or self.reader is None or self.reader.done:
            return True
        if self.hold is None:
            self.hold = bounds.budget.hold()
        return self.hold.resize(self.size)

    def passes(self, piece: bytes) -> None:
        """Count a piece into the hash of what is passed on."""
        if self.rolling is None:
            self.rolling = sha256()
        self.rolling.update(piece)

    @property
    def digest(self) -> bytes:
        return self.rolling.digest() if self.rolling is not None else EMPTY_SHA256


class AnswerSide(ABC):
    """The half of a session that reads the database. The other half is `Http1Session`."""

    def __init__(self, engine: Engine, recorder: Recorder, bounds: Bounds) -> None:
        self._engine = engine
        self._recorder = recorder
        self._bounds = bounds
        self._exchange: Exchange | None = None
        self._lookup: Lookup | None = None
        self._answer_heads = HeadBuffer(bounds, "server")
        self._answer_parser = response_heads(bounds)
        self._released_block = ""  # head as released, for `_released_of`
        self._released_of: tuple[ResponseHead, frozenset[str]] | None = None
        self._arriving: Arriving | None = None
        self._failed = False

    @property
    @abstractmethod
    def _request_sent(self) -> bool:
        """The whole request is on its way, nothing more of it will follow."""

    @abstractmethod
    def _finish(self, out: Output, close: bool) -> None: ...

    @abstractmethod
    def _close(self, out: Output, reset: bool = False) -> None: ...

    @abstractmethod
    def _learnt(self, out: Output, lookup: Lookup, response: Response) -> None: ...

    @abstractmethod
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
    ) -> None: ...

    def _take_server(self, out: Output, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or not (exchange.sent or self._lookup is not None):
            self._failed = True
            raise ProtocolError("unsolicited", "the database sent bytes that answer no request", "server")
        try:
            while data:
                arriving = self._arriving
                if arriving is None:
                    got = self._answer_heads.take(data)
                    if got is None:
                        return
                    data, end = got
                    head, length = self._answer_parser.parse(data[:end])
                    data = data[end:]
                    arriving = self._begin_answer(out, exchange, head, length)
                    if arriving is None:
                        continue
                if arriving.reader is not None and data and not arriving.reader.done:
                    pieces, data = arriving.reader.feed(data)
                    self._take_pieces(out, exchange, arriving, pieces)
                if arriving.reader is None or arriving.reader.done:
                    self._complete(out, exchange, arriving, surplus=bool(data))
                    return
        except ProtocolError as error:
            self._fail(out, exchange, error.reason, error.message)

    def _end_server(self, out: Output) -> None:
        """The database closed."""
        exchange, arriving = self._exchange, self._arriving
        if exchange is None or not (exchange.sent or self._lookup is not None):
            return
        if arriving is not None and arriving.reader is not None and arriving.reader.end():
            arriving.keep_alive = False
            try:
                self._complete(out, exchange, arriving, surplus=False)
            except ProtocolError as error:
                self._fail(out, exchange, error.reason, error.message)
            return
        if exchange.sent:
            self._recorder.abort(out, exchange, "the database closed before the end of its answer")
        self._close(out, reset=exchange.released)

    def _begin_answer(
        self, out: Output, exchange: Exchange, head: ResponseHead, length: int | None
    ) -> Arriving | None:
        """What a head announces; None for an informational answer, which is dropped."""
        status = head.status
        if status < 200:
            exchange.informational += 1
            if status == 101:
                raise ProtocolError("upgrade", "the database switched protocols unasked", "server")
            if exchange.informational > MAX_INFORMATIONAL or head.chunked or length:
                raise ProtocolError(
                    "informational",
                    f"more than {MAX_INFORMATIONAL} 1xx answers, or one with a body",
                    "server",
                )
            return None
        reader: BodyReader | None
        head_only = exchange.head_only and self._lookup is None
        if head_only or status in (204, 304):
            reader = None
        elif head.chunked:
            reader = ChunkedBody(self._bounds, "server")
        elif length is not None:
            reader = LengthBody(length) if length else None
        else:
            reader = CloseBody()
        self._arriving = arriving = Arriving(head, length, reader)
        if isinstance(reader, CloseBody):
            arriving.keep_alive = False
        if reader is not None and self._lookup is None:
            self._choose_way(out, exchange, arriving)
        return arriving

    def _choose_way(self, out: Output, exchange: Exchange, arriving: Arriving) -> None:
        length = arriving.length or 0
        touched = exchange.touched
        if length > self._limit(exchange):
            if touched:
                raise self._too_large()
            self._pass_on(out, exchange, arriving)
        elif arriving.length is None and not touched and arriving.head.events:
            self._pass_on(out, exchange, arriving)  # events would wait for ever to be whole

    def _limit(self, exchange: Exchange) -> int:
        touched = exchange.touched
        if self._lookup is not None or not (touched or exchange.route.answer_rows):
            return self._bounds.stream_above
        return self._bounds.body

    def _too_large(self) -> ProtocolError:
        return ProtocolError(
            "answer-too-large",
            f"an answer that has to be read may have at most {self._bounds.body} bytes",
            "server",
        )

    def _take_pieces(self, out: Output, exchange: Exchange, arriving: Arriving, pieces: list[bytes]) -> None:
        arriving.size += sum(map(len, pieces))
        if arriving.passed:
            self._pass_piece(out, exchange, arriving, b"".join(pieces))
            return
        arriving.pieces.add(pieces)
        has_room = arriving.may_hold(self._bounds)
        if has_room and arriving.size <= self._limit(exchange):
            return
        if self._lookup is not None or exchange.touched:
            if has_room:
                raise self._too_large()
            raise ProtocolError(REASON, self._bounds.budget.message, "server")
        self._pass_on(out, exchange, arriving)

    def _pass_on(self, out: Output, exchange: Exchange, arriving: Arriving) -> None:
        """Release the head and what is there; the rest follows in pieces."""
        head = arriving.head
        arriving.passed = True
        minor = exchange.head.minor if exchange.head is not None else 0
        close = self._ends(exchange, arriving)
        if arriving.length is not None:
            framing = f"content-length: {arriving.length}\r\n"
        elif minor == 1:
            arriving.chunked = True
            framing = CHUNKED
        else:
            framing, close = "", True
            arriving.keep_alive = False
        if close:
            framing += "connection: close\r\n"
        out.to_client.append(self._released_head(exchange, head, RESPONSE_DROPS, framing))
        exchange.released = True
        arriving.hold = None
        self._pass_piece(out, exchange, arriving, arriving.pieces.take())

    def _pass_piece(self, out: Output, exchange: Exchange, arriving: Arriving, piece: bytes) -> None:
        if piece:
            arriving.passes(piece)
            self._recorder.piece(out, exchange, "response", piece)
            if arriving.chunked:
                out.to_client += chunk_frame(piece)
            else:
                out.to_client.append(piece)

    def _complete(self, out: Output, exchange: Exchange, arriving: Arriving, surplus: bool) -> None:
        """The answer is whole. `surplus`: more bytes came behind it, so the connection cannot go on."""
        head = arriving.head
        self._arriving = None
        if surplus:
            arriving.keep_alive = False
        body = arriving.pieces.take()
        lookup = self._lookup
        if lookup is not None:
            self._lookup = None
            if not arriving.keep_alive:
                message = "the database closed the connection after a look-up"
                self._refuse(out, exchange, 502, "lookup-closed", message, close=True, failed=True)
                return
            if head.encoding is not None:
                body = decode_body(body, head.encoding, self._bounds.body)
            self._learnt(out, lookup, Response(head.status, head.headers, body))
            return
        if arriving.passed:
            if arriving.chunked:
                out.to_client.append(LAST_CHUNK)
            reason = "bytes followed the answer" if surplus else None
            self._recorder.streamed(out, exchange, head, arriving.size, arriving.digest, reason)
        else:
            self._release(out, exchange, arriving, body)
            if surplus and out.records and isinstance(out.records[-1], Result):
                out.records[-1].reason = "bytes followed the answer"
        self._finish(out, self._ends(exchange, arriving))

    def _ends(self, exchange: Exchange, arriving: Arriving) -> bool:
        # An answer before the end of the request leaves the connection in the middle of a body.
        return not (exchange.keep_alive and arriving.keep_alive and self._request_sent)

    def _release(self, out: Output, exchange: Exchange, arriving: Arriving, body: bytes) -> None:
        """Mask and record a whole answer, and release it in one length."""
        head = arriving.head
        verdict, request, operation = exchange.verdict, exchange.request, exchange.operation
        if verdict is None or request is None or operation is None:
            raise RuntimeError("an answer to a request that was not judged")
        answer: Answer | None = None
        if verdict.touches_answer and body:
            try:
                plain = decode_body(body, head.encoding, self._bounds.body)
                answer = self._engine.mask(
                    request, operation, verdict, Response(head.status, head.headers, plain)
                )
            except Refusal as refusal:
                raise ProtocolError(refusal.reason, refusal.message, "server") from refusal
        self._recorder.answered(out, exchange, head, body, self._bounds.body, answer)
        released = body if answer is None else answer.body
        dropped = RESPONSE_DROPS if not verdict.touches_answer else _CHANGED
        if exchange.head_only or head.status == 304:
            known = arriving.length is not None and not verdict.touches_answer
            framing = f"content-length: {arriving.length}\r\n" if known else ""
        elif head.status == 204:
            framing = ""
        else:
            framing = f"content-length: {len(released)}\r\n"
        if self._ends(exchange, arriving):
            framing += "connection: close\r\n"
        elif exchange.head is not None and exchange.head.minor == 0:
            framing += "connection: keep-alive\r\n"
        out.to_client.append(self._released_head(exchange, head, dropped, framing))
        if released:
            out.to_client.append(released)
        exchange.released = True

    def _released_head(
        self, exchange: Exchange, head: ResponseHead, dropped: frozenset[str], framing: str
    ) -> bytes:
        extra: Headers = notices(exchange.verdict) if exchange.verdict is not None else ()
        if head.nominated:
            dropped |= head.nominated - {"content-type", "content-encoding"}
        if extra:
            return close_head(response_block(head.status, head.phrase, head.headers, dropped, extra), framing)
        known = self._released_of
        if known is None or known[0] is not head or known[1] != dropped:
            self._released_block = response_block(head.status, head.phrase, head.headers, dropped, ())
            self._released_of = (head, dropped)
        return close_head(self._released_block, framing)

    def _fail(self, out: Output, exchange: Exchange, reason: str, message: str) -> None:
        """The answer cannot be released: an error in its place, or a cut where part of it is out."""
        self._arriving = None
        if self._lookup is not None:
            self._lookup = None
            self._refuse(out, exchange, 502, reason, message, close=True, failed=True)
            if out.close == "no":  # never drain into a connection that is out of step
                self._close(out)
            return
        if exchange.released:
            self._recorder.abort(out, exchange, reason)
            self._close(out, reset=True)
            return
        response = self._engine.refuse(503 if reason == REASON else 502, reason, message, None)
        self._recorder.refused(out, exchange, response, reason, failed=True)
        out.to_client += own_response(response, True, exchange.head_only)
        self._close(out)
