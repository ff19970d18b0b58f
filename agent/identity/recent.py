# SPDX-License-Identifier: Apache-2.0
"""Subjects that were read a moment ago, and the proof that each still holds for another connection.

A process that connects again need not be read again as a whole: the kernel's record says anew who it is, and
what /proc said is looked at again where it may have changed. Owns that proof; builds no Subject. On the
event loop, so nothing here touches the process's memory or a file system but procfs and pinned maps, which
cannot be made to hang. Bias: whatever differs, cannot be read or is older than `KEEP_S` is read as a whole.

What holds from one connection to the next, and why:

- credentials, cgroup, namespaces, comm, parent, the file that runs: every field of the kernel's record but
  the time must be the same;
- the programs that it and its parent run: the exec map's entries must be the same, and older than the
  connection, and the link of the parent's executable, for it may be in the middle of an execve;
- the path of the executable and the working directory: their links must read the same, which a renamed,
  deleted or replaced file changes;
- supplementary groups: read again. That it lives and is no zombie: the same read;
- everything else (arguments, names, terminal, what an unchanged path leads to): at most `KEEP_S` old.

A connection that was made before the last such look needs none of its own: all of it was read later.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from agent.identity.observe import Observation
from agent.identity.process import ProcessGone, open_process, text, ticks_of
from agent.identity.record import NS_PER_S, ExecRecord, HostFacts, KernelRecord
from policy.model import Subject

KEEP_S = 1.0
MAX_KEPT = 256  # each holds two descriptors
MAX_MET = 1024
MAX_HEAD = 8192  # of /proc/PID/status: its groups must end within

now: Callable[[], int] = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)

_facts = attrgetter(*[name for name in KernelRecord.__slots__ if name != "connect_ns"])
"""Everything of a kernel record that does not differ between two connections of one process."""

Mark = Callable[[int, int], object]
Executed = Callable[[int, int], ExecRecord | None]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was so before a reading began that may be kept; it must be so afterwards, too."""

    began: int
    own: object
    parent: object
    changed: int  # when it or its parent last executed a program, ns since boot
    parent_exe: bytes | None  # the link; None: it has no parent


@dataclass(slots=True)
class Known:
    """A Subject that was read, with what must not have changed since."""

    facts: tuple[object, ...]
    owner_cgroup: int | None
    subject: Subject
    attempt: Attempt
    folder: int  # /proc/PID, bound to this very process
    status: int
    exe: bytes
    cwd: bytes
    groups: bytes
    looked: int  # when all of it was last found to be so

    def close(self) -> None:
        os.close(self.folder)
        os.close(self.status)


