# SPDX-License-Identifier: Apache-2.0
"""`vecward verify`: the proof of `standalone`, and the audit of exchanges that needs decompression.

The proof (chains, signatures, keys, torn tails) is standalone's alone, so that the shipped file and the
command can never disagree. The audit answers another question: did every exchange that began come to a
RESULT, a GAP or an ABORT? What is open was possibly executed, and is said so; it is no tampering.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.evidence.blocks import FormatError, decode_frames, read_blocks
from agent.evidence.frames import (
    AbortFrame,
    AnyFrame,
    GapFrame,
    IntentFrame,
    ResultFrame,
    SessionEndFrame,
    SessionFrame,
)
from agent.evidence.segment import is_stream_id, list_segments
from agent.evidence.standalone import Finding as Finding
from agent.evidence.standalone import Proof, prove, read_public

MAX_LISTED = 10_000  # exchanges named in a report; all are counted
Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


class VerifyError(Exception):
    """There is nothing to verify, or no key to verify it with."""


@dataclass(frozen=True, slots=True)
class OpenExchange:
    """An exchange with INTENT and no end: outcome unknown, may have executed."""

    stream: str
    session: str
    n: int
    seq: int


@dataclass(slots=True)
class Audit:
    """What the streams say of their exchanges."""

    exchanges: int = 0
    unknown: list[OpenExchange] = field(default_factory=list)
    unknown_count: int = 0
    missing: list[tuple[str, int, int]] = field(default_factory=list)  # session, first n, last n
    undecodable: list[tuple[str, int, str]] = field(default_factory=list)  # file, offset, why


@dataclass(slots=True)
class Report:
    proof: Proof
    audit: Audit
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 whole (torn, recovered, gap, unproven are noted), 4 tampered, truncated or key-break."""
        return self.proof.exit_code

    @property
    def findings(self) -> list[Finding]:
        return self.proof.findings

    @property
    def rate(self) -> float:
        """Bytes proven per second."""
        return self.proof.bytes / self.seconds if self.seconds else 0.0


def verify(
    root: Path,
    public_key: bytes | None = None,
    *,
    progress: Progress | None = None,
    anchor: str | None = None,
    audit: bool = True,
) -> Report:
    """Prove a folder; `public_key` is PEM, hex or raw (None: the folder's own ``host.pub``).

    `anchor` is ``EPOCH:HEX`` of a checkpoint kept elsewhere. Raises VerifyError. Never writes.
    """
    begun = time.monotonic()
    try:
        public = None if public_key is None else read_public(public_key)
        proof = prove(root, public, progress, anchor)
    except (OSError, ValueError) as exc:
        raise VerifyError(f"cannot verify {root}: {exc}") from exc
    seconds = time.monotonic() - begun
    return Report(proof, audit_exchanges(root) if audit else Audit(), seconds)


def audit_exchanges(root: Path) -> Audit:
    """Follow every exchange of every stream to its end. Reads only what can be read."""
    audit = Audit()
    folder = root / "streams"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_stream_id(path.name):
            _StreamAudit(path.name, audit).read(path)
    return audit


class _StreamAudit:
    def __init__(self, stream: str, audit: Audit) -> None:
        self._stream, self._audit = stream, audit
        self._open: dict[tuple[str, int], int] = {}
        self._next: dict[str, int] = {}  # the n that must come next, of sessions seen from their beginning

    def read(self, folder: Path) -> None:
        for _number, path in list_segments(folder):
            with path.open("rb") as file:
                try:
                    for block in read_blocks(file):
                        try:
                            frames = decode_frames(block, bodies=False)
                        except FormatError as exc:
                            self._audit.undecodable.append((path.name, exc.offset, exc.message))
                            continue
                        for index, frame in enumerate(frames):
                            self._take(frame, block.header.first + index)
                except FormatError:
                    continue  # the proof has said what is wrong here
        for (session, n), seq in self._open.items():
            self._audit.unknown_count += 1
            if len(self._audit.unknown) < MAX_LISTED:
                self._audit.unknown.append(OpenExchange(self._stream, session, n, seq))

    def _take(self, frame: AnyFrame, seq: int) -> None:
        if isinstance(frame, IntentFrame):
            self._audit.exchanges += 1
            if frame.verdict.outcome != "deny":  # what is denied is never forwarded
                self._open[frame.session, frame.n] = seq
            self._expect(frame.session, frame.n)
        elif isinstance(frame, ResultFrame | AbortFrame):
            if self._open.pop((frame.session, frame.n), None) is None:
                self._expect(frame.session, frame.n)
        elif isinstance(frame, GapFrame):
            self._take_gap(frame)
        elif isinstance(frame, SessionFrame) and not frame.again:
            self._next[frame.session] = 1
        elif isinstance(frame, SessionEndFrame):
            self._next.pop(frame.session, None)

    def _expect(self, session: str, n: int) -> None:
        following = self._next.get(session)
        if following is None:
            return
        if n > following and len(self._audit.missing) < MAX_LISTED:
            self._audit.missing.append((session, following, n - 1))
        self._next[session] = max(following, n + 1)

    def _take_gap(self, frame: GapFrame) -> None:
        if frame.unnamed:
            self._next.clear()  # which exchanges are gone is not known: none can be called missing
        for lost in frame.lost:
            for n in range(lost.first, min(lost.last, lost.first + frame.frames) + 1):
                self._open.pop((lost.session, n), None)
            if lost.session in self._next:
                self._next[lost.session] = max(self._next[lost.session], lost.last + 1)
