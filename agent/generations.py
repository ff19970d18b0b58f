# SPDX-License-Identifier: Apache-2.0
"""Which workers take connections while two versions of them live.

Workers of one start (a unit, a ``vecward run``) share a cgroup: they are a generation. The one whose first
process is the youngest takes over as soon as it is complete; workers of older ones finish what they have.
Pure but for `parent_start`, which reads /proc. Bias: until the new generation is complete, nothing is taken
from the old one.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

# An instance name as systemd escapes it (systemd.unit(5)).
_UNIT = re.compile(r"vecward-proxy@[A-Za-z0-9:_.\\~+-]{1,128}\.service")
UNIT_WORKERS = 32  # of one generation: two of them must fit the kernel's 64 slots


class OfGeneration(Protocol):
    """What is asked of a worker (``agent/member.py``)."""

    @property
    def cgroup_id(self) -> int: ...
    @property
    def born(self) -> int: ...
    @property
    def listening(self) -> set[str]: ...
    @property
    def draining(self) -> bool: ...


M = TypeVar("M", bound=OfGeneration)


def outgoing(members: Iterable[M], wanted: Collection[str], expected: int) -> list[M]:
    """Workers that should stop taking connections now: those of older generations, once the newest has
    ``expected`` workers that listen for every guard of ``wanted``."""
    everyone = list(members)
    if not everyone:
        return []
    newest = max(everyone, key=lambda m: (m.born, m.cgroup_id)).cgroup_id
    guards = set(wanted)
    complete = sum(m.cgroup_id == newest and m.listening >= guards for m in everyone)
    if complete < expected:
        return []
    return [m for m in everyone if m.cgroup_id != newest and not m.draining]


def is_proxy_unit(cgroup: Path, own: Path) -> bool:
    """Whether a cgroup is that of a vecward-proxy@ unit, beside the agent's own."""
    return cgroup.parent == own.parent and _UNIT.fullmatch(cgroup.name) is not None


def own_cgroup(root: Path) -> Path:
    """This process's cgroup of the v2 hierarchy mounted at ``root``. Raises OSError, ValueError."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return root / line.removeprefix("0::").lstrip("/")
    raise ValueError("this process is in no cgroup of the v2 hierarchy")


def parent_start(pid: int, pidfd: int) -> int:
    """When the parent of a process started, in clock ticks since boot (proc_pid_stat(5)); 0: not known.

    A process cannot choose its parent, so this orders generations by what the kernel says.
    """
    try:
        parent = int(_stat(pid)[1])
        if parent == 0 or select.select([pidfd], [], [], 0)[0]:
            return 0
        return int(_stat(parent)[19])
    except (OSError, ValueError, IndexError):
        return 0


def _stat(pid: int) -> list[str]:
    """Fields from the third on: the second, in brackets, may hold anything."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text[text.rindex(")") + 1 :].split()


def instance_problem(generation: str) -> str | None:
    """Why a generation cannot have this name; None: it can."""
    if not 0 < len(generation) <= 64 or not generation.isprintable() or os.sep in generation:
        return "a generation has a name of 1 to 64 printable characters without /"
    return None
