# SPDX-License-Identifier: Apache-2.0
"""One loop turn's frames as one block: one msgpack, one compression, one hash, one list for writev.

The hot path of recording. Bodies that are large go by reference from the session to writev. Where the session
hashed one already, that digest stands for it: the only pass over it here is the kernel's copy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Final

import msgspec
import zstandard

from agent.evidence.blocks import (
    CODEC_NONE,
    CODEC_ZSTD,
    HEADER,
    KIND_DATA,
    LENGTH,
    chain,
    covered_header,
    digest_of,
)
from agent.evidence.frames import Frame, SessionEndFrame, SessionFrame
from agent.evidence.framing import PART_BYTES, known_digest, restore_part, take_part
from agent.evidence.segment import MAX_VECTORS
from agent.protocols.session import Record
from policy.model import RecordMode

COMPRESS_IDLE: Final = 256  # bytes of head: below, zstd gains nothing
COMPRESS_BUSY: Final = 4096  # under load: a turn that several exchanges share is well above
MAX_GROUP_BYTES: Final = 8 * 1024 * 1024  # bodies in one block, unless a single put is larger
MAX_GROUP_FRAMES: Final = 4096
NONE_KNOWN: Mapping[int, bytes] = {}

_encoder = msgspec.msgpack.Encoder()
_compressor = zstandard.ZstdCompressor(level=1, write_checksum=False, write_content_size=True)


class Put:
    """Records that share one release; their frames are ``group.frames[start:start + len(records)]``."""

    __slots__ = ("mode", "records", "release", "session", "start")

    def __init__(
        self,
        session: str,
        records: list[Record],
        mode: RecordMode,
        release: Callable[[bool], None],
        start: int,
    ) -> None:
        self.session = session
        self.records = records
        self.mode: RecordMode = mode
        self.release = release
        self.start = start


class Presented:
    """One written block as the agent needs it to extend the chain."""

    __slots__ = ("digest", "first", "frames", "up")

    def __init__(self, first: int, frames: int, digest: bytes, up: int) -> None:
        self.first = first
        self.frames = frames
        self.digest = digest
        self.up = up  # when it was written, CLOCK_BOOTTIME ns


class Group:
    """What will be one block."""

    __slots__ = ("digests", "frames", "puts", "size")

    def __init__(
        self,
        frames: list[Frame] | None = None,
        puts: list[Put] | None = None,
        digests: dict[int, bytes] | None = None,
    ) -> None:
        """`digests`: SHA-256 of large bodies by identity, where it is known; the frames hold the bodies."""
        self.frames: list[Frame] = [] if frames is None else frames
        self.puts: list[Put] = [] if puts is None else puts
        self.digests: dict[int, bytes] = {} if digests is None else digests
        self.size = 0  # bytes of bodies

    def is_full(self, frames: int, size: int) -> bool:
        """Whether a put of this many frames and body bytes belongs into the next block."""
        if not self.frames:
            return False
        return (
            len(self.frames) + frames > MAX_GROUP_FRAMES
            or self.size + size > MAX_GROUP_BYTES
            or self.size // PART_BYTES + size // PART_BYTES + 2 > MAX_VECTORS
        )

    def note_digests(self, records: list[Record]) -> None:
        """Remember what is known of bodies, which live as long as their put."""
        for record in records:
            if (known := known_digest(record)) is not None:
                self.digests[id(known[0])] = known[1]

    def own_frames(self) -> list[SessionFrame | SessionEndFrame]:
        return [frame for frame in self.frames if isinstance(frame, SessionFrame | SessionEndFrame)]

    def apart(self) -> Iterator[Group]:
        """The same frames, a group for each put and each frame that belongs to none; order is kept."""
        index = 0
        for put in self.puts:
            yield from (Group([frame]) for frame in self.frames[index : put.start])
            index = put.start + len(put.records)
            moved = Put(put.session, put.records, put.mode, put.release, 0)
            yield Group(self.frames[put.start : index], [moved], digests=self.digests)
        yield from (Group([frame]) for frame in self.frames[index:])


class Packed:
    """A block but for its place in the stream."""

    __slots__ = ("codec", "count", "described", "digests", "head_raw", "head_stored", "parts", "stored")

    def __init__(
        self,
        described: bytes,
        parts: list[bytes],
        digests: list[bytes],
        codec: int,
        head_stored: int,
        head_raw: int,
        count: int,
        stored: int,
    ) -> None:
        """`described`: head, and the table of parts. `digests`: of each part."""
        self.described = described
        self.parts = parts
        self.digests = digests
        self.codec = codec
        self.head_stored = head_stored
        self.head_raw = head_raw
        self.count = count
        self.stored = stored

    @property
    def total(self) -> int:
        """Bytes on disk."""
        return HEADER.size + self.stored

    def place(self, first: int, previous: bytes) -> tuple[list[bytes], bytes, bytes]:
        """Give it its seq and chain. Returns (buffers for writev, its digest, the chain value after it)."""
        covered = covered_header(
            KIND_DATA,
            self.codec,
            len(self.parts),
            self.stored,
            self.head_stored,
            self.head_raw,
            self.count,
            first,
        )
        digest = digest_of(covered, self.described, self.digests)
        value = chain(previous, first, self.count, digest)
        return [covered + value + self.described, *self.parts], digest, value


def pack(
    frames: list[Frame], compress_above: int = COMPRESS_IDLE, known: Mapping[int, bytes] = NONE_KNOWN
) -> Packed:
    """Encode and compress. `known`: SHA-256 of bodies by identity. Raises what msgspec raises for a value
    without an encoding (a lone surrogate, an integer beyond 64 bits, a foreign type in a card); the frames
    are then as they were."""
    parts: list[bytes] = []
    taken: list[Frame] = []
    offset = 0
    for frame in frames:
        body = take_part(frame, offset)
        if body is not None:
            parts.append(body)
            taken.append(frame)
            offset += len(body)
    try:
        raw = _encoder.encode(frames)
    except Exception:
        for frame, body in zip(taken, parts, strict=True):
            restore_part(frame, body)
        raise
    head, codec = raw, CODEC_NONE
    if len(raw) >= compress_above:
        smaller = _compressor.compress(raw)
        if len(smaller) < len(raw):
            head, codec = smaller, CODEC_ZSTD
    described, digests = head, []
    if parts:
        described += struct.pack(f">{len(parts)}I", *map(len, parts))
        digests = [known.get(id(part)) or sha256(part).digest() for part in parts]
    stored = len(head) + LENGTH * len(parts) + offset
    return Packed(described, parts, digests, codec, len(head), len(raw), len(frames), stored)
