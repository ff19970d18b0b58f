# SPDX-License-Identifier: Apache-2.0
"""How a worker ends: takes nothing new, leaves its sessions alone for a while, lets exchanges end, stops.

Owns the order and the times of that; what a session is it does not know. A second request never makes the
end later, a SIGTERM makes it sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

QUEUED = 0.05  # seconds: the slots are empty already; what waits in the queues is still taken
QUEUED_LOOKS = 100  # for so long a listener stays open: who is in its queue when it closes is reset


class Ending(Protocol):
    """What is asked of a relay."""

    def drain(self) -> None: ...


class Leaving:
    """``close`` stops listening; ``notify`` hears "draining" once. `stopping` is set when all is over.

    ``waits``: whether a connection waits in a listener's queue.
    """

    def __init__(
        self,
        sessions: Mapping[str, Ending],
        close: Callable[[], None],
        waits: Callable[[], bool],
        notify: Callable[[str], object],
        spawn: Callable[[object], None],
    ) -> None:
        self._sessions = sessions
        self._close = close
        self._waits = waits
        self._notify = notify
        self._spawn = spawn
        self._empty = asyncio.Event()
        self._ending = False
        self.begun = False
        self.stopping = asyncio.Event()

    async def drain(self, seconds: float, keep: float = 0.0) -> None:
        """Sessions as they are for ``keep`` seconds, exchanges under way for ``seconds`` more."""
        if self.begun:
            return
        self.begun = True
        self._notify("draining")
        await self._take_queued()
        self._close()
        if not self._ending:
            await self._wait(keep)
        await self._end(seconds)

    def terminate(self, seconds: float) -> None:
        """A SIGTERM: exchanges have ``seconds``; at once where that is 0, and the second time."""
        if not seconds or self._ending:
            self.stopping.set()
            return
        self._ending = True
        self._spawn(self._end(seconds) if self.begun else self.drain(seconds))

    def session_ended(self) -> None:
        if self.begun and not self._sessions:
            self._empty.set()

    async def _take_queued(self) -> None:
        # A timer that is late (a busy machine) is run before the listeners are looked at: the time alone
        # says nothing of what was taken.
        for _ in range(QUEUED_LOOKS):
            await asyncio.sleep(QUEUED)
            if not self._waits():
                return

    async def _end(self, seconds: float) -> None:
        for session in list(self._sessions.values()):
            session.drain()
        await self._wait(seconds)
        self.stopping.set()

    async def _wait(self, seconds: float) -> None:
        if self._sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()
