# SPDX-License-Identifier: Apache-2.0
"""A stage with a breaker between Vecward and the real database, and a guard that must leave nothing open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.evidence.frames import AbortFrame, IntentFrame, ResultFrame
from tests.servers.breaker import BEHIND, Breaker
from tests.servers.postgres import OBJECTS, OWNER, PORT, SECRET, PostgresStage
from tests.servers.raw import frames, wait_until


class Line(PostgresStage):
    """Made by `line`."""

    breaker: Breaker


@contextlib.contextmanager
def line(*settings: str) -> Iterator[Line]:
    """The database runs, with documents in it, and the breaker before it."""
    with Line() as made:
        made.port = BEHIND
        made.start_postgres(*settings)
        try:
            made.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS)
            made.port = PORT
            made.breaker = Breaker(made)
            try:
                yield made
            finally:
                made.stop()
                made.breaker.stop()
        finally:
            made.stop_database()


@contextlib.contextmanager
def guarding(stage: PostgresStage, **guard: Any) -> Iterator[None]:
    """Left, the workers have closed what they opened, and of the evidence nothing is open or amiss."""
    stage.stop()
    if guard.get("auth") != "relay":
        guard["credential"] = {"user": OWNER, "password": stage.hold("pg", SECRET)}
    stage.vecward(**guard)
    before = sockets(stage)
    try:
        yield
        wait_until(lambda: sockets(stage) <= before, what="the workers close what they opened")
    finally:
        stage.stop()
    stage.cli("verify", str(stage.folder / "evidence"))
    begun, ended = set(), []
    for frame in frames(stage):
        if isinstance(frame, IntentFrame):
            begun.add((frame.session, frame.n))
        elif isinstance(frame, ResultFrame | AbortFrame):
            ended.append((frame.session, frame.n))
    assert begun == set(ended)
    assert len(ended) == len(begun)


def sockets(stage: PostgresStage) -> int:
    """How many the workers have open."""
    count = 0
    for pid in stage.children()["proxy"]:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += os.readlink(link).startswith("socket:")
    return count


def memory(stage: PostgresStage) -> int:
    """KiB that the workers have resident."""
    total = 0
    for pid in stage.children()["proxy"]:
        [found] = [
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
        ]
        total += int(found.split()[1])
    return total
