# SPDX-License-Identifier: Apache-2.0
"""The user and the database that a client names to PostgreSQL, as rules of a real guard meet them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.arena import PATIENCE
from tests.servers.postgres import OWNER, SECRET, PostgresStage

POLICY = """\
version: 1
rules:
  - id: shop
    who: {db_user: "rag*"}
    what: {guard: pg, database: shop, action: [session, scan, count]}
    allow: true
  - id: not-as-owner
    who: {db_user: [postgres, owner]}
    what: {guard: pg}
    deny: "not as the owner"
  - id: no-templates
    what: {guard: pg, database: "template*"}
    deny: "a template"
tests:
  - name: the application is in its database
    who: {user: nobody, db_user: rag_ro}
    what: {guard: pg, database: shop, action: scan, collection: items}
    expect: allow
    rule: shop
  - name: and in no other
    who: {user: nobody, db_user: rag_ro}
    what: {guard: pg, database: postgres, action: session}
    expect: deny
"""
OBJECTS = """
CREATE ROLE owner; CREATE ROLE rag_ro LOGIN PASSWORD 'not-the-clients'; GRANT owner TO rag_ro;
CREATE DATABASE shop;
"""
IN_SHOP = """
CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1), (2); GRANT SELECT ON items TO PUBLIC
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[PostgresStage]:
    """A database `shop` with a table, and a role that may become another."""
    with PostgresStage() as made:
        made.start_postgres()
        try:
            made.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS)
            made.psql(IN_SHOP, environment={"PGDATABASE": "shop"})
            yield made
        finally:
            made.stop()
            made.stop_database()


@contextlib.contextmanager
def vecward(stage: PostgresStage, **guard: Any) -> Iterator[None]:
    stage.vecward(POLICY, **guard)
    try:
        yield
    finally:
        stage.stop()


def ask(stage: PostgresStage, text: str, user: str = "rag_ro", database: str = "shop", **more: str) -> str:
    """The answer, or what psql said of the refusal."""
    words = {"PGUSER": user, "PGDATABASE": database, **more}
    arguments = ("-X", "-At", "-v", "VERBOSITY=verbose", "-c", text)
    done = stage.program("psql", *arguments, user="nobody", environment=words, check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("held", [True, False], ids=["the guard's credential", "the client's own"])
def test_a_session_is_opened_in_the_databases_and_as_the_users_that_a_rule_names(
    stage: PostgresStage, held: bool
) -> None:
    credential = {"credential": {"user": "rag_ro", "password": stage.hold("pg", SECRET)}} if held else {}
    with vecward(stage, **credential):
        assert ask(stage, "SELECT count(*) FROM items") == "2"
        other = ask(stage, "SELECT 1", database="postgres")
        assert "closest: shop, failed what.database" in other
        assert "database" in ask(stage, "SELECT 1", database="rag_ro")
        assert "failed what.database" in ask(stage, "SELECT 1", database="")
        assert "denied by rule not-as-owner" in ask(stage, "SELECT 1", user="postgres")
        assert "denied by rule no-templates" in ask(stage, "SELECT 1", database="template1")
        assert "failed who.db_user" in ask(stage, "SELECT 1", user="eve")


def test_no_other_role_is_taken_past_the_rule(stage: PostgresStage) -> None:
    with vecward(stage):
        for text in (
            "SET ROLE owner",
            "SET SESSION AUTHORIZATION owner",
            "SET LOCAL ROLE owner",
            "SELECT set_config('role', 'owner', false)",
            "BEGIN; SET ROLE owner; COMMIT",
            "UPDATE pg_settings SET setting = 'owner' WHERE name = 'role'",
            "PREPARE p AS SELECT set_config('role', 'owner', false)",
            "DO $$BEGIN SET ROLE owner; END$$",
        ):
            assert "42501" in ask(stage, text), text
        assert ask(stage, "RESET ROLE; SELECT current_user") != "owner"
        for options in ("-c role=owner", "--role=owner", "-crole=owner"):
            refused = ask(stage, "SELECT current_user", PGOPTIONS=options)
            assert "closest: shop, failed what.action" in refused, refused
        assert ask(stage, "SELECT current_user", PGOPTIONS="-c search_path=roles") == "rag_ro"


CANCEL = """
import psycopg, threading, time
with psycopg.connect("host=127.0.0.1 user=rag_ro dbname=shop password=not-the-clients") as c:
    def cancel():
        while not ended.wait(0.5):
            c.cancel_safe(timeout=30)
    ended = threading.Event()
    other = threading.Thread(target=cancel)
    other.start()
    try:
        c.execute("SELECT pg_sleep(200)")
    except psycopg.errors.QueryCanceled:
        print("cancelled")
    finally:
        ended.set()
        other.join()
"""


def test_a_statement_is_cancelled_by_whom_a_rule_let_into_its_database(stage: PostgresStage) -> None:
    with vecward(stage):
        assert stage.client(CANCEL, user="nobody").stdout == b"cancelled\n"


def test_what_was_recorded_is_explained_by_what_was_named(stage: PostgresStage) -> None:
    held = {"credential": {"user": OWNER, "password": stage.hold("pg", SECRET)}}
    with vecward(stage, **held):
        assert ask(stage, "SELECT count(*) FROM items") == "2"
        ask(stage, "SELECT 1", database="template1")
        assert stage.client(CANCEL, user="nobody").stdout == b"cancelled\n"
        words = set()
        for session in told(stage, 3):
            for n in range(1, session["requests"] + 1):
                made = stage.json("policy", "explain", "--session", session["session"], "--exchange", str(n))
                was = made["recorded"]
                assert [made[key] for key in ("verdict", "rule", "message")] == [
                    was[key] for key in ("verdict", "rule", "message")
                ]
                words.add((made["verdict"], made["rule"]))
        assert words >= {("allow", "shop"), ("deny", "no-templates")}
        shown = stage.cli(
            "policy", "explain", "--who", "db_user=rag_ro", "--what", "guard=pg", "--what", "action=session",
            "--what", "database=hr",
        ).stdout  # fmt: skip
        assert "failed what.database: wants shop, got hr" in shown


def told(stage: PostgresStage, least: int) -> list[dict[str, Any]]:
    """The sessions that are in evidence whole."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [one for one in stage.json("sessions") if one["ended"] is not None]
        if len(found) >= least:
            return found
        assert time.monotonic() < deadline, (found, stage.tail())
        time.sleep(0.2)


def test_observe_would_refuse_the_same_and_rules_are_learnt_by_database(stage: PostgresStage) -> None:
    with vecward(stage, mode="observe"):
        assert ask(stage, "SELECT count(*) FROM items") == "2"
        assert ask(stage, "SELECT 1", database="template1", user="rag_ro") == "1"
        deadline = time.monotonic() + PATIENCE
        while True:
            found = stage.json("sessions", "--verdict", "would")
            if found:
                break
            assert time.monotonic() < deadline, stage.tail()
            time.sleep(0.2)
        learnt = stage.json("policy", "learn", "--since", "-1h")
        databases = {rule["what"].get("database") for rule in learnt["rules"]}
        assert "shop" in databases
        assert None not in databases
