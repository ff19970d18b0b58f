# SPDX-License-Identifier: Apache-2.0
"""Proves that a path is the file a process runs, or says that it is not proven.

The rule of the file: the text of /proc/PID/exe and the file name of an execve are claims of the
process (any user can make a mount namespace and bind any path); the inode is not. A path counts
only when the host's own file at that path is the inode that the kernel recorded, and the path that
is then reported is the host's own, canonical one: a symbolic link that leads to the right file
does not lend its name. Bias: what cannot be compared soundly is not proven.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agent.identity.process import text
from agent.identity.record import FileId, same_ctime

FOREIGN = "foreign:"
MAX_KNOWN = 4096
MAX_SHEBANG = 256  # BINPRM_BUF_SIZE

NOT_COMPARABLE = "this filesystem's device numbers cannot be compared with the kernel's"


@dataclass(frozen=True, slots=True)
class Attested:
    """The outcome for one executable: a value (maybe ``foreign:``), or None with a reason.

    `proven` is the host path in bytes where it was proven; `unobtained` says that the field exists
    but could not be read, which makes conditions on it errors.
    """

    value: str | None
    reason: str | None = None
    unobtained: bool = False
    proven: bytes | None = None


class KnownExecutables:
    """Paths that were proven for a live process, by inode: names for processes that are gone.

    An entry is only a candidate: it is proven again at every use. Shared by reader threads.
    """

    def __init__(self, limit: int = MAX_KNOWN) -> None:
        self._paths: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def remember(self, file: FileId, path: bytes) -> None:
        with self._lock:
            self._paths[file.dev, file.ino] = path
            self._paths.move_to_end((file.dev, file.ino))
            if len(self._paths) > self._limit:
                self._paths.popitem(last=False)

    def find(self, file: FileId) -> bytes | None:
        with self._lock:
            return self._paths.get((file.dev, file.ino))


@contextmanager
def _host_file(root: str, path: bytes) -> Iterator[tuple[int, bytes] | None]:
    """O_PATH descriptor of the regular file at `path` on the host and its canonical path, or None."""
    prefix = os.fsencode(root)
    fd = -1
    try:
        fd = os.open(prefix + path, os.O_PATH | os.O_CLOEXEC)
        canonical = os.readlink(b"/proc/self/fd/%d" % fd)
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        if fd >= 0:
            os.close(fd)
        yield None
        return
    try:
        deleted = canonical.endswith(b" (deleted)") and not path.endswith(b" (deleted)")
        if not regular or deleted or not canonical.startswith(prefix + b"/"):
            yield None
        else:
            yield fd, canonical[len(prefix) :]
    finally:
        os.close(fd)


def _mount_of(fd: int) -> tuple[int, str] | None:
    """(`s_dev`, filesystem type) of the mount an own descriptor is on, from mountinfo (proc(5))."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            wanted = next(line.split()[1] for line in info if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                fields = line.split(" ")
                if fields[0] == wanted:
                    major, minor = fields[2].split(":")
                    return os.makedev(int(major), int(minor)), fields[fields.index("-") + 1]
    except (OSError, ValueError, StopIteration, IndexError):
        return None
    return None


def same_image(kernel: FileId, now: os.stat_result, latest: FileId | None) -> bool | None:
    """Whether the file a live process runs now is the one the kernel recorded; None = cannot tell.

    `latest` is the inode of the newest execve, from the exec map.
    """
    if now.st_dev == kernel.dev:
        return now.st_ino == kernel.ino
    if latest is not None:
        return (latest.dev, latest.ino) == (kernel.dev, kernel.ino)
    if (
        now.st_ino == kernel.ino
        and kernel.ctime_ns is not None
        and same_ctime(kernel.ctime_ns, now.st_ctime_ns)
    ):
        return True  # btrfs: stat(2) shows the subvolume's device; nobody can choose inode *and* ctime
    return None


def attest_live(
    root: str, link: bytes, now: os.stat_result, file: FileId | None, known: KnownExecutables
) -> Attested:
    """Attest the executable of a live process: `link` is the exe link's text, `now` its stat.

    The process keeps its inode from being reused, and both stats come from the same call, so
    (st_dev, st_ino) decide on every filesystem. `file` is the kernel's record of the same image.
    """
    with _host_file(root, link) as host:
        if host is not None:
            found = os.fstat(host[0])
            if (found.st_dev, found.st_ino) == (now.st_dev, now.st_ino):
                if file is not None and file.ctime_ns is not None:
                    known.remember(file, host[1])
                return Attested(text(host[1]), proven=host[1])
    if link.endswith(b" (deleted)"):
        return Attested(FOREIGN + text(link), reason="the file it runs was deleted or replaced")
    return Attested(FOREIGN + text(link), reason="the host has another file, or none, at this path")


def same_file(fd: int, file: FileId) -> bool | None:
    """Whether the host file is the recorded inode, with no process to hold it; None = cannot tell."""
    found = os.fstat(fd)
    if file.ctime_ns is None:
        return None  # an inode number alone may have been reused since
    same = found.st_ino == file.ino and same_ctime(file.ctime_ns, found.st_ctime_ns)
    if found.st_dev == file.dev:
        return same
    if (mount := _mount_of(fd)) is None:
        return None
    device, kind = mount
    if device != file.dev:
        return False
    return same if kind == "btrfs" else None  # inode numbers are per subvolume, ctime tells them apart


def _interpreter(root: str, path: bytes) -> bytes | None:
    """The interpreter a host script names in its first line (execve(2)), if it is a script."""
    with _host_file(root, path) as host:
        if host is None:
            return None
        try:
            fd = os.open(
                os.fsencode(root) + host[1], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            )
        except OSError:
            return None
        try:
            head = os.read(fd, MAX_SHEBANG)
        except OSError:
            return None
        finally:
            os.close(fd)
    words = head[2:].split(b"\n", 1)[0].split() if head.startswith(b"#!") else []
    return words[0] if words and words[0].startswith(b"/") else None


def attest_gone(root: str, file: FileId, filename: str | None, known: KnownExecutables, why: str) -> Attested:
    """Attest an image that no process runs any more, from the inode and ctime the kernel kept.

    `filename` is what execve was given, `why` says why /proc could not tell. Candidates are that
    name, the interpreter it names when it is a script, and a path proven earlier for this inode.
    """
    claimed = os.fsencode(filename) if filename else b""
    candidates = [claimed] if claimed.startswith(b"/") else []
    if candidates and (interpreter := _interpreter(root, claimed)) is not None:
        candidates.append(interpreter)
    if (earlier := known.find(file)) is not None:
        candidates.append(earlier)
    doubtful = False
    for path in candidates:
        with _host_file(root, path) as host:
            if host is None:
                continue
            match same_file(host[0], file):
                case True:
                    return Attested(text(host[1]), proven=host[1])
                case None:
                    doubtful = True
    if doubtful:
        return Attested(None, reason=f"{why}; {NOT_COMPARABLE}", unobtained=True)
    if claimed.startswith(b"/"):
        return Attested(
            FOREIGN + text(claimed), reason=f"{why}; the host has another file, or none, at this path"
        )
    started = f"; started as {text(claimed)}" if claimed else ""
    return Attested(None, reason=why + started, unobtained=True)
