# SPDX-License-Identifier: Apache-2.0
"""From frames to views: which frames make one exchange, and what a session's card says.

Pure. Bias: an exchange without a RESULT is `unknown, may have executed`, but for one that was denied: that is
never forwarded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.evidence.blocks import Located
from agent.evidence.cards import read_card
from agent.evidence.frames import (
    AbortFrame,
    ChunkFrame,
    GapFrame,
    IntentFrame,
    OperationPart,
    ResultFrame,
    SegmentFrame,
    SessionEndFrame,
    SessionFrame,
    VerdictPart,
)
from agent.evidence.views import Exchange, Masking, Message, Session, Span, open_outcome


@dataclass(slots=True)
class Tally:
    """A session's numbers, counted from its exchanges."""

    requests: int = 0
    allowed: int = 0
    denied: int = 0
    held: int = 0
    masked: int = 0
    would: int = 0
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, exchange: Exchange) -> None:
        self.requests += 1
        self.allowed += exchange.verdict in ("allow", "tunnel")
        self.denied += exchange.verdict == "deny"
        self.held += exchange.verdict == "hold"
        self.masked += bool(exchange.masks)
        self.would += exchange.would is not None
        self.rows += exchange.rows
        self.bytes_in += exchange.request.bytes
        self.bytes_out += exchange.trace.get("released_bytes", 0)


@dataclass(slots=True)
class Pieces:
    """The frames of one exchange, as far as they are there."""

    intent: IntentFrame | None = None
    intent_seq: int | None = None
    chunks: list[ChunkFrame] = field(default_factory=list)
    lost: str | None = None  # the reason of a GAP that names this exchange


class Assembler:
    """Puts the exchanges of one stream together. Feed it that stream's frames in order."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self._open: dict[tuple[str, int], Pieces] = {}

    @staticmethod
    def concerns(item: Located, session: str) -> bool:
        frame = item.frame
        if isinstance(frame, GapFrame):
            return any(lost.session == session for lost in frame.lost)
        return getattr(frame, "session", None) == session

    def take(self, item: Located) -> list[Exchange]:
        """What this frame ends: an exchange by its RESULT or ABORT, all open ones by their session's end."""
        match item.frame:
            case IntentFrame() as frame:
                self._pieces(frame.session, frame.n).intent = frame
                self._pieces(frame.session, frame.n).intent_seq = item.seq
            case ChunkFrame() as frame:
                self._pieces(frame.session, frame.n).chunks.append(frame)
            case ResultFrame() | AbortFrame() as frame:
                pieces = self._open.pop((frame.session, frame.n), Pieces())
                return [exchange_of(self.stream, frame.session, frame.n, pieces, frame, item.seq)]
            case GapFrame() as frame:
                self._note_losses(frame)
            case SessionEndFrame() as frame:
                return self._end(frame.session)
            case _:
                pass
        return []

    def _pieces(self, session: str, n: int) -> Pieces:
        return self._open.setdefault((session, n), Pieces())

    def _note_losses(self, gap: GapFrame) -> None:
        for lost in gap.lost:
            for (session, n), pieces in self._open.items():
                if session == lost.session and lost.first <= n <= lost.last:
                    pieces.lost = gap.reason

    def _end(self, session: str) -> list[Exchange]:
        keys = [key for key in self._open if key[0] == session]
        return [exchange_of(self.stream, *key, self._open.pop(key), None, None) for key in keys]

    def rest(self) -> Iterator[Exchange]:
        """What never ended, in the order in which it began."""
        while self._open:
            key = next(iter(self._open))
            yield exchange_of(self.stream, *key, self._open.pop(key), None, None)


def exchange_of(
    stream: str,
    session: str,
    n: int,
    pieces: Pieces,
    end: ResultFrame | AbortFrame | None,
    end_seq: int | None,
) -> Exchange:
    """One exchange of the frames there are."""
    intent, result = pieces.intent, end if isinstance(end, ResultFrame) else None
    op, verdict = (intent.op, intent.verdict) if intent else (None, None)
    took = (end.up - intent.up) / 1e9 if end is not None and intent is not None else None
    return Exchange(
        session=session,
        n=n,
        at=intent.at if intent else end.at if end else pieces.chunks[0].at if pieces.chunks else None,
        took=took,
        actions=tuple(op.actions) if op else (),
        method=op.method if op else None,
        guard=op.guard if op else None,
        engine=op.engine if op else None,
        collections=tuple(op.collections) if op else (),
        top_k=op.top_k if op else None,
        offset=op.offset if op else None,
        vectors=op.vectors if op else None,
        queries=op.queries if op else 0,
        rows=(result.rows if result else 0) or (op.rows if op else 0),
        verdict=verdict.outcome if verdict else None,
        would=verdict.would if verdict else None,
        rule=verdict.rule if verdict else None,
        message=(verdict.message or None) if verdict else None,
        policy=(verdict.policy or None) if verdict else None,
        limits=tuple(_plain(x) for x in verdict.limits) if verdict else (),
        masks=tuple(Masking(m.what, m.how, m.count) for m in result.masks) if result else (),
        grant=None,
        sender=None,
        outcome=result.outcome if result else open_outcome(verdict.outcome if verdict else None),
        request=_request(pieces),
        response=_response(pieces, result),
        released_sha256=(result.released_sha256.hex() or None) if result else None,
        intent_seq=pieces.intent_seq,
        result_seq=end_seq if result else None,
        trace=_trace(op, verdict, pieces, end, result),
        stream=stream,
    )


