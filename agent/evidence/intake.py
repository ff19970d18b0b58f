# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - only names of our own tables and columns are put into statements, values are bound
"""Frames into the index's rows: one stream at a time, some ten thousand frames a transaction.

Owns what is counted and where each exchange stands. An exchange whose INTENT and RESULT come in one
transaction costs one row; an INTENT left open is written as it is (outcome unknown, or refused) and
completed later, by whatever process reads on. Nothing here is evidence: a rebuild gives the same rows.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.evidence.archive import Batch
from agent.evidence.blocks import Located
from agent.evidence.cards import read_card
from agent.evidence.frames import (
    AbortFrame,
    ChunkFrame,
    GapFrame,
    IntentFrame,
    OpaqueFrame,
    ResultFrame,
    SegmentFrame,
    SessionEndFrame,
    SessionFrame,
)
from agent.evidence.views import UNKNOWN_OUTCOME, open_outcome

MAX_CACHED = 200_000  # session ids and shapes kept in memory; beyond, the caches start anew
_COUNTS = ("requests", "allowed", "denied", "held", "masked", "would", "rows", "bytes_in", "bytes_out")
_CARD_COLUMNS = (
    "guard",
    "engine",
    "pid",
    "exe",
    "user",
    "uid",
    "login_user",
    "login_uid",
    "unit",
    "user_unit",
    "container",
    "client_addr",
    "client_port",
    "protocol",
)
Shape = tuple[str | None, str | None, bool, str, tuple[str, ...], tuple[str, ...]]
"""verdict, would, masked, outcome, actions, collections."""


def id_hash(key: bytes, identifier: str) -> int:
    """What stands in the index for a point id: 64 bits of a keyed hash, as SQLite's signed integer."""
    data = identifier.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, key=key, digest_size=8).digest(), "big", signed=True)


@dataclass(slots=True)
class Row:
    """An exchange under way or done, as its row will be."""

    sid: int
    n: int
    at: int | None
    shape: Shape
    place: tuple[int | None, int | None]
    end: tuple[int | None, int | None] = (None, None)
    rows: int = 0
    streamed: bool = False  # the request's size comes with its chunks


@dataclass(slots=True)
class Delta:
    """What one transaction adds to a session."""

    counts: list[int] = field(default_factory=lambda: [0] * len(_COUNTS))
    last: int = 0
    segment: int = 0
    at: int = 0


