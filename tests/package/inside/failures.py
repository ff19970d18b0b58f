# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on a machine: a killed or hung agent, killed workers, a full disk, a reboot.

Owns how each is made and that the service comes back as docs/architecture.md says. In every one of them
a user of no rule stays refused: none opens the guard.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from tests.package.inside import databases, life
from tests.package.inside.ground import (
    PATIENCE,
    Differs,
    holds,
    own_processes,
    run,
    shown,
    vecward,
    vecward_json,
    wait_until,
)

AGENT = life.AGENT
STATE = Path("/var/lib/vecward")


def kill_agent() -> None:
    before = _agent()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: _agent() not in (0, before) and _active(), "systemd starts another agent")
    _serves()


def kill_workers() -> None:
    before = _workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _workers() and not _workers() & before, "other workers serve")
    _serves()


def hang_agent() -> None:
    """Stopped for longer than its watchdog allows."""
    before = _agent()
    holds(
        int(shown(AGENT, "WatchdogUSec").removesuffix("s").replace("min", "") or 0) > 0,
        "the agent has a watchdog",
    )
    os.kill(before, signal.SIGSTOP)
    wait_until(
        lambda: _agent() not in (0, before) and _active(), "the watchdog ends a hung agent", 4 * PATIENCE
    )
    _serves()


def suspend_agent() -> None:
    """Stopped for a moment, as with a machine: nothing has to be started again."""
    before = _agent()
    holds(_is_answered("daemon"), "a plain request of the rule's user is answered")
    os.kill(before, signal.SIGSTOP)
    try:
        # Sessions that stand go on; new ones wait for it and are refused, also of those who may.
        holds(not _is_answered("daemon"), "somebody got past a stopped agent")
    finally:
        os.kill(before, signal.SIGCONT)
    _serves()
    holds(_agent() == before, "the same agent goes on")


def fill_disk() -> None:
    """Evidence cannot be written: in enforce with strict evidence nothing passes; with room it does again."""
    run("systemctl", "stop", "vecward.target")
    wait_until(lambda: not list(own_processes()), "stop ends all processes")
    STATE.mkdir(exist_ok=True)
    owner = STATE.stat()
    run("mount", "-t", "tmpfs", "-o", f"size=96M,mode={owner.st_mode & 0o777:o}", "tmpfs", str(STATE))
    os.chown(STATE, owner.st_uid, owner.st_gid)
    try:
        run("systemctl", "start", "vecward.target")
        wait_until(life._guarded, "the guards stand on the small disk")
        _serves()
        run("sh", "-c", f"cat /dev/zero >{STATE}/filler", code=None)
        wait_until(_refuses, "a full disk refuses rather than not record")
        (STATE / "filler").unlink()
        _serves()
        print(vecward("verify", code=None), flush=True)
    finally:
        run("systemctl", "stop", "vecward.target")
        wait_until(lambda: not list(own_processes()), "stop ends all processes")
        run("umount", str(STATE))
        run("systemctl", "start", "vecward.target")
    wait_until(life._guarded, "the guards stand on the whole disk")
    _serves()


def jump_clock() -> None:
    """An hour forward and back: in a machine of its own only, the clock of a container is the host's."""
    for jump in ("+1 hour", "-2 hours", "+1 hour"):
        now = float(run("date", "+%s").stdout) + {"+": 3600, "-": -3600}[jump[0]] * int(jump[1])
        run("date", "-s", f"@{now:.0f}")
        _serves()
    print(vecward("verify"), flush=True)


def starve_agent() -> None:
    """The kernel kills it for want of memory: its own bound, made too small for a moment."""
    before = _agent()
    run("systemctl", "set-property", "--runtime", AGENT, "MemoryMax=8M", "MemorySwapMax=0")
    wait_until(lambda: _agent() != before or not _active(), "the kernel ends it")
    run("systemctl", "set-property", "--runtime", AGENT, "MemoryMax=infinity")
    wait_until(lambda: _agent() not in (0, before) and _active(), "systemd starts another agent")
    _serves()


def before_reboot() -> None:
    holds(len(vecward_json("sessions")) > 0, "there is something to find again")
    (STATE / "count").unlink(missing_ok=True)
    Path("/rig/state/sessions").write_text(str(len(vecward_json("sessions", "--limit", "1000"))))


def after_reboot() -> None:
    wait_until(_active, "the agent starts with the machine")
    databases.prepare()
    databases.start_chroma()
    databases.start_postgres()
    _serves()
    count = int(Path("/rig/state/sessions").read_text())
    wait_until(
        lambda: len(vecward_json("sessions", "--limit", "1000")) > count,
        "sessions of both boots are on record",
    )
    print(vecward("verify"), flush=True)


def _agent() -> int:
    return int(shown(AGENT, "MainPID"))


def _active() -> bool:
    return shown(AGENT, "ActiveState") == "active"


def _workers() -> set[int]:
    return {int(worker["pid"]) for worker in vecward_json("status")["workers"]} & set(own_processes())


def _is_answered(user: str) -> bool:
    """A plain request, from a fork: the start of a client may take longer than the watchdog waits."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            known = pwd.getpwnam(user)
            os.setgroups([])
            os.setgid(known.pw_gid)
            os.setuid(known.pw_uid)
            address = "127.0.0.1", databases.CHROMA_PORT
            with socket.create_connection(address, timeout=PATIENCE) as sock:
                sock.sendall(
                    b"GET /api/v2/heartbeat HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                )
                code = int(not sock.recv(4096).startswith(b"HTTP/1.1 200"))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _serves() -> None:
    """Users of the rule are served, others are not, and `status` answers."""

    def once() -> bool:
        done = databases.chroma_client("daemon", code=None)
        return done.returncode == 0 and databases.psql("daemon", code=None).returncode == 0

    wait_until(once, "its users are served again")
    done = databases.chroma_client("nobody", code=None)
    holds(done.returncode != 0, f"nobody was let through: {done.stdout}")
    wait_until(lambda: vecward("status"), "status answers")


def _refuses() -> bool:
    done = databases.chroma_client("daemon", code=None)
    if done.returncode == 0:
        raise Differs(f"still served: {done.stdout}")
    return True


_ALL = (kill_agent, kill_workers, hang_agent, suspend_agent, fill_disk, jump_clock, starve_agent)
STEPS: dict[str, Callable[[], None]] = {step.__name__: step for step in (*_ALL, before_reboot, after_reboot)}
