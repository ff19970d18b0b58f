#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prove a Vecward evidence folder with the standard library and `cryptography` alone.

    python3 standalone.py DIR [--key host.pub] [--anchor EPOCH:HEX] [--json]

Owns the whole proof: `agent.evidence.verify` adds only what needs decompression. Imports nothing of Vecward,
so that it can be read, copied and run by whoever has to believe it. Nothing it reads is trusted; it never
writes. Exit 0: whole (torn, recovered, gap and unproven are noted), 4: tampered, truncated or key-break,
1: there is nothing to verify. The format is described in docs/evidence-format.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

HEADER = struct.Struct(">4sBBHIIIIQ32s")
MAGIC, CONTROL, MAX_STORED, MAX_COUNT = b"VWB2", 2, 256 * 1024 * 1024, 65_536
KEY_CONTEXT, CHECKPOINT_CONTEXT = b"vecward epoch key 1\0", b"vecward checkpoint 1\0"
FAILING = ("tampered", "truncated", "key-break")
SILENCE = 15 * 10**9  # ns between checkpoints of one boot; beyond, the interval is unproven
MAX_FINDINGS = 1000
Progress = Callable[[int, int], None]


@dataclass
class Finding:
    """What was found: kind, where, and which frames it concerns (0: not known)."""

    kind: str
    message: str
    file: str = ""
    offset: int = 0
    first: int = 0
    last: int = 0


@dataclass
class Proof:
    findings: list[Any] = field(default_factory=list)  # of Finding
    frames: int = 0
    bytes: int = 0
    checkpoints: int = 0
    streams: int = 0
    unsigned: int = 0  # frames written and not yet signed
    anchor: str = ""  # EPOCH:HEX of the last checkpoint: keep it elsewhere, give it back with --anchor
    trusted: str = ""  # where the host key came from

    @property
    def exit_code(self) -> int:
        return 4 if any(finding.kind in FAILING for finding in self.findings) else 0


class Damage(Exception):
    """Bytes that are no block. `torn`: the file ends, or only zeros follow, inside what may be one."""

    def __init__(self, message: str, torn: bool) -> None:
        super().__init__(message)
        self.torn = torn


@dataclass
class Block:
    offset: int
    kind: int
    count: int
    first: int
    chain: bytes
    digest: bytes
    payload: bytes
    end: int

    @property
    def last(self) -> int:
        return self.first + self.count - 1


# --- msgpack, as far as control blocks and checkpoints use it ---------------------------------------


def unpack(data: bytes) -> Any:
    value, end = _item(memoryview(data), 0, 0)
    if end != len(data):
        raise ValueError("bytes after the value")
    return value


def _item(data: memoryview, at: int, depth: int) -> tuple[Any, int]:
    if at >= len(data) or depth > 32:
        raise ValueError("cut short or nested too deep")
    tag, at = data[at], at + 1
    if tag < 0x80 or tag >= 0xE0:
        return (tag if tag < 0x80 else tag - 256), at
    if tag < 0x90:
        return _map(data, at, tag & 15, depth)
    if tag < 0xA0:
        return _array(data, at, tag & 15, depth)
    if tag < 0xC0:
        return _text(data, at, tag & 31)
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at
    form = _FORMS.get(tag)
    if form is None:
        raise ValueError(f"msgpack type 0x{tag:02x} is not used here")
    size = struct.calcsize(form)
    if at + size > len(data):
        raise ValueError("cut short")
    number, at = struct.unpack_from(form, data, at)[0], at + size
    if tag in (0xC4, 0xC5, 0xC6):
        return bytes(_piece(data, at, number)), at + number
    if tag in (0xD9, 0xDA, 0xDB):
        return _text(data, at, number)
    if tag in (0xDC, 0xDD):
        return _array(data, at, number, depth)
    return _map(data, at, number, depth) if tag in (0xDE, 0xDF) else (number, at)


_FORMS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I",
          0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I",
          0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}  # fmt: skip