class Recent:
    """Belongs to the event loop's thread. `mark` gives what changes with each execve of a process."""

    def __init__(
        self, host: HostFacts, executed: Executed, mark: Mark, clock: Callable[[], int] = now
    ) -> None:
        self._host = host
        self._executed = executed
        self._mark = mark
        self._clock = clock
        self._kept: OrderedDict[tuple[int, int], Known] = OrderedDict()
        self._met: OrderedDict[tuple[int, int], None] = OrderedDict()

    def recall(self, record: KernelRecord, owner_cgroup: int | None) -> Subject | None:
        """The Subject of another connection of this process that must be this one's too, or None."""
        key = (record.tgid, record.start_ns)
        known = self._kept.get(key)
        if known is None or record.connect_ns <= known.attempt.changed:
            return None
        if known.facts == _facts(record) and known.owner_cgroup == owner_cgroup:
            before = self._clock()
            if before < known.attempt.began + KEEP_S * NS_PER_S and (
                record.connect_ns <= known.looked or self._holds(record, known, before)
            ):
                return known.subject
        self._kept.pop(key).close()
        return None

    def begin(self, record: KernelRecord) -> Attempt | None:
        """Call before reading a process as a whole; None: this one is not worth keeping (yet)."""
        key = (record.tgid, record.start_ns)
        if key not in self._met:  # most processes connect once, and pay for nothing here
            self._met[key] = None
            if len(self._met) > MAX_MET:
                self._met.popitem(last=False)
            return None
        if self._host.systemd_v1:  # a process may change its v1 cgroup unseen
            return None
        began = self._clock()
        marks = self._marks(record)  # first: an execve between them and `changed` must show afterwards
        own = self._executed(record.tgid, record.start_ns)
        parent = self._executed(record.parent_tgid, record.parent_start_ns)
        changed = max(one.exec_ns or 0 for one in (own, parent) if one) if own or parent else 0
        try:
            return Attempt(began, *marks, changed, self._parent_link(record))
        except OSError:  # it has ended
            return None

    def keep(
        self,
        attempt: Attempt,
        record: KernelRecord,
        owner_cgroup: int | None,
        seen: Observation,
        subject: Subject,
    ) -> None:
        """Remember what was read since `begin`, if all of it was read and nothing changed meanwhile."""
        reading = seen.reading
        whole = (
            seen.complete
            and seen.names_read
            and seen.same_image is True
            and reading.state == "live"
            and reading.exe_link is not None
            and reading.cwd is not None
            and reading.groups is not None
            and reading.argv is not None
        )
        if not whole or record.connect_ns <= attempt.changed:
            return
        known = self._open(attempt, record, owner_cgroup, subject)
        if known is None:
            return
        same = (known.exe, text(known.cwd), _numbers(known.groups)) == (
            reading.exe_link,
            reading.cwd,
            reading.groups,
        )
        if not same or not self._holds(record, known, attempt.began):
            known.close()
            return
        key = (record.tgid, record.start_ns)
        if (before := self._kept.pop(key, None)) is not None:
            before.close()
        self._kept[key] = known
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)[1].close()

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1].close()

    def _marks(self, record: KernelRecord) -> tuple[object, object]:
        return (
            self._mark(record.tgid, record.start_ns),
            self._mark(record.parent_tgid, record.parent_start_ns),
        )

    def _open(
        self, attempt: Attempt, record: KernelRecord, owner_cgroup: int | None, subject: Subject
    ) -> Known | None:
        """The process's own files, and what they say now. None: it is gone, or says it in another form."""
        status = -1
        try:
            start = ticks_of(record.start_ns, self._host.ticks)
            with open_process(self._host.proc, record.tgid, start) as (folder, _):
                exe, cwd = os.readlink(b"exe", dir_fd=folder), os.readlink(b"cwd", dir_fd=folder)
                status = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
                groups = _groups(os.pread(status, MAX_HEAD, 0))
                if groups is not None:
                    return Known(_facts(record), owner_cgroup, subject, attempt, os.dup(folder), status,
                                 exe, cwd, groups, 0)  # fmt: skip
        except (OSError, ProcessGone):
            pass
        if status >= 0:
            os.close(status)
        return None

    def _parent_link(self, record: KernelRecord) -> bytes | None:
        if record.parent_tgid <= 0:
            return None
        return os.readlink(os.fsencode(f"{self._host.proc}/{record.parent_tgid}/exe"))

    def _holds(self, record: KernelRecord, known: Known, before: int) -> bool:
        """Look again at what may change unseen; `before` is a time before this look."""
        attempt = known.attempt
        if self._marks(record) != (attempt.own, attempt.parent):
            return False
        with suppress(OSError):  # it is gone
            if (
                _groups(os.pread(known.status, MAX_HEAD, 0)) == known.groups
                and os.readlink(b"exe", dir_fd=known.folder) == known.exe
                and os.readlink(b"cwd", dir_fd=known.folder) == known.cwd
                and self._parent_link(record) == attempt.parent_exe
            ):
                known.looked = before
                return True
        return False


def _groups(head: bytes) -> bytes | None:
    """The numbers of the Groups line of a status file; None for a zombie, or where there is no such line."""
    state = head.find(b"\nState:\t")
    start = head.find(b"\nGroups:")
    end = head.find(b"\n", start + 1)
    if start < 0 or end < 0 or head[state + 8 : state + 9] in (b"Z", b"X"):
        return None
    return head[start + 8 : end]


def _numbers(groups: bytes) -> tuple[int, ...]:
    return tuple(map(int, groups.split()))
