# SPDX-License-Identifier: Apache-2.0
"""One host's evidence in a temporary folder: an agent's ledger and its workers' streams, on a fake clock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.evidence.ledger import Ledger
from agent.evidence.recorder import Recorder
from agent.evidence.segment import SegmentFile, create_segment, new_stream_id
from agent.evidence.thresholds import Thresholds
from agent.protocols.session import Abort, Chunk, Intent, Record, Result
from policy.model import Action, RecordMode, Verdict
from policy.operation import Operation

SECOND = 10**9


class Clock:
    """Wall time and CLOCK_BOOTTIME that move only when told."""

    def __init__(self) -> None:
        self.boot = "boot-1"
        self.now = 1_000 * SECOND

    def wall(self) -> int:
        return 1_700_000_000 * SECOND + self.now

    def up(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


def intent(n: int, body: bytes | None = b'{"limit":10}', **changes: Any) -> Intent:
    operation = Operation(
        engine="qdrant",
        guard="q",
        method="POST /collections/{c}/points/query",
        actions=frozenset({Action.SEARCH}),
        collections=frozenset({"contracts"}),
        top_k=10,
    )
    verdict = Verdict("allow", "rag-app", "rules.yaml:3", "", "policy-1")
    sent = body or b""
    fields: dict[str, Any] = {"head": {"host": "db"}, **changes}
    return Intent(
        n,
        operation,
        verdict,
        body=body,
        sha256=hashlib.sha256(sent).digest(),
        bytes=len(sent),
        **fields,
    )


def result(n: int, body: bytes | None = b'{"result":[]}') -> Result:
    digest = hashlib.sha256(body or b"").digest()
    size = len(body or b"")
    return Result(n, "answered", 200, {}, body, digest, size, digest, size, ("7", "9"), 2)


def chunk(n: int, data: bytes) -> Chunk:
    return Chunk(n, "response", data, hashlib.sha256(data).digest(), len(data))


def abort(n: int) -> Abort:
    return Abort(n, "client-gone")


class Worker:
    """A recorder whose loop turns only when `turn` is called. `answers` holds the releases in order."""

    def __init__(self, host: Host, thresholds: Thresholds, sync: Any = None) -> None:
        self.host, self.stream = host, new_stream_id()
        self.answers: list[bool] = []
        self.turns: list[Callable[[], None]] = []
        self.number = 0
        self.spares_wanted = 0
        self.recorder = Recorder(
            self.stream,
            self.new_segment(),
            self.new_segment(),
            host="host-1",
            boot=host.clock.boot,
            schedule=self.turns.append,
            sync=sync,
            need_spare=self._want_spare,
            wall=host.clock.wall,
            up=host.clock.up,
            thresholds=thresholds,
        )
        host.ledger.start_stream(self.stream)

    def _want_spare(self) -> None:
        self.spares_wanted += 1

    def new_segment(self) -> SegmentFile:
        made = create_segment(self.folder, self.number)
        self.number += 1
        return made

    @property
    def folder(self) -> Path:
        return self.host.root / "streams" / self.stream

    def put(self, *records: Record, session: str = "s1", mode: RecordMode = "strict") -> None:
        self.recorder.put(session, list(records), mode, self.answers.append)

    def turn(self) -> None:
        turns, self.turns[:] = list(self.turns), []
        for call in turns:
            call()
        if self.spares_wanted:
            self.spares_wanted = 0
            self.recorder.give_spare(self.new_segment())

    def exchange(self, n: int, session: str = "s1", body: bytes = b'{"result":[]}') -> None:
        self.put(intent(n), session=session)
        self.turn()
        self.put(result(n, body), session=session)
        self.turn()

    def sign(self) -> None:
        blocks: list[Any] = []
        self.recorder.present(blocks.extend)
        self.host.ledger.present(self.stream, [(b.first, b.frames, b.digest) for b in blocks])
        self.recorder.signed(self.host.ledger.checkpoint({"recorded": 1})[self.stream])


class Host:
    """Makes evidence the way the agent and its workers do."""

    def __init__(self, root: Path, boot: str = "boot-1", **ledger: Any) -> None:
        self.root, self.clock, self._options = root, Clock(), ledger
        self.clock.boot = boot
        self.workers: list[Worker] = []
        self.ledger = self._open()

    def _open(self) -> Ledger:
        clock = self.clock
        return Ledger(
            self.root, host="host-1", boot=clock.boot, wall=clock.wall, up=clock.up, **self._options
        )

    def worker(self, thresholds: Thresholds | None = None, sync: Any = None) -> Worker:
        made = Worker(self, thresholds or Thresholds(), sync)
        self.workers.append(made)
        return made

    def kill_agent(self) -> None:
        self.ledger.abandon()

    def start_agent(self) -> Ledger:
        self.ledger = self._open()
        return self.ledger

    def stop(self) -> None:
        for worker in self.workers:
            worker.recorder.close("stop")
            blocks: list[Any] = []
            worker.recorder.present(blocks.extend)
            self.ledger.present(worker.stream, [(b.first, b.frames, b.digest) for b in blocks])
        self.ledger.close("stop", {})
        self.release()

    def release(self) -> None:
        """Close every descriptor, whatever state it is in."""
        for worker in self.workers:
            worker.recorder.release_files()
        self.ledger.abandon()
