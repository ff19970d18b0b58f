# SPDX-License-Identifier: Apache-2.0
"""Threads for reads that a hostile process or a dead file server can make hang.

Not concurrent.futures: its threads are joined when the interpreter ends, so one hung read would keep
the agent from stopping. Here threads are daemons, a job that its caller has given up on is counted
against its owner (a uid), and another thread takes its place, up to a bound.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
Done = Callable[[T | None, BaseException | None], None]

MAX_ABANDONED = 28  # hung reads of all owners together; beyond it no thread is added


class Full(Exception):
    """Too many jobs wait: the threads are hung or overloaded."""


@dataclass(slots=True)
class Job(Generic[T]):
    """One submitted call; `abandoned` once its caller stopped waiting."""

    owner: int
    work: Callable[[], T]
    done: Done[T]
    started: bool = False
    finished: bool = False
    abandoned: bool = False

    def run(self) -> Callable[[], None]:
        """Do the work; returns what tells its caller of it."""
        try:
            result = self.work()
        except BaseException as exc:
            return partial(self.done, None, exc)
        return partial(self.done, result, None)


class Readers:
    """A small pool of daemon threads. `submit` and `abandon` may be called from any thread."""

    def __init__(self, name: str, threads: int = 2, max_waiting: int = 4096) -> None:
        self._name = name
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[Job[object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._abandoned: Counter[int] = Counter()
        self._threads: list[threading.Thread] = []
        self._surplus = 0
        self._closed = False
        for _ in range(threads):
            self._start()

    def _start(self) -> None:
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            with self._lock:
                job.started = True
                skip = job.abandoned
            tell = None if skip else job.run()
            replaced = False
            with self._lock:
                job.finished = True
                if job.abandoned and not skip:
                    self._abandoned[job.owner] -= 1
                    if self._surplus > 0:  # another thread took this one's place
                        self._surplus -= 1
                        self._threads.remove(threading.current_thread())
                        replaced = True
            if tell is not None:
                tell()  # last: a caller that has its answer gives the job up, and it must not count as hung
            if replaced:
                return

    def submit(self, owner: int, work: Callable[[], T], done: Done[T]) -> Job[T]:
        """Run `work` in a thread and call `done(result, error)` there.

        :raises Full: more than `max_waiting` jobs wait, or the pool is closed.
        """
        if self._closed or self._queue.qsize() >= self._max_waiting:
            raise Full(f"{self._name}: more than {self._max_waiting} reads wait")
        job: Job[T] = Job(owner, work, done)
        self._queue.put(job)  # type: ignore[arg-type]  # Job is covariant in what only its own run() uses
        return job

    def abandon(self, job: Job[T]) -> None:
        """Stop waiting for a job: one that runs is counted as hung until it ends."""
        with self._lock:
            if job.finished or job.abandoned:
                return
            job.abandoned = True
            if not job.started:
                return  # it is skipped when its turn comes
            self._abandoned[job.owner] += 1
            if self._surplus < MAX_ABANDONED:
                self._surplus += 1
                self._start()

    def hung(self, owner: int) -> bool:
        """Whether a read of this owner hangs, or so many of all owners that none may hang more."""
        with self._lock:
            return self._abandoned[owner] > 0 or self._surplus >= MAX_ABANDONED // 2

    def close(self, seconds: float = 1.0) -> None:
        """Take no more jobs and wait for idle threads to end. Hung ones end with the process."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._queue.put(None)
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
