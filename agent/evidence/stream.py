# SPDX-License-Identifier: Apache-2.0
"""The writer of one stream: seq, chain and the segment they go to.

Owns rotation and what happens when a write fails: a torn segment is left as it is, the spare begins by
naming it. Knows nothing of sessions, releases or signatures. Never raises because of the disk: a write
returns whether it stands, and the caller decides what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from agent.evidence.blocks import encode_control, genesis
from agent.evidence.frames import Frame, RecoveredFrame, SegmentFrame
from agent.evidence.pack import COMPRESS_BUSY, COMPRESS_IDLE, NONE_KNOWN, pack
from agent.evidence.segment import SEGMENT_AGE, SEGMENT_BYTES, SegmentFile, ShortWrite

Written = Callable[[int, int, bytes, int], None]
"""A block stands: its first seq, its count of frames, its digest, CLOCK_BOOTTIME in ns."""
BUSY: Final = 1_000_000
"""ns since the block before: below, this worker is under load and small blocks are not compressed. Measured:
zstd takes 13 of the 40 us that a 2 KB exchange costs alone in its turn, and saves 40 % of 3 KB."""
Clock = Callable[[], int]


class StreamWriter:
    """Appends blocks. `written` is called for each, `begun` after the first block of a later segment.

    `seq` and `chain` continue a stream, `torn` names what its last writer left torn, `preface` gives frames
    that follow SEGMENT in the first block of each segment (the ledger's KEY).
    """

    def __init__(
        self,
        stream: str,
        segment: SegmentFile,
        spare: SegmentFile | None,
        *,
        host: str,
        boot: str,
        wall: Clock,
        up: Clock,
        written: Written,
        begun: Callable[[], None],
        need_spare: Callable[[], None],
        seq: int = 0,
        chain: bytes | None = None,
        reason: Literal["start", "rotate"] = "start",
        preface: Callable[[], Sequence[Frame]] = tuple,
        torn: Sequence[RecoveredFrame] = (),
        segment_bytes: int = SEGMENT_BYTES,
        segment_age: int = SEGMENT_AGE,
    ) -> None:
        self.stream = stream
        self.seq = seq
        self.chain = genesis(stream) if chain is None else chain
        self._reason: Literal["start", "rotate"] = reason
        self._preface = preface
        self.bytes = 0
        self.failures = 0
        self.segments = 0
        self._last = 0
        self._segment: SegmentFile | None = segment
        self._spare = spare
        self._begun_at: int | None = None
        self._first_size = 0  # of the segment's first block: a block larger than a segment gets one alone
        self._torn: list[RecoveredFrame] = list(torn)
        self._finished: list[SegmentFile] = []  # left, still to be synced and closed
        self._host, self._boot = host, boot
        self._wall, self._up = wall, up
        self._written, self._begun, self._need_spare = written, begun, need_spare
        self._segment_bytes, self._segment_age = segment_bytes, segment_age

    def write_data(self, frames: list[Frame], known: Mapping[int, bytes] = NONE_KNOWN) -> bool:
        """One block of session frames; `known` and what it raises, before anything is written, as `pack`."""
        now = self._up()
        block = pack(frames, COMPRESS_BUSY if now - self._last < BUSY else COMPRESS_IDLE, known)
        for _attempt in range(2):  # a segment that tears is left, and the block goes to the spare
            total = block.total
            if not self._ready(total):
                return False
            buffers, digest, value = block.place(self.seq + 1, self.chain)
            torn = len(self._torn)
            if self._append(buffers, total):
                self._advance(block.count, digest, value, total, now)
                return True
            if len(self._torn) == torn:
                return False
        return False

    def write_control(self, frames: Sequence[Frame]) -> bool:
        """One control block of the recorder's own frames."""
        return self._ready(0) and self._write_control(frames)

    def prepare(self, total: int) -> bool:
        """Begin or rotate now, so that `write_here` of up to `total` bytes adds nothing before its frames."""
        return self._ready(total)

    def write_here(self, frames: Sequence[Frame]) -> bool:
        """One control block exactly at the current `seq` and `chain`, or nothing."""
        return self._write_control(frames)

    def give_spare(self, spare: SegmentFile) -> None:
        """A new empty segment. One is kept; one too many is closed."""
        if self._segment is None:
            self._segment = spare
            self._need_spare()
        elif self._spare is None:
            self._spare = spare
        else:
            spare.close()

    def rotate_if_old(self) -> None:
        if self._begun_at is not None and self._up() - self._begun_at > self._segment_age:
            self._rotate()

    def to_sync(self) -> tuple[list[SegmentFile], list[int]]:
        """(segments left since the last sync, descriptors that an fdatasync must reach)."""
        left = list(self._finished)
        fds = [segment.fd for segment in left]
        if self._segment is not None and self._begun_at is not None:
            fds.append(self._segment.fd)
        return left, fds

    def forget(self, left: list[SegmentFile]) -> None:
        """Close segments that were synced, or could not be."""
        for segment in left:
            if segment in self._finished:
                self._finished.remove(segment)
                segment.close()

    def close(self) -> None:
        """Close every descriptor."""
        for segment in (*self._finished, self._segment, self._spare):
            if segment is not None:
                segment.close()
        self._finished, self._segment, self._spare = [], None, None

    def _write_control(self, frames: Sequence[Frame]) -> bool:
        data, digest, value = encode_control(frames, self.seq + 1, self.chain)
        if not self._append([data], len(data)):
            return False
        self._advance(len(frames), digest, value, len(data), self._up())
        return True

    def _advance(self, count: int, digest: bytes, value: bytes, total: int, now: int) -> None:
        first = self.seq + 1
        self.seq += count
        self.chain = value
        self.bytes += total
        self._last = now
        self._written(first, count, digest, now)

    def _append(self, buffers: Sequence[bytes], total: int) -> bool:
        segment = self._segment
        if segment is None:
            return False
        try:
            segment.append(buffers, total)
        except ShortWrite as torn:
            self.failures += 1
            self._abandon(segment, str(torn))
        except OSError as error:
            self.failures += 1
            if segment.end() != segment.size:  # something of it reached the file after all
                self._abandon(segment, error.strerror or str(error))
        else:
            return True
        return False

    def _abandon(self, segment: SegmentFile, reason: str) -> None:
        self._torn.append(
            RecoveredFrame(
                at=self._wall(),
                up=self._up(),
                stream=self.stream,
                number=segment.number,
                torn_at=segment.size,
                size=segment.end(),
                seq=self.seq,
                reason=reason,
            )
        )
        self._finished.append(segment)
        self._segment, self._spare, self._begun_at = self._spare, None, None
        self._need_spare()

    def _ready(self, total: int) -> bool:
        """See that there is a begun segment with room for `total` bytes, or one to grow."""
        if self._begun_at is None and not self._begin():
            return False
        segment = self._segment
        if segment is None:
            return False
        if segment.size > self._first_size and segment.size + total > self._segment_bytes:
            self._rotate()
        return self._segment is not None and self._begun_at is not None

    def _begin(self) -> bool:
        """Have the current segment begun; one that tears on its first block is left for the spare."""
        for _attempt in range(2):
            segment = self._segment
            if segment is None:
                return False
            if self._begun_at is not None or self._write_first(segment):
                return True
            if self._segment is segment:
                return False
        return False

    def _write_first(self, segment: SegmentFile) -> bool:
        frame = SegmentFrame(
            at=self._wall(),
            up=self._up(),
            stream=self.stream,
            number=segment.number,
            prev=self.chain,
            first=self.seq + 1,
            host=self._host,
            boot=self._boot,
            reason="recovered" if self._torn else self._reason,
        )
        if not self._write_control([frame, *self._preface(), *self._torn]):
            return False
        self._torn = []
        self._reason = "rotate"
        self._begun_at = self._up()
        self._first_size = segment.size
        self.segments += 1
        if self.segments > 1:
            self._begun()
        return True

    def _rotate(self) -> None:
        """Go on in the spare; without one, or where it cannot be begun, the current segment grows."""
        old, begun_at, spare = self._segment, self._begun_at, self._spare
        if old is None or spare is None:
            self._need_spare()
            return
        self._segment, self._spare, self._begun_at = spare, None, None
        if self._write_first(spare):
            self._finished.append(old)
            self._need_spare()
            return
        if self._is_current(spare):  # nothing reached it: it stays the spare
            self._spare = spare
        self._segment, self._begun_at = old, begun_at

    def _is_current(self, segment: SegmentFile) -> bool:
        """Asked in a method of its own: to the type checker, and so to compiled code, what `_rotate` put into
        `_segment` still stands there."""
        return self._segment is segment
