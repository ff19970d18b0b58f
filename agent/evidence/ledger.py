# SPDX-License-Identifier: Apache-2.0
"""The agent's own stream: what no worker can write, and the signature over what the workers wrote.

Owns the epoch: create sk(n+1) and make it durable, write and make durable CHECKPOINT n that announces it,
unlink sk(n). In that order, so that a crash at any point leaves exactly one key that continues the chain of
keys, and what was signed cannot be signed again. Blocks on the disk for about two syncs per checkpoint: call
it from one thread of its own. Bias: what cannot be proven is not signed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.evidence.blocks import MAX_COUNT, chain, encode_checkpoint, genesis
from agent.evidence.frames import (
    LEDGER,
    Checkpoint,
    CheckpointFrame,
    CloseFrame,
    Frame,
    KeyFrame,
    StreamHead,
)
from agent.evidence.keys import CHECKPOINT_CONTEXT, KeyFolder, SigningKey, certificate_message
from agent.evidence.recovery import LedgerEnd, read_ledger_end
from agent.evidence.segment import SegmentFile, create_segment, is_stream_id
from agent.evidence.stream import Clock, StreamWriter

EPOCH_NS = 10**9
EPOCH_FRAMES = 256
IDLE_NS = 10 * 10**9
"""With nothing to sign an epoch lasts longer: the first frame ends it within EPOCH_NS all the same, so that
nothing is signed later. Measured: at one a second an idle host writes 62 MB and 170,000 syncs a day."""
MAX_SEQ = 2**62  # no worker gets there; a number that has no encoding would stop the signing of all
MAX_RETIRED = 4096  # heads kept of streams that left, should their workers come back after all
BlockDigest = tuple[int, int, bytes]
"""(first seq, frames, digest) of one block, as a worker presents it."""


class LedgerError(Exception):
    """The ledger cannot be written or continued."""


class PresentError(Exception):
    """A worker presented blocks that do not continue its stream: nothing of them will be signed."""


@dataclass(slots=True)
class _Stream:
    head: StreamHead
    signed: int
    leaving: bool = False


class Ledger:
    """``DIR/ledger`` and ``DIR/keys``. Open one per agent; `close` on a wanted stop."""

    def __init__(
        self,
        root: Path,
        *,
        host: str,
        boot: str,
        wall: Clock = time.time_ns,
        up: Clock = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        epoch_ns: int = EPOCH_NS,
        idle_ns: int = IDLE_NS,
        epoch_frames: int = EPOCH_FRAMES,
        segment_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Resume with the key the last durable checkpoint announced. `key_break` says if it was not there."""
        self._root, self._folder = root, root / LEDGER
        self._host, self._boot, self._wall, self._up = host, boot, wall, up
        self._epoch_ns, self._idle_ns, self._epoch_frames = epoch_ns, idle_ns, epoch_frames
        self._keys = KeyFolder(root)
        if not self._keys.has_host():
            self._keys.make_epoch(0)  # before the identity: tells a first start from a ledger that went away
        self._host_key, first = self._keys.host()
        end = read_ledger_end(root, wall(), up())
        self._key_reason: Literal["first", "resume", "break"] = "resume"
        self.key_break = False
        self._key, self._epoch = self._continue(end, first)
        self.last: Checkpoint | None = end.checkpoint
        self.recovered = end.torn
        # Streams of the last checkpoint stay known until they are retired: their workers may still live, and
        # a checkpoint before they are back must not forget how far they were signed.
        heads = () if end.checkpoint is None else end.checkpoint.streams
        self._streams = {head.stream: _Stream(head, head.seq) for head in heads}
        self._retired: dict[str, StreamHead] = {}
        self._next_number = end.next_number
        self._new_frames = 0
        self._last_up = up() if end.checkpoint is None else 0
        self.policy = "" if end.checkpoint is None else end.checkpoint.policy
        self._writer = StreamWriter(
            LEDGER,
            self._new_segment(),
            None,
            host=host,
            boot=boot,
            wall=wall,
            up=up,
            written=lambda _first, _count, _digest, _up: None,
            begun=lambda: None,
            need_spare=self._give_spare,
            seq=end.seq,
            chain=end.head or genesis(LEDGER),
            preface=self._certificate,
            torn=end.torn,
            segment_bytes=segment_bytes,
        )
        self._give_spare()
        self._writer.prepare(0)  # a start is on record at once; on a full disk with the first frame that fits

    def _continue(self, end: LedgerEnd, first: bool) -> tuple[SigningKey, int]:
        if end.announced is not None:
            found = self._keys.find_epoch(end.announced)
            if found is not None and found[0] == end.next_epoch:
                self._keys.keep_only(end.next_epoch)
                return found[1], end.next_epoch
        # A host key without a ledger is a ledger that went away, unless the first start died before it wrote.
        self.key_break = end.seq > 0 or not (first or self._keys.has_only_epoch(0))
        self._key_reason = "break" if self.key_break else "first"
        key = self._keys.make_epoch(end.next_epoch)
        self._keys.keep_only(end.next_epoch)
        return key, end.next_epoch

    @property
    def host_public(self) -> bytes:
        return self._host_key.public

    @property
    def head(self) -> tuple[int, bytes]:
        """(seq, chain value) of the ledger's end."""
        return self._writer.seq, self._writer.chain

    def now(self) -> tuple[int, int]:
        """(wall, CLOCK_BOOTTIME) in ns, for frames."""
        return self._wall(), self._up()

    def _certificate(self) -> list[Frame]:
        signature = self._host_key.sign(
            certificate_message(self._writer.chain, self._epoch, self._key.public)
        )
        return [
            KeyFrame(
                at=self._wall(),
                up=self._up(),
                epoch=self._epoch,
                public=self._key.public,
                host_public=self._host_key.public,
                signature=signature,
                reason="rotate" if self._writer.segments else self._key_reason,
            )
        ]

    def _new_segment(self) -> SegmentFile:
        segment = create_segment(self._folder, self._next_number)
        self._next_number += 1
        return segment

    def _give_spare(self) -> None:
        try:
            self._writer.give_spare(self._new_segment())
        except OSError:
            return  # asked again when it is needed again

    # Streams.

    def start_stream(self, stream: str) -> None:
        """A new worker's stream, not written yet. Raises PresentError for an id that is in use."""
        if not is_stream_id(stream) or stream in self._streams or stream in self._retired:
            raise PresentError(f"stream {stream!r} cannot start")
        self._streams[stream] = _Stream(StreamHead(stream, 0, genesis(stream)), 0)

    def adopt_stream(self, stream: str) -> int:
        """A live worker's stream after a restart of the agent. Returns the last signed seq.

        The caller must know that this worker owns the stream (it handed out its descriptors).
        """
        if not is_stream_id(stream):
            raise PresentError(f"stream {stream!r} is no stream")
        known = self._streams.get(stream)
        if known is None:
            head = self._retired.pop(stream, None) or StreamHead(stream, 0, genesis(stream))
            known = self._streams[stream] = _Stream(head, head.seq)
        known.leaving = False
        return known.signed

    def retire_stream(self, stream: str) -> None:
        """Its worker is gone: the next checkpoint names it for the last time."""
        if stream in self._streams:
            self._streams[stream].leaving = True

    def retire_absent(self, live: Collection[str]) -> None:
        """After a restart, once workers had time to come back: retire every stream that has no worker."""
        for stream in self._streams:
            if stream not in live:
                self.retire_stream(stream)

    def signed(self) -> dict[str, int]:
        """Last signed seq of every live stream."""
        return {stream: known.signed for stream, known in self._streams.items()}

    def present(self, stream: str, blocks: Iterable[BlockDigest]) -> int:
        """Extend a stream by blocks that its worker wrote; the next checkpoint signs them.

        Blocks at or below the known head are passed over: what is signed is never signed anew. Returns the
        seq reached. Raises PresentError where a block neither lies below the head nor follows it.
        """
        known = self._streams.get(stream)
        if known is None:
            raise PresentError(f"stream {stream!r} is not known")
        seq, head = known.head.seq, known.head.head
        for first, count, digest in blocks:
            if not 0 < count <= MAX_COUNT or not 0 < first <= MAX_SEQ or len(digest) != 32:
                raise PresentError(f"stream {stream}: no block at {first}")
            if first + count - 1 <= seq:
                continue
            if first != seq + 1:
                raise PresentError(f"stream {stream}: block {first} does not follow {seq}")
            head = chain(head, first, count, digest)
            seq += count
        self._new_frames += seq - known.head.seq
        known.head = StreamHead(stream, seq, head)
        return seq

    # Frames.

    def append(self, *frames: Frame) -> None:
        """Write frames at once; the next checkpoint makes them durable and signs them. Raises LedgerError."""
        if not self._writer.write_control(frames):
            raise LedgerError(f"{self._folder}: cannot be written")
        self._new_frames += len(frames)

    def due(self) -> bool:
        """Whether the epoch is over."""
        passed = self._up() - self._last_up
        return (
            self._new_frames >= self._epoch_frames
            or passed >= self._idle_ns
            or (self._new_frames > 0 and passed >= self._epoch_ns)
        )

    def checkpoint(self, counters: Mapping[str, int]) -> dict[str, int]:
        """End the epoch. Returns the signed seq of each stream. Raises LedgerError; try again later."""
        try:
            following = self._keys.make_epoch(self._epoch + 1)
        except OSError as exc:
            raise LedgerError(f"next key: {exc}") from exc
        # Begin or rotate the segment first: the body below must name the very end that it follows.
        if not self._writer.prepare(4096 + 64 * len(self._streams)):
            raise LedgerError(f"{self._folder}: cannot be written")
        body = Checkpoint(
            epoch=self._epoch,
            host=self._host,
            boot=self._boot,
            wall=self._wall(),
            boottime=self._up(),
            ledger_seq=self._writer.seq,
            ledger_head=self._writer.chain,
            streams=[known.head for known in self._streams.values()],
            counters=dict(counters),
            policy=self.policy,
            next_key=following.public,
        )
        if not self._write_signed(body):
            raise LedgerError(f"{self._folder}: checkpoint {self._epoch} was not written")
        self._epoch += 1
        self._key = following
        self.last, self._last_up, self._new_frames = body, body.boottime, 0
        if not self._sync():  # the old key stays until a later checkpoint is durable
            raise LedgerError(f"{self._folder}: checkpoint {body.epoch} may not be durable")
        self._keys.keep_only(self._epoch)
        return self._mark_signed()

    def _write_signed(self, body: Checkpoint) -> bool:
        data = encode_checkpoint(body)
        frame = CheckpointFrame(
            at=body.wall,
            up=body.boottime,
            body=data,
            key=self._key.public,
            signature=self._key.sign(CHECKPOINT_CONTEXT + data),
        )
        return self._writer.write_here([frame])

    def _mark_signed(self) -> dict[str, int]:
        for known in self._streams.values():
            known.signed = known.head.seq
        signed = {stream: known.signed for stream, known in self._streams.items()}
        for name in [name for name, known in self._streams.items() if known.leaving]:
            self._retired[name] = self._streams.pop(name).head
        while len(self._retired) > MAX_RETIRED:
            self._retired.pop(next(iter(self._retired)))
        return signed

    def _sync(self) -> bool:
        left, fds = self._writer.to_sync()
        try:
            for fd in fds:
                os.fdatasync(fd)
        except OSError:
            return False
        finally:
            self._writer.forget(left)
        return True

    def close(self, reason: str, counters: Mapping[str, int]) -> None:
        """A wanted stop: CLOSE and a last checkpoint over it. Silence afterwards is no loss."""
        try:
            self.append(CloseFrame(at=self._wall(), up=self._up(), reason=reason, counters=dict(counters)))
            self.checkpoint(counters)
        finally:
            self._writer.close()

    def abandon(self) -> None:
        """Close the files without a word, as a crash would."""
        self._writer.close()
