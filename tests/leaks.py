# SPDX-License-Identifier: Apache-2.0
"""What a test may leave behind: nothing.

Owns looking at the process and at the host before and after, and saying what is new. A test that leaks fails
itself, not the one after it; what it left running is killed, so that one failure does not become many. Bias:
what is made by others on the same host at the same time is never blamed on a test, so host-wide names count
only if they hold the process ID of this run (``scratch_name``) or of a process that is gone.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import contextlib
import ctypes
import gc
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

# Seconds in which descriptors close and children end by themselves before they count as left behind.
GRACE = float(os.environ.get("VECWARD_TEST_GRACE", "2"))

_OURS = re.compile(r"^(?:vwtest|vecward)(?:[-_.].*)?$")
_NUMBER = re.compile(r"\d+")
_HARMLESS_FDS = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/tty", "/dev/pts/", "/.hypothesis/")
_HARMLESS_CHILDREN = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_PR_SET_CHILD_SUBREAPER = 36

_names = 0


def scratch_name(kind: str = "x") -> str:
    """A name for a cgroup, network namespace or pin that the leak check can attribute to this run.

    At most 15 characters as long as `kind` has one or two, so that it may also name a network interface.
    """
    global _names
    _names += 1
    return f"vwtest-{os.getpid()}{kind}{_names}"


def adopt_orphans() -> None:
    """Make the orphans of our children ours: a daemon that a test left behind becomes visible as a child."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def host_names() -> set[str]:
    """Our kind of names on this host: BPF pins, cgroups at the top of v2, named network namespaces."""
    folders = [Path("/sys/fs/bpf"), Path("/run/netns"), *_cgroup2()]
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            found.update(entry.path for entry in entries if _OURS.match(entry.name))
    return found


def abandoned(names: set[str]) -> set[str]:
    """Those of `names` that hold the ID of this process, or of one that no longer lives."""
    found = set()
    for name in names:
        numbers = [int(text) for text in _NUMBER.findall(Path(name).name)]
        if os.getpid() in numbers or (numbers and not any(psutil.pid_exists(n) for n in numbers)):
            found.add(name)
    return found


@dataclass(slots=True)
class Leaks:
    """One test's before and after. `left()` is empty, or says in words what the test left behind."""

    host: bool  # look at the host's names too
    allowed: frozenset[str] = frozenset()  # kinds that may be left
    _fds: set[tuple[int, str]] = field(default_factory=set)
    _children: set[int] = field(default_factory=set)
    _threads: set[int] = field(default_factory=set)
    _names: set[str] = field(default_factory=set)
    tasks: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Remember what is there now."""
        self._fds = _open_fds()
        self._children = {child.pid for child in _children()}
        self._threads = {id(thread) for thread in threading.enumerate()}
        self._names = host_names() if self.host else set()

    def left(self) -> list[str]:
        """What is there now and was not before, after a grace; kills children left behind."""
        until = time.monotonic() + GRACE
        while self._new() and time.monotonic() < until:
            gc.collect()
            time.sleep(0.02)
        found = [f"{kind}: {what}" for kind, what in self._new()]
        for child in self._new_children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
                child.wait(GRACE)
        if "tasks" not in self.allowed:
            found += [f"tasks: {task}" for task in self.tasks] + [f"asyncio: {text}" for text in self.errors]
        return found

    def _new(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if "children" not in self.allowed:
            found += [("children", _describe(child)) for child in self._new_children()]
        if "fds" not in self.allowed:
            found += [("fds", f"{number} -> {target}") for number, target in sorted(_open_fds() - self._fds)]
        if "threads" not in self.allowed:
            new = [t for t in threading.enumerate() if id(t) not in self._threads and not t.daemon]
            found += [("threads", thread.name) for thread in new]
        if self.host and "names" not in self.allowed:
            mine = {name for name in host_names() - self._names if str(os.getpid()) in _NUMBER.findall(name)}
            found += [("names", name) for name in sorted(mine)]
        return found

    def _new_children(self) -> list[psutil.Process]:
        return [child for child in _children() if child.pid not in self._children]


@contextlib.contextmanager
def watching_asyncio(leaks: Leaks) -> Iterator[None]:
    """Note tasks that were still there when a loop's main coroutine had ended, and errors nobody awaited.

    ``asyncio.Runner`` (under ``asyncio.run`` and ``uvloop.run``) cancels such tasks in silence; the only
    place where they can be seen is the function it calls to do so.
    """
    cancel_all = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]  # private, checked by a test

    def note(loop: asyncio.AbstractEventLoop) -> None:
        leaks.tasks += [repr(task.get_coro()) for task in asyncio.all_tasks(loop)]
        cancel_all(loop)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            leaks.errors.append(record.getMessage().splitlines()[0])

    handler = Handler(logging.ERROR)
    logging.getLogger("asyncio").addHandler(handler)
    asyncio.runners._cancel_all_tasks = note  # type: ignore[attr-defined]
    try:
        yield
    finally:
        asyncio.runners._cancel_all_tasks = cancel_all  # type: ignore[attr-defined]
        logging.getLogger("asyncio").removeHandler(handler)


def _open_fds() -> set[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("/proc/") and not any(harmless in target for harmless in _HARMLESS_FDS):
                found.add((int(name), target))
    return found


def _children() -> list[psutil.Process]:
    """Our living children; those that have ended but were ours only by adoption are buried here."""
    living = []
    for pid in _child_pids():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            child = psutil.Process(pid)
            if child.status() == psutil.STATUS_ZOMBIE:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            elif not any(word in " ".join(child.cmdline()) for word in _HARMLESS_CHILDREN):
                living.append(child)
    return living


def _child_pids() -> list[int]:
    pids: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            pids += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
        except FileNotFoundError:  # the thread has ended, or the kernel has no CONFIG_PROC_CHILDREN
            if thread == str(os.getpid()):
                return [child.pid for child in psutil.Process().children()]
    return pids


def _describe(child: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"process {child.pid} ({' '.join(child.cmdline())[:200]})"
    return f"process {child.pid}"


def _cgroup2() -> list[Path]:
    mounts: list[list[Any]] = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
