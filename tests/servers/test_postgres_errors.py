# SPDX-License-Identifier: Apache-2.0
"""Errors that tools go by: what PostgreSQL would not run has its own SQLSTATE through Vecward too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.arena import PATIENCE
from tests.servers.postgres import OBJECTS, OWNER, SECRET, PostgresStage

POLICY = """\
version: 1
rules:
  - id: documents
    what: {guard: pg, collection: [documents, late], action: [search, read, scan, count, write, delete]}
    allow: true
  - id: begin
    what: {guard: pg, action: session}
    allow: true
"""
SYNTAX = (
    "SELEC 1",
    "SELECT 'ü' FROM WHERE",
    "SELECT 'unterminated",
    "SELECT id FROM documents WHERE (",
    "SELECT 1 1 1",
)
NAMES = (
    "SELECT version_num FROM alembic_version",
    "SELECT * FROM missing.documents",
    'SELECT 1 FROM "Documents"',
    "INSERT INTO missing VALUES (1)",
    "UPDATE missing SET a = 1",
    "DELETE FROM missing WHERE a = 1",
    "EXPLAIN SELECT * FROM missing",
    "SELECT (SELECT max(a) FROM missing) FROM documents",
    "WITH w AS (SELECT * FROM missing) SELECT * FROM w",
    "SELECT nothing FROM documents",
    "SELECT id FROM documents WHERE nothing = 1",
    "SELECT id FROM documents ORDER BY nothing",
    "SELECT d.nothing FROM documents d",
    "SELECT x.id FROM documents d",
    "DELETE FROM documents WHERE nothing = 1",
)
ASK = """
import json, sys, psycopg
found = {}
for prepare in (None, 0):
    for inside in (False, True):
        with psycopg.connect(sys.argv[1], autocommit=not inside, prepare_threshold=prepare) as c:
            for text in json.loads(sys.argv[2]):
                try:
                    c.execute(text, () if prepare is None else None).fetchall()
                    said = None
                except psycopg.Error as error:
                    said = [error.sqlstate, error.diag.message_primary]
                    if error.sqlstate == "42601":
                        said.append(error.diag.statement_position)
                if inside:
                    c.rollback()
                found[f"{text} {prepare} {inside}"] = said
                assert c.execute("SELECT 1").fetchone() == (1,)
                if inside:
                    c.rollback()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[PostgresStage]:
    with PostgresStage() as made:
        made.start_postgres(f"unix_socket_directories={made.folder / 'data'}", "log_statement=all")
        try:
            made.program(
                "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS + "CREATE TABLE secret (a int);"
            )
            yield made
        finally:
            made.stop()
            made.stop_database()


def ask(stage: PostgresStage, texts: tuple[str, ...]) -> dict[str, Any]:
    where = f"host=127.0.0.1 user={OWNER} dbname=postgres password={SECRET}"
    done = stage.client(ASK, where, json.dumps(texts), user="nobody")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_not_there_is_told_as_directly_and_what_is_hidden_is_not(stage: PostgresStage) -> None:
    directly = ask(stage, (*SYNTAX, *NAMES))
    assert {said[0] for said in directly.values()} == {"42601", "42P01", "42703"}
    stage.vecward(POLICY)
    assert ask(stage, (*SYNTAX, *NAMES)) == directly
    hidden = ask(stage, ("SELECT a FROM secret", "SELECT nothing FROM secret", "SELECT no_function(1)"))
    codes = {text.rsplit(" ", 2)[0]: said[0] for text, said in hidden.items()}
    assert codes == {
        "SELECT a FROM secret": "42501",
        "SELECT nothing FROM secret": "42703",  # as of any table whose rows one may not read
        "SELECT no_function(1)": "42501",
    }
    stage.stop()


LATE = """
import os, sys, time, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as c:
    print(c.execute("SELECT count(*) FROM documents").fetchone()[0], flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.05)
    print(c.execute("SELECT a FROM late").fetchall(), flush=True)
"""


def test_a_table_made_past_the_guard_is_there_at_once(stage: PostgresStage) -> None:
    stage.vecward(POLICY)
    where = f"host=127.0.0.1 user={OWNER} dbname=postgres password={SECRET}"
    script, made = stage.folder / "late.py", stage.folder / "made"
    script.write_text(LATE)
    script.chmod(0o644)
    client = stage.start_client(script, where, str(made), user="nobody")
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"500\n", client.communicate()
        words = {"PGHOST": str(stage.data)}  # its socket: no guard is there
        stage.psql("CREATE TABLE late (a int); INSERT INTO late VALUES (7)", environment=words)
        made.touch()
        out, err = client.communicate(timeout=2 * PATIENCE)
        assert out == b"[(7,)]\n", err.decode()
    finally:
        client.kill()
        client.wait()
        stage.stop()


FILTERED = (
    POLICY
    + """
  - {id: acme, what: {guard: pg, collection: documents}, filter: {tenant: acme}}
"""
)


def test_the_servers_log_does_not_tell_a_client_how_its_statements_were_rewritten(
    stage: PostgresStage,
) -> None:
    text = "SET client_min_messages = log; SET debug_print_rewritten = on; SET debug_print_plan = on;\n"
    text += "SELECT count(*) FROM documents"
    for settings in ("log", "debug5"):
        stage.vecward(FILTERED)
        done = stage.program("psql", "-X", "-At", stdin=text.replace("log;", f"{settings};", 1))
        stage.stop()
        assert "500" in done.stdout
        assert "LOG:" in done.stderr
        assert "acme" not in done.stdout + done.stderr
