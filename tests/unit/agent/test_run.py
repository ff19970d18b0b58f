# SPDX-License-Identifier: Apache-2.0
"""The supervisor's care of its children: started again, not in a loop, and not once it stops."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config, Proxy
from agent.places import RunError
from agent.run import RESPAWN_FIRST, RESPAWN_LAST, Supervisor, _Child, worker_count


def supervisor(said: list[str], *children: _Child) -> Any:
    made: Any = Supervisor(Config(), Path("/nonexistent/vecward.yaml"), said.append)
    made._stopping, made._children = 0, list(children)
    return made


def ended(code: int) -> int:
    """A child that has ended, as `_Child.start` gives it."""
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def test_as_many_workers_as_configured_or_as_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(Config(proxy=Proxy(workers=3))) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(200)))
    assert worker_count(Config()) == 64, "there are no more slots in the kernel's maps"
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert worker_count(Config()) == 1


def test_what_dies_is_started_again_later_each_time_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said: list[str] = []
    child = _Child("proxy 0", lambda: ended(3))
    here = supervisor(said, child)
    delays = []
    for _ in range(9):
        here._spawn(child)
        here._reap()
        assert child.pid == 0
        now += child.delay - 0.01
        here._reap()
        assert child.pid == 0, "not before its delay is over"
        delays.append(child.delay)
    assert delays == sorted(delays)
    assert (delays[0], delays[-1]) == (2 * RESPAWN_FIRST, RESPAWN_LAST)
    assert child.restarts == 9
    assert said[0] == "vecward: proxy 0 ended (exit code 3); starting it again in 0.2 s"


def test_a_child_that_is_due_is_started_and_one_that_lived_long_begins_anew() -> None:
    said: list[str] = []
    child = _Child("agent", lambda: ended(0), delay=RESPAWN_LAST, restarts=7)
    here = supervisor(said, child)
    here._reap()
    assert child.pid
    child.started -= 60
    here._reap()
    assert (child.pid, child.delay, child.restarts) == (0, RESPAWN_FIRST, 0)


def test_nothing_is_started_again_once_it_stops() -> None:
    said: list[str] = []
    child = _Child("proxy 0", lambda: ended(0))
    here = supervisor(said, child)
    here._spawn(child)
    here._stopping = 1
    here._reap()
    here._reap()
    assert (child.pid, said) == (0, [])


def test_ready_is_what_the_agent_says_and_nothing_else() -> None:
    here = supervisor([])
    here._notes, agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here._notes, agent:
        agent.send(b"STATUS=0 workers")
        assert not here._read_notes()
        agent.send(b"READY=1\nSTATUS=2 workers")
        agent.send(b"STATUS=2 workers")
        assert here._read_notes()
        assert not here._read_notes()


def test_a_reload_before_the_agent_lives_is_no_error() -> None:
    supervisor([])._asked_to_reload()
    supervisor([], _Child("agent", lambda: 0))._asked_to_reload()


def test_it_needs_root_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RunError, match="needs root") as refused:
        Supervisor(Config(), Path("/nonexistent")).run()
    assert "sudo" in refused.value.hint
