# SPDX-License-Identifier: Apache-2.0
"""Where the demo happens: a cgroup, a network namespace and a folder of its own, or this host itself.

Owns the processes it starts and takes everything away when it is left, however that happens. Knows nothing of
the story. On the host it adds one folder, one pin directory and one cgroup, and refuses a port in use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from agent.kernel import attach as kernel
from agent.kernel import syscalls
from tests.kernel.arena import Arena, sweep
from tests.machine import why_no_steering

PREFIX = "vecward-demo-"
PORT = 8000  # Chroma's own default
_PR_SET_PDEATHSIG = 1
_Result = TypeVar("_Result")
_libc = ctypes.CDLL(None, use_errno=True)


class Cannot(Exception):
    """Why the demo cannot run here, in a line."""


class Ground:
    """``with Ground(on_host=False) as ground``: `folder`, `cgroup`, `pins`, `popen`."""

    def __init__(self, on_host: bool) -> None:
        self.on_host = on_host
        self.name = f"{PREFIX}{os.getpid()}"
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Ground:
        if why := why_no_steering():
            raise Cannot(why)
        try:
            sweep(PREFIX)
            self._arena = None if self.on_host else self.stack.enter_context(Arena(self.name))
            self.cgroup = kernel.find_cgroup2_root() if self._arena is None else self._arena.cgroup
            self.pins = kernel.BPFFS / self.name
            if self._arena is None:
                _check_host()
                self.stack.callback(kernel.detach, self.pins)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self.folder.chmod(0o755)
            self.stack.callback(self._sweep_folder)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    @property
    def keep(self) -> Path:
        """A folder for what the person may want to look at afterwards; it stays."""
        path = self.folder / "keep"
        path.mkdir(exist_ok=True, mode=0o700)
        return path

    def describe(self) -> list[str]:
        if self._arena is None:
            return [
                "network    this host's own (HOST=1)",
                f"cgroup     this host's root, {self.cgroup}; only what goes to port {PORT} is steered",
            ]
        return [
            f"network    a namespace of its own with only a loopback (process {self._arena.netns.pid})",
            f"cgroup     {self.cgroup}; nothing outside of it is steered",
        ]

    # -- processes ---------------------------------------------------------------------------------

    def popen(
        self, argv: Sequence[str], user: str | None = None, group: str | None = "clients", **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start it on the ground. ^C does not reach it (the demo ends it); it is killed with the ground."""
        if self._arena is not None:
            return self._arena.popen(argv, user=user, group=group, start_new_session=True, **options)
        process = subprocess.Popen(argv, preexec_fn=_as_user(user), start_new_session=True, **options)
        self.stack.callback(_kill, process)
        return process

    def links(self) -> set[int]:
        """Ids of the BPF links pinned for this ground."""
        found = set()
        for path in (self.pins / "links").iterdir() if (self.pins / "links").is_dir() else ():
            descriptor = syscalls.object_get(path)
            try:
                found.add(int.from_bytes(syscalls.link_info(descriptor)[4:8], "little"))
            finally:
                os.close(descriptor)
        return found

    def network(self) -> int:
        """Inode of the network namespace everything runs in."""
        pid: int | str = "self" if self._arena is None else self._arena.netns.pid
        return os.stat(f"/proc/{pid}/ns/net").st_ino

    def _sweep_folder(self) -> None:
        """All but what was kept."""
        kept = self.folder / "keep"
        for path in self.folder.iterdir():
            if path == kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not kept.exists():
            self.folder.rmdir()


def pick_users() -> tuple[str, str, str]:
    """Three system users that exist: the application, the nosy one, and the database's own."""
    there = [u for u in ("www-data", "games", "nobody", "backup", "daemon", "bin", "mail") if _uid(u)]
    if len(there) < 3:
        raise Cannot(
            "three of the system users www-data, games, nobody, backup, daemon, bin, mail must exist"
        )
    return there[0], there[1], there[2]


def _uid(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return 0


def _check_host() -> None:
    """Refuse a port that anybody listens on, and a host that is steered already."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == PORT:  # TCP_LISTEN
                raise Cannot(
                    f"port {PORT} is in use on this host; stop what listens there, or leave HOST=1 out"
                )
    if (kernel.BPFFS / "vecward").exists():
        raise Cannot("a Vecward steers this host already; leave HOST=1 out")


def _as_user(user: str | None) -> Callable[[], None]:
    entry = None if user is None else pwd.getpwnam(user)

    def enter() -> None:
        if entry is not None:
            os.setgroups([])
            os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
            os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after changing credentials, which clears it

    return enter


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def inhabited(network: int) -> list[int]:
    """Pids of the processes in a network namespace, by its inode."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and (path / "ns" / "net").stat().st_ino == network:
                found.append(int(path.name))
    return found
