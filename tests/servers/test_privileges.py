# SPDX-License-Identifier: Apache-2.0
"""What the processes of a run may do, as the kernel tells it (architecture, section 2)."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.confine import AGENT_CAPABILITIES
from tests.servers.raw import request, say
from tests.servers.stage import ALLOW_ALL, Stage

HEARTBEAT = request("/api/v2/heartbeat")
SECCOMP_FILTER = "2"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage("chroma") as made:
        made.start_database()
        made.vecward(ALLOW_ALL)
        assert say(made, HEARTBEAT).status == 200
        yield made


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mask(capabilities: frozenset[int]) -> int:
    return sum(1 << one for one in capabilities)


def files(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(fd))
    return found


def children(pid: int) -> str:
    return "".join(task.joinpath("children").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


def peek(uid: int, pid: int) -> dict[str, str]:
    """What another process of the same user, without capability, may see of one."""
    program = """
import ctypes, os, pickle, sys
uid, pid = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
seen = {}
for name in ("environ", "mem", "fd", "root", "maps"):
    try:
        path = f"/proc/{pid}/{name}"
        os.listdir(path) if name in ("fd", "root") else open(path, "rb").read(1)
        seen[name] = "open"
    except OSError as error:
        seen[name] = type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
seen["ptrace"] = "open" if libc.ptrace(16, pid, 0, 0) == 0 else os.strerror(ctypes.get_errno())
sys.stdout.buffer.write(pickle.dumps(seen))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(uid), str(pid)], capture_output=True, check=True, timeout=90
    )
    found: dict[str, str] = pickle.loads(done.stdout)  # noqa: S301 - our own program wrote it
    return found


def test_workers_have_a_user_of_their_own_and_no_capability(stage: Stage) -> None:
    agent = status(stage.children()["agent"][0])["Uid"].split()
    for pid in stage.children()["proxy"]:
        told = status(pid)
        assert len(set(told["Uid"].split())) == 1
        assert told["Uid"].split()[0] not in ("0", "65534", agent[0])
        assert told["Gid"].split()[0] != "0"
        assert told["Groups"] == ""
        assert {told[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
        assert told["NoNewPrivs"] == "1"


def test_the_agent_has_four_capabilities_and_may_not_spy(stage: Stage) -> None:
    (pid,) = stage.children()["agent"]
    told = status(pid)
    assert told["Uid"].split()[0] != "0"
    wanted = mask(AGENT_CAPABILITIES)
    assert wanted.bit_count() == 4
    assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == int(told["CapBnd"], 16) == wanted
    assert int(told["CapInh"], 16) == int(told["CapAmb"], 16) == 0
    assert told["NoNewPrivs"] == "1"
    assert told["Seccomp"] == SECCOMP_FILTER


def test_no_process_of_the_same_user_can_look_into_them(stage: Stage) -> None:
    for pid in (*stage.children()["proxy"], *stage.children()["agent"]):
        uid = int(status(pid)["Uid"].split()[0])
        seen = peek(uid, pid)
        assert "open" not in seen.values(), seen
        # Not dumpable: what the kernel keeps of it in /proc is root's.
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0


def test_workers_start_no_children_and_hold_no_secret_file(stage: Stage) -> None:
    folder = str(stage.folder)
    for pid in stage.children()["proxy"]:
        assert children(pid).split() == []
        held = files(pid)
        assert any(name.startswith("socket:") for name in held)
        ours = [name for name in held if name.startswith(folder)]
        # Its own segments and the log that it was given as stderr; no policy, key, ledger or configuration.
        assert all("/evidence/streams/" in name or name == str(stage.log) for name in ours), ours
        assert not any(
            word in name for name in held for word in ("policy", "/keys", "ledger", ".yaml", "bpf")
        )
        # One opened for writing at the end alone, in the stream of this worker.
        assert len({Path(name).parent for name in ours if "/streams/" in name}) == 1


def test_the_agent_holds_no_connection_of_a_client(stage: Stage) -> None:
    (pid,) = stage.children()["agent"]
    inodes = {name[8:-1] for name in files(pid) if name.startswith("socket:[")}
    table = stage.arena.inside(
        lambda: [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6")]
    )
    established = {
        line.split()[9] for text in table for line in text.splitlines()[1:] if line.split()[3] == "01"
    }
    assert not inodes & established


def test_what_is_written_is_closed_to_other_users(stage: Stage) -> None:
    evidence = stage.folder / "evidence"
    assert evidence.stat().st_mode & 0o007 == 0
    for path in evidence.rglob("*"):
        assert path.suffix == ".pub" or path.stat().st_mode & 0o007 == 0, path
    for key in (evidence / "keys").iterdir():
        if "pub" not in key.name:
            assert key.stat().st_mode & 0o077 == 0, key
    worker = stage.folder / "run" / "worker.sock"
    assert worker.stat().st_mode & 0o007 == 0


def test_an_unprivileged_user_may_change_and_read_nothing(stage: Stage) -> None:
    def ask(command: str) -> dict[str, object]:
        import socket

        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(stage.folder / "run" / "control.sock"))
            sock.sendall(json.dumps({"command": command, "reason": "x", "session": "x"}).encode() + b"\n")
            answer: dict[str, object] = json.loads(sock.makefile().readline())
            return answer

    for command in ("off", "on", "reload", "kill", "status", "metrics"):
        answer = stage.arena.run(lambda command=command: ask(command), user="nobody")  # type: ignore[misc]
        assert answer["ok"] is False, command
        assert "only root" in str(answer["error"]) or "may not" in str(answer["error"])


def test_the_seccomp_filter_is_what_denies_ptrace() -> None:
    """The same filter in a process with every capability: ptrace of its own child is refused."""
    pid = os.fork()
    if pid == 0:
        from agent.confine import forbid_spying

        forbid_spying()
        libc = ctypes.CDLL(None, use_errno=True)
        refused = libc.ptrace(0, 0, 0, 0) == -1 and ctypes.get_errno() == 1
        os._exit(0 if refused else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
