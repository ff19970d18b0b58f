# SPDX-License-Identifier: Apache-2.0
"""The recorder of one proxy worker: records in, one block per loop turn out, then the releases.

Owns the worker's stream: its seq, its chain, what is unsigned, what was lost. Runs on the worker's loop but
knows no loop: scheduling, syncing and clocks are given to it. Holds no path and no key. Bias: a release is
True only after the bytes it waits for were written (best-effort excepted); whatever goes wrong counts as a
loss and will be named in a GAP. It never raises because of the disk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import msgspec

from agent.evidence.durability import GroupSync, Sync
from agent.evidence.frames import CloseFrame, Frame, SessionEndFrame, SessionFrame
from agent.evidence.framing import PART_BYTES, body_bytes, cut_body, frame_of
from agent.evidence.losses import Losses, Owed
from agent.evidence.pack import NONE_KNOWN, Group, Presented, Put
from agent.evidence.plain import plain_card, plain_frame
from agent.evidence.segment import SegmentFile
from agent.evidence.stream import StreamWriter
from agent.evidence.thresholds import DEFAULTS, Thresholds
from agent.protocols.session import Record
from policy.model import RecordMode

Release = Callable[[bool], None]
Schedule = Callable[[Callable[[], None]], None]
since_boot: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
Pressure = Literal["ok", "alert", "meta", "full"]


class Recorder:
    """Writes one stream. All methods belong to one thread."""

    def __init__(
        self,
        stream: str,
        segment: SegmentFile,
        spare: SegmentFile | None,
        *,
        host: str,
        boot: str,
        schedule: Schedule,
        later: Schedule | None = None,
        sync: Sync | None = None,
        need_spare: Callable[[], None] = lambda: None,
        wall: Callable[[], int] = time.time_ns,
        up: Callable[[], int] = since_boot,
        thresholds: Thresholds = DEFAULTS,
    ) -> None:
        self.stream = stream
        self._seen = self._recorded = self._dropped = 0
        self.pressure: Pressure = "ok"
        self._writer = StreamWriter(
            stream,
            segment,
            spare,
            host=host,
            boot=boot,
            wall=wall,
            up=up,
            written=self._written,
            begun=self._repeat_cards,
            need_spare=need_spare,
            segment_bytes=thresholds.segment_bytes,
            segment_age=thresholds.segment_age,
        )
        self._durability = GroupSync(self._writer, sync)
        self._schedule, self._later = schedule, later or schedule
        self._wall, self._up = wall, up
        self._thresholds = thresholds
        self._unsigned: deque[Presented] = deque()
        self._unsigned_frames = 0
        self._losses = Losses()
        self._last_gap = 0
        self._groups: list[Group] = [Group()]
        self._refused: list[tuple[Release, bool]] = []
        self._scheduled = self._resting = False
        self._cards: dict[str, dict[str, Any]] = {}  # of open sessions, repeated in every segment
        self._owed = Owed()

    # What the relay calls.

    def open_session(self, session: str, card: Mapping[str, Any]) -> None:
        """Record the identity card. It is repeated in every later segment until the session closes."""
        self._take_card(session, card, again=False)

    def amend_session(self, session: str, card: Mapping[str, Any]) -> None:
        """More is known of an open session. Later segments repeat the new card."""
        if session in self._cards:
            self._take_card(session, card, again=True)

    def _take_card(self, session: str, card: Mapping[str, Any], *, again: bool) -> None:
        self._cards[session] = card = plain_card(card)
        self._seen += 1
        if self.refusing is not None:
            self._lose_own(session, self.refusing)
            self._owed.cards.add(session)
            return
        frame = SessionFrame(at=self._wall(), up=self._up(), session=session, card=card, again=again)
        self._groups[-1].frames.append(frame)
        self._by_and_by()

    def close_session(self, session: str, summary: Mapping[str, Any]) -> None:
        self._cards.pop(session, None)
        self._seen += 1
        frame = SessionEndFrame(at=self._wall(), up=self._up(), session=session, summary=plain_card(summary))
        if (why := self.refusing) is not None:
            self._delay_end(frame, why)
            return
        self._owed.cards.discard(session)
        self._groups[-1].frames.append(frame)
        self._by_and_by()

    def put(self, session: str, records: list[Record], mode: RecordMode, release: Release) -> None:
        """Take records of one session; `release` is called on a later turn, once.

        True: they are written (strict), written and synced (strict-sync), or nothing was promised
        (best-effort). False: they are not, and in enforce nothing they stand for may pass.
        """
        self._seen += len(records)
        best_effort = mode == "best-effort"
        now = self._up()
        why = self._why_refusing(now)
        size = body_bytes(records)
        group = self._groups[-1]
        if group.is_full(len(records), size):
            group = Group()
            self._groups.append(group)
        if why is None and best_effort and self._waiting_bytes + size > self._thresholds.queue_bytes:
            why = "queue full"
        if why is not None:
            self._losses.add(session, records, why, self._wall(), released=best_effort)
            self._dropped += len(records)
            self._refused.append((release, best_effort))
        else:
            at, frames = self._wall(), group.frames
            group.puts.append(Put(session, records, mode, release, len(frames)))
            group.size += size
            if size >= PART_BYTES:
                group.note_digests(records)
            for record in records:
                frame = frame_of(record, session, at, now)
                if self.pressure == "meta":
                    cut_body(frame, "disk")
                frames.append(frame)
        self._soon()

    # What the worker calls.

    @property
    def refusing(self) -> str | None:
        """Why nothing may be recorded now, or None."""
        return self._why_refusing(self._up())

    @property
    def overdue(self) -> bool:
        """More is unsigned than may be, or for longer: strict rules deny until the agent signs."""
        return self._is_overdue(self._up())

    def _why_refusing(self, now: int) -> str | None:
        if self.pressure == "full":
            return "disk full"
        if self._unsigned and self._is_overdue(now):
            return "unsigned"
        return None

    def _is_overdue(self, now: int) -> bool:
        limits = self._thresholds
        return self._unsigned_frames >= limits.unsigned_frames or (
            bool(self._unsigned) and now - self._unsigned[0].up > limits.unsigned_age
        )

    def counters(self) -> dict[str, int]:
        """Since start: records handed in, frames written for them, lost; bytes; blocks' failures."""
        writer = self._writer
        return {
            "seen": self._seen,
            "recorded": self._recorded,
            "dropped": self._dropped,
            "bytes": writer.bytes,
            "segments": writer.segments,
            "write_failures": writer.failures,
            "sync_failures": self._durability.failures,
        }

    @property
    def seq(self) -> int:
        """Of the last written frame."""
        return self._writer.seq

    @property
    def durable(self) -> int:
        """Seq of the last frame known to survive a power loss."""
        return self._durability.durable

    @property
    def lost(self) -> int:
        """Frames lost since the last GAP."""
        return self._losses.frames

    def unsigned(self, limit: int = 4096) -> list[Presented]:
        """Written blocks that are durable and not yet signed, in order."""
        made: list[Presented] = []
        for block in self._unsigned:
            if block.first + block.frames - 1 > self._durability.durable or len(made) >= limit:
                break
            made.append(block)
        return made

    def present(self, send: Callable[[list[Presented]], None]) -> None:
        """Make durable what is written, then `send` what is unsigned.

        Only durable blocks are presented: a signed head must never outlive its frames in a power loss, or an
        honest host would look truncated.
        """
        self._durability.wait(self._writer.seq, lambda _ok: send(self.unsigned()))

    def signed(self, seq: int) -> None:
        """The agent signed everything up to `seq`."""
        while self._unsigned and self._unsigned[0].first + self._unsigned[0].frames - 1 <= seq:
            self._unsigned_frames -= self._unsigned.popleft().frames
        if self._losses or self._owed:
            self._soon()

    def give_spare(self, spare: SegmentFile) -> None:
        """A new empty segment to rotate or recover into. One at a time is kept."""
        self._writer.give_spare(spare)
        if self._losses:
            self._soon()

    def tick(self) -> None:
        """Call once a second: retries what failed, writes an overdue GAP, rotates by age."""
        due = self._up() - self._last_gap >= self._thresholds.gap_every
        if self._losses and (self.refusing is None or due):
            self._write_gap()
        self._writer.rotate_if_old()
        if self._owed:
            self._soon()

    def close(self, reason: str) -> None:
        """Flush, write CLOSE, sync. `present` what is left, then `release_files`."""
        self.flush()
        owed, self._owed = self._owed, Owed()  # nothing follows CLOSE, also when the agent signs meanwhile
        for end in owed.ends:
            self._lose_own(end.session, "stopped")
        if self._losses:
            self._write_gap()
        frame = CloseFrame(at=self._wall(), up=self._up(), reason=reason, counters=self.counters())
        self._writer.write_control([frame])
        self._durability.wait(self._writer.seq, lambda _ok: None)

    def release_files(self) -> None:
        """Close every descriptor: nothing can be recorded afterwards."""
        self._writer.close()

    # Flushing.

    def flush(self) -> None:
        """One block of everything that waits, then the releases."""
        self._scheduled = False
        groups, self._groups = self._groups, [Group()]
        refused, self._refused = self._refused, []
        if (self._losses or self._owed) and self.refusing is None:
            self._catch_up()
        released: list[tuple[Release, bool]] = []
        for group in groups:
            if group.frames:
                self._flush_group(group, released)
        for release, ok in released:
            release(ok)
        for release, ok in refused:
            release(ok)

    def _write(self, frames: list[Frame], known: Mapping[int, bytes] = NONE_KNOWN) -> bool:
        if not self._writer.write_data(frames, known):
            return False
        self._recorded += len(frames)
        return True

    def _flush_group(self, group: Group, released: list[tuple[Release, bool]]) -> None:
        try:
            ok = self._write(group.frames, group.digests)
        except (UnicodeEncodeError, OverflowError, TypeError, ValueError, RecursionError):
            self._flush_apart(group, released)
            return
        if not ok:
            self._lose_group(group, "write failed")
        for put in group.puts:
            if ok and put.mode == "strict-sync":
                self._durability.wait(self._writer.seq, put.release)
            else:
                released.append((put.release, ok or put.mode == "best-effort"))

    def _flush_apart(self, group: Group, released: list[tuple[Release, bool]]) -> None:
        """A value that has no encoding is in the group: only its own put may fail for it."""
        if len(group.puts) + len(group.own_frames()) > 1:
            for part in group.apart():
                self._flush_group(part, released)
            return
        try:
            group.frames = [plain_frame(frame) for frame in group.frames]
            msgspec.msgpack.encode(group.frames)  # a trial: `pack` would take the bodies out
        except Exception:
            self._lose_group(group, "unencodable")
            released.extend((put.release, put.mode == "best-effort") for put in group.puts)
        else:
            self._flush_group(group, released)

    def _written(self, first: int, count: int, digest: bytes, up: int) -> None:
        self._unsigned.append(Presented(first, count, digest, up))
        self._unsigned_frames += count

    def _repeat_cards(self) -> None:
        """Each segment can be read alone, also when retention took the ones before it."""
        frames = self._cards_again(self._cards)
        pieces = [frames[start : start + 1024] for start in range(0, len(frames), 1024)]
        if all(self._writer.write_data(piece) for piece in pieces):
            self._owed.cards.clear()

    # Losses.

    def _catch_up(self) -> None:
        """Writing may work again: first say what is missing, then the ends and the cards that are owed."""
        if self._losses and not self._write_gap():
            return
        ends, self._owed.ends = self._owed.ends, []
        if ends and not self._write([*ends]):
            self._owed.ends = ends
        elif cards := self._owed.cards:
            again = self._cards_again(cards)
            if not again or self._write(again):
                cards.clear()

    def _cards_again(self, sessions: Iterable[str]) -> list[Frame]:
        at, up, cards = self._wall(), self._up(), self._cards
        return [
            SessionFrame(at=at, up=up, session=session, card=cards[session], again=True)
            for session in sessions
            if session in cards
        ]

    def _write_gap(self) -> bool:
        self._last_gap = self._up()
        if not self._writer.write_control([self._losses.frame(self._wall(), self._up())]):
            return False
        self._losses.clear()
        return True

    def _lose_group(self, group: Group, reason: str) -> None:
        at = self._wall()
        for put in group.puts:
            self._losses.add(put.session, put.records, reason, at, released=put.mode == "best-effort")
            self._dropped += len(put.records)
        for frame in group.own_frames():
            if isinstance(frame, SessionEndFrame) and reason != "unencodable":
                self._delay_end(frame, reason)
                continue
            self._lose_own(frame.session, reason)
            if isinstance(frame, SessionFrame) and frame.session in self._cards and reason != "unencodable":
                self._owed.cards.add(frame.session)

    def _delay_end(self, frame: SessionEndFrame, reason: str) -> None:
        if self._owed.keep_end(frame):
            self._soon()
        else:
            self._lose_own(frame.session, reason)

    def _lose_own(self, session: str, reason: str) -> None:
        self._losses.count(session, 0, 0, 1, 0, reason, self._wall())
        self._dropped += 1
        self._soon()

    # Scheduling and syncing.

    @property
    def _waiting_bytes(self) -> int:
        return sum(group.size for group in self._groups)

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._schedule(self.flush)

    def _by_and_by(self) -> None:
        """A frame that nothing waits for: it leaves with the next block, or after a moment in its own."""
        if not self._scheduled and not self._resting:
            self._resting = True
            self._later(self._rested)

    def _rested(self) -> None:
        self._resting = False
        if any(group.frames for group in self._groups):
            self.flush()
