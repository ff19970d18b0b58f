# SPDX-License-Identifier: Apache-2.0
"""Blocks: the bytes on disk that carry frames, their digest and their chain. Bytes in, values out.

Does no I/O beyond reading from a file object it is given, signs nothing, decides nothing. What it reads is
not trusted: every length is bounded before it is used, and what does not parse raises `FormatError` with
its offset. Bias: a reader stops at the first byte it cannot account for.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import BinaryIO, Final

import msgspec
import zstandard

from agent.evidence.frames import (
    KNOWN,
    AnyFrame,
    Checkpoint,
    ChunkFrame,
    Frame,
    IntentFrame,
    ResultFrame,
    UnknownFrame,
)

MAGIC: Final = b"VWB2"  # builds before 0.1.0 wrote VWB1, whose digest was over the payload as it stands
HEADER: Final = struct.Struct(">4sBBHIIIIQ32s")
"""magic, kind, codec, parts, stored, head_stored, head_raw, count, first, chain: 64 bytes, big-endian."""
_COVERED: Final = struct.Struct(">4sBBHIIIIQ")
_PLACE: Final = struct.Struct(">QI")
COVERED: Final = 32  # header bytes that the block digest covers: everything before the chain value

KIND_DATA: Final = 1  # frames of sessions; the head may be compressed
KIND_CONTROL: Final = 2  # what a proof needs: never compressed, no parts
CODEC_NONE: Final = 0
CODEC_ZSTD: Final = 1

MAX_STORED: Final = 256 * 1024 * 1024  # payload of one block: a 64 MiB body and what shares its loop turn
MAX_HEAD: Final = 96 * 1024 * 1024  # msgpack part of one block, before compression
MAX_COUNT: Final = 65_536  # frames in one block
LENGTH: Final = 4  # bytes of an entry in the table of parts
GENESIS_CONTEXT: Final = b"vecward stream 1\0"


class FormatError(Exception):
    """Bytes that are not evidence. `torn`: they are the beginning of a block and then the file ends (or
    only zeros follow, as some file systems leave after a power loss); otherwise they are damage."""

    def __init__(self, offset: int, message: str, *, torn: bool = False) -> None:
        super().__init__(f"offset {offset}: {message}")
        self.offset = offset
        self.message = message
        self.torn = torn


_encoder = msgspec.msgpack.Encoder()
_frames_decoder: msgspec.msgpack.Decoder[list[Frame]] = msgspec.msgpack.Decoder(
    list[reduce(or_, KNOWN)]  # type: ignore[misc]
)
_raw_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])
_frame_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(reduce(or_, KNOWN))
_checkpoint_decoder = msgspec.msgpack.Decoder(Checkpoint)


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """The 64 bytes before a payload. Payload = head (msgpack, maybe compressed) + table + parts (raw bodies).

    The table holds the length of each part, so that each can be hashed without reading the head.
    """

    kind: int
    codec: int
    parts: int  # how many
    stored: int  # bytes of the payload
    head_stored: int  # of these, the head
    head_raw: int  # bytes of the head decompressed
    count: int
    first: int
    chain: bytes

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    @property
    def described(self) -> int:
        """Bytes of the payload before its first part."""
        return self.head_stored + LENGTH * self.parts


@dataclass(frozen=True, slots=True)
class Block:
    """One block as read. `raw` is the 32 covered header bytes, for the digest."""

    offset: int
    header: BlockHeader
    raw: bytes
    payload: bytes

    @property
    def end(self) -> int:
        return self.offset + HEADER.size + self.header.stored

    def lengths(self) -> tuple[int, ...]:
        """Of its parts. Raises FormatError where they are not the bytes that follow the table."""
        header = self.header
        found: tuple[int, ...] = struct.unpack_from(f">{header.parts}I", self.payload, header.head_stored)
        if header.described + sum(found) != header.stored:
            raise FormatError(self.offset, "the parts are longer or shorter than their table says")
        return found

    def digest(self) -> bytes:
        parts, at = [], self.header.described
        view = memoryview(self.payload)
        for length in self.lengths():
            parts.append(hashlib.sha256(view[at : at + length]).digest())
            at += length
        return digest_of(self.raw, view[: self.header.described], parts)


def genesis(stream: str) -> bytes:
    """The chain value before a stream's first block: binds the chain to its stream."""
    return hashlib.sha256(GENESIS_CONTEXT + stream.encode()).digest()


