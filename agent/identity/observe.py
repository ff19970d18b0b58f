# SPDX-License-Identifier: Apache-2.0
"""Gathers, in one reader thread, all that the host can tell about a recorded caller.

Blocking, never on the event loop. Results land in an `Observation` field by field, what a hostile
process can delay comes last, so that a caller who stops waiting keeps what is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

from agent.identity.attest import (
    FOREIGN,
    NOT_COMPARABLE,
    Attested,
    KnownExecutables,
    attest_gone,
    attest_live,
    same_file,
    same_image,
)
from agent.identity.cgroup import Place, place_of
from agent.identity.container import Image, Images
from agent.identity.digest import Digest, Digests
from agent.identity.hierarchy import Hierarchy
from agent.identity.process import (
    ENDED,
    MAX_PARENTS,
    Ancestor,
    ProcessGone,
    Reading,
    climb,
    open_process,
    read_cgroups,
    read_groups,
    read_links,
    read_memory,
    say_gone,
    text,
    ticks_of,
    tty_name,
)
from agent.identity.record import UNSET_ID, ExecRecord, FileId, HostFacts, KernelRecord
from agent.identity.users import MAX_GROUPS, Directory, Logins
from policy.model import Parent

NO_EXE = Attested(None, reason="a kernel thread has no executable")
KEEP_CHAIN_S = 2.0
MAX_CHAINS = 4096
EXECUTED = "it has executed another program since it connected"


@dataclass(slots=True)
class Observation:
    """What was read. None in a field = not read (yet); the reason is the subject's business."""

    reading: Reading = field(default_factory=Reading)
    exe: Attested | None = None
    same_image: bool | None = None  # the process still runs the program that connected
    parent_exe: Attested | None = None
    parents: tuple[Parent, ...] = ()
    cgroup: str | None = None
    place: Place | None = None
    image: Image | None = None
    user: str | None = None
    group: str | None = None
    groups: tuple[str, ...] | None = None
    login_user: str | None = None
    login_peer: str | None = None
    names_read: bool = False
    digest: Digest | None = None
    complete: bool = False

    def snapshot(self) -> Observation:
        """A copy that a reader which is still at work on this one cannot change."""
        reading = replace(
            self.reading, namespaces=dict(self.reading.namespaces), missing=dict(self.reading.missing)
        )
        return replace(self, reading=reading)


