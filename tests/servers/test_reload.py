# SPDX-License-Identifier: Apache-2.0
"""A reload changes what is guarded: what enforces is at no moment open, what is not ours is never shut."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.kernel.steering import Steering
from tests.kernel.arena import PATIENCE
from tests.kernel.arena import say as tell
from tests.servers.raw import is_dead, request, talk, wait_until
from tests.servers.stage import Stage

ONE, TWO, THREE = 6333, 7001, 7002
ASK = request("/collections")
NOTHING = "version: 1\nrules: []\n"


def _database(*ports: int) -> None:
    """Answers every connection with one 200, and says how many it saw."""
    import select

    listeners = []
    for port in ports:
        listener = socket.create_server(("127.0.0.1", port), backlog=64)
        listeners.append(listener)
    tell("up")
    kept: list[socket.socket] = []
    while True:
        for ready in select.select([*listeners, *kept], [], [])[0]:
            if ready in listeners:
                kept.append(ready.accept()[0])
            elif not _answer(ready):
                kept.remove(ready)
                ready.close()


def _answer(sock: socket.socket) -> bool:
    try:
        if not sock.recv(65536):
            return False
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    except OSError:
        return False
    return True


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage("qdrant") as made:
        made.arena.fork(lambda: _database(ONE, TWO, THREE), group="database").said()
        yield made


def _guard(name: str, *ports: int, mode: str = "enforce", **more: Any) -> dict[str, Any]:
    return {"name": name, "engine": "qdrant", "ports": list(ports), "mode": mode, **more}


def _configure(stage: Stage, *guards: dict[str, Any]) -> None:
    stage.write_config(NOTHING, workers=1)
    config = json.loads(stage.config.read_text())
    stage.config.write_text(json.dumps(config | {"guards": list(guards)}))


def _reload(stage: Stage, *guards: dict[str, Any]) -> None:
    _configure(stage, *guards)
    stage.cli("reload")
    wait_until(lambda: all(g["workers"] == 1 for g in stage.status["guards"]), what="workers listen")


def _asked(stage: Stage, port: int) -> int | None:
    return stage.arena.run(lambda: talk(port, ASK, until=b"\r\n\r\n"), user="nobody").status


def test_a_port_that_goes_from_one_guard_to_another_stays_guarded(stage: Stage) -> None:
    _configure(stage, _guard("a", ONE), _guard("b", TWO, THREE))
    stage.start()
    assert [_asked(stage, port) for port in (ONE, TWO, THREE)] == [403, 403, 403]
    _reload(stage, _guard("a", ONE, THREE), _guard("b", TWO))
    assert [_asked(stage, port) for port in (ONE, TWO, THREE)] == [403, 403, 403]
    _reload(stage, _guard("a", TWO), _guard("b", ONE))
    assert [_asked(stage, port) for port in (ONE, TWO, THREE)] == [403, 403, 200]


def test_a_guard_that_left_the_configuration_while_the_agent_was_dead_guards_nothing(stage: Stage) -> None:
    _configure(stage, _guard("a", ONE), _guard("b", TWO))
    stage.start()
    _configure(stage, _guard("b", TWO))
    old = stage.children()["agent"]
    os.kill(old[0], signal.SIGKILL)
    wait_until(lambda: stage.children()["agent"] not in ([], old))
    wait_until(lambda: stage.cli("status", check=False).returncode == 0)
    wait_until(lambda: [g["workers"] for g in stage.status["guards"]] == [1])
    assert [_asked(stage, port) for port in (ONE, TWO)] == [200, 403]


def test_the_end_of_an_off_does_not_guard_again_what_a_reload_took_out(stage: Stage) -> None:
    _configure(stage, _guard("a", ONE), _guard("b", TWO))
    stage.start()
    began, seconds = time.monotonic(), 4
    for seconds in (4, 30, 120):  # on a busy machine the reload takes longer than the first of them
        began = time.monotonic()
        stage.cli("off", "b", "--for", f"{seconds}s", "--reason", "moves to another host")
        _reload(stage, _guard("a", ONE))
        if time.monotonic() - began < seconds:
            break
        _reload(stage, _guard("a", ONE), _guard("b", TWO))
    assert _asked(stage, TWO) == 200
    time.sleep(max(0.0, seconds + 1 - (time.monotonic() - began)))
    with Steering(stage.arena.pins, stage.arena.netns.cookie) as steering:
        assert {index for _, index, _, _ in steering._guards()} == {0}
    assert _asked(stage, TWO) == 200


def _kept(port: int) -> None:
    """One connection, asked again and again; says each answer's first bytes, and how it ended."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        while True:
            try:
                sock.sendall(request("/collections", headers=()))
                got = sock.recv(65536)
            except OSError:
                got = b""
            tell(got[9:12])
            if not got:
                return
            time.sleep(0.1)


def _until_cut(client: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while client.said() != b"":
        assert time.monotonic() < deadline, "it still gets answers that nobody judged"


@pytest.mark.parametrize("before", ["no guard", "off"])
def test_who_connected_before_a_port_was_enforced_is_cut_at_the_reload(stage: Stage, before: str) -> None:
    _configure(stage, _guard("a", ONE), *[_guard("b", TWO)][: before == "off"])
    stage.start()
    if before == "off":
        stage.cli("off", "b", "--reason", "repair")
    client = stage.arena.fork(lambda: _kept(TWO), user="nobody")
    assert client.said() == b"200"
    if before == "off":
        stage.cli("on", "b")
    else:
        _reload(stage, _guard("a", ONE), _guard("b", TWO))
    _until_cut(client)


def test_who_was_passed_while_observed_is_cut_when_the_guard_goes_to_enforce(stage: Stage) -> None:
    _configure(stage, _guard("a", ONE, mode="observe"))
    stage.start()
    worker = stage.children()["proxy"][0]
    os.kill(stage.running.pid, signal.SIGSTOP)  # starts nothing again meanwhile
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: is_dead(worker), what="its listener is closed")
    client = stage.arena.fork(lambda: _kept(ONE), user="nobody")
    assert client.said() == b"200"
    os.kill(stage.running.pid, signal.SIGCONT)
    wait_until(lambda: [g["workers"] for g in stage.status["guards"]] == [1])
    assert stage.status["coverage"]["unobserved"] == 1
    _reload(stage, _guard("a", ONE))
    _until_cut(client)
