# SPDX-License-Identifier: Apache-2.0
"""Reads one process from /proc, never another that has since taken its number.

The guard is the open /proc/PID directory: like a pidfd it stays bound to one process (reads answer
ESRCH once that process is gone, whatever has its number since), and field 22 of ``stat`` read
through it must be the kernel record's start time. psutil is not used here: it opens by number for
every field. Everything read is data of a possibly hostile process: bounded, and in an order that
leaves ``cmdline`` (which reads the process's own memory, and can be made to hang by its owner)
for last. Nothing here decides what is attested.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from agent.identity.arguments import MAX_BYTES, find_script, parse_cmdline
from agent.identity.record import NS_PER_S

MAX_PARENTS = 16
MAX_STATUS = 1 << 20  # 65,536 supplementary groups fit
MAX_SMALL = 16 * 1024

State = Literal["live", "gone", "replaced"]


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One process above the caller: its number, start in ticks, its exe link's text and its file."""

    pid: int
    start_ticks: int
    ppid: int
    exe_link: bytes | None
    exe_stat: os.stat_result | None = None


@dataclass(slots=True)
class Reading:
    """What /proc gave. Filled field by field, so that a reader that hangs still leaves the rest.

    A field is a value, or None with an entry in `missing` that says why.
    """

    state: State = "gone"
    exe_link: bytes | None = None
    exe_stat: os.stat_result | None = None
    namespaces: dict[str, int] = field(default_factory=dict)
    cgroup_v2: str | None = None
    cgroup_systemd: str | None = None
    groups: tuple[int, ...] | None = None
    cwd: str | None = None
    tty: str | None = None
    argv: tuple[str, ...] | None = None
    script: str | None = None
    missing: dict[str, str] = field(default_factory=dict)


ENDED = "the process ended before it could be read"
REPLACED = "the process ended and its number belongs to another one now"


class ProcessGone(Exception):
    """The process with this number and start time does not exist any more."""


def text(raw: bytes) -> str:
    """A path or name for the record: UTF-8, other bytes as ``\\xNN``."""
    return raw.decode("utf-8", "backslashreplace")


def read_bounded(name: str, limit: int, dir_fd: int) -> bytes:
    """At most `limit` bytes of a /proc file below `dir_fd`; OSError as open(2) and read(2) give it."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=dir_fd)
    try:
        parts = []
        while limit > 0 and (part := os.read(fd, min(limit, 65536))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of /proc/PID/stat that are used (proc(5) numbers: 3, 4, 7, 22)."""

    zombie: bool
    ppid: int
    tty: int
    start_ticks: int


def parse_stat(raw: bytes) -> Stat:
    """Parse /proc/PID/stat. comm may hold spaces and parentheses: fields count from the last ``)``.

    :raises ValueError: the line is not what proc(5) describes.
    """
    fields = raw[raw.rindex(b")") + 2 :].split()
    return Stat(fields[0] in (b"Z", b"X"), int(fields[1]), int(fields[4]), int(fields[19]))


def ticks_of(start_ns: int, ticks: int) -> int:
    """ns since boot in the unit of field 22 (nsec_to_clock_t rounds down)."""
    return start_ns // (NS_PER_S // ticks)


