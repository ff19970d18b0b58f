# SPDX-License-Identifier: Apache-2.0
"""The workers of one generation: forked from one process, all of the same code, until the last has drained.

The unprivileged parent of the vecward-proxy@ unit. It loads everything before it forks, so that a package
which replaces the files on disk changes nothing for those that run; it starts again what dies, but not what
drained.
Holds no socket of a client, reads no configuration. Bias: a worker that ends any other way than drained is
replaced.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent import confine
from agent.generations import UNIT_WORKERS, instance_problem
from agent.notify import Notifier
from agent.places import RunError
from agent.roles import RUN_DIR, STOP_DRAIN

RESPAWN_FIRST, RESPAWN_LAST, LONG_ENOUGH = 0.1, 5.0, 10.0
KILL_AFTER = STOP_DRAIN + 3.0


@dataclass
class _Child:
    number: int
    pid: int = 0
    started: float = 0.0
    delay: float = RESPAWN_FIRST
    due: float = 0.0
    ready: bool = False
    draining: bool = False
    over: bool = False


def worker_number(run_dir: Path) -> int:
    """How many, as the agent wrote it; one a core where it did not."""
    with suppress(OSError, ValueError):
        return max(1, min(UNIT_WORKERS, int((run_dir / "workers").read_text())))
    return min(UNIT_WORKERS, len(os.sched_getaffinity(0)))


def load_everything() -> int:
    """Import every module a worker could ever need; returns how many were imported.

    Files of the next version may replace ours while we run: nothing may be imported late.
    """
    import agent.engines
    import agent.evidence
    import agent.protocols
    import agent.worker
    import policy

    before = len(sys.modules)
    for package in (agent.engines, agent.evidence, agent.protocols, policy):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    for name in (
        "encodings.idna",
        "encodings.ascii",
        "encodings.latin_1",
        "traceback",
        "linecache",
        "stringprep",
    ):
        importlib.import_module(name)
    return len(sys.modules) - before


class Generation:
    """Runs until SIGTERM, or until the last worker has drained."""

    def __init__(self, name: str, notifier: Notifier, run_dir: Path = RUN_DIR) -> None:
        problem = instance_problem(name)
        if problem is not None:
            raise RunError(problem, "systemctl start vecward-proxy@NAME.service")
        self.name = name
        self._notifier = notifier
        self._run_dir = run_dir
        self._children: list[_Child] = []
        self._stopping = self._ready = False
        self._said = ""

    def run(self) -> int:
        confine.raise_open_files()
        confine.settle(frozenset(), umask=0o077)
        load_everything()
        gc.freeze()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._asked_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._notes, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notes.setblocking(False)
        self._children = [_Child(number) for number in range(worker_number(self._run_dir))]
        kill_at = 0.0
        while True:
            if self._stopping and not kill_at:
                kill_at = time.monotonic() + KILL_AFTER
                self._signal(signal.SIGTERM)
            elif kill_at and time.monotonic() > kill_at:
                self._signal(signal.SIGKILL)
            self._tend()
            if all(child.over or (self._stopping and not child.pid) for child in self._children):
                return 0
            self._sleep(0.1 if self._stopping else self._until_due())

    def _asked_to_stop(self, *_: object) -> None:
        self._stopping = True

    def _tend(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    self._note_end(child, os.waitstatus_to_exitcode(status), now)
            elif not (child.over or self._stopping) and now >= child.due:
                child.started, child.ready, child.draining = now, False, False
                child.pid = self._fork(child.number)
        self._read_notes()
        self._say()

    def _note_end(self, child: _Child, code: int, now: float) -> None:
        child.pid = 0
        child.ready = False
        if code == 0 and child.draining:
            child.over = True
            return
        if self._stopping:
            return
        child.delay = (
            RESPAWN_FIRST if now - child.started > LONG_ENOUGH else min(child.delay * 2, RESPAWN_LAST)
        )
        child.due = now + child.delay
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        print(f"vecward: worker {child.number} ended ({how}); starting it again in {child.delay:.1f} s",
              file=sys.stderr, flush=True)  # fmt: skip

    def _read_notes(self) -> None:
        while True:
            try:
                number, _, word = self._notes.recv(64).decode().partition(" ")
            except BlockingIOError:
                return
            child = self._children[int(number)]
            if word == "ready":
                child.ready = True
            elif word == "draining":
                child.draining = True

    def _say(self) -> None:
        serving = sum(c.ready and not c.draining for c in self._children)
        draining = sum(bool(c.pid) and c.draining for c in self._children)
        line = f"{serving} of {len(self._children)} workers serve"
        if draining:
            line = f"a newer generation serves; {draining} workers finish their sessions, then this unit ends"
        if self._stopping:
            line = "stopping; exchanges under way end"
        if line != self._said:
            self._said = line
            self._notifier.status(line)
        if not self._ready and all(c.ready or c.draining for c in self._children):
            self._ready = True
            self._notifier.say("READY=1")

    def _fork(self, number: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for each in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            confine.die_with_parent()
            code = _work(self._run_dir, self.name, lambda word: self._note(number, word))
        except BaseException as error:
            print(f"vecward: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _note(self, number: int, word: str) -> None:
        with suppress(OSError):
            self._theirs.send(f"{number} {word}".encode(), socket.MSG_DONTWAIT)

    def _signal(self, number: int) -> None:
        for child in self._children:
            if child.pid:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def _until_due(self) -> float:
        due = [c.due for c in self._children if not c.pid and not c.over]
        return max(0.0, min(due) - time.monotonic()) if due else 3600.0

    def _sleep(self, seconds: float) -> None:
        select.select([self._wake_r, self._notes.fileno()], [], [], seconds)
        with suppress(BlockingIOError):
            os.read(self._wake_r, 512)


def _work(run_dir: Path, generation: str, notify: Callable[[str], object]) -> int:
    import uvloop

    from agent.worker import Worker

    async def run() -> int:
        worker = Worker(run_dir / "worker.sock", generation, notify=notify, term_drain=STOP_DRAIN)
        return await worker.run()

    return uvloop.run(run())
