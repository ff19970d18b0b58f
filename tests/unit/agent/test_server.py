# SPDX-License-Identifier: Apache-2.0
"""A worker's listeners follow the snapshot: made once, told of once they listen, closed when unwanted."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent import server as server_module
from agent.server import Server
from tests.unit.agent.side import guard
from tests.unit.agent.turning import run, until

KEY = b"k" * 32


class Yard:
    """A server over listeners that are no network sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.made: list[socket.socket] = []
        self.announced: list[str] = []
        self.accepted: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()
        monkeypatch.setattr(server_module, "make_listener", self._listener)
        monkeypatch.setattr(server_module, "netns_cookie", lambda sock: 4026531840)
        self.server = Server(self._accept, lambda name, fd: self.announced.append(name), self._spawn)

    def _listener(self, backlog: int) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.bind(os.fspath(self.folder / f"listener-{len(self.made)}"))
        made.listen(backlog)
        self.made.append(made)
        return made

    def _accept(self, served: Any, transport: asyncio.Transport) -> None:
        self.accepted.append(served.settings.name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Yard:
    return Yard(monkeypatch, tmp_path)


def test_each_guard_gets_one_listener_and_is_announced_when_it_listens(yard: Yard) -> None:
    async def story() -> None:
        yard.server.sync([guard(name="a"), guard(name="b")], KEY)
        assert yard.announced == [], "not before somebody accepts"
        await until(lambda: len(yard.announced) == 2)
        yard.server.sync([guard(name="a", mode="observe"), guard(name="b")], KEY)
        await until(lambda: not yard.tasks)
        assert (len(yard.made), sorted(yard.announced)) == (2, ["a", "b"])
        found = yard.server.find("a")
        assert found is not None
        assert (found.settings.mode, found.netns) == ("observe", 4026531840)
        yard.server.announce_all()
        assert sorted(yard.announced) == ["a", "a", "b", "b"], "an agent that was started again knows none"
        yard.server.close()

    run(story)


def test_a_connection_that_nobody_accepted_yet_waits(yard: Yard) -> None:
    async def story() -> None:
        yard.server.sync([guard(name="a"), guard(name="b")], KEY)
        await until(lambda: len(yard.announced) == 2)
        assert not yard.server.waits()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(yard.made[1].getsockname())
            assert yard.server.waits(), "this loop has not turned since"
            await until(lambda: yard.accepted == ["b"])
            assert not yard.server.waits()
        yard.server.close()
        assert not yard.server.waits()

    run(story)


def test_a_guard_that_is_gone_is_not_served(yard: Yard) -> None:
    async def story() -> None:
        yard.server.sync([guard(name="a"), guard(name="b")], KEY)
        await until(lambda: len(yard.announced) == 2)
        yard.server.sync([guard(name="b")], KEY)
        assert yard.server.find("a") is None
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
            late.connect(os.fspath(yard.folder / "listener-0"))
        yard.server.close()

    run(story)


def test_a_guard_of_another_engine_is_read_by_that_engine(yard: Yard) -> None:
    async def story() -> None:
        yard.server.sync([guard(name="a", engine="qdrant")], KEY)
        await until(lambda: yard.announced)
        before = yard.server.find("a")
        assert before is not None
        engine = before.engine
        yard.server.sync([guard(name="a", engine="qdrant", mode="observe")], KEY)
        assert before.engine is engine, "what it has learnt of the database stays"
        yard.server.sync([guard(name="a", engine="chroma")], KEY)
        after = yard.server.find("a")
        assert after is not None
        assert type(after.engine) is not type(engine)
        assert len(yard.made) == 1, "the kernel's slot holds this listener"
        yard.server.close()

    run(story)


def test_a_connection_that_waited_elsewhere_is_served_as_its_guards(yard: Yard) -> None:
    async def story() -> None:
        yard.server.sync([guard(name="a")], KEY)
        await until(lambda: yard.announced)
        ours, theirs = socket.socketpair()
        yard.server.adopt("a", ours.detach())
        await until(lambda: yard.accepted)
        assert yard.accepted == ["a"]
        theirs.close()
        ours, theirs = socket.socketpair()
        yard.server.adopt("nobody's", ours.detach())
        with theirs:
            assert theirs.recv(1) == b"", "it is closed, not kept"
        yard.server.close()
        await until(lambda: not yard.tasks)

    run(story)