def chain(previous: bytes, first: int, count: int, digest: bytes) -> bytes:
    """The chain value after a block. `digest` covers its header fields and its stored payload."""
    return hashlib.sha256(previous + _PLACE.pack(first, count) + digest).digest()


def digest_of(covered: bytes, described: bytes | memoryview, parts: Sequence[bytes]) -> bytes:
    """A block's digest: over what the header says, head and table, and the SHA-256 of each part.

    Over the parts' own digests, because most of them are known: a body was hashed for its frame already.
    """
    return hashlib.sha256(b"".join((covered, described, *parts))).digest()


def covered_header(
    kind: int, codec: int, parts: int, stored: int, head_stored: int, head_raw: int, count: int, first: int
) -> bytes:
    return _COVERED.pack(MAGIC, kind, codec, parts, stored, head_stored, head_raw, count, first)


def parse_header(data: bytes, offset: int) -> BlockHeader:
    """Raises FormatError where a field is impossible; nothing is read or allocated by its lengths before."""
    magic, kind, codec, parts, stored, head_stored, head_raw, count, first, value = HEADER.unpack(data)
    if magic != MAGIC:
        early = "; a build before 0.1.0 wrote this" if magic == b"VWB1" else ""
        raise FormatError(offset, f"no block here (magic {magic!r}{early})")
    if kind not in (KIND_DATA, KIND_CONTROL) or codec not in (CODEC_NONE, CODEC_ZSTD):
        raise FormatError(offset, f"unknown block kind {kind} or codec {codec}")
    if head_stored + LENGTH * parts > stored or (parts == 0 and head_stored != stored):
        raise FormatError(offset, "the head and the table of parts do not fill the payload, or are longer")
    if stored > MAX_STORED or head_stored > stored or head_raw > MAX_HEAD or not 0 < count <= MAX_COUNT:
        raise FormatError(offset, "a length or count is out of bounds")
    if codec == CODEC_NONE and head_raw != head_stored:
        raise FormatError(offset, "lengths of an uncompressed head differ")
    if kind == KIND_CONTROL and (codec != CODEC_NONE or parts):
        raise FormatError(offset, "a control block is compressed or has parts")
    if not 0 < first <= 2**63:
        raise FormatError(offset, "a sequence number is out of bounds")
    return BlockHeader(kind, codec, parts, stored, head_stored, head_raw, count, first, value)


def encode_control(frames: Sequence[Frame], first: int, previous: bytes) -> tuple[bytes, bytes, bytes]:
    """One control block. Returns (bytes to write, its digest, the chain value after it)."""
    payload = _encoder.encode(list(frames))
    size = len(payload)
    covered = covered_header(KIND_CONTROL, CODEC_NONE, 0, size, size, size, len(frames), first)
    digest = digest_of(covered, payload, ())
    value = chain(previous, first, len(frames), digest)
    return covered + value + payload, digest, value


def encode_checkpoint(body: Checkpoint) -> bytes:
    return _encoder.encode(body)


def decode_checkpoint(body: bytes) -> Checkpoint:
    """Raises msgspec.DecodeError or ValidationError."""
    return _checkpoint_decoder.decode(body)