@dataclass(frozen=True, slots=True)
class Observer:
    """The host's readers with their caches; one for the whole agent."""

    host: HostFacts
    hierarchy: Hierarchy | None
    directory: Directory = field(default_factory=Directory)
    logins: Logins = field(default_factory=Logins)
    images: Images = field(default_factory=lambda: Images(""))
    known: KnownExecutables = field(default_factory=KnownExecutables)
    digests: Digests = field(default_factory=Digests)
    chains: dict[tuple[int, int], tuple[float, tuple[Parent, ...]]] = field(default_factory=dict)
    executed: Callable[[int, int], ExecRecord | None] = lambda tgid, start_ns: None

    def observe(self, record: KernelRecord, into: Observation, *, memory: bool) -> Observation:
        """Everything but names and hash, which may take longer. `memory` False leaves out what the
        process itself can make hang. A process that is gone keeps what the kernel recorded of it."""
        executed = self.executed(record.tgid, record.start_ns)
        reading = into.reading
        start = ticks_of(record.start_ns, self.host.ticks)
        self._place(record, into)
        try:
            with open_process(self.host.proc, record.tgid, start) as (fd, stat):
                if stat.zombie:
                    raise ProcessGone(ENDED)
                reading.state = "live"
                reading.tty = tty_name(stat.tty)
                read_links(fd, reading)
                read_groups(fd, reading)
                if into.place is None or self.host.systemd_v1:
                    read_cgroups(fd, reading)
                    self._place(record, into)
                self._around(record, executed, start, into)
                self._claims(fd, into, memory=memory)
        except ProcessGone as gone:
            say_gone(gone, reading)
            self._around(record, executed, start, into)
        into.complete = True
        return into

    def _around(
        self, record: KernelRecord, executed: ExecRecord | None, start: int, into: Observation
    ) -> None:
        self._exe(record, executed, into)
        self._parents(record, start, into)
        if into.place is not None and into.place.container is not None:
            into.image = self.images.image(into.place.runtime or "", into.place.container)

    def _claims(self, fd: int, into: Observation, *, memory: bool) -> None:
        """What the process says of itself; of another program than the one that connected, nothing."""
        reading = into.reading
        if into.same_image is False:
            reading.cwd = None
            reading.missing.update(dict.fromkeys(("argv", "script", "cwd"), EXECUTED))
        elif memory:
            read_memory(fd, reading)
        else:
            why = "reads of this user's memory hang"
            reading.missing.update(dict.fromkeys(("argv", "script"), why))

    def _place(self, record: KernelRecord, into: Observation) -> None:
        if self.hierarchy is None:
            return
        path = self.hierarchy.path_of(record.cgroup_id, into.reading.cgroup_v2)
        if path is None:
            return
        place = place_of(path)
        v1 = into.reading.cgroup_systemd
        if self.host.systemd_v1 and v1 is not None and place.container is None:
            place = place_of(v1)
        into.cgroup, into.place = path, place

    def _exe(self, record: KernelRecord, executed: ExecRecord | None, into: Observation) -> None:
        reading, root = into.reading, self.host.root
        if record.exe is None:
            into.exe = NO_EXE
            return
        latest = executed.exe if executed is not None else None
        if self._exchanged(record, executed):
            link = reading.exe_link or b""
            into.same_image = None
            into.exe = Attested(FOREIGN + text(link), reason="its executable was exchanged without an execve")
            return
        why = reading.missing.get("exe", ENDED)
        if reading.exe_link is not None and reading.exe_stat is not None:
            into.same_image = same_image(record.exe, reading.exe_stat, latest)
            if into.same_image:
                into.exe = attest_live(root, reading.exe_link, reading.exe_stat, record.exe, self.known)
                return
            why = EXECUTED if into.same_image is False else NOT_COMPARABLE
        # The record wins over what runs now; the exec record speaks only if it is of that same image.
        about = executed is not None and latest is not None and _same(latest, record.exe)
        filename = executed.filename if executed is not None and about else None
        into.exe = attest_gone(root, record.exe, filename, self.known, why)

    def _exchanged(self, record: KernelRecord, executed: ExecRecord | None) -> bool:
        """Whether the file the kernel found at connect is another than the last execve before it set.

        prctl(PR_SET_MM_MAP) lets a process put any file it may execute there, with a capability that
        every user has in a user namespace of its own (kernel/sys.c, checkpoint_restore_ns_capable).
        A fork's record says what the process that it comes from has executed.
        """
        if record.exchanged:  # by the kernel at connect, which no execve since can undo
            return True
        if executed is None or executed.exe is None or record.exe is None or executed.exec_ns is None:
            return False  # no execve of it was seen: it ran before the kernel part
        if executed.exec_ns >= record.connect_ns:
            return False  # the record is of the image before it
        return not _same(executed.exe, record.exe)

    def _parents(self, record: KernelRecord, child_start: int, into: Observation) -> None:
        """The parent as it was when the child connected, and who stands above it now."""
        tgid, start = record.parent_tgid, ticks_of(record.parent_start_ns, self.host.ticks)
        if tgid <= 0:
            into.parent_exe = Attested(None, reason="it has no parent")
            return
        parent = next(climb(self.host.proc, tgid, child_start), None)
        if parent is not None and parent.start_ticks != start:
            parent = None  # it ended, and another process has its number
        into.parent_exe = self._parent_exe(record, parent)
        above = self._above(parent) if parent is not None else ()
        into.parents = (Parent(tgid, into.parent_exe.value), *above)

    def _above(self, parent: Ancestor) -> tuple[Parent, ...]:
        """The chain above the parent, at most `KEEP_CHAIN_S` old: it is for the record, no rule asks."""
        key = (parent.pid, parent.start_ticks)
        kept = self.chains.get(key)
        if kept is not None and kept[0] > time.monotonic():
            return kept[1]
        upward = islice(climb(self.host.proc, parent.ppid, parent.start_ticks), MAX_PARENTS - 1)
        chain = tuple(Parent(each.pid, self._ancestor_exe(each)) for each in upward)
        if len(self.chains) >= MAX_CHAINS:
            self.chains.clear()
        self.chains[key] = (time.monotonic() + KEEP_CHAIN_S, chain)
        return chain

    def _ancestor_exe(self, ancestor: Ancestor) -> str | None:
        if ancestor.exe_link is None or ancestor.exe_stat is None:
            return None
        return attest_live(self.host.root, ancestor.exe_link, ancestor.exe_stat, None, self.known).value

    def _parent_exe(self, record: KernelRecord, parent: Ancestor | None) -> Attested:
        """A parent may execute an allowed program after its child has connected, so what it runs now
        counts only when the exec map has no later execve."""
        executed = self.executed(record.parent_tgid, record.parent_start_ns)
        if executed is not None and (executed.exec_ns or 0) > record.connect_ns:
            return Attested(None, reason=f"the parent: {EXECUTED}", unobtained=True)
        if parent is not None and parent.exe_link is not None and parent.exe_stat is not None:
            file = executed.exe if executed is not None else None
            return attest_live(self.host.root, parent.exe_link, parent.exe_stat, file, self.known)
        why = "the parent has ended" if parent is None else "the parent's executable cannot be read"
        if executed is not None and executed.exe is not None:
            return attest_gone(self.host.root, executed.exe, executed.filename, self.known, why)
        return Attested(None, reason=why, unobtained=True)

    def name_from_cache(self, record: KernelRecord, into: Observation) -> bool:
        """Like `name`, from what is cached; False, and nothing changed, when that does not suffice."""
        gids = into.reading.groups or ()
        wanted = len(gids) <= MAX_GROUPS
        known = [self.directory.users.cached(record.uid), self.directory.groups.cached(record.gid)]
        known.extend(self.directory.groups.cached(gid) for gid in gids if wanted)
        if record.login_uid != UNSET_ID or not all(found for found, _ in known):
            return False
        into.user, into.group = known[0][1], known[1][1]
        if into.reading.groups is not None and wanted:
            into.groups = tuple(name for _, name in known[2:] if name is not None)
        into.names_read = True
        return True

    def hash_from_cache(self, into: Observation) -> bool:
        """Fill in a hash that is cached for the file that runs; False when it must be read."""
        if not into.same_image or into.reading.exe_stat is None:
            return False
        kept = self.digests.cached(into.reading.exe_stat)
        if kept is not None:
            into.digest = Digest(kept)
        return kept is not None

    def name(self, record: KernelRecord, into: Observation) -> Observation:
        """User and group names; blocks on the host's name service."""
        into.user = self.directory.users.name(record.uid)
        into.group = self.directory.groups.name(record.gid)
        if record.login_uid != UNSET_ID:
            into.login_user = self.directory.users.name(record.login_uid)
            into.login_peer = self.logins.peer(into.reading.tty) if into.reading.tty is not None else None
        gids = into.reading.groups
        if gids is not None and len(gids) <= MAX_GROUPS:
            into.groups = tuple(name for gid in gids if (name := self.directory.groups.name(gid)) is not None)
        into.names_read = True
        return into

    def hash(self, record: KernelRecord, into: Observation) -> Observation:
        """SHA-256 of the recorded executable; blocks for as long as hashing may take."""
        into.digest = self._digest(record, into)
        return into

    def _digest(self, record: KernelRecord, into: Observation) -> Digest:
        """Opens the running file, or the host's when the process is gone, and checks which one it got."""
        if record.exe is None or into.exe is None:
            return Digest(None, "the executable is not known")
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = -1
        try:
            if into.same_image and into.reading.exe_stat is not None:
                start = ticks_of(record.start_ns, self.host.ticks)
                with open_process(self.host.proc, record.tgid, start) as (process, _):
                    fd = os.open("exe", flags, dir_fd=process)
                now, then = os.fstat(fd), into.reading.exe_stat
                right: bool | None = (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)
            elif into.exe.proven is not None:
                fd = os.open(os.fsencode(self.host.root) + into.exe.proven, flags | os.O_NOFOLLOW)
                right = same_file(fd, record.exe)
            else:
                return Digest(None, into.exe.reason or "the executable is not known")
            return self.digests.digest(fd) if right else Digest(None, EXECUTED)
        except ProcessGone as exc:
            return Digest(None, str(exc))
        except OSError as exc:
            return Digest(None, f"the executable could not be read: {exc.strerror}")
        finally:
            if fd >= 0:
                os.close(fd)


def _same(one: FileId, other: FileId) -> bool:
    return (one.dev, one.ino) == (other.dev, other.ino)