def _piece(data: memoryview, at: int, size: int) -> memoryview:
    if at + size > len(data):
        raise ValueError("cut short")
    return data[at : at + size]


def _text(data: memoryview, at: int, size: int) -> tuple[Any, int]:
    return bytes(_piece(data, at, size)).decode(), at + size


def _array(data: memoryview, at: int, count: int, depth: int) -> tuple[Any, int]:
    made = []
    for _ in range(count):
        value, at = _item(data, at, depth + 1)
        made.append(value)
    return made, at


def _map(data: memoryview, at: int, count: int, depth: int) -> tuple[Any, int]:
    made = {}
    for _ in range(count):
        key, at = _item(data, at, depth + 1)
        made[key], at = _item(data, at, depth + 1)
    return made, at


# --- blocks and segments ----------------------------------------------------------------------------


def genesis(stream: str) -> bytes:
    return hashlib.sha256(b"vecward stream 1\0" + stream.encode()).digest()


def chain(previous: bytes, first: int, count: int, digest: bytes) -> bytes:
    return hashlib.sha256(previous + struct.pack(">QI", first, count) + digest).digest()


def read_block(file: BinaryIO, offset: int, limit: int) -> Block | None:
    """The block at `offset`, None at `limit`. Raises Damage."""
    file.seek(offset)
    data = file.read(min(HEADER.size, limit - offset))
    if not data:
        return None
    if not any(data):
        rest = file.read(limit - offset)
        raise Damage("zeros", torn=not any(rest))
    if len(data) < HEADER.size:
        raise Damage("a block header is cut short", torn=data[:4] == MAGIC[: len(data)])
    magic, kind, codec, parts, stored, head, raw, count, first, value = HEADER.unpack(data)
    if magic != MAGIC:
        raise Damage("no block begins here", torn=False)
    described = head + 4 * parts
    bad = kind not in (1, 2) or codec not in (0, 1) or (codec == 0 and head != raw)
    bad = bad or described > stored or (parts == 0 and described != stored)
    if bad or stored > MAX_STORED or not 0 < count <= MAX_COUNT or not 0 < first <= 2**63:
        raise Damage("a block header is impossible", torn=False)
    if kind == CONTROL and (codec or parts):
        raise Damage("a control block is compressed or has parts", torn=False)
    payload = file.read(min(stored, limit - offset - HEADER.size))
    if len(payload) < stored:
        raise Damage(f"a block is cut short ({len(payload)} of {stored} bytes)", torn=True)
    lengths = struct.unpack_from(f">{parts}I", payload, head)
    if described + sum(lengths) != stored:
        raise Damage("the parts of a block are longer or shorter than its table says", torn=False)
    state, at = hashlib.sha256(data[:32] + payload[:described]), described
    for length in lengths:
        state.update(hashlib.sha256(memoryview(payload)[at : at + length]).digest())
        at += length
    end = offset + HEADER.size + stored
    return Block(offset, kind, count, first, value, state.digest(), payload, end)


def continues_after(file: BinaryIO, offset: int) -> bool:
    """Whether a block that chains on from the one at `offset` follows somewhere: then that one was not torn
    while it was written. No body can contain such a block: it would have to know its own block's hash."""
    file.seek(offset)
    data = file.read(HEADER.size + MAX_STORED)
    if len(data) < HEADER.size:
        return False
    previous, at = data[32:64], HEADER.size
    for _ in range(10_000):
        at = data.find(MAGIC, at)
        if at < 0:
            return False
        try:
            block = read_block(file, offset + at, offset + len(data))
        except Damage:
            block = None
        if block and chain(previous, block.first, block.count, block.digest) == block.chain:
            return True
        at += 1
    return False


def control_frames(block: Block) -> list[Any]:
    """The frames of a control block as maps; of a data block none. Raises ValueError."""
    if block.kind != CONTROL:
        return []
    frames = unpack(block.payload)
    if not isinstance(frames, list) or len(frames) != block.count:
        raise ValueError("another number of frames than its header says")
    if not all(isinstance(frame, dict) for frame in frames):
        raise ValueError("a frame is no map")
    return frames