class Intake:
    """Takes batches of one stream, in order; `flush` writes their rows into the open transaction."""

    def __init__(
        self, database: sqlite3.Connection, key: bytes, stream: int, host: str | None, boot: str | None
    ) -> None:
        self._db = database
        self._key = key
        self._stream = stream
        self.host, self.boot = host, boot
        self.skipped = 0  # frames whose numbers no honest writer makes
        self._sids: dict[str, int] = {}
        self._carded: set[str] = set()
        self._shapes: dict[Shape, int] = {}
        self._next_sid = self._max("sessions") + 1
        self._next_shape = self._max("shapes") + 1
        self._reset()

    def _max(self, table: str) -> int:
        return int(self._db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()[0])

    def _reset(self) -> None:
        self._open: dict[tuple[int, int], Row] = {}
        self._done: list[Row] = []
        self._deltas: defaultdict[int, Delta] = defaultdict(Delta)
        self._uses: dict[tuple[int, int], list[int]] = {}
        self._seen: list[tuple[int, int, int]] = []
        self._chunks: list[tuple[int, int, int, int]] = []
        self._sessions: list[tuple[Any, ...]] = []
        self._cards: list[tuple[Any, ...]] = []
        self._ends: list[tuple[Any, ...]] = []
        self._protocols: list[tuple[str, int]] = []
        self._gaps: list[tuple[Any, ...]] = []
        if len(self._sids) > MAX_CACHED:
            self._sids.clear()
            self._carded.clear()
        if len(self._shapes) > MAX_CACHED:
            self._shapes.clear()

    def take(self, batch: Batch) -> None:
        segment, offset = batch.place.segment, batch.place.offset
        for item in batch.frames:
            match item.frame:
                case IntentFrame() | ResultFrame() | AbortFrame() | ChunkFrame() as frame if not _plausible(
                    frame
                ):
                    self.skipped += 1
                case IntentFrame() as frame:
                    self._intent(frame, item.seq, segment, offset)
                case ResultFrame() as frame:
                    self._result(frame, item.seq, segment, offset)
                case AbortFrame() as frame:
                    row = self._begun(self._touch(frame.session, item, segment), frame.n, frame.at)
                    row.end = (segment, offset)
                    self._done.append(row)
                case ChunkFrame() as frame:
                    self._chunk(frame, item, segment, offset)
                case SessionFrame() as frame:
                    self._session(frame, item.seq, segment)
                case SessionEndFrame() as frame:
                    self._end(frame, item, segment)
                case OpaqueFrame() as frame:
                    self._protocols.append((frame.protocol, self._touch(frame.session, item, segment)))
                case GapFrame() as frame:
                    self._gaps += [
                        (self._stream, frame.at, x.session, x.first, x.last, x.frames, frame.reason)
                        for x in frame.lost
                    ]
                case SegmentFrame() as frame:
                    self.host, self.boot = frame.host, frame.boot
                case _:
                    pass

    def _sid(self, session: str, segment: int) -> int:
        sid = self._sids.get(session)
        if sid is None:
            found = self._db.execute(
                "SELECT id FROM sessions WHERE session = ? AND stream = ?", (session, self._stream)
            ).fetchone()
            sid = found[0] if found else self._add_session(session, segment, None, None, None)
            self._sids[session] = sid
        return sid

    def _add_session(
        self, session: str, segment: int, started: int | None, first: int | None, card: dict[str, Any] | None
    ) -> int:
        sid, self._next_sid = self._next_sid, self._next_sid + 1
        known = read_card(card)[0] if card is not None else {}
        columns = tuple(_storable(known.get(name)) for name in _CARD_COLUMNS)
        encoded = None if card is None else msgspec.msgpack.encode(card)
        started = started if started is None or not started >> 62 else None
        self._sessions.append(
            (sid, self._stream, session, started, first, segment, encoded, self.host, self.boot, *columns)
        )
        self._sids[session] = sid
        return sid

    def _session(self, frame: SessionFrame, seq: int, segment: int) -> None:
        if frame.again or frame.session not in self._carded:
            self._carded.add(frame.session)
            self._begin(frame, seq, segment)
        delta = self._deltas[self._sid(frame.session, segment)]
        delta.last, delta.segment, delta.at = seq, segment, frame.at

    def _begin(self, frame: SessionFrame, seq: int, segment: int) -> None:
        found = self._db.execute(
            "SELECT card FROM sessions WHERE session = ? AND stream = ?", (frame.session, self._stream)
        ).fetchone()
        if found is None and frame.session not in self._sids:
            self._add_session(frame.session, segment, frame.at, seq, frame.card)
            return
        encoded = msgspec.msgpack.encode(frame.card)
        if found is None or found[0] != encoded:
            # Its first card was lost, as on a full disk, or more is known of it by now.
            known = read_card(frame.card)[0]
            columns = [_storable(known.get(name)) for name in _CARD_COLUMNS]
            self._cards.append(
                (
                    encoded,
                    frame.at,
                    seq,
                    *columns,
                    self._sid(frame.session, segment),
                )
            )

    def _end(self, frame: SessionEndFrame, item: Located, segment: int) -> None:
        sid = self._touch(frame.session, item, segment)
        wire = tuple(
            v if isinstance(v, int) and not v >> 50 else None
            for v in (frame.summary.get("bytes_in"), frame.summary.get("bytes_out"))
        )
        self._ends.append((frame.at, *wire, sid))
        protocol = frame.summary.get("protocol")
        if isinstance(protocol, str):
            self._protocols.append((protocol, sid))

    def _touch(self, session: str, item: Located, segment: int) -> int:
        sid = self._sid(session, segment)
        delta = self._deltas[sid]
        delta.last, delta.segment = item.seq, segment
        delta.at = getattr(item.frame, "at", delta.at)
        return sid

    def _intent(self, frame: IntentFrame, seq: int, segment: int, offset: int) -> None:
        sid = self._sid(frame.session, segment)
        op, verdict = frame.op, frame.verdict
        shape = (
            verdict.outcome,
            verdict.would,
            False,
            open_outcome(verdict.outcome),
            tuple(op.actions),
            tuple(op.collections),
        )
        self._open[sid, frame.n] = Row(
            sid, frame.n, frame.at, shape, (segment, offset), rows=op.rows, streamed=not frame.bytes
        )
        delta = self._deltas[sid]
        delta.last, delta.segment, delta.at = seq, segment, frame.at
        counts = delta.counts
        counts[0] += 1
        counts[1] += verdict.outcome == "allow" or verdict.outcome == "tunnel"
        counts[2] += verdict.outcome == "deny"
        counts[3] += verdict.outcome == "hold"
        counts[5] += verdict.would is not None
        counts[6] += op.rows
        counts[7] += frame.bytes

    def _result(self, frame: ResultFrame, seq: int, segment: int, offset: int) -> None:
        sid = self._sid(frame.session, segment)
        row = self._begun(sid, frame.n, frame.at)
        row.shape = (*row.shape[:2], bool(frame.masks), frame.outcome, *row.shape[4:])
        row.end = (segment, offset)
        delta = self._deltas[sid]
        delta.last, delta.segment, delta.at = seq, segment, frame.at
        counts = delta.counts
        counts[4] += bool(frame.masks)
        if frame.rows:
            counts[6] += frame.rows - row.rows
            row.rows = frame.rows
        counts[8] += frame.released_bytes
        self._done.append(row)
        self._seen += [(id_hash(self._key, identifier), sid, frame.n) for identifier in frame.ids]

    def _begun(self, sid: int, n: int, at: int) -> Row:
        """The exchange's row so far: of this transaction, of an earlier one, or (its INTENT is lost) new."""
        row = self._open.pop((sid, n), None)
        if row is not None:
            return row
        found = self._db.execute("SELECT * FROM exchanges WHERE sid = ? AND n = ?", (sid, n)).fetchone()
        if found is None:
            self._deltas[sid].counts[0] += 1
            return Row(sid, n, at, (None, None, False, UNKNOWN_OUTCOME, (), ()), (None, None))
        self._use(sid, found["shape"], -1, found["at"])
        return Row(
            sid,
            n,
            found["at"],
            self._shape_of(found["shape"]),
            (found["segment"], found["offset"]),
            rows=found["rows"],
        )

    def _shape_of(self, shape: int) -> Shape:
        key = self._db.execute("SELECT key FROM shapes WHERE id = ?", (shape,)).fetchone()[0]
        shape_: Shape = msgspec.msgpack.decode(key, type=Shape)
        return shape_

    def _chunk(self, frame: ChunkFrame, item: Located, segment: int, offset: int) -> None:
        sid = self._touch(frame.session, item, segment)
        self._chunks.append((sid, frame.n, segment, offset))
        if frame.side == "request":
            row = self._open.get((sid, frame.n))
            if row is None or row.streamed:
                self._deltas[sid].counts[7] += frame.bytes

    def flush(self) -> None:
        """Write everything taken since the last flush."""
        db = self._db
        places = ", ".join("?" * (9 + len(_CARD_COLUMNS)))
        db.executemany(
            "INSERT INTO sessions (id, stream, session, started, first, last_segment, card, host, boot, "
            f"{', '.join(_CARD_COLUMNS)}, last) VALUES ({places}, 0)",
            self._sessions,
        )
        sets = ", ".join(f"{name} = ?" for name in _CARD_COLUMNS)
        db.executemany(
            "UPDATE sessions SET card = ?, started = coalesce(started, ?), first = coalesce(first, ?), "
            f"{sets} WHERE id = ?",
            self._cards,
        )
        rows = [*self._done, *self._open.values()]
        db.executemany(
            "INSERT OR REPLACE INTO exchanges VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [self._stored(r) for r in rows],
        )
        db.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?)", self._chunks)
        db.executemany(
            "INSERT INTO session_shapes VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET count = count + excluded.count, "
            "first = min(first, excluded.first), last = max(last, excluded.last)",
            [(sid, shape, *use) for (sid, shape), use in self._uses.items()],
        )
        db.executemany("INSERT INTO seen_new VALUES (?, ?, ?)", self._seen)
        adds = ", ".join(f"{name} = {name} + ?" for name in _COUNTS)
        db.executemany(
            f"UPDATE sessions SET {adds}, last = ?, last_segment = ?, last_at = ? WHERE id = ?",
            [(*d.counts, d.last, d.segment, d.at, sid) for sid, d in self._deltas.items()],
        )
        db.executemany("UPDATE sessions SET ended = ?, wire_in = ?, wire_out = ? WHERE id = ?", self._ends)
        db.executemany("UPDATE sessions SET protocol = ? WHERE id = ?", self._protocols)
        db.executemany("INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?, ?)", self._gaps)
        self._reset()

    def _stored(self, row: Row) -> tuple[int | None, ...]:
        shape = self._shapes.get(row.shape)
        if shape is None:
            shape = self._intern(row.shape)
        self._use(row.sid, shape, 1, row.at)
        return (row.sid, row.n, row.at, shape, *row.place, *row.end, row.rows)

    def _use(self, sid: int, shape: int, by: int, at: int | None) -> None:
        moment = at or 0
        use = self._uses.get((sid, shape))
        if use is None:
            self._uses[sid, shape] = [by, moment, moment]
            return
        use[0] += by
        if moment < use[1]:
            use[1] = moment
        elif moment > use[2]:
            use[2] = moment

    def _intern(self, shape: Shape) -> int:
        key = msgspec.msgpack.encode(shape)
        found = self._db.execute("SELECT id FROM shapes WHERE key = ?", (key,)).fetchone()
        if found is not None:
            number = int(found[0])
        else:
            number, self._next_shape = self._next_shape, self._next_shape + 1
            verdict, would, masked, outcome, actions, collections = shape
            self._db.execute(
                "INSERT INTO shapes VALUES (?, ?, ?, ?, ?, ?)",
                (number, key, verdict, would is not None, masked, outcome),
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO shape_actions VALUES (?, ?)", [(a, number) for a in actions]
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO shape_collections VALUES (?, ?)", [(c, number) for c in collections]
            )
        self._shapes[shape] = number
        return number


def _plausible(frame: IntentFrame | ResultFrame | AbortFrame | ChunkFrame) -> bool:
    """Numbers that SQLite's 64 bits hold, sums of them too: a worker that lies must not stop the index."""
    sizes = frame.n
    if not isinstance(frame, AbortFrame):
        sizes |= frame.bytes
        if isinstance(frame, ResultFrame):
            sizes |= frame.released_bytes | frame.rows
        elif isinstance(frame, IntentFrame):
            sizes |= frame.op.rows
    return not (sizes >> 50 or frame.at >> 62)


def _storable(value: object) -> object:
    """SQLite's integers have 64 bits; a number beyond is no pid or uid of ours."""
    return None if isinstance(value, int) and not -(2**63) <= value < 2**63 else value
