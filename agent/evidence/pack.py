# SPDX-License-Identifier: Apache-2.0
"""One loop turn's frames as one block: one msgpack, one compression, one hash, one list for writev.

The hot path of recording. Bodies that are large go by reference from the session to writev; the only passes
over them are the digest's and the kernel's copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import zstandard

from agent.evidence.blocks import CODEC_NONE, CODEC_ZSTD, HEADER, KIND_DATA, chain, covered_header
from agent.evidence.frames import Frame, SessionEndFrame, SessionFrame
from agent.evidence.framing import PART_BYTES, restore_part, take_part
from agent.evidence.segment import MAX_VECTORS
from agent.protocols.session import Record
from policy.model import RecordMode

COMPRESS_IDLE = 256  # bytes of head: below, zstd gains nothing
COMPRESS_BUSY = 4096  # under load: a turn that several exchanges share is well above
MAX_GROUP_BYTES = 8 * 1024 * 1024  # bodies in one block, unless a single put is larger
MAX_GROUP_FRAMES = 4096

_encoder = msgspec.msgpack.Encoder()
_compressor = zstandard.ZstdCompressor(level=1, write_checksum=False, write_content_size=True)


class Put:
    """Records that share one release; their frames are ``group.frames[start:start + len(records)]``."""

    __slots__ = ("mode", "records", "release", "session", "start")

    def __init__(
        self,
        session: str,
        records: Sequence[Record],
        mode: RecordMode,
        release: Callable[[bool], None],
        start: int,
    ) -> None:
        self.session = session
        self.records = records
        self.mode: RecordMode = mode
        self.release = release
        self.start = start


@dataclass(slots=True)
class Group:
    """What will be one block."""

    frames: list[Frame] = field(default_factory=list)
    puts: list[Put] = field(default_factory=list)
    size: int = 0  # bytes of bodies

    def is_full(self, frames: int, size: int) -> bool:
        """Whether a put of this many frames and body bytes belongs into the next block."""
        if not self.frames:
            return False
        return (
            len(self.frames) + frames > MAX_GROUP_FRAMES
            or self.size + size > MAX_GROUP_BYTES
            or self.size // PART_BYTES + size // PART_BYTES + 2 > MAX_VECTORS
        )

    def own_frames(self) -> list[SessionFrame | SessionEndFrame]:
        return [frame for frame in self.frames if isinstance(frame, SessionFrame | SessionEndFrame)]

    def apart(self) -> Iterator[Group]:
        """The same frames, a group for each put and each frame that belongs to none; order is kept."""
        index = 0
        for put in self.puts:
            yield from (Group([frame]) for frame in self.frames[index : put.start])
            index = put.start + len(put.records)
            moved = Put(put.session, put.records, put.mode, put.release, 0)
            yield Group(self.frames[put.start : index], [moved])
        yield from (Group([frame]) for frame in self.frames[index:])


@dataclass(slots=True)
class Packed:
    """A block but for its place in the stream."""

    head: bytes
    parts: list[bytes]
    codec: int
    head_raw: int
    count: int
    stored: int

    @property
    def total(self) -> int:
        """Bytes on disk."""
        return HEADER.size + self.stored

    def place(self, first: int, previous: bytes) -> tuple[list[bytes], bytes, bytes]:
        """Give it its seq and chain. Returns (buffers for writev, its digest, the chain value after it)."""
        covered = covered_header(
            KIND_DATA, self.codec, self.stored, len(self.head), self.head_raw, self.count, first
        )
        state = hashlib.sha256(covered)
        state.update(self.head)
        for part in self.parts:
            state.update(part)
        digest = state.digest()
        value = chain(previous, first, self.count, digest)
        return [covered + value + self.head, *self.parts], digest, value


def pack(frames: list[Frame], compress_above: int = COMPRESS_IDLE) -> Packed:
    """Encode and compress. Raises what msgspec raises for a value without an encoding (a lone surrogate,
    an integer beyond 64 bits, a foreign type in a card); the frames are then as they were."""
    parts: list[bytes] = []
    taken: list[tuple[Frame, bytes]] = []
    offset = 0
    for frame in frames:
        body = take_part(frame, offset)
        if body is not None:
            parts.append(body)
            taken.append((frame, body))
            offset += len(body)
    try:
        raw = _encoder.encode(frames)
    except Exception:
        for frame, body in taken:
            restore_part(frame, body)
        raise
    head, codec = raw, CODEC_NONE
    if len(raw) >= compress_above:
        smaller = _compressor.compress(raw)
        if len(smaller) < len(raw):
            head, codec = smaller, CODEC_ZSTD
    return Packed(head, parts, codec, len(raw), len(frames), len(head) + offset)
