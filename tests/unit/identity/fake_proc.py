# SPDX-License-Identifier: Apache-2.0
"""A /proc tree in a temporary folder, and kernel records that fit it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.identity.record import UNSET_ID, FileId, HostFacts, KernelRecord

TICK_NS = 10_000_000
USER_NS, MNT_NS, PID_NS, NET_NS = "user", "mnt", "pid", "net"


class FakeProc:
    """``proc/`` and ``root/`` below a folder. Namespaces are files: their inode number is the namespace."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.files, self.spaces = folder / "proc", folder / "files", folder / "spaces"
        for made in (self.proc, self.files, self.spaces):
            made.mkdir()
        for name in (USER_NS, MNT_NS, PID_NS, NET_NS):
            (self.spaces / name).touch()

    def space(self, name: str) -> int:
        (self.spaces / name).touch()
        return (self.spaces / name).stat().st_ino

    @property
    def host(self) -> HostFacts:
        return HostFacts(
            proc=str(self.proc),
            root="",
            user_ns=self.space(USER_NS),
            mnt_ns=self.space(MNT_NS),
            pid_ns=self.space(PID_NS),
            cgroup_mount=None,
            root_cgroup=1,
            systemd_v1=False,
            ticks=100,
        )

    def program(self, name: str, content: bytes = b"\x7fELF") -> Path:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def process(
        self,
        pid: int,
        exe: Path | None,
        *,
        start: int = 1000,
        ppid: int = 0,
        comm: str = "app",
        state: str = "S",
        argv: Sequence[str] = ("app",),
        groups: Sequence[int] = (),
        cgroup: str = "0::/system.slice/app.service\n",
        pid_ns: str = PID_NS,
        tty: int = 0,
    ) -> Path:
        folder = self.proc / str(pid)
        (folder / "ns").mkdir(parents=True)
        numbers = [str(ppid), "1", "1", str(tty), *["0"] * 14, str(start), *["0"] * 5]
        (folder / "stat").write_text(f"{pid} ({comm}) {state} " + " ".join(numbers))
        (folder / "status").write_text(
            f"Name:\t{comm}\nGroups:\t{' '.join(map(str, groups))} \nVmPeak:\t1 kB\n"
        )
        (folder / "cmdline").write_bytes(b"\0".join(arg.encode() for arg in argv) + b"\0")
        (folder / "cgroup").write_text(cgroup)
        (folder / "cwd").symlink_to("/srv")
        if exe is not None:
            (folder / "exe").symlink_to(exe)
        for name, space in ((USER_NS, USER_NS), (MNT_NS, MNT_NS), (NET_NS, NET_NS), (PID_NS, pid_ns)):
            self.space(space)
            (folder / "ns" / name).symlink_to(self.spaces / space)
        return folder

    def record(self, pid: int, exe: Path | None, **changes: Any) -> KernelRecord:
        values: dict[str, Any] = {
            "tgid": pid, "start_ns": 1000 * TICK_NS, "uid": 1000, "gid": 1000, "euid": 1000,
            "login_uid": UNSET_ID, "audit_session": UNSET_ID, "cgroup_id": 77, "netns_cookie": 1,
            "comm": "app", "exe": file_id(exe) if exe is not None else None, "parent_tgid": 0,
            "parent_start_ns": 0, "connect_ns": 2000 * TICK_NS, "mnt_ns": self.space(MNT_NS),
            "user_ns": self.space(USER_NS), "net_ns": self.space(NET_NS),
        }  # fmt: skip
        return KernelRecord(**(values | changes))


def file_id(path: Path) -> FileId:
    found = os.stat(path)
    return FileId(found.st_dev, found.st_ino, found.st_ctime_ns)
