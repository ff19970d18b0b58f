# SPDX-License-Identifier: Apache-2.0
"""The Subject of a process that lives now, by its number: what the agent would say if it connected now.

Owns the record that stands in for the kernel's: it is read from /proc, held to one process by its open
directory and start time. The agent's own `Identifier` does the rest, so that nothing is attested in another
way here. Bias: for people who ask why, never for a decision over a connection.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace

from agent.identity.host import read_host
from agent.identity.identifier import Identifier, Sources
from agent.identity.process import (
    MAX_SMALL,
    MAX_STATUS,
    ProcessGone,
    Stat,
    open_process,
    parse_cgroups,
    read_bounded,
    text,
)
from agent.identity.record import NS_PER_S, UNSET_ID, FileId, HostFacts, KernelRecord
from policy.model import Subject

NOT_KNOWN = {
    "connect": "it is judged as it is now; the kernel records it when it connects",
    "exec": "the agent's record of every execve: an executable exchanged without one (prctl), or a parent "
    "that executed another program since, is not noticed",
    "self": "whether it shares a cgroup with the database: `self` counts as not obtained",
    "route": "the connection: it is taken as one of this host, through no NAT and no TLS",
}
"""What the agent knows of a connecting process and a command does not, and what that means."""

_LOOPBACK = "127.0.0.1"


def identify_process(pid: int, host: HostFacts | None = None) -> Subject:
    """The Subject of the living process `pid`, its executable hashed.

    :raises ProcessGone: there is no such process, or it ended meanwhile.
    :raises PermissionError: it is another user's and this is not root.
    """
    facts = host if host is not None else read_host()
    record = read_record(pid, facts)
    subject = asyncio.run(_identify(record, facts))
    with open_process(facts.proc, pid, record.start_ns // (NS_PER_S // facts.ticks)):
        pass  # still the same process: what was read is of it
    return replace(subject, unobtained=subject.unobtained | {"is_self"})


async def _identify(record: KernelRecord, host: HostFacts) -> Subject:
    sources = Sources(lambda *_: record, lambda _: (), lambda *_: None)
    identifier = Identifier(sources, host)
    try:
        return await identifier.identify(record.netns_cookie, _LOOPBACK, 0, _LOOPBACK, 0, want_sha256=True)
    finally:
        identifier.close()


def read_record(pid: int, host: HostFacts) -> KernelRecord:
    """What cgroup/connect would write for this process now. Raises as `identify_process`."""
    if not os.path.exists(f"{host.proc}/{pid}"):
        raise ProcessGone("there is none of this number")
    with open_process(host.proc, pid, None) as (fd, stat):
        if stat.zombie:
            raise ProcessGone("the process has ended")
        try:
            return _record(pid, fd, stat, host)
        except (ProcessLookupError, FileNotFoundError) as exc:
            raise ProcessGone("the process ended while it was read") from exc


def _record(pid: int, fd: int, stat: Stat, host: HostFacts) -> KernelRecord:
    tick = NS_PER_S // host.ticks
    status = read_bounded("status", MAX_STATUS, fd)
    uid, euid = _ids(status, b"Uid")
    gid, _ = _ids(status, b"Gid")
    return KernelRecord(
        tgid=pid,
        start_ns=stat.start_ticks * tick,
        uid=uid,
        gid=gid,
        euid=euid,
        login_uid=_number("loginuid", fd),
        audit_session=_number("sessionid", fd),
        cgroup_id=_cgroup_id(fd, host),
        netns_cookie=0,
        comm=text(read_bounded("comm", MAX_SMALL, fd).rstrip(b"\n")),
        exe=_executable(fd),
        parent_tgid=stat.ppid,
        parent_start_ns=_start_ticks(stat.ppid, host) * tick,
        connect_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        mnt_ns=_namespace("mnt", fd),
        user_ns=_namespace("user", fd),
        net_ns=_namespace("net", fd),
        pid_ns=_namespace("pid", fd),
    )


def _ids(status: bytes, name: bytes) -> tuple[int, int]:
    """(real, effective) of a ``Uid:`` or ``Gid:`` line (proc(5))."""
    start = status.index(b"\n" + name + b":") + len(name) + 2
    words = status[start : status.index(b"\n", start)].split()
    return int(words[0]), int(words[1])


def _number(name: str, fd: int) -> int:
    """``loginuid`` or ``sessionid``; unset where the kernel has no audit."""
    try:
        return int(read_bounded(name, MAX_SMALL, fd))
    except (FileNotFoundError, ValueError):
        return UNSET_ID


def _cgroup_id(fd: int, host: HostFacts) -> int:
    """The inode of its cgroup is the id (fs/kernfs); 0, which no cgroup has, where it cannot be found."""
    path, _ = parse_cgroups(read_bounded("cgroup", MAX_SMALL, fd))
    if host.cgroup_mount is None or path is None or ".." in path.split("/"):
        return 0
    try:
        return os.stat(host.cgroup_mount + path, follow_symlinks=False).st_ino
    except OSError:
        return 0


def _executable(fd: int) -> FileId | None:
    try:
        found = os.stat("exe", dir_fd=fd)
    except FileNotFoundError:
        return None  # a kernel thread
    return FileId(found.st_dev, found.st_ino, found.st_ctime_ns)


def _namespace(name: str, fd: int) -> int:
    return os.stat(f"ns/{name}", dir_fd=fd).st_ino


def _start_ticks(pid: int, host: HostFacts) -> int:
    try:
        with open_process(host.proc, pid, None) as (_, stat):
            return stat.start_ticks
    except ProcessGone:
        return 0
