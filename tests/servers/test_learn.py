# SPDX-License-Identifier: Apache-2.0
"""Rules learnt from real PostgreSQL clients in observe: in enforce the same clients get the same answers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import venvs
from tests.kernel.arena import PATIENCE
from tests.servers.postgres import OBJECTS, OWNER, PORT, SECRET, PostgresStage

SCENARIOS = Path(__file__).with_name("postgres_scenarios.py")
APP, NOSY = "nobody", "games"
LEARNT = ("psycopg",)
"""Not those that make temporary tables: observe does not tell them from others (docs/policy.md)."""


@pytest.fixture
def stage() -> Iterator[PostgresStage]:
    with PostgresStage() as made:
        made.start_postgres()
        try:
            made.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS)
            yield made
        finally:
            made.stop()
            made.stop_database()


def scenario(stage: PostgresStage, name: str) -> str:
    script = stage.folder / SCENARIOS.name
    if not script.exists():
        script.write_text(SCENARIOS.read_text())
        script.chmod(0o644)
    words = {"PGHOST": "127.0.0.1", "PGPORT": str(PORT), "PGUSER": OWNER, "PGDATABASE": "postgres"}
    process = stage.arena.popen(
        [str(venvs.python("pgvector")), str(script), name], user=APP, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=stage.folder, env=stage.environment(**words, PGPASSWORD=SECRET),
    )  # fmt: skip
    out, err = process.communicate(timeout=10 * PATIENCE)
    assert process.returncode == 0, f"{name}: {err.decode()[-3000:]}\n{stage.tail()}"
    return out.decode()


@pytest.mark.limit(600)
def test_clients_that_were_learnt_from_go_on_in_enforce_and_others_do_not(stage: PostgresStage) -> None:
    stage.vecward(policy="version: 1\nrules: []\n", mode="observe")
    before = {name: scenario(stage, name) for name in LEARNT}
    learned = stage.folder / "learned.yaml"
    stage.cli("policy", "learn", "-o", str(learned))
    stage.write_config(policy=learned.read_text(), mode="enforce")
    assert "usable" in stage.cli("policy", "check").stdout
    assert "0 failed" in stage.cli("policy", "test").stdout
    stage.cli("reload")
    assert {name: scenario(stage, name) for name in LEARNT} == before
    assert stage.json("sessions", "--verdict", "deny") == []
    refused = stage.program("psql", "-X", "-At", "-c", "SELECT * FROM documents", user=NOSY, check=False)
    assert refused.returncode != 0
    assert "no rule allows it" in refused.stderr
