# SPDX-License-Identifier: Apache-2.0
"""The ledger as the agent's loop uses it: one thread of its own, nothing waits for the disk but that thread.

Owns the thread, the order of what goes to the ledger, and what ``status`` says of evidence. Bias: what the
ledger refuses is complained about and counted, never dropped in silence; unsigned evidence then makes strict
rules deny (``agent/evidence/recorder.py``).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from agent.config import Evidence
from agent.evidence.frames import AdminFrame, BypassFrame, Frame, PolicyFrame
from agent.evidence.keys import write_secret
from agent.evidence.ledger import BlockDigest, Ledger, LedgerError, PresentError
from agent.evidence.recovery import recover_streams
from agent.evidence.retention import Pressure, Reserve, disk_pressure, free_bytes, retain
from agent.evidence.segment import list_segments
from agent.journal import announce

T = TypeVar("T")
RETENTION_EVERY = 60.0
CLOCK_JUMP = 86_400.0  # seconds between wall and boot clock, against when the agent started
FOREVER_NS = 2**62


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Notary:
    """Every method returns at once; the work is done in order on the ledger's thread."""

    def __init__(self, evidence: Evidence) -> None:
        self.host = os.uname().nodename
        self.boot = boot_id()
        self.root = evidence.dir
        self.streams = evidence.dir / "streams"
        self._evidence = evidence
        self._thread = ThreadPoolExecutor(1, "ledger")
        self._ledger: Ledger | None = None
        self._heads: dict[str, int] = {}  # presented
        self._signed: dict[str, int] = {}
        self._epoch = 0
        self._failures = 0
        self._key_break = False
        # Not before every living worker of an earlier agent has come back: its stream must be known.
        self._retention_due = time.monotonic() + RETENTION_EVERY
        self._reserve = Reserve(evidence.dir, evidence.reserve)
        self._offset = _clock_offset()

    def masking_key(self) -> bytes:
        """The key of `hmac` masks: made once, so that a value has the same token in every record."""
        folder = self.root / "keys"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "mask.key"
        try:
            key = file.read_bytes()
        except FileNotFoundError:
            key = secrets.token_bytes(32)
            write_secret(file, key)
        if len(key) != 32:
            raise LedgerError(f"{file}: not a key of 32 bytes")
        return key

    def start(self) -> None:
        """Continue the ledger. Raises LedgerError, KeyFileError, OSError."""
        self.streams.mkdir(mode=0o750, exist_ok=True)
        self._ledger = self._thread.submit(self._open).result()
        self._key_break = self._ledger.key_break
        if not self._reserve.fill():
            self._complain("no room for the reserve that keeps GAP and CHECKPOINT writable on a full disk")
        if self._key_break:
            text = "the signing key that the last checkpoint announced is not here: a key break is recorded"
            announce("key-break", f"ledger: {text}")

    def _open(self) -> Ledger:
        return Ledger(self.root, host=self.host, boot=self.boot)

    def recover(self, live: Collection[str], only: str | None = None) -> None:
        """Note the torn tails of streams whose writer is gone (of the one that just left: all of them are a
        long read, and nothing is signed meanwhile). `live` streams are left alone."""
        known = frozenset(live)

        def note(ledger: Ledger) -> None:
            now = _now()
            ledger.retire_absent(known)
            for frame in recover_streams(self.root, known, now["at"], now["up"], only):
                ledger.append(frame)

        self._submit(note)

    # -- what workers wrote ------------------------------------------------------------------------

    def stream_started(self, stream: str, fresh: bool) -> None:
        def begin(ledger: Ledger) -> None:
            if fresh:
                ledger.start_stream(stream)
            else:
                self._signed[stream] = ledger.adopt_stream(stream)

        self._submit(begin)

    def present(self, stream: str, blocks: tuple[BlockDigest, ...]) -> None:
        def extend(ledger: Ledger) -> None:
            self._heads[stream] = ledger.present(stream, blocks)

        self._submit(extend)

    def stream_left(self, stream: str) -> None:
        self._submit(lambda ledger: ledger.retire_stream(stream))

    # -- what the agent says -----------------------------------------------------------------------

    def policy(self, hash_: str, source: Mapping[str, str], problem: str | None = None) -> None:
        def append(ledger: Ledger) -> None:
            if problem is None:
                ledger.policy = hash_
            ledger.append(PolicyFrame(**_now(), hash=hash_, source=dict(source), problem=problem))

        self._submit(append)

    def admin(self, act: str, who: dict[str, Any], detail: dict[str, Any]) -> None:
        self._append(AdminFrame(**_now(), act=act, who=who, detail=detail))

    def bypass(self, detail: dict[str, Any]) -> None:
        self._append(BypassFrame(**_now(), detail=detail))

    def _append(self, frame: Frame) -> None:
        self._submit(lambda ledger: ledger.append(frame))

    # -- signing -----------------------------------------------------------------------------------

    async def checkpoint(self, counters: Mapping[str, int]) -> dict[str, int]:
        """End the epoch when it is due. Returns the signed seq of each stream, {} where nothing was."""

        def sign(ledger: Ledger) -> dict[str, int]:
            return ledger.checkpoint(counters) if ledger.due() else {}

        try:
            signed = await asyncio.wrap_future(self._run(sign))
        except (LedgerError, OSError) as error:
            self._failures += 1
            self._complain(f"{error}; evidence stays unsigned until this works again")
            self._reserve.release()  # so that the next try has room
            return {}
        if signed or self._ledger is not None:
            self._epoch = self._ledger.last.epoch if self._ledger and self._ledger.last else self._epoch
        self._signed.update(signed)
        return signed

    def tend(self, counters: Mapping[str, int]) -> Pressure:
        """Once an epoch: how full the disk is; now and then, what retention takes and the reserve."""
        pressure = disk_pressure(free_bytes(self.root), self._evidence.reserve)
        now = time.monotonic()
        if now >= self._retention_due:
            self._retention_due = now + RETENTION_EVERY
            self._submit(lambda ledger: self._retain(ledger, counters))
        return pressure

    def _retain(self, ledger: Ledger, counters: Mapping[str, int]) -> None:
        keep_ns = int(self._evidence.keep * 10**9)
        if abs(_clock_offset() - self._offset) > CLOCK_JUMP:
            # The wall clock cannot be trusted to tell age: only the size counts until a restart.
            self._complain("the clock has jumped by more than a day: nothing is removed for its age")
            keep_ns = FOREVER_NS
        outcome = retain(
            self.root, ledger, counters=counters, keep_ns=keep_ns, max_size=self._evidence.max_size
        )
        if outcome.blocked:
            self._complain(
                f"retention could not remove {outcome.blocked[0]} and {len(outcome.blocked) - 1} more"
            )
        if disk_pressure(free_bytes(self.root), self._evidence.reserve) in ("ok", "alert"):
            self._reserve.fill()

    def close(self, counters: Mapping[str, int]) -> None:
        """The last frames, CLOSE, and the end of the thread."""
        ledger = self._ledger
        if ledger is not None:
            try:
                self._run(lambda held: held.close("stop", counters)).result(timeout=30)
            except (LedgerError, OSError, TimeoutError) as error:
                self._complain(f"the ledger could not be closed: {error}")
        self._thread.shutdown(wait=True)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self, work: Callable[[Ledger], T]) -> Future[T]:
        def run() -> T:
            if self._ledger is None:
                raise LedgerError("the ledger is not open")
            return work(self._ledger)

        return self._thread.submit(run)

    def _submit(self, work: Callable[[Ledger], object]) -> None:
        self._run(work).add_done_callback(self._done)

    def _done(self, future: Future[object]) -> None:
        error = future.exception()
        if error is None:
            return
        self._failures += 1
        if isinstance(error, (LedgerError, PresentError, OSError)):
            self._complain(str(error))
        else:
            self._complain(f"bug: {type(error).__name__}: {error}")

    def _complain(self, text: str) -> None:
        print(f"vecward: ledger: {text}", file=sys.stderr, flush=True)

    # -- status ------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """The evidence part of ``vecward status``."""
        usage = shutil.disk_usage(self.root)
        streams = [
            {"stream": stream, "seq": seq, "signed": self._signed.get(stream, 0)}
            for stream, seq in sorted(self._heads.items())
        ]
        return {
            "dir": str(self.root),
            "epoch": self._epoch,
            "streams": streams,
            "unsigned": sum(max(0, s["seq"] - s["signed"]) for s in streams),  # type: ignore[operator]
            "bytes": _used(self.root),
            "free": usage.free,
            "append_only": False,
            "key_break": self._key_break,
            "failures": self._failures,
        }


def _used(root: Path) -> int:
    folders = [root / "ledger", *(root / "streams").glob("*")]
    return sum(path.stat().st_size for folder in folders for _, path in list_segments(folder))


def _clock_offset() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _now() -> dict[str, int]:
    return {"at": time.time_ns(), "up": time.clock_gettime_ns(time.CLOCK_BOOTTIME)}
