# SPDX-License-Identifier: Apache-2.0
"""How a worker ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from agent import leaving
from agent.leaving import Leaving

FOREVER = 3600.0


class _Session:
    def __init__(self) -> None:
        self.told = asyncio.Event()

    @property
    def drained(self) -> bool:
        return self.told.is_set()

    def drain(self) -> None:
        self.told.set()


class _Stage:
    def __init__(self, *names: str) -> None:
        self.sessions = {name: _Session() for name in names}
        self.said: list[str] = []
        self.queued = 0  # how many more times a connection waits in the queue
        self.heard = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []
        self.leaving = Leaving(self.sessions, self._close, self._waits, self.said.append, self._spawn)

    def _close(self) -> None:
        self.heard.set()

    def _waits(self) -> bool:
        self.queued -= 1
        return self.queued >= 0

    def _spawn(self, coroutine: Any) -> None:
        work: Coroutine[Any, Any, None] = coroutine
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def end(self, name: str) -> None:
        del self.sessions[name]
        self.leaving.session_ended()

    async def closes(self) -> None:
        await self.heard.wait()

    async def clear(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def test_an_idle_session_is_kept_until_it_ends_by_itself() -> None:
    async def scene() -> None:
        stage = _Stage("a")
        session = stage.sessions["a"]
        stage._spawn(stage.leaving.drain(FOREVER, keep=FOREVER))
        await stage.closes()
        assert not session.drained
        assert not stage.leaving.stopping.is_set()
        stage.end("a")
        await stage.leaving.stopping.wait()
        assert not session.drained
        assert stage.said == ["draining"]
        await stage.clear()

    asyncio.run(scene())


def test_after_the_time_to_keep_exchanges_under_way_are_ended() -> None:
    async def scene() -> None:
        stage = _Stage("a")
        await stage.leaving.drain(0.0, keep=0.0)
        assert stage.sessions["a"].drained
        assert stage.leaving.stopping.is_set()

    asyncio.run(scene())


def test_a_listener_stays_open_while_connections_wait_in_its_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(leaving, "QUEUED", 0.0)
        stage = _Stage()
        stage.queued = 3
        await stage.leaving.drain(0.0)
        assert stage.heard.is_set()
        assert stage.queued < 0, "closed before the queue was empty"

    asyncio.run(scene())


def test_a_queue_that_never_empties_keeps_no_listener_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(leaving, "QUEUED", 0.0)
        stage = _Stage()
        stage.queued = 10**9
        await stage.leaving.drain(0.0)
        assert stage.heard.is_set()

    asyncio.run(scene())


def test_a_second_drain_changes_nothing() -> None:
    async def scene() -> None:
        stage = _Stage("a")
        stage._spawn(stage.leaving.drain(FOREVER, keep=FOREVER))
        await stage.closes()
        await stage.leaving.drain(0.0)
        assert not stage.leaving.stopping.is_set()
        assert not stage.sessions["a"].drained
        await stage.clear()

    asyncio.run(scene())


def test_a_sigterm_ends_a_long_drain_and_lets_exchanges_finish() -> None:
    async def scene() -> None:
        stage = _Stage("a")
        session = stage.sessions["a"]
        stage._spawn(stage.leaving.drain(FOREVER, keep=FOREVER))
        await stage.closes()
        stage.leaving.terminate(FOREVER)
        await session.told.wait()
        assert not stage.leaving.stopping.is_set()
        stage.end("a")
        await stage.leaving.stopping.wait()
        await stage.clear()

    asyncio.run(scene())


def test_a_sigterm_without_time_or_a_second_one_stops_at_once() -> None:
    async def scene() -> None:
        first = _Stage("a")
        first.leaving.terminate(0.0)
        assert first.leaving.stopping.is_set()
        second = _Stage("a")
        second.leaving.terminate(FOREVER)
        assert not second.leaving.stopping.is_set()
        second.leaving.terminate(FOREVER)
        assert second.leaving.stopping.is_set()
        await second.clear()

    asyncio.run(scene())
