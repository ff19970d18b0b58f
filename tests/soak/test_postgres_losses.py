# SPDX-License-Identifier: Apache-2.0
"""Connections to PostgreSQL that are lost, on either side and in each phase of a session: all of it ends.

A breaker stands before the real database. In every case both sockets end, the evidence says why the session
did and what became of what was under way, and the next client is served as if nothing had been.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.evidence.frames import AbortFrame, IntentFrame, ResultFrame
from tests.conftest import FULL
from tests.kernel.arena import say
from tests.servers.breaker import BEHIND, Breaker, Plan
from tests.servers.postgres import OBJECTS, OWNER, PORT, SECRET, PostgresStage
from tests.servers.postgres_wire import MARK, PHASES, Wire
from tests.servers.raw import endings, frames, wait_until

How = Literal["fin", "reset"]
HOWS: tuple[How, How] = ("fin", "reset")


def cases(phases: Iterable[str]) -> list[tuple[str, How]]:
    """Each phase with both ends; in the small size with one of them, by turns."""
    named = list(phases)
    return [(one, HOWS[(at + k) % 2]) for at, one in enumerate(named) for k in range(2 if FULL else 1)]


class Line(PostgresStage):
    """A stage with a breaker between Vecward and the database."""

    breaker: Breaker


@pytest.fixture(scope="module")
def stage() -> Iterator[Line]:
    with Line() as made:
        made.port = BEHIND
        made.start_postgres()
        made.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS)
        made.port = PORT
        made.breaker = Breaker(made)
        try:
            yield made
        finally:
            made.stop()
            made.breaker.stop()
            made.stop_database()


@pytest.fixture(scope="module")
def guarded(stage: Line) -> Iterator[Line]:
    with vecward(stage, tls=stage.certificate):
        yield stage


@contextlib.contextmanager
def vecward(stage: Line, **guard: Any) -> Iterator[None]:
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
    found = list(frames(stage))
    begun = {(one.session, one.n) for one in found if isinstance(one, IntentFrame)}
    ended = [(one.session, one.n) for one in found if isinstance(one, ResultFrame | AbortFrame)]
    assert begun == set(ended)
    assert len(ended) == len(begun)


def sockets(stage: Line) -> int:
    count = 0
    for pid in stage.children()["proxy"]:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += os.readlink(link).startswith("socket:")
    return count


@contextlib.contextmanager
def expecting(stage: Line, *reasons: str) -> Iterator[None]:
    """One session more has ended in the evidence, for one of these reasons, and a next one is served."""
    before = endings(stage)
    assert not before[""]
    yield
    wait_until(lambda: (now := endings(stage)).total() > before.total() and not now[""], what="its end")
    [reason] = endings(stage) - before
    assert reason in reasons
    stage.breaker.plan(Plan())
    assert stage.arena.run(_answers, user="nobody")
    wait_until(lambda: not endings(stage)[""], what="the end of the next session")


def _answers() -> bool:
    with Wire() as wire:
        return len(wire.login().ask("SELECT 1")) == 4


def leave(stage: Line, phase: str, how: How) -> None:
    """A client goes in this phase; what it left towards the database ends."""
    stage.breaker.plan(Plan())
    met = stage.breaker.met

    def run() -> str:
        with Wire() as wire:
            PHASES[phase](wire)
            while not met.exists():  # who resets before it was accepted is another's test: test_failures.py
                time.sleep(0.01)
            return wire.leave(how)

    said = stage.arena.run(run, user="nobody")
    assert (said == "left") is (how == "reset")
    wait_until(stage.breaker.fates, what="the end towards the database")
    assert all(fate["peer"] in ("eof", "reset") for fate in stage.breaker.fates())


def lose(stage: Line, phase: str, plan: Plan) -> str:
    """The database goes in this phase; how its client's connection ends."""
    stage.breaker.plan(plan)

    def run() -> str:
        with Wire() as wire:
            try:
                PHASES.get(phase, PHASES["idle"])(wire)
            except EOFError:
                return "eof"
            except ConnectionError:
                return "reset"
            say("there")
            return wire.ending()

    child = stage.arena.fork(run, user="nobody")
    try:
        said: str = child.said()
        if said == "there":
            stage.breaker.tell()
            said = child.said()
    finally:
        child.kill()
    wait_until(stage.breaker.fates, what="the end towards the database")
    [fate] = stage.breaker.fates()
    assert fate["cut"]
    assert fate["peer"] in (("eof", "reset") if plan.how == "fin" else (None,))
    return said


@pytest.mark.parametrize("how", HOWS if FULL else HOWS[:1])
def test_either_may_go_while_the_other_is_asked_for_a_password_or_in_the_databases_tls(
    stage: Line, how: How
) -> None:
    with vecward(stage, auth="relay"):
        before = endings(stage)
        leave(stage, "asked-for-password", how)
        lose(stage, "asked-for-password", Plan("told", how))
    gone = {"closed": 2} if how == "fin" else {"client-gone": 1, "database-gone": 1}
    assert endings(stage) - before == gone
    with vecward(stage, tls={"server": "require"}):
        before = endings(stage)
        lose(stage, "idle", Plan("tls-asked", how))
        lose(stage, "idle", Plan("tls-hello", how))
    asked = "closed" if how == "fin" else "database-gone"
    assert endings(stage) - before == {asked: 1, "tls-eof": 1}


@pytest.mark.parametrize(("phase", "how"), cases(one for one in PHASES if one != "asked-for-password"))
def test_a_client_may_go_in_any_phase(guarded: Line, phase: str, how: How) -> None:
    reasons = ["client-gone"] if how == "reset" else ["closed"]
    if phase == "in-tls":
        reasons = ["tls-eof"]
    elif (phase, how) == ("in-copy-in", "fin"):
        reasons = ["closed", "reset"]  # the database ends a COPY that is left, with an error or without
    with expecting(guarded, *reasons):
        leave(guarded, phase, how)


CUTS = {
    "connected": Plan("accept"),
    "idle": Plan("told"),
    "in-transaction": Plan("told"),
    "prepared": Plan("told"),
    "in-rows": Plan("mark", mark=MARK, received=300_000),
    "in-statement": Plan("mark", mark=MARK),
    "in-copy-out": Plan("mark", mark=MARK, received=300_000),
    "in-copy-in": Plan("mark", mark=MARK, sent=100),
    "in-pipeline": Plan("mark", mark=MARK),
    "startup": Plan("startup"),
    "auth": Plan("auth"),
    "learning": Plan("query"),
}
ANSWERING = ("in-rows", "in-statement", "in-copy-out", "in-copy-in")  # what is cut there must not look whole


@pytest.mark.parametrize(("phase", "how"), cases(CUTS))
def test_the_database_may_go_in_any_phase(guarded: Line, phase: str, how: How) -> None:
    reasons = ["closed"] if how == "fin" else ["database-gone"]
    if phase in ANSWERING and how == "fin":
        reasons = ["reset"]
    elif phase == "connected":
        reasons = ["closed", "database-gone", "database-refused"]  # it depends on how far Vecward was
    with expecting(guarded, *reasons):
        said = lose(guarded, phase, replace(CUTS[phase], how=how))
    assert said == "reset" or phase not in ANSWERING
