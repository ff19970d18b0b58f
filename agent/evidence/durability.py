# SPDX-License-Identifier: Apache-2.0
"""Group fdatasync: one in flight, everybody who waits meanwhile shares the next.

Knows how far the stream survives a power loss. A sync that fails is never retried for the same bytes (the
kernel forgets them): whoever waited for it hears False.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from agent.evidence.stream import StreamWriter

Answer = Callable[[bool], None]
Sync = Callable[[list[int], Answer], None]
"""Run fdatasync on these descriptors off the loop, then call back on the loop: did all succeed."""


class GroupSync:
    def __init__(self, writer: StreamWriter, sync: Sync | None) -> None:
        self._writer = writer
        self._sync = sync or sync_here
        self._waiters: list[tuple[int, Answer]] = []
        self._running = False
        self.durable = 0  # seq of the last frame known to survive
        self.failures = 0

    def wait(self, seq: int, then: Answer) -> None:
        """Call `then(True)` once frame `seq` is durable, `then(False)` if its sync failed."""
        if seq <= self.durable:
            then(True)
            return
        self._waiters.append((seq, then))
        if not self._running:
            self._start()

    def _start(self) -> None:
        self._running = True
        upto = self._writer.seq
        left, fds = self._writer.to_sync()

        def done(ok: bool) -> None:
            self._running = False
            self._writer.forget(left)
            if ok:
                self.durable = upto
            else:
                self.failures += 1
            ready = [then for seq, then in self._waiters if seq <= upto]
            self._waiters = [(seq, then) for seq, then in self._waiters if seq > upto]
            for then in ready:
                then(ok)
            if self._waiters and not self._running:
                self._start()

        self._sync(fds, done)


def sync_here(fds: list[int], then: Answer) -> None:
    """In place: for tests and for the last flush before the end."""
    try:
        for fd in fds:
            os.fdatasync(fd)
    except OSError:
        then(False)
    else:
        then(True)