def decode_frames(block: Block, *, bodies: bool = True) -> list[AnyFrame]:
    """The frames of a block, in order; frame i has seq ``first + i``. Raises FormatError.

    With `bodies` each part is put into its frame's `body`; without it, frames keep `part` and large
    bodies are not copied (indexing).
    """
    header = block.header
    head: bytes | memoryview = memoryview(block.payload)[: header.head_stored]
    if header.codec == CODEC_ZSTD:
        head = _decompress(head, header.head_raw, block.offset)
    frames = _decode_head(head, block.offset)
    if len(frames) != header.count:
        raise FormatError(block.offset, f"{len(frames)} frames where the header says {header.count}")
    if bodies:
        parts = memoryview(block.payload)[header.described :]
        for frame in frames:
            if isinstance(frame, IntentFrame | ChunkFrame | ResultFrame) and frame.part is not None:
                start, length = frame.part
                if start < 0 or length < 0 or start + length > len(parts):
                    raise FormatError(block.offset, "a body lies outside its block")
                frame.body = bytes(parts[start : start + length])
                frame.part = None
    return frames


def _decompress(head: bytes | memoryview, raw: int, offset: int) -> bytes:
    try:
        size = zstandard.frame_content_size(head)
        if size != raw:  # the library allocates by this number: it must be the bounded one
            raise FormatError(offset, "compressed head announces another length than its header")
        data = zstandard.ZstdDecompressor().decompress(head, max_output_size=raw)
    except zstandard.ZstdError as exc:
        raise FormatError(offset, f"compressed head: {exc}") from None
    if len(data) != raw:
        raise FormatError(offset, "compressed head has another length than its header says")
    return data


def _decode_head(head: bytes | memoryview, offset: int) -> list[AnyFrame]:
    try:
        return list(_frames_decoder.decode(head))
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass  # one by one: a newer writer's frame type must not hide its neighbours
    try:
        return [_decode_frame(raw) for raw in _raw_decoder.decode(head)]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise FormatError(offset, f"frames: {exc}") from None


def _decode_frame(raw: msgspec.Raw) -> AnyFrame:
    try:
        return _frame_decoder.decode(raw)
    except msgspec.ValidationError:
        fields = msgspec.msgpack.decode(raw)
        if not isinstance(fields, dict):
            return UnknownFrame("", {"value": fields})
        return UnknownFrame(str(fields.pop("t", "")), fields)


def read_blocks(file: BinaryIO, offset: int = 0) -> Iterator[Block]:
    """The blocks of a segment from `offset`, a block boundary. Raises FormatError (see `torn`).

    Checks shape and bounds, not hashes: `verify` does that. On a segment that is still written a torn end
    may only mean "not yet": try again from its offset.
    """
    file.seek(offset)
    while True:
        data = file.read(HEADER.size)
        if not data:
            return
        if len(data) < HEADER.size:
            raise FormatError(offset, "block header is cut short", torn=_may_be_header(data))
        if not any(data):
            raise FormatError(offset, "zeros", torn=_only_zeros(file))
        header = parse_header(data, offset)
        payload = file.read(header.stored)
        if len(payload) < header.stored:
            raise FormatError(
                offset, f"payload is cut short ({len(payload)} of {header.stored} bytes)", torn=True
            )
        block = Block(offset, header, data[:COVERED], payload)
        block.lengths()
        yield block
        offset += HEADER.size + header.stored


def _may_be_header(data: bytes) -> bool:
    return data[:4] == MAGIC[: len(data)] or not any(data)


def _only_zeros(file: BinaryIO) -> bool:
    while data := file.read(1024 * 1024):
        if any(data):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Located:
    """A frame and where it stands."""

    seq: int
    offset: int  # of its block
    frame: AnyFrame


def read_frames(file: BinaryIO, offset: int = 0, *, bodies: bool = True) -> Iterator[Located]:
    """Every frame of a segment with its seq and block offset. Raises FormatError."""
    for block in read_blocks(file, offset):
        yield from located(block, bodies=bodies)


def located(block: Block, *, bodies: bool = True) -> list[Located]:
    first = block.header.first
    return [
        Located(first + i, block.offset, frame) for i, frame in enumerate(decode_frames(block, bodies=bodies))
    ]
