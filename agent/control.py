# SPDX-License-Identifier: Apache-2.0
"""The control socket: what the command line asks of a running agent.

One JSON object a line in, one out, over a Unix socket. Owns who may ask what: reading is for root, the
agent's user and members of `read_group`; changing is for root and the agent's user. The kernel says
who asks (SO_PEERCRED). Bounds: 64 KiB a request, 64 clients, 30 s for a request to arrive.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

SO_PEERGROUPS = 59  # asm-generic/socket.h: the kernel's word, no name service is asked
MAX_PEERGROUPS = 1024  # bytes that socket.getsockopt takes: 256 groups
MAX_REQUEST = 64 * 1024
MAX_CLIENTS = 64
REQUEST_TIMEOUT = 30.0
ANSWER_TIMEOUT = 30.0


class ControlError(Exception):
    """A command that is refused or cannot be done; the text goes to whoever asked."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by the kernel's word."""

    pid: int
    uid: int
    gid: int
    login_uid: int | None
    groups: frozenset[int] = frozenset()

    def as_dict(self) -> dict[str, int | None]:
        return {"pid": self.pid, "uid": self.uid, "login_uid": self.login_uid}


@dataclass(frozen=True, slots=True)
class Command:
    run: Callable[[Mapping[str, Any], Caller], Awaitable[dict[str, Any]]]
    changes: bool = False


class ControlServer:
    """Serves `commands` on `path` until closed."""

    def __init__(self, path: Path, read_gid: int | None, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._read_gid = read_gid
        self._commands = commands
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(os.fspath(self._path))
        # Everyone may connect; what they may ask is decided by who they are.
        self._path.chmod(0o666)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_REQUEST)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        caller = caller_of(writer.get_extra_info("socket"))
        # Every user may connect; that must not keep out who opens the way again at 3 a.m.
        if task is None or (len(self._clients) >= MAX_CLIENTS and not _is_master(caller)):
            writer.close()
            return
        self._clients.add(task)
        try:
            while True:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    line = await reader.readline()
                if not line:
                    return
                writer.write(msgspec.json.encode(await self._answer(line, caller)) + b"\n")
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await writer.drain()
        except (TimeoutError, ValueError, OSError):
            return  # too slow, too long, or gone: nothing that it could still be told
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes, caller: Caller) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            command = self._commands.get(str(request.get("command")))
            if command is None:
                raise ControlError(f"unknown command {request.get('command')!r}")
            self._check(command, caller)
            return {"ok": True, **await command.run(request, caller)}
        except ControlError as error:
            return {"ok": False, "error": error.message, "hint": error.hint}
        except msgspec.DecodeError as error:
            return {"ok": False, "error": f"not a request: {error}", "hint": ""}
        except Exception as error:
            return {
                "ok": False,
                "error": f"{type(error).__name__} in the agent: {error}",
                "hint": "see the journal",
            }

    def _check(self, command: Command, caller: Caller) -> None:
        if _is_master(caller):
            return
        if command.changes:
            raise ControlError("only root may do this", "run it with sudo")
        if self._read_gid is None or self._read_gid not in caller.groups:
            raise ControlError(
                "this user may not read here", "root adds it to the group of `control.read_group`"
            )


def caller_of(sock: socket.socket) -> Caller:
    """The peer of a connected Unix socket; its login uid is read while the connection stands."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("3i", raw)
    try:
        login = int(Path(f"/proc/{pid}/loginuid").read_text())
    except (OSError, ValueError):
        login = 0xFFFFFFFF
    groups = frozenset({gid, *_groups(sock, pid)})
    return Caller(pid, uid, gid, None if login == 0xFFFFFFFF else login, groups)


def _groups(sock: socket.socket, pid: int) -> list[int]:
    """The peer's supplementary groups; more than one call takes are read from /proc."""
    try:
        return list(array.array("I", sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_PEERGROUPS)))
    except OSError:
        pass  # ERANGE: more groups than fit
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    line = next((x for x in status.splitlines() if x.startswith("Groups:")), "Groups:")
    return [int(number) for number in line.split()[1:]]


def _is_master(caller: Caller) -> bool:
    return caller.uid in (0, os.geteuid())


async def _ask(path: Path, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_unix_connection(os.fspath(path), limit=64 * 2**20)
        try:
            writer.write(msgspec.json.encode(request) + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
    if not line:
        raise ConnectionError("the agent closed the connection")
    return msgspec.json.decode(line, type=dict[str, Any])


def ask(path: Path, command: str, /, **arguments: Any) -> dict[str, Any]:
    """One request from the command line, with its arguments; at most `ANSWER_TIMEOUT`.

    Raises OSError or TimeoutError where no agent answers, ControlError when it refuses.
    """
    answer = asyncio.run(_ask(path, {"command": command, **arguments}, ANSWER_TIMEOUT))
    if not answer.pop("ok", False):
        raise ControlError(str(answer.get("error")), str(answer.get("hint", "")))
    return answer
