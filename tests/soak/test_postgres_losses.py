# SPDX-License-Identifier: Apache-2.0
"""Connections to PostgreSQL that are lost, on either side and in each phase of a session: all of it ends.

A breaker stands before the real database. In every case both sockets end, the evidence says why the session
did and what became of what was under way, and the next client is served as if nothing had been.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

import pytest

from agent.protocols.postgres_forms import write_query
from agent.protocols.postgres_messages import Back, Front, message
from tests.conftest import FULL
from tests.kernel.arena import say
from tests.servers.breaker import Plan
from tests.servers.postgres_line import Line, guarding, line
from tests.servers.postgres_wire import MARK, PHASES, Wire, errors, execution
from tests.servers.raw import endings, wait_until

How = Literal["fin", "reset"]
HOWS: tuple[How, How] = ("fin", "reset")


def cases(phases: Iterable[str]) -> list[tuple[str, How]]:
    """Each phase with both ends; in the small size with one of them, by turns."""
    named = list(phases)
    return [(one, HOWS[(at + k) % 2]) for at, one in enumerate(named) for k in range(2 if FULL else 1)]


@pytest.fixture(scope="module")
def stage() -> Iterator[Line]:
    with line() as made:
        yield made


@pytest.fixture(scope="module")
def guarded(stage: Line) -> Iterator[Line]:
    with guarding(stage, tls=stage.certificate):
        yield stage


@contextlib.contextmanager
def expecting(stage: Line, *reasons: str) -> Iterator[None]:
    """One session more has ended in the evidence, for one of these reasons, and a next one is served."""
    wait_until(lambda: not endings(stage)[""], what="the end of sessions before")
    before = endings(stage)
    yield
    wait_until(lambda: (now := endings(stage)).total() > before.total() and not now[""], what="its end")
    [reason] = endings(stage) - before
    assert reason in reasons
    stage.breaker.plan(Plan())
    assert stage.arena.run(_answers, user="nobody")


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


def lose(stage: Line, phase: str, plan: Plan, *, tls: bool = False) -> str:
    """The database goes in this phase; how its client's connection ends, which may be over TLS."""
    stage.breaker.plan(plan)

    def run() -> str:
        with Wire() as wire:
            try:
                if tls:
                    wire.encrypt()
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
    with guarding(stage, auth="relay"):
        before = endings(stage)
        leave(stage, "asked-for-password", how)
        lose(stage, "asked-for-password", Plan("told", how))
    gone = {"closed": 2} if how == "fin" else {"client-gone": 1, "database-gone": 1}
    assert endings(stage) - before == gone
    with guarding(stage, tls={"server": "require"}):
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


@pytest.mark.parametrize(
    ("phase", "how", "reason"),
    [
        ("idle", "fin", "closed"),  # whole: a close_notify is seen where there is one
        ("in-rows", "fin", "reset"),
        ("in-rows", "reset", "database-gone"),
        ("in-copy-out", "fin", "reset"),
    ],
)
def test_over_tls_what_the_database_leaves_unfinished_ends_without_close_notify(
    guarded: Line, phase: str, how: How, reason: str
) -> None:
    with expecting(guarded, reason):
        said = lose(guarded, phase, replace(CUTS[phase], how=how), tls=True)
    assert said in (("reset", "torn") if phase in ANSWERING else ("eof",))


# -- cancel and timeouts -----------------------------------------------------------------------------------


def long_rows(wire: Wire) -> None:
    wire.login()
    wire.send(write_query(b"SELECT n, repeat('x', 400) FROM generate_series(1, 500000) AS n"))
    wire.until(Back.DATA_ROW)


def sleeping(wire: Wire) -> None:
    wire.login()
    wire.ask("BEGIN")
    wire.send(write_query(b"SELECT pg_sleep(300)"))


def sleeping_in_pipeline(wire: Wire) -> None:
    wire.login()
    texts = ("SELECT 1", "SELECT pg_sleep(300)", "SELECT 2")
    wire.send(*(execution("", text) for text in texts), message(Front.SYNC))


CANCELLED = {
    "rows": long_rows,
    "transaction": sleeping,
    "pipeline": sleeping_in_pipeline,
    "copy in": PHASES["in-copy-in"],
}


@pytest.mark.parametrize("phase", CANCELLED)
def test_a_cancel_ends_the_statement_and_the_session_goes_on(guarded: Line, phase: str) -> None:
    guarded.breaker.plan(Plan())

    def run() -> tuple[list[str], list[str]]:
        with Wire() as wire:
            CANCELLED[phase](wire)
            found: list[tuple[int, bytes]] = []
            while not errors(found):  # until it took: the statement may not have begun
                wire.cancel()
                found += wire.until(Back.READY_FOR_QUERY) if wire.readable(1.0) else []
            return errors(found), errors(wire.ask("ROLLBACK") + wire.ask("SELECT 1"))

    assert guarded.arena.run(run, user="nobody") == (["57014"], [])


def test_a_cancel_of_what_has_ended_or_of_anothers_statement_does_nothing(guarded: Line) -> None:
    def run() -> list[str]:
        with Wire() as one, Wire() as other:
            one.login().ask("SELECT 1")
            one.cancel()  # it is idle
            found = one.ask("SELECT pg_sleep(0.1)")
            other.login()
            one.send(write_query(b"SELECT pg_sleep(1)"))
            one.cancel(one.key[:4] + other.key[4:])  # the process of one with the secret of the other
            other.cancel()
            return errors(found + one.until(Back.READY_FOR_QUERY) + other.ask("SELECT 1"))

    assert guarded.arena.run(run, user="nobody") == []


def test_timeouts_of_the_database_reach_the_client_as_they_are(guarded: Line) -> None:
    def run() -> list[str]:
        with Wire() as wire:
            wire.login().ask("SET statement_timeout = 100")
            found = wire.ask("SELECT pg_sleep(300)")
            found += wire.ask("COPY (SELECT pg_sleep(0.05) FROM generate_series(1, 5000)) TO STDOUT")
            wire.send(execution("", "SELECT pg_sleep(300)"), execution("", "SELECT 1"), message(Front.SYNC))
            found += wire.until(Back.READY_FOR_QUERY)
            wire.ask("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 100")
            wire.ask("BEGIN")
            found.append(wire.take())
            assert wire.ending() == "eof"
            return errors(found)

    with expecting(guarded, "closed"):
        assert guarded.arena.run(run, user="nobody") == ["57014", "57014", "57014", "25P03"]
