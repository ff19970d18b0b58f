# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL under load for minutes, through a guard that holds the password: no error, whole evidence."""

from __future__ import annotations

import re

from tests.conftest import FULL
from tests.servers.postgres import OBJECTS, OWNER, SECRET, PostgresStage

SECONDS = 300 if FULL else 4
CLIENTS = 32
# A nearest-neighbour search with the query vector as a parameter, as an application would ask it.
SEARCH = """\
\\set a random(1, 500)
\\set b random(1, 7)
SELECT id, title FROM documents ORDER BY embedding <=> ARRAY[:a, :b, 1]::vector LIMIT 10;
"""


def _rate(text: str) -> float:
    found = re.search(r"tps = ([0-9.]+)", text)
    assert found is not None, text
    return float(found[1])


def test_pgbench_of_32_clients_meets_no_error_and_leaves_whole_evidence() -> None:
    with PostgresStage() as stage:
        stage.start_postgres()
        try:
            stage.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS)
            stage.program("pgbench", "-i", "-q", "-s", "4")
            (stage.folder / "search.sql").write_text(SEARCH)
            stage.vecward(credential={"user": OWNER, "password": stage.hold("pg", SECRET)})
            for words in (
                ("-M", "prepared"),
                ("-M", "extended", "-f", str(stage.folder / "search.sql")),
            ):
                share = str(SECONDS // 2)
                done = stage.program(
                    "pgbench", "-c", str(CLIENTS), "-j", "2", "-T", share, *words, password=None
                )
                assert "number of failed transactions: 0" in done.stdout, done.stdout
                print(f"pgbench {words}: {_rate(done.stdout):.0f} transactions/s for {share} s")
            stage.stop()
            assert stage.cli("verify", str(stage.folder / "evidence")).returncode == 0
        finally:
            stage.stop()
            stage.stop_database()
