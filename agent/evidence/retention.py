# SPDX-License-Identifier: Apache-2.0
"""What may leave, and what must always fit: retention by whole segments, and the reserve for a full disk.

A segment is removed only after its TOMBSTONE is signed and durable, oldest first, so that the chain stays
provable at every moment of a crash. Never: a segment that is still written, not signed, or under legal hold.
Bias: in doubt it stays (a hold file that cannot be read holds everything).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from agent.evidence.blocks import FormatError, decode_frames, read_blocks
from agent.evidence.frames import LEDGER, Frame, SegmentFrame, TombstoneFrame
from agent.evidence.ledger import Ledger
from agent.evidence.recovery import SegmentEnd, scan_segment
from agent.evidence.segment import is_stream_id, list_segments, sync_folder

KEEP_NS = 90 * 86_400 * 10**9
MAX_SIZE = 10 * 1024**3
RESERVE = 64 * 1024 * 1024
RESERVE_STEP = 1024 * 1024
MAX_REMOVALS = 64  # segments per run: the agent has other work

Pressure = Literal["ok", "alert", "meta", "full"]


def default_max_size(root: Path) -> int:
    """10 GiB, or 10 % of the file system where that is less."""
    info = os.statvfs(root)
    return min(MAX_SIZE, info.f_frsize * info.f_blocks // 10)


def disk_pressure(free: int, reserve: int = RESERVE) -> Pressure:
    """How full the disk is, by free bytes outside the reserve: below 8 reserves an alert, below 2 bodies are
    left out, below a quarter nothing but GAP and CHECKPOINT is written (64 MiB: 512, 128, 16 MiB)."""
    if free < reserve // 4:
        return "full"
    if free < reserve * 2:
        return "meta"
    return "alert" if free < reserve * 8 else "ok"


def free_bytes(root: Path) -> int:
    info = os.statvfs(root)
    return info.f_bavail * info.f_frsize


class Reserve:
    """``DIR/reserve``: allocated blocks that can be given back to the file system in steps."""

    def __init__(self, root: Path, size: int = RESERVE) -> None:
        self._path, self._size = root / "reserve", size

    @property
    def size(self) -> int:
        """Bytes held now."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def fill(self) -> bool:
        """Allocate what is missing. False: there is no room for all of it."""
        if self.size >= self._size:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, self._size)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def release(self, size: int = RESERVE_STEP) -> bool:
        """Give a step back, so that a GAP or CHECKPOINT fits. False: nothing is left."""
        held = self.size
        if not held:
            return False
        os.truncate(self._path, max(0, held - size))
        return True


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold, ``DIR/holds/LABEL.json``: {"reason": ..., "since": RFC 3339 or null, "until": ...,
    "streams": [...] or null}. It keeps every segment whose time overlaps."""

    label: str
    since: float | None = None  # seconds
    until: float | None = None
    streams: frozenset[str] | None = None

    def covers(self, stream: str, begun: float, ended: float) -> bool:
        if self.streams is not None and stream not in self.streams and stream != LEDGER:
            return False
        return (self.until is None or begun <= self.until) and (self.since is None or ended >= self.since)


def read_holds(root: Path) -> list[Hold]:
    """Every hold. One that cannot be understood holds everything."""
    folder = root / "holds"
    found = []
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        label = path.stem
        try:
            data = json.loads(path.read_text())
            streams = data.get("streams")
            names = None if streams is None else frozenset(map(str, streams))
            found.append(Hold(label, _seconds(data.get("since")), _seconds(data.get("until")), names))
        except (OSError, ValueError, TypeError, AttributeError):
            found.append(Hold(label))
    return found


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a hold's time needs a zone")
    return moment.timestamp()


@dataclass(frozen=True, slots=True)
class Removal:
    """A segment that retention takes, and why."""

    stream: str
    path: Path
    end: SegmentEnd
    size: int
    reason: Literal["keep", "max_size"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did. `blocked`: files that could not be unlinked (append-only, or not ours)."""

    removed: int = 0
    bytes: int = 0
    held: tuple[str, ...] = ()
    blocked: tuple[Path, ...] = ()


@dataclass(slots=True)
class _Candidate:
    stream: str
    number: int
    path: Path
    size: int
    begun: float
    ended: float


def _folders(root: Path) -> dict[str, Path]:
    streams = root / "streams"
    names = os.listdir(streams) if streams.is_dir() else []
    found = {name: streams / name for name in names if is_stream_id(name)}
    return {**found, LEDGER: root / LEDGER}