def segments_of(folder: Path) -> list[Any]:
    """(number, path) of a stream's segments, in order, empty reserves left out."""
    found = []
    for name in os.listdir(folder) if folder.is_dir() else []:
        match = re.fullmatch(r"(\d{6,12})\.seg", name)
        if match and (folder / name).stat().st_size:
            found.append((int(match[1]), folder / name))
    return sorted(found)


# --- one stream -------------------------------------------------------------------------------------


class StreamProof:
    """Walks one stream. `signed`: rising (seq, head) that checkpoints vouch for; `torn`: {segment number:
    offset} where whole blocks end by the word of RECOVERED frames; `removed`: what TOMBSTONEs account for."""

    def __init__(self, run: Run, stream: str, folder: Path) -> None:
        self.run, self.stream, self.folder = run, stream, folder
        self.seq, self.value = 0, genesis(stream)
        self.signed_seqs: list[Any] = []
        self.signed_heads: list[Any] = []
        self.torn: dict[Any, Any] = {}
        self.removed: dict[Any, Any] = {}  # TOMBSTONEs: last removed seq -> chain value after it
        self.at_signed = 0
        self.adopt = False  # the chain was lost: take up what comes
        self.other: bytes | None = None  # second candidate after a block that does not fit

    def find(
        self, kind: str, message: str, file: str = "", offset: int = 0, first: int = 0, last: int = 0
    ) -> None:
        where = f"{self.folder.relative_to(self.run.root)}/{file}" if file else str(self.folder.name)
        self.run.add(Finding(kind, message, where, offset, first, last))

    @property
    def last_signed(self) -> int:
        return self.signed_seqs[-1] if self.signed_seqs else 0

    def collect_torn(self, segments: list[Any]) -> None:
        """RECOVERED in the first block of a later segment says where an earlier one ends."""
        for number, path in segments:
            with path.open("rb") as file:
                try:
                    block = read_block(file, 0, path.stat().st_size)
                    frames = control_frames(block) if block else []
                except (Damage, ValueError):
                    continue
            for frame in frames:
                torn = frame.get("number")
                mine = frame.get("t") == "recovered" and frame.get("stream") == self.stream
                if mine and isinstance(torn, int) and torn < number:
                    self.torn[torn] = frame.get("torn_at")

    def walk(self) -> Iterator[tuple[Block, list[Any], bytes, str]]:
        """Yield (block, frames, chain value before it, segment name) for every block that stands."""
        segments = segments_of(self.folder)
        self.collect_torn(segments)
        for index, (number, path) in enumerate(segments):
            yield from self.walk_segment(number, path, index == 0, index == len(segments) - 1)

    def walk_segment(
        self, number: int, path: Path, is_first: bool, is_last: bool
    ) -> Iterator[tuple[Block, list[Any], bytes, str]]:
        size = path.stat().st_size
        limit = self.torn.get(number)
        end = size if not isinstance(limit, int) else min(size, limit)
        offset = 0
        with path.open("rb") as file:
            while True:
                try:
                    block = read_block(file, offset, end)
                    if block is None:
                        break
                    frames = control_frames(block)
                except Damage as exc:
                    grown = os.fstat(file.fileno()).st_size
                    if exc.torn and grown > size and not isinstance(limit, int):
                        size = end = grown  # its writer was in the middle of this block: look again
                        continue
                    self.end_early(file, path.name, offset, exc, is_last)
                    return
                except ValueError as exc:
                    self.find("tampered", str(exc), path.name, offset)
                    self.adopt = True
                    return
                if offset == 0 and not self.begins(frames, block, number, path.name, is_first):
                    return
                before = self.value
                if self.follows(block, path.name):
                    yield block, frames, before, path.name
                offset = block.end
                self.run.advance(HEADER.size + len(block.payload))
        if isinstance(limit, int):
            if size < limit:
                self.find("truncated", f"the file ends before its torn tail began ({limit})", path.name, size)
            else:
                left = f"{size - limit} torn bytes were left by a crash or a full disk, and noted"
                self.find("recovered", left, path.name, limit, self.seq + 1, self.seq + 1)

    def end_early(self, file: BinaryIO, name: str, offset: int, exc: Damage, is_last: bool) -> None:
        first, last = self.seq + 1, self.last_signed
        if exc.torn and is_last and not continues_after(file, offset):
            if last > self.seq:
                self.find("truncated", f"{exc}; frames up to {last} were signed", name, offset, first, last)
            else:
                self.find("torn", f"{exc}; nothing signed is missing", name, offset, first, first)
            self.at_signed = len(self.signed_seqs)  # said already
            return
        self.find("tampered", str(exc), name, offset, first, max(first, last))
        self.adopt = True

    def begins(self, frames: list[Any], block: Block, number: int, name: str, is_first: bool) -> bool:
        """The first block of a segment must be where its stream stands."""
        frame = frames[0] if frames else {}
        previous = frame.get("prev")
        if frame.get("t") != "segment" or not isinstance(previous, bytes):
            self.find("tampered", "a segment begins without SEGMENT", name, 0, block.first, block.last)
            self.adopt = True
            return False
        if frame.get("stream") != self.stream or frame.get("number") != number:
            self.find("tampered", "it is a segment of another place",
                      name, 0, block.first, block.last)  # fmt: skip
            self.adopt = True
            return False
        if frame.get("first") != block.first:
            known = frame["first"] if isinstance(frame.get("first"), int) else self.seq + 1
            self.find("tampered", "SEGMENT and its header give different places", name, 0, known, known)
            self.skip_to(known + block.count - 1, block.chain)
            return False
        if is_first and block.first > 1:
            if self.removed.get(block.first - 1) != previous:
                self.find(
                    "truncated",
                    "everything before it is missing, without TOMBSTONE",
                    name,
                    0,
                    1,
                    block.first - 1,
                )
            self.skip_to(block.first - 1, previous)
        elif self.adopt:
            self.skip_to(block.first - 1, previous)
        self.adopt = False
        return True

    def skip_to(self, seq: int, value: bytes) -> None:
        self.seq, self.value, self.other = seq, value, None
        self.at_signed = bisect_left(self.signed_seqs, seq)

    def follows(self, block: Block, name: str) -> bool:
        stands = True
        if block.first != self.seq + 1:
            stands = False
            if block.first > self.seq + 1:
                self.find("tampered", "frames are missing", name, block.offset, self.seq + 1, block.first - 1)
            else:
                self.find("tampered", "frames are out of order", name, block.offset, block.first, block.last)
            self.other = None
        else:
            candidates = [self.value] if self.other is None else [self.value, self.other]
            values = [chain(value, block.first, block.count, block.digest) for value in candidates]
            self.other = None
            if block.chain not in values:
                stands = False
                self.find("tampered", "the chain does not fit", name, block.offset, block.first, block.last)
                self.other = values[0]
        self.seq, self.value = block.last, block.chain
        self.run.proof.frames += block.count
        self.compare(block, name, stands)
        return stands

    def compare(self, block: Block, name: str, stands: bool) -> None:
        """Every signed head must be met exactly."""
        while self.at_signed < len(self.signed_seqs) and self.signed_seqs[self.at_signed] <= block.last:
            seq, head = self.signed_seqs[self.at_signed], self.signed_heads[self.at_signed]
            self.at_signed += 1
            if stands and seq >= block.first and (seq != block.last or head != block.chain):
                begin = self.signed_seqs[self.at_signed - 2] + 1 if self.at_signed > 1 else 1
                self.find("tampered", "it is not what was signed", name, block.offset, begin, seq)

    def finish(self) -> None:
        if self.seq < self.last_signed and self.at_signed < len(self.signed_seqs):
            if max(self.removed, default=0) < self.last_signed:
                self.find(
                    "truncated", "frames that were signed are missing", "", 0, self.seq + 1, self.last_signed
                )
        elif self.seq > self.last_signed:
            self.run.proof.unsigned += self.seq - self.last_signed
            self.find("unproven", "not signed yet", "", 0, self.last_signed + 1, self.seq)

    def note_gaps(self, frames: list[Any], block: Block, name: str) -> None:
        for index, frame in enumerate(frames):
            if frame.get("t") == "gap":
                self.find("gap", "{} frames lost: {}".format(frame.get("frames"), frame.get("reason")), name,
                          block.offset, block.first + index, block.first + index)  # fmt: skip


