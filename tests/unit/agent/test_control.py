# SPDX-License-Identifier: Apache-2.0
"""The control socket: who may ask what, and what a bad request meets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent import control as control_module
from agent.control import MAX_REQUEST, Caller, Command, ControlError, ControlServer, caller_of
from tests.unit.agent.turning import run

NOBODY = 65534
READERS = 4711


async def _read(request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return {"asked": request.get("what"), "by": caller.uid}


async def _change(request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    return {"changed": True}


async def _refuse(request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    raise ControlError("not now", "try later")


async def _break(request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    raise ZeroDivisionError("oops")


COMMANDS = {
    "read": Command(_read),
    "change": Command(_change, changes=True),
    "refuse": Command(_refuse),
    "break": Command(_break),
}


@contextlib.asynccontextmanager
async def serving(folder: Path, read_gid: int | None = READERS) -> AsyncIterator[Path]:
    server = ControlServer(folder / "control.sock", read_gid, COMMANDS)
    await server.start()
    try:
        yield folder / "control.sock"
    finally:
        await server.close()
    assert not (folder / "control.sock").exists()


async def say(path: Path, data: bytes) -> dict[str, Any] | None:
    """The answer to one line; None where the connection was closed instead."""
    reader, writer = await asyncio.open_unix_connection(os.fspath(path))
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        try:
            line = await reader.readline()
        except ConnectionError:
            return None
        return json.loads(line) if line else None
    finally:
        writer.close()


async def ask(path: Path, command: str, **arguments: Any) -> dict[str, Any] | None:
    return await say(path, json.dumps({"command": command, **arguments}).encode() + b"\n")


def as_caller(monkeypatch: pytest.MonkeyPatch, uid: int, gid: int, *groups: int) -> None:
    """From here on who asks is this user."""
    held = frozenset({gid, *groups})
    monkeypatch.setattr(control_module, "caller_of", lambda sock: Caller(1, uid, gid, None, held))


def test_root_and_the_agents_user_may_read_and_change(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path) as path:
            assert await ask(path, "read", what=7) == {"ok": True, "asked": 7, "by": os.geteuid()}
            assert await ask(path, "change") == {"ok": True, "changed": True}

    run(story)


def test_members_of_the_read_group_may_read_and_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_caller(monkeypatch, NOBODY, READERS)

    async def story() -> None:
        async with serving(tmp_path) as path:
            assert (await ask(path, "read") or {})["ok"]
            refused = await ask(path, "change")
            assert refused == {"ok": False, "error": "only root may do this", "hint": "run it with sudo"}

    run(story)


@pytest.mark.parametrize("read_gid", [READERS, None])
@pytest.mark.parametrize("uid", [NOBODY, 4_000_000])  # a user, and an id without a name
def test_others_may_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_gid: int | None, uid: int
) -> None:
    as_caller(monkeypatch, uid, NOBODY)

    async def story() -> None:
        async with serving(tmp_path, read_gid) as path:
            for command in ("read", "change"):
                refused = await ask(path, command) or {}
                assert not refused["ok"]
                assert "asked" not in refused
                assert "changed" not in refused

    run(story)


def test_a_supplementary_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_caller(monkeypatch, NOBODY, NOBODY, READERS)

    async def story() -> None:
        async with serving(tmp_path) as path:
            assert (await ask(path, "read") or {})["ok"]

    run(story)


def test_the_kernel_says_who_asks() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        caller = caller_of(ours)
    assert (caller.pid, caller.uid, caller.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert caller.login_uid != 0xFFFFFFFF
    assert caller.groups == {os.getegid(), *os.getgroups()}


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"command":"rm"}\n', "unknown command 'rm'"),
        (b"{}\n", "unknown command None"),
        (b'{"command":["read"]}\n', "unknown command"),
        (b"[1]\n", "not a request"),
        (b"\xff\xfe\n", "not a request"),
        (b"{" * 60_000 + b"\n", ""),
        (b'{"command":"refuse"}\n', "not now"),
        (b'{"command":"break"}\n', "ZeroDivisionError in the agent: oops"),
    ],
)
def test_a_bad_request_is_answered_with_the_reason(tmp_path: Path, line: bytes, error: str) -> None:
    async def story() -> None:
        async with serving(tmp_path) as path:
            answer = await say(path, line) or {}
            assert answer["ok"] is False
            assert error in answer["error"]
            assert (await ask(path, "read") or {})["ok"], "it goes on serving"

    run(story)


def test_a_request_over_the_bound_is_not_read_to_its_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path) as path:
            assert await say(path, b'{"command":"read","what":"' + b"x" * MAX_REQUEST * 4) is None
            assert (await ask(path, "read") or {})["ok"]

    run(story)


def test_a_request_that_does_not_arrive_in_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "REQUEST_TIMEOUT", 0.02)

    async def story() -> None:
        async with serving(tmp_path) as path:
            assert await say(path, b'{"command":') is None

    run(story)


def test_idle_connections_of_users_do_not_keep_root_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "MAX_CLIENTS", 3)
    as_caller(monkeypatch, NOBODY, NOBODY)

    async def story() -> None:
        async with serving(tmp_path) as path:
            idle = [await asyncio.open_unix_connection(os.fspath(path)) for _ in range(3)]
            assert await ask(path, "read") is None, "the bound holds"
            as_caller(monkeypatch, 0, 0)
            assert (await ask(path, "change") or {})["ok"]
            for _, writer in idle:
                writer.close()

    run(story)


def test_several_requests_of_one_client_are_answered_in_order(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path) as path:
            reader, writer = await asyncio.open_unix_connection(os.fspath(path))
            for n in range(3):
                writer.write(json.dumps({"command": "read", "what": n}).encode() + b"\n")
            got = [json.loads(await reader.readline())["asked"] for _ in range(3)]
            assert got == [0, 1, 2]
            writer.close()

    run(story)


def test_the_command_line_gets_the_refusal_as_an_error(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving(tmp_path) as path:
            answer = await asyncio.to_thread(control_module.ask, path, "read", what="x")
            assert answer == {"asked": "x", "by": os.geteuid()}
            with pytest.raises(ControlError) as refused:
                await asyncio.to_thread(control_module.ask, path, "refuse")
            assert (refused.value.message, refused.value.hint) == ("not now", "try later")
        with pytest.raises(OSError, match="No such file"):
            await asyncio.to_thread(control_module.ask, path, "read")

    run(story)


def test_a_socket_left_by_an_agent_that_died_is_taken_over(tmp_path: Path) -> None:
    async def story() -> None:
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(os.fspath(tmp_path / "control.sock"))
        stale.close()
        async with serving(tmp_path) as path:
            assert (await ask(path, "read") or {})["ok"]

    run(story)