def plan_removals(
    root: Path,
    *,
    keep_ns: int,
    max_size: int,
    signed: Mapping[str, int],
    now: float,
) -> tuple[list[Removal], tuple[str, ...]]:
    """Which segments go, oldest first, and which hold labels kept others. Reads, changes nothing.

    `signed`: last signed seq of every live stream.
    """
    queues: dict[str, list[_Candidate]] = {}
    total = 0
    for stream, folder in _folders(root).items():
        begun = 0.0
        queue = []
        for number, path in list_segments(folder):
            info = path.stat()
            total += info.st_size
            if info.st_size:
                queue.append(_Candidate(stream, number, path, info.st_size, begun, info.st_mtime))
                begun = info.st_mtime
        # The last segment of a live stream, and of the ledger, is still written.
        queues[stream] = queue[:-1] if stream in signed or stream == LEDGER else queue
    holds = read_holds(root)
    removals: list[Removal] = []
    labels: set[str] = set()
    while len(removals) < MAX_REMOVALS and any(queues.values()):
        oldest = min((queue[0] for queue in queues.values() if queue), key=lambda item: item.ended)
        old = now - oldest.ended > keep_ns / 1e9
        # The ledger goes by age alone: a full disk must not cost the proof of what remains.
        if not old and (total <= max_size or oldest.stream == LEDGER):
            if total <= max_size or not any(queue for name, queue in queues.items() if name != LEDGER):
                break
            queues[LEDGER] = []
            continue
        holding = [hold.label for hold in holds if hold.covers(oldest.stream, oldest.begun, oldest.ended)]
        end = scan_segment(oldest.path, oldest.number)
        # A live stream's frames are signed first; a dead one's unsigned tail is vouched for by its TOMBSTONE.
        provable = oldest.stream not in signed or end.seq <= signed[oldest.stream]
        if holding or not provable:
            labels.update(holding)
            queues[oldest.stream] = []  # what follows it in its stream must stay too
            continue
        queues[oldest.stream].pop(0)
        total -= oldest.size
        removals.append(Removal(oldest.stream, oldest.path, end, oldest.size, "keep" if old else "max_size"))
    return removals, tuple(sorted(labels))


def retain(
    root: Path,
    ledger: Ledger,
    *,
    counters: Mapping[str, int],
    keep_ns: int = KEEP_NS,
    max_size: int | None = None,
    now: float | None = None,
) -> Outcome:
    """One run: plan, write and sign the TOMBSTONEs, then unlink. Every live stream must have been started or
    adopted in `ledger` before. Raises LedgerError, with nothing removed."""
    limit = default_max_size(root) if max_size is None else max_size
    moment = time.time() if now is None else now
    removals, held = plan_removals(root, keep_ns=keep_ns, max_size=limit, signed=ledger.signed(), now=moment)
    if not removals:
        return Outcome(held=held)
    frames = [_tombstone(removal, ledger) for removal in removals if not removal.end.is_empty]
    if any(removal.stream == LEDGER for removal in removals):
        frames = [*_carried(root, ledger), *frames]
    if frames:
        ledger.append(*frames)
        ledger.checkpoint(counters)
    removed = size = 0
    blocked: list[Path] = []
    stopped: set[str] = set()
    for removal in removals:
        if removal.stream in stopped:
            continue
        try:
            removal.path.unlink()
        except OSError:
            blocked.append(removal.path)
            stopped.add(removal.stream)  # a hole in the middle would not be provable
            continue
        removal.path.with_suffix(".torn").unlink(missing_ok=True)
        removed, size = removed + 1, size + removal.size
    for folder in {removal.path.parent for removal in removals}:
        sync_folder(folder)
    return Outcome(removed, size, held, tuple(blocked))


def _tombstone(removal: Removal, ledger: Ledger) -> Frame:
    wall, up = ledger.now()
    return TombstoneFrame(
        at=wall,
        up=up,
        stream=removal.stream,
        number=removal.end.number,
        last=removal.end.seq,
        head=removal.end.head,
        bytes=removal.size,
        reason=removal.reason,
    )


def _carried(root: Path, ledger: Ledger) -> list[Frame]:
    """Where a ledger segment goes, the TOMBSTONEs in it go with it: repeat, for each stream that has lost its
    beginning, what its first segment continues."""
    wall, up = ledger.now()
    found: list[Frame] = []
    for stream, folder in _folders(root).items():
        segments = [(number, path) for number, path in list_segments(folder) if path.stat().st_size]
        if stream == LEDGER or not segments:
            continue
        start = first_place(segments[0][1])
        if start is None or start[0] <= 1:
            continue
        found.append(
            TombstoneFrame(
                at=wall,
                up=up,
                stream=stream,
                number=segments[0][0] - 1,
                last=start[0] - 1,
                head=start[1],
                bytes=0,
                reason="carried",
            )
        )
    return found


def first_place(path: Path) -> tuple[int, bytes] | None:
    """(first seq, chain value before it) of a segment, by its own word."""
    try:
        with path.open("rb") as file:
            for block in read_blocks(file):
                frame = decode_frames(block)[0]
                return (frame.first, frame.prev) if isinstance(frame, SegmentFrame) else None
    except FormatError:
        pass
    return None