# --- the ledger and the whole -----------------------------------------------------------------------


class Run:
    def __init__(self, root: Path, public: bytes | None, progress: Progress | None) -> None:
        self.root, self.progress = root, progress
        self.proof = Proof(trusted="the key given" if public else "the folder's own host.pub")
        self.public = public or read_public((root / "host.pub").read_bytes())
        self.ledger = StreamProof(self, "ledger", root / "ledger")
        self.streams: dict[Any, Any] = {}
        self.key: bytes | None = None
        self.epoch = 0
        self.last: dict[str, Any] | None = None
        self.closed = False  # CLOSE was written by the agent that runs
        self.forgiven = False  # and by the one before it: no checkpoint was due in between
        self.anchors: dict[Any, Any] = {}
        self.newest_key = newest_key(root / "keys")  # before the ledger is read: a live one goes on meanwhile
        folders = [root / "ledger", *(p for p in sorted((root / "streams").glob("*")) if p.is_dir())]
        self.total = sum(path.stat().st_size for folder in folders for _n, path in segments_of(folder))

    def add(self, finding: Finding) -> None:
        if len(self.proof.findings) < MAX_FINDINGS:
            self.proof.findings.append(finding)

    def advance(self, size: int) -> None:
        self.proof.bytes += size
        if self.progress:
            self.progress(min(self.proof.bytes, self.total), self.total)

    def stream(self, name: str) -> StreamProof:
        if name not in self.streams:
            self.streams[name] = StreamProof(self, name, self.root / "streams" / name)
        found: StreamProof = self.streams[name]
        return found

    def prove(self, anchor: str | None) -> Proof:
        self.find_ledger_tombstone()
        for block, frames, before, name in self.ledger.walk():
            for index, frame in enumerate(frames):
                self.ledger_frame(frame, block, index, before, name)
            self.ledger.note_gaps(frames, block, name)
        self.ledger_end(anchor)
        folder = self.root / "streams"
        names = {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else set()
        for name in sorted(names | set(self.streams)):
            if re.fullmatch(r"[0-9a-f]{16}", name):
                self.prove_stream(self.stream(name))
        return self.proof

    def prove_stream(self, stream: StreamProof) -> None:
        self.proof.streams += 1
        for block, frames, _before, name in stream.walk():
            stream.note_gaps(frames, block, name)
        stream.finish()

    def find_ledger_tombstone(self) -> None:
        """The ledger's own TOMBSTONE stands later in the ledger: look ahead, the walk proves it."""
        for _number, path in segments_of(self.root / "ledger"):
            offset, size = 0, path.stat().st_size
            with path.open("rb") as file:
                while True:
                    try:
                        block = read_block(file, offset, size)
                        frames = control_frames(block) if block else []
                    except (Damage, ValueError):
                        break
                    if block is None:
                        break
                    for frame in frames:
                        if frame.get("t") == "tombstone" and frame.get("stream") == "ledger":
                            self.ledger.removed[frame.get("last")] = frame.get("head")
                    offset = block.end

    def ledger_frame(self, frame: dict[str, Any], block: Block, index: int, before: bytes, name: str) -> None:
        kind, seq = frame.get("t"), block.first + index
        try:
            if kind == "key":
                self.take_key(frame, before, name, block.offset, seq)
            elif kind == "checkpoint":
                self.take_checkpoint(frame, block, before, name, seq)
            elif kind == "tombstone" and frame["stream"] != "ledger":
                self.stream(frame["stream"]).removed[int(frame["last"])] = frame["head"]
            elif kind == "recovered" and frame["stream"] != "ledger":
                self.stream(frame["stream"]).torn[frame["number"]] = frame["torn_at"]
            elif kind == "close":
                self.closed = True
        except (KeyError, TypeError, ValueError) as exc:
            self.ledger.find("tampered", f"{kind} frame is malformed: {exc!r}", name, block.offset, seq, seq)

    def take_key(self, frame: dict[str, Any], before: bytes, name: str, offset: int, seq: int) -> None:
        public, epoch, reason = frame["public"], frame["epoch"], frame["reason"]
        message = KEY_CONTEXT + before + epoch.to_bytes(8, "big") + public
        if frame["host_public"] != self.public:
            self.ledger.find("key-break", "certified by another host identity", name, offset, seq, seq)
        elif not is_signed(self.public, frame["signature"], message):
            self.ledger.find(
                "tampered", "the certificate of an epoch key is not valid", name, offset, seq, seq
            )
        elif reason == "break" or (reason == "first" and (self.key is not None or seq > 2)):
            self.ledger.find(
                "key-break", f"the chain of keys was interrupted at epoch {epoch}", name, offset, seq, seq
            )
        elif self.key is not None and (public != self.key or epoch != self.epoch):
            self.ledger.find(
                "key-break", f"another key than was announced for epoch {epoch}", name, offset, seq, seq
            )
        if reason in ("resume", "break"):  # the agent started anew
            if self.key is not None and not self.closed:
                self.ledger.find("unproven", "the agent stopped without CLOSE", name, offset, seq, seq)
            self.forgiven, self.closed = self.closed, False
        self.key, self.epoch = public, epoch

    def take_checkpoint(
        self, frame: dict[str, Any], block: Block, before: bytes, name: str, seq: int
    ) -> None:
        find, at = self.ledger.find, block.offset
        body = unpack(frame["body"])
        epoch = body["epoch"]
        if not is_signed(frame["key"], frame["signature"], CHECKPOINT_CONTEXT + frame["body"]):
            find("tampered", f"the signature of checkpoint {epoch} is not valid", name, at, seq, seq)
            return
        if frame["key"] != self.key:
            find(
                "key-break",
                f"checkpoint {epoch} is signed by a key that nobody announced",
                name,
                at,
                seq,
                seq,
            )
        elif body["epoch"] != self.epoch:
            find(
                "tampered",
                f"checkpoint {epoch} stands where {self.epoch} must",
                name,
                at,
                seq,
                seq,
            )
        if block.count != 1 or body["ledger_seq"] != block.first - 1 or body["ledger_head"] != before:
            find("tampered", f"checkpoint {epoch} belongs to another place", name, at, seq, seq)
        self.check_time(body, name, at, seq)
        for stream, last, head in body["streams"]:
            self.take_head(self.stream(stream), last, head, name, at, seq)
        self.key, self.epoch, self.last = body["next_key"], body["epoch"] + 1, body
        self.ledger.signed_seqs, self.ledger.signed_heads = [seq], [block.chain]
        self.ledger.at_signed = 1
        self.anchors[epoch] = hashlib.sha256(frame["body"]).hexdigest()
        self.proof.checkpoints += 1

    def take_head(
        self, stream: StreamProof, last: int, head: bytes, name: str, offset: int, seq: int
    ) -> None:
        known = stream.last_signed
        if last < known or (last == known and known and head != stream.signed_heads[-1]):
            self.ledger.find("tampered", f"stream {stream.stream} goes back", name, offset, seq, seq)
        elif last > known:
            stream.signed_seqs.append(last)
            stream.signed_heads.append(head)

    def check_time(self, body: dict[str, Any], name: str, offset: int, seq: int) -> None:
        last, closed, self.forgiven = self.last, self.forgiven, False
        if last is None:
            return
        if body["boot"] == last["boot"]:
            passed = body["boottime"] - last["boottime"]
            if passed < 0:
                self.ledger.find("tampered", "time runs backwards within one boot", name, offset, seq, seq)
            elif passed > SILENCE and not closed:
                self.ledger.find(
                    "unproven", "no checkpoint for %.0f s" % (passed / 1e9), name, offset, seq, seq
                )
        elif not closed:
            self.ledger.find("unproven", "the host restarted without CLOSE", name, offset, seq, seq)

    def ledger_end(self, anchor: str | None) -> None:
        ledger = self.ledger
        if ledger.seq == 0:
            ledger.find("truncated", "there is no ledger")
        elif ledger.seq > ledger.last_signed:
            self.proof.unsigned += ledger.seq - ledger.last_signed
            ledger.find("unproven", "not signed yet", "", 0, ledger.last_signed + 1, ledger.seq)
        if self.last is not None:
            self.proof.anchor = f"{self.last['epoch']}:{self.anchors[self.last['epoch']]}"
        if anchor:
            epoch, _, value = anchor.partition(":")
            if self.anchors.get(int(epoch)) != value.lower():
                ledger.find("truncated", f"the checkpoint that the anchor names (epoch {epoch}) is not there")
        newest = self.newest_key
        if newest > self.epoch + 1:
            ledger.find("truncated", f"it ends before epoch {self.epoch}, but epoch {newest} has a key")


def newest_key(folder: Path) -> int:
    """The highest epoch that has a key file; -1 where the folder is not here or not ours to read."""
    try:
        names = os.listdir(folder)
    except OSError:
        return -1
    return max(
        (int(m[1]) for m in (re.fullmatch(r"epoch-(\d{1,15})\.key", n) for n in names) if m), default=-1
    )


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def read_public(data: bytes) -> bytes:
    """An Ed25519 public key: PEM, 64 hex digits or 32 raw bytes. Raises ValueError."""
    if len(data) == 32:
        return data
    if re.fullmatch(rb"[0-9a-fA-F]{64}", data.strip()):
        return bytes.fromhex(data.strip().decode())
    key = load_pem_public_key(data)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 public key")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def prove(
    root: Path, public: bytes | None = None, progress: Progress | None = None, anchor: str | None = None
) -> Proof:
    """Prove a folder. Raises OSError or ValueError where there is nothing to prove, or no usable key."""
    return Run(root, public, progress).prove(anchor)


def main() -> int:
    parser = argparse.ArgumentParser(description="Prove a Vecward evidence folder.")
    parser.add_argument("dir", type=Path)
    parser.add_argument("--key", type=Path, help="the host's public key, from somewhere else than DIR")
    parser.add_argument("--anchor", help="EPOCH:HEX of a checkpoint that must be in it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        proof = prove(args.dir, read_public(args.key.read_bytes()) if args.key else None, anchor=args.anchor)
    except (OSError, ValueError) as exc:
        print(f"cannot verify {args.dir}: {exc} (is it an evidence folder?)", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({**asdict(proof), "exit_code": proof.exit_code}, indent=1))
        return proof.exit_code
    for finding in proof.findings:
        frames = f" frames {finding.first}-{finding.last}" if finding.first else ""
        print(f"{finding.kind}: {finding.file} offset {finding.offset}{frames}: {finding.message}")
    word = "NOT WHOLE" if proof.exit_code else "whole"
    counts = f"{proof.frames} frames, {proof.streams} streams, {proof.checkpoints} checkpoints"
    print(f"{word}: {counts}, {proof.bytes} bytes; trusting {proof.trusted}; anchor {proof.anchor}")
    return proof.exit_code


if __name__ == "__main__":
    sys.exit(main())