@contextmanager
def open_process(proc: str, pid: int, start_ticks: int | None) -> Iterator[tuple[int, Stat]]:
    """Hold the /proc directory of the process with this number *and* start time.

    :raises ProcessGone: it ended, or the number belongs to another process now.
    """
    try:
        fd = os.open(f"{proc}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise ProcessGone(ENDED) from exc
    try:
        try:
            stat = parse_stat(read_bounded("stat", MAX_SMALL, fd))
        except (OSError, ValueError, IndexError) as exc:
            raise ProcessGone(ENDED) from exc
        if start_ticks is not None and stat.start_ticks != start_ticks:
            raise ProcessGone(REPLACED)
        yield fd, stat
    finally:
        os.close(fd)


def tty_name(device: int) -> str | None:
    """The terminal of a tty_nr (proc(5) field 7): ``pts/3``, ``tty1``, ``ttyS0``; None without one."""
    major, minor = (device >> 8) & 0xFFF, (device & 0xFF) | ((device >> 12) & 0xFFF00)
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    return None if device == 0 else f"{major}:{minor}"


def _why(exc: OSError) -> str:
    if isinstance(exc, ProcessLookupError | FileNotFoundError):
        return "the process ended while it was read"
    return f"not readable: {exc.strerror}"


def parse_cgroups(raw: bytes) -> tuple[str | None, str | None]:
    """(path in cgroup v2, path in the v1 hierarchy ``name=systemd``) from /proc/PID/cgroup."""
    v2 = v1 = None
    for line in raw.decode("utf-8", "backslashreplace").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            v2 = path
        elif controllers == "name=systemd":
            v1 = path
    return v2, v1


def parse_groups(raw: bytes) -> tuple[int, ...]:
    """Supplementary group ids from /proc/PID/status. :raises ValueError: there is no such line."""
    start = raw.index(b"\nGroups:") + 8
    return tuple(int(gid) for gid in raw[start : raw.index(b"\n", start)].split())


def climb(proc: str, pid: int, start_ticks: int) -> Iterator[Ancestor]:
    """Walk up from `pid`, at most `MAX_PARENTS`, from a process that started at `start_ticks`.

    A parent that started later than its child is another process by the same number: stop.
    """
    for _ in range(MAX_PARENTS):
        if pid <= 0:
            return
        try:
            with open_process(proc, pid, None) as (fd, stat):
                if stat.start_ticks > start_ticks:
                    return
                try:
                    link, found = os.readlink(b"exe", dir_fd=fd), os.stat("exe", dir_fd=fd)
                except OSError:  # a kernel thread, or it just ended
                    yield Ancestor(pid, stat.start_ticks, stat.ppid, None)
                else:
                    yield Ancestor(pid, stat.start_ticks, stat.ppid, link, found)
                pid, start_ticks = stat.ppid, stat.start_ticks
        except ProcessGone:
            return


def read_links(fd: int, reading: Reading) -> None:
    """Executable, working directory and pid namespace of the process whose /proc directory is `fd`."""
    try:
        reading.exe_link = os.readlink(b"exe", dir_fd=fd)
        reading.exe_stat = os.stat("exe", dir_fd=fd)  # the running file itself, whatever the text says
    except OSError as exc:
        reading.missing["exe"] = _why(exc)
    try:
        reading.cwd = text(os.readlink(b"cwd", dir_fd=fd))
    except OSError as exc:
        reading.missing["cwd"] = _why(exc)
    for name in ("pid", "user"):
        try:
            reading.namespaces[name] = os.stat(f"ns/{name}", dir_fd=fd).st_ino
        except OSError as exc:
            reading.missing[f"{name}_ns"] = _why(exc)


def read_groups(fd: int, reading: Reading) -> None:
    """Supplementary groups, as the kernel has them now."""
    try:
        reading.groups = parse_groups(read_bounded("status", MAX_STATUS, fd))
    except OSError as exc:
        reading.missing["groups"] = _why(exc)
    except ValueError:
        reading.missing["groups"] = "no Groups line in status"


def read_cgroups(fd: int, reading: Reading) -> None:
    """Where the process is now in cgroup v2 and in systemd's own hierarchy."""
    try:
        reading.cgroup_v2, reading.cgroup_systemd = parse_cgroups(read_bounded("cgroup", MAX_SMALL, fd))
    except OSError as exc:
        reading.missing["cgroup"] = _why(exc)


def read_memory(fd: int, reading: Reading) -> None:
    """`argv` and `script`. May hang for as long as the process likes: it reads its memory."""
    for name in ("argv", "script"):
        reading.missing[name] = "reading the process's memory took too long"
    argv: tuple[str, ...] = ()
    script = None
    try:
        argv = parse_cmdline(read_bounded("cmdline", MAX_BYTES + 1, fd))
        script, why_script = find_script(argv, reading.cwd)
        why = None if argv else "the process has emptied its argument list"
    except OSError as exc:
        why = why_script = _why(exc)
    reading.argv, reading.script = argv or None, script
    for name, reason in (("argv", why), ("script", why_script)):
        reading.missing.pop(name, None)
        if reason is not None:
            reading.missing[name] = reason


def say_gone(gone: ProcessGone, reading: Reading) -> None:
    """Mark a reading whose process has ended: what was read before stays."""
    reading.state = "replaced" if str(gone) == REPLACED else "gone"
    for name in ("exe", "cwd", "argv", "script", "groups"):
        if getattr(reading, name, None) is None:
            reading.missing.setdefault(name, str(gone))
