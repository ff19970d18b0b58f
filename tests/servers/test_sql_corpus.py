# SPDX-License-Identifier: Apache-2.0
"""What our reading of SQL finds, against the database's own plan and description of the same statements.

The corpus is tests/data/sql/corpus.txt (unit tests hold its expected actions); here only what PostgreSQL
says counts: no relation of its plan may be one that we did not find, and no column's origin.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.engines import sql_catalog_queries as queries
from agent.engines.pgvector import PgvectorEngine
from agent.engines.sql_catalog import Scope
from agent.engines.sql_catalog_read import read_catalog, read_session
from agent.engines.sql_tree import Reference, Relation, Resolved, Statement
from agent.engines.sql_views import with_views
from agent.engines.sql_walk import resolve
from agent.protocols.sql import Where
from tests import venvs

DATA = Path(__file__).parent.parent / "data" / "sql"
PLANNED = {"SELECT", "SELECT INTO", "INSERT", "UPDATE", "DELETE", "MERGE"}
OPTIMISED = (
    "WITH a AS (SELECT token FROM app.secrets) SELECT 1",  # a WITH query that nothing uses
    "SELECT 1 WHERE EXISTS (SELECT FROM documents)",
)
"""Statements of which the planner leaves a relation out."""

Ask = Callable[[dict[str, str]], dict[str, Any]]

pytestmark = [pytest.mark.servers, pytest.mark.unprivileged]


def corpus() -> list[str]:
    lines = (DATA / "corpus.txt").read_text().splitlines()
    return [line.split(" | ", 4)[4] for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    try:
        python = venvs.python("pgvector")
    except venvs.NoVenv as missing:
        pytest.skip(f"PostgreSQL: {missing}")
    folder = tmp_path_factory.mktemp("oracle")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    script = Path(__file__).with_name("postgres_oracle.py")
    with subprocess.Popen(
        [python, script, folder, DATA / "schema.sql"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def one(question: dict[str, str]) -> dict[str, Any]:
            print(json.dumps(question), file=stdin, flush=True)
            answer = stdout.readline()
            assert answer, "the oracle ended"
            return dict(json.loads(answer))

        yield one
        stdin.close()
        assert process.wait(120) == 0


@pytest.fixture(scope="module")
def scope(ask: Ask) -> Scope:
    results = ask({"ask": queries.WHOLE_TEXT})["results"]
    standing = read_session(results)
    session = len(queries.SESSION)
    catalog, views = read_catalog(1, results[session][0][0], results[session + 1 :])
    return Scope(with_views(catalog, views, standing.path), standing.path)


def tables(scope: Scope, resolved: Resolved) -> tuple[set[str], set[str]]:
    """(all tables that may be read, those that surely are): "schema.name", without views."""
    may: set[str] = set()
    surely: set[str] = set()
    for statement in resolved.statements:
        for relation in statement.relations:
            if relation.kind in ("r", "p", "m", "S"):
                may.add(f"{relation.schema}.{relation.name}")
        for reference in every(statement):
            relation_ = reference.relation
            if relation_ is not None and relation_.kind == "r" and not relation_.bases:
                surely.add(f"{relation_.schema}.{relation_.name}")
    return may, surely


def every(statement: Statement) -> list[Reference]:
    inner = every(statement.inner) if statement.inner is not None else []
    return [*statement.references, *inner]


def test_no_relation_of_the_plan_is_one_that_was_not_found(ask: Ask, scope: Scope) -> None:
    compared, wrong = 0, []
    for text in corpus():
        resolved = resolve(text, scope)
        if len(resolved.statements) != 1 or resolved.statements[0].command not in PLANNED:
            continue
        told = ask({"plan": text})
        if "error" in told or resolved.unknown is not None:
            continue
        planned = {
            ".".join(name)
            for name in told["relations"]
            if name[0] not in ("pg_catalog", "information_schema")
        }
        may, surely = tables(scope, resolved)
        compared += 1
        everything = any(one.everything for one in resolved.statements)
        if not planned <= may and not everything:
            wrong.append(f"{text}\n  in the plan and not found: {sorted(planned - may)}")
        if not surely <= planned and text not in OPTIMISED:
            wrong.append(f"{text}\n  found and not in the plan: {sorted(surely - planned)}")
    assert not wrong, "\n".join(wrong)
    assert compared >= 200


def test_the_columns_and_their_origins_are_those_of_the_row_description(ask: Ask, scope: Scope) -> None:
    compared, wrong = 0, []
    for text in corpus():
        resolved = resolve(text, scope)
        if len(resolved.statements) != 1 or resolved.statements[0].command not in PLANNED or resolved.unknown:
            continue
        statement = resolved.statements[0]
        told = ask({"describe": text})
        if "error" in told or statement.outputs is None or any(one.opaque for one in statement.outputs):
            continue
        compared += 1
        if len(told["columns"]) != len(statement.outputs):
            wrong.append(f"{text}\n  {len(told['columns'])} columns, found {len(statement.outputs)}")
            continue
        for (name, table, number), output in zip(told["columns"], statement.outputs, strict=True):
            relation = scope.catalog.relations.get(table)
            if relation is None or number <= 0:  # an expression, a relation of the system, ctid
                continue
            known = scope.columns(relation)
            column = next(at for at, one in enumerate(relation.columns) if one.number == number)
            origins = {(one.relation, one.attribute) for one in known[column][1]}
            if not origins <= {(one.relation, one.attribute) for one in output.origins}:
                wrong.append(f"{text}\n  {name} comes from {relation.name}.{relation.columns[column].name}")
    assert not wrong, "\n".join(wrong)
    assert compared >= 150


def test_every_statement_that_the_server_plans_can_be_judged_or_is_refused_for_a_reason(
    ask: Ask, scope: Scope
) -> None:
    puzzles = [
        (text, resolved.unknown)
        for text in corpus()
        if (resolved := resolve(text, scope)).unknown is not None and "error" not in ask({"plan": text})
    ]
    assert all(reason for _, reason in puzzles)
    allowed = ("function", "call", "values of rows", "setting", "of the system", "pg_toast", "a database")
    assert [text for text, reason in puzzles if not any(word in (reason or "") for word in allowed)] == []


def test_the_recorded_catalog_is_what_the_server_tells(scope: Scope) -> None:
    """Unit tests read tests/data/sql/catalog.json instead of asking a server."""
    recorded = json.loads((DATA / "catalog.json").read_text())
    known, _ = read_catalog(1, "", recorded["whole"])
    now = scope.catalog

    def shape(relations: Mapping[int, Relation]) -> set[tuple[object, ...]]:
        return {
            (one.schema, one.name, one.kind, one.collection, one.key, tuple(c.name for c in one.columns))
            for one in relations.values()
        }

    assert shape(known.relations) == shape(now.relations)
    assert known.functions == now.functions
    assert known.operators == now.operators
    assert known.system == now.system


def test_a_conversation_learns_the_catalog_and_sees_what_changes_it(ask: Ask) -> None:
    engine = PgvectorEngine("pg", hmac_key=b"k" * 32, clock=lambda: 0.0)
    conversation = engine.converse("pg", Where("postgres", "corpus"))

    def learn() -> int:
        rounds = 0
        while (text := conversation.wants) is not None:
            conversation.learn(ask({"ask": text})["results"])
            rounds += 1
        return rounds

    def run(text: str) -> frozenset[str]:
        learn()
        reading = conversation.read(text)
        found = conversation.operation(reading, None).collections
        ask({"ask": text})
        for at in range(len(reading.methods)):
            conversation.settle(reading, at, reading.methods[at])
        conversation.ended("I")
        return found

    assert learn() == 1
    assert run("SELECT id FROM later") == {"*", "later"}
    run("CREATE TABLE later (id int, embedding vector(3))")
    assert run("SELECT id FROM later") == {"later"}
    run("SET search_path TO app, public")
    assert run("SELECT token FROM secrets") == {"app.secrets"}
    run("RESET search_path")
    assert run("SELECT token FROM secrets") == {"*", "secrets"}
    run("CREATE TEMP TABLE documents (id int)")
    assert run("SELECT id FROM documents") == {"pg_temp.documents"}
    run("DROP TABLE documents")
    assert run("SELECT id FROM documents") == {"documents"}
    run("ALTER TABLE later RENAME TO sooner")
    assert run("SELECT id FROM sooner") == {"sooner"}
    run("DROP TABLE sooner")
    assert run("SELECT id FROM sooner") == {"*", "sooner"}
