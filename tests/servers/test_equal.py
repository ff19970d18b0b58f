# SPDX-License-Identifier: Apache-2.0
"""An official client's ordinary use gives equal Python objects with and without Vecward.

The same script runs against a fresh database in an arena without Vecward, and against fresh ones behind a
guard in enforce (policy allows all) and in observe. What it notes must be equal, step by step.
"""

from __future__ import annotations

import json
import shutil
from typing import Literal

import pytest

from tests.kernel.arena import ROOT
from tests.servers.stage import Stage

Engine = Literal["chroma", "qdrant"]
Notes = dict[str, list[tuple[str, str]]]
WAYS = ("sync", "async")
STEPS = {"chroma": 50, "qdrant": 70}  # fewer would mean that the script ended early
_direct: dict[Engine, Notes] = {}


def use(stage: Stage) -> Notes:
    """What the engine's script notes, by kind of client."""
    for name in ("ordinary.py", f"ordinary_{stage.engine}.py"):
        shutil.copy(ROOT / "tests" / "servers" / name, stage.folder)
        (stage.folder / name).chmod(0o644)
    notes: Notes = {}
    for way in WAYS:
        client = stage.start_client(stage.folder / f"ordinary_{stage.engine}.py", way, user="nobody")
        out, err = client.communicate(timeout=250)
        assert client.returncode == 0, f"{way}: {err.decode()[-2000:]}\n{stage.tail()}"
        notes[way] = [(step, said) for step, said in json.loads(out)]
        assert len(notes[way]) >= STEPS[stage.engine]
    return notes


def without_vecward(engine: Engine) -> Notes:
    """Once for every test of this module."""
    if engine not in _direct:
        with Stage(engine) as stage:
            stage.start_database()
            _direct[engine] = use(stage)
    return _direct[engine]


def assert_equal(direct: Notes, through: Notes) -> None:
    for way in WAYS:
        assert [step for step, _ in direct[way]] == [step for step, _ in through[way]]
        for (step, expected), (_, said) in zip(direct[way], through[way], strict=True):
            assert said == expected, f"{way}: {step}"


@pytest.mark.parametrize("engine", ["chroma", "qdrant"])
def test_in_enforce_with_all_allowed_a_client_gets_what_it_gets_directly(engine: Engine) -> None:
    direct = without_vecward(engine)
    with Stage(engine) as stage:
        stage.start_database()
        stage.vecward(mode="enforce")
        through = use(stage)
        sessions = stage.json("sessions", "--limit", "1000")
        coverage = stage.status["coverage"]
        assert stage.cli("verify", str(stage.folder / "evidence")).returncode == 0
    assert_equal(direct, through)
    # Every request of both clients went through the proxy, and none was unknown to it.
    assert coverage["connects"] == coverage["steered"] == len(sessions)
    assert sum(session["requests"] for session in sessions) >= STEPS[engine]
    assert all(session["denied"] == 0 and session["protocol"] == "http1" for session in sessions)


@pytest.mark.parametrize("engine", ["chroma", "qdrant"])
def test_in_observe_a_client_gets_what_it_gets_directly(engine: Engine) -> None:
    direct = without_vecward(engine)
    with Stage(engine) as stage:
        stage.start_database()
        stage.vecward("version: 1\nrules: []\n", mode="observe")
        through = use(stage)
        sessions = stage.json("sessions", "--limit", "1000")
        coverage = stage.status["coverage"]
    assert_equal(direct, through)
    assert coverage["connects"] == coverage["steered"] == len(sessions)
    # Nothing is allowed by any rule, so each request says what enforce would do.
    assert sum(session["would"] for session in sessions) >= STEPS[engine]
    assert all(session["denied"] == 0 for session in sessions)


def test_the_script_says_the_same_twice() -> None:
    """Else the comparison above would prove nothing: two databases without Vecward are compared."""
    first = without_vecward("qdrant")
    with Stage("qdrant") as stage:
        stage.start_database()
        assert_equal(first, use(stage))
