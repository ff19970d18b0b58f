# SPDX-License-Identifier: Apache-2.0
"""One connected worker as the agent knows it, and what it was told.

Owns how a Subject is said to a worker; who may be a worker is the crew's to decide.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from agent import messages
from agent.channel import Channel
from agent.messages import MAX_KEPT_SUBJECTS, AgentMessage, Identified, Identify
from policy.model import Subject


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
    listening: set[str] = field(default_factory=set)
    counters: dict[str, int] = field(default_factory=dict)
    sessions: int = 0
    draining: bool = False
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
        number = len(self.told)
        if number >= MAX_KEPT_SUBJECTS:
            number = self.told.popitem(last=False)[1][0]
        self.told[id(subject)] = number, subject
        self.send(Identified(question.id, subject, number))
