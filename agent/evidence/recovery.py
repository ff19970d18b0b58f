# SPDX-License-Identifier: Apache-2.0
"""What a crash left, found at the agent's start: where each file really ends, and torn tails copied aside.

Never cuts, renames or rewrites a segment. A torn tail is copied to ``NNNNNN.torn`` beside it and named by a
RECOVERED frame in the ledger; streams whose workers live are left alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.evidence.blocks import (
    KIND_CONTROL,
    Block,
    FormatError,
    chain,
    decode_checkpoint,
    decode_frames,
    genesis,
    read_blocks,
)
from agent.evidence.frames import LEDGER, Checkpoint, CheckpointFrame, KeyFrame, RecoveredFrame, SegmentFrame
from agent.evidence.segment import is_stream_id, list_segments


@dataclass(slots=True)
class SegmentEnd:
    """Where the whole blocks of one segment end."""

    number: int
    offset: int = 0
    size: int = 0
    seq: int = 0
    head: bytes = b""
    problem: str | None = None
    checkpoint: Checkpoint | None = None
    key: KeyFrame | None = None  # the last KEY frame after `checkpoint`

    @property
    def is_empty(self) -> bool:
        return self.seq == 0


@dataclass(slots=True)
class LedgerEnd:
    """What a new agent continues. `announced`: the public key the chain of keys demands next."""

    seq: int = 0
    head: bytes | None = None
    checkpoint: Checkpoint | None = None
    announced: bytes | None = None
    next_epoch: int = 0
    next_number: int = 0
    torn: list[RecoveredFrame] = field(default_factory=list)


def scan_segment(path: Path, number: int) -> SegmentEnd:
    """Read a segment to the end of its last whole, chained block. Does not raise for what it finds."""
    end = SegmentEnd(number, size=path.stat().st_size)
    previous: bytes | None = None
    try:
        with path.open("rb") as file:
            for block in read_blocks(file):
                if previous is None:
                    previous = _first_previous(block)
                header = block.header
                if chain(previous, header.first, header.count, block.digest()) != header.chain:
                    raise FormatError(block.offset, "chain does not fit")
                previous = header.chain
                end.seq, end.head, end.offset = header.last, header.chain, block.end
                if header.kind == KIND_CONTROL:
                    _note(end, block)
    except (FormatError, msgspec.DecodeError) as exc:
        end.problem = str(exc)
    return end


def _first_previous(block: Block) -> bytes:
    first = decode_frames(block)[0]
    if not isinstance(first, SegmentFrame):
        raise FormatError(block.offset, "a segment begins without SEGMENT")
    return first.prev


def _note(end: SegmentEnd, block: Block) -> None:
    for frame in decode_frames(block):
        if isinstance(frame, CheckpointFrame):
            end.checkpoint, end.key = decode_checkpoint(frame.body), None
        elif isinstance(frame, KeyFrame):
            end.key = frame


def read_ledger_end(root: Path, wall: int, up: int) -> LedgerEnd:
    """Walk the ledger back from its end to the last checkpoint and the last certified key."""
    segments = list_segments(root / LEDGER)
    found = LedgerEnd()
    if not segments:
        return found
    found.next_number = segments[-1][0] + 1
    key: KeyFrame | None = None
    for number, path in reversed(segments):
        end = scan_segment(path, number)
        if end.problem is not None and found.head is None:
            found.torn.append(_set_aside(path, end, LEDGER, wall, up))
        if not end.is_empty and found.head is None:
            found.seq, found.head = end.seq, end.head
        key = key or end.key
        if end.checkpoint is not None:
            found.checkpoint = end.checkpoint
            break
    found.torn.sort(key=lambda frame: frame.number)
    found.head = found.head or genesis(LEDGER)
    if key is not None:
        found.announced, found.next_epoch = key.public, key.epoch
    elif found.checkpoint is not None:
        found.announced, found.next_epoch = found.checkpoint.next_key, found.checkpoint.epoch + 1
    return found


def recover_streams(
    root: Path, live: Collection[str], wall: int, up: int, only: str | None = None
) -> list[RecoveredFrame]:
    """Set aside the torn tails of streams whose workers are gone. Returns what the ledger must note.

    A tail that was set aside by an earlier start is not named again.
    """
    found = []
    folder = root / "streams"
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        if not is_stream_id(name) or name in live or only not in (None, name):
            continue
        for number, path in reversed(list_segments(folder / name)):
            if path.with_suffix(".torn").exists():
                break
            end = scan_segment(path, number)
            if end.problem is not None:
                found.append(_set_aside(path, end, name, wall, up))
            if not end.is_empty:
                break
    return found


def _set_aside(path: Path, end: SegmentEnd, stream: str, wall: int, up: int) -> RecoveredFrame:
    """Copy everything after the last whole block to ``.torn``; the segment stays as it is."""
    state = hashlib.sha256()
    target = path.with_suffix(".torn")
    flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with path.open("rb") as source, os.fdopen(os.open(target, flags, 0o640), "wb") as copy:
            source.seek(end.offset)
            while data := source.read(1024 * 1024):
                state.update(data)
                copy.write(data)
            copy.flush()
            os.fdatasync(copy.fileno())
    except OSError:
        target.unlink(missing_ok=True)  # no room for the copy: the tail itself still stands in the segment
        state = _digest_tail(path, end.offset)
    return RecoveredFrame(
        at=wall,
        up=up,
        stream=stream,
        number=end.number,
        torn_at=end.offset,
        size=end.size,
        seq=end.seq,
        reason=end.problem or "",
        sha256=state.digest(),
    )


def _digest_tail(path: Path, offset: int) -> hashlib._Hash:
    state = hashlib.sha256()
    with path.open("rb") as source:
        source.seek(offset)
        while data := source.read(1024 * 1024):
            state.update(data)
    return state
