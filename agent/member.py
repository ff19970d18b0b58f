# SPDX-License-Identifier: Apache-2.0
"""One connected worker as the agent knows it, and what it was told.

Owns how a Subject is said to a worker, and where its process is; who may be a worker is the crew's to decide.
"""

from __future__ import annotations

import asyncio
import select
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from agent import messages
from agent.channel import Channel
from agent.messages import MAX_KEPT_SUBJECTS, AgentMessage, Identified, Identify
from policy.model import Subject


class Unfit(Exception):
    """This process may not be a worker."""


def cgroup_of(pid: int, pidfd: int, root: Path) -> Path:
    """The v2 cgroup of a process, read while the pidfd proves that the pid is still that process."""
    text = Path(f"/proc/{pid}/cgroup").read_text()
    line = next((x for x in text.splitlines() if x.startswith("0::")), None)
    if select.select([pidfd], [], [], 0)[0]:
        raise Unfit(f"pid {pid} ended meanwhile")
    if line is None or ".." in line:
        raise Unfit(f"pid {pid} is in no cgroup of the v2 hierarchy")
    return root / line.removeprefix("0::").lstrip("/")


@dataclass(eq=False)
class Member:
    """One connected worker."""

    pid: int
    pidfd: int
    cgroup: Path
    cgroup_id: int
    channel: Channel
    slot: int = -1
    generation: str = ""
    stream: str = ""
    born: int = 0  # when its generation began: its parent's start, in ticks since boot
    listening: set[str] = field(default_factory=set)
    counters: dict[str, int] = field(default_factory=dict)
    sessions: int = 0
    draining: bool = False
    superseded: bool = False  # its process connected again and goes on as another member
    segment_due: float = 0.0  # loop time
    segment_timer: asyncio.TimerHandle | None = None

    told: OrderedDict[int, tuple[int, Subject]] = field(default_factory=OrderedDict)
    """What the worker keeps: by id() of a Subject its number there, and the Subject, so that it lives."""

    def send(self, message: AgentMessage, *descriptors: int) -> None:
        self.channel.send(messages.encode(message), descriptors)

    def tell(self, question: Identify, subject: Subject) -> None:
        """Answer a question: a Subject that the worker keeps is not sent again."""
        if not question.keeps:
            self.send(Identified(question.id, subject))
            return
        told = self.told.get(id(subject))
        if told is not None:
            self.told.move_to_end(id(subject))
            self.send(Identified(question.id, None, told[0]))
            return
        full = len(self.told) >= MAX_KEPT_SUBJECTS
        number = next(iter(self.told.values()))[0] if full else len(self.told)
        # Sent first: a number that is noted but never left would be another's Subject over there.
        self.send(Identified(question.id, subject, number))
        if full:
            self.told.popitem(last=False)
        self.told[id(subject)] = number, subject