def _request(pieces: Pieces) -> Message:
    intent = pieces.intent
    body, digest, size = _joined(pieces, "request")
    if intent is None:
        return Message(body=body, sha256=digest, bytes=size)
    return Message(
        head=intent.head,
        body=body if intent.body is None else intent.body,
        sha256=intent.sha256.hex() or digest,
        bytes=intent.bytes or size,
        vectors_cut=intent.vectors_cut,
    )


def _response(pieces: Pieces, result: ResultFrame | None) -> Message:
    body, digest, size = _joined(pieces, "response")
    if result is None:
        return Message(body=body, sha256=digest, bytes=size)
    return Message(
        head=result.head,
        body=body if result.body is None else result.body,
        sha256=result.sha256.hex() or digest,
        bytes=result.bytes or size,
        status=result.status,
        ids=result.ids,
        vectors_cut=result.vectors_cut,
    )


def _joined(pieces: Pieces, side: str) -> tuple[bytes | None, str | None, int]:
    """Body, digest and size of a side that was passed on in chunks; the digest only where all are there."""
    chunks = [c for c in pieces.chunks if c.side == side]
    if not chunks:
        return None, None, 0
    size = sum(c.bytes for c in chunks)
    if any(c.body is None for c in chunks):
        return None, None, size
    body = b"".join(c.body or b"" for c in chunks)
    return body, hashlib.sha256(body).hexdigest() if len(body) == size else None, size


def _plain(part: msgspec.Struct) -> Mapping[str, Any]:
    made: Mapping[str, Any] = msgspec.to_builtins(part)
    return made


def _operation(op: OperationPart) -> Mapping[str, Any]:
    """What was judged, beyond the promised fields; `rows` and `bytes` are the request's own."""
    return {
        "unbounded": op.unbounded,
        "fields": op.fields,
        "probed": op.probed,
        "thresholds": op.thresholds,
        "filtered": op.filtered,
        "carries_filter": op.carries_filter,
        "rows": op.rows,
        "bytes": op.bytes,
        "partial": op.partial,
    }


def _trace(
    op: OperationPart | None,
    verdict: VerdictPart | None,
    pieces: Pieces,
    end: ResultFrame | AbortFrame | None,
    result: ResultFrame | None,
) -> Mapping[str, Any]:
    """How the verdict came about and how the exchange ended, beyond the promised fields."""
    made: dict[str, Any] = {} if op is None else {"operation": _operation(op)}
    if verdict is not None:
        made.update(
            where=verdict.where,
            clamps=[_plain(x) for x in verdict.clamps],
            vectors=verdict.vectors,
            vectors_rule=verdict.vectors_rule,
            fields=verdict.fields,
            fields_rule=verdict.fields_rule,
            filters=[list(f) for f in verdict.filters],
            filter_rules=list(verdict.filter_rules),
            masks=[_plain(m) for m in verdict.masks],
            level=verdict.level,
            mode=verdict.mode,
            nearest=_plain(verdict.nearest) if verdict.nearest else None,
            hits=[_plain(h) for h in verdict.hits],
        )
    made["reason"] = end.reason if end is not None else pieces.lost and f"record lost: {pieces.lost}"
    if result is None and verdict is not None and verdict.outcome == "deny":
        made["reason"] = "; ".join(filter(None, ("no result recorded", made["reason"])))
    made["ended"] = end.at if end is not None else None
    made["released_bytes"] = (
        result.released_bytes if result else sum(c.bytes for c in pieces.chunks if c.side == "response")
    )
    cuts = {
        side: frame.cut
        for side, frame in (("request", pieces.intent), ("response", result))
        if frame and frame.cut
    }
    made["cut"] = cuts or None
    return made


def session_of(
    stream: str,
    card: Located | None,
    segment: SegmentFrame | None,
    tally: Tally,
    end: SessionEndFrame | None,
    last: int,
    session: str | None = None,
    protocol: str | None = None,
) -> Session:
    """The session of its first frame, its numbers and its end. Without a card only what is counted is known.

    `protocol` is what an OPAQUE frame or the index says of the connection.
    """
    if card is not None and isinstance(card.frame, SessionFrame):
        known, reasons = read_card(card.frame.card)
        name, started, first = card.frame.session, card.frame.at, card.seq
    else:
        known, reasons = {}, {"pid": "the beginning of this session is not in evidence any more"}
        name, started, first = session or "", None, last
    if segment is not None:
        known.setdefault("host", segment.host)
        known.setdefault("boot", segment.boot)
    ending = end.summary if end is not None else {}
    if isinstance(ending.get("protocol"), str):
        known["protocol"] = ending["protocol"]
    if protocol is not None:
        known["protocol"] = protocol
    if known.get("protocol") is not None:
        known.setdefault("tls", known["protocol"] == "tls")
    counted = {f: getattr(tally, f) for f in tally.__dataclass_fields__}
    for name_ in (
        "bytes_in",
        "bytes_out",
    ):  # of the wire where the end says so: an opaque session has no exchanges
        value = ending.get(name_)
        if isinstance(value, int) and not isinstance(value, bool):
            counted[name_] = value
    return Session(
        session=name,
        started=started,
        ended=end.at if end is not None else None,
        **known,
        **counted,
        null_reason=reasons,
        evidence=Span(stream, first, last),
    )
