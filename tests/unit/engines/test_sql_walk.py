# SPDX-License-Identifier: Apache-2.0
"""What a text is resolved to beyond the corpus: names that lie, origins through every disguise, paths."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engines import sql_parse
from agent.engines.sql_catalog import EMPTY, Scope, collection_name
from agent.engines.sql_tree import Resolved, Statement
from agent.engines.sql_walk import resolve
from policy.model import Action
from tests.unit.engines.sql_recorded import recorded_scope


def one(text: str, scope: Scope | None = None) -> Statement:
    resolved = resolve(text, scope or recorded_scope())
    assert resolved.unknown is None, resolved.unknown
    assert len(resolved.statements) == 1
    return resolved.statements[0]


def origins(text: str, column: int = 0) -> set[str]:
    outputs = one(text).outputs
    assert outputs is not None
    return {f"{origin.name}:{origin.via}" for origin in outputs[column].origins}


# Names.


def test_the_search_path_says_which_relation_a_bare_name_means() -> None:
    assert one("SELECT 1 FROM secrets", recorded_scope("pg_catalog", "app", "public")).collections == {
        "app.secrets"
    }
    assert resolve("SELECT 1 FROM secrets", recorded_scope()).unknown
    assert resolve("SELECT 1 FROM documents", recorded_scope("pg_catalog", "app")).unknown


def test_a_function_named_like_a_built_in_makes_the_name_unknown_wherever_it_stands_in_the_path() -> None:
    for path in (("pg_catalog", "app"), ("app", "pg_catalog"), ("public", "pg_catalog", "app")):
        assert "lower" in str(resolve("SELECT lower('X')", recorded_scope(*path)).unknown)
    assert resolve("SELECT lower('X')", recorded_scope()).unknown is None
    assert resolve("SELECT pg_catalog.lower('X')", recorded_scope("pg_catalog", "app")).unknown is None


def test_an_operator_named_like_a_built_in_makes_it_unknown() -> None:
    scope = recorded_scope()
    evil = replace(scope.catalog, operators={**scope.catalog.operators, "=": (("public", None),)})
    assert resolve("SELECT id FROM documents WHERE title = 'x'", replace(scope, catalog=evil)).unknown
    assert resolve("SELECT id FROM documents WHERE title IN ('x')", replace(scope, catalog=evil)).unknown
    assert resolve("SELECT id IN (SELECT 1) FROM documents", replace(scope, catalog=evil)).unknown
    assert resolve("SELECT CASE id WHEN 1 THEN 2 END FROM documents", replace(scope, catalog=evil)).unknown
    assert resolve("SELECT 1 FROM documents JOIN authors USING (id)", replace(scope, catalog=evil)).unknown
    assert resolve("SELECT id FROM documents TABLESAMPLE mine (1)", scope).unknown
    assert not resolve("SELECT 1 OPERATOR(pg_catalog.=) 1", replace(scope, catalog=evil)).unknown


def test_a_relation_in_front_of_pg_catalog_is_the_one_that_is_meant() -> None:
    scope = recorded_scope()
    fake = replace(scope.catalog.names["app", "secrets"], name="pg_class")
    catalog = replace(scope.catalog, names={**scope.catalog.names, ("app", "pg_class"): fake})
    first = Scope(catalog, ("app", "pg_catalog"))
    behind = Scope(catalog, ("pg_catalog", "app"))
    assert one("SELECT token FROM pg_class", first).collections == {"app.secrets"}
    assert one("SELECT relname FROM pg_class", behind).collections == frozenset()


def test_a_temporary_relation_hides_others_of_its_name() -> None:
    scope = recorded_scope()
    own = replace(
        scope.catalog.names["app", "secrets"],
        name="documents",
        schema="pg_temp",
        collection="pg_temp.documents",
    )
    mine = Scope(scope.catalog, ("pg_temp_3", "pg_catalog", "public"), {"documents": own}, "pg_temp_3")
    assert one("SELECT token FROM documents", mine).collections == {"pg_temp.documents"}
    assert one("SELECT token FROM pg_temp.documents", mine).collections == {"pg_temp.documents"}
    assert one("SELECT id FROM public.documents", mine).collections == {"documents"}
    assert resolve("SELECT 1 FROM pg_temp_4.documents", mine).unknown


def test_a_view_s_name_may_be_hidden_by_with_but_a_table_that_is_written_may_not() -> None:
    assert one("WITH documents AS (SELECT 1 AS id) SELECT * FROM documents").collections == frozenset()
    assert "documents" in one("WITH documents AS (SELECT 1 AS id) DELETE FROM documents").collections
    assert one("WITH documents AS (SELECT 1 AS id) SELECT * FROM public.documents").collections == {
        "documents"
    }


def test_names_of_collections_are_told_apart_by_quotes() -> None:
    assert collection_name("public", "a") == "a"
    assert collection_name("a", "b") == "a.b"
    assert collection_name("public", "a.b") == '"a.b"'
    assert collection_name("x", 'a"b') == 'x."a""b"'


@pytest.mark.parametrize(
    "text",
    [
        "SET search_path TO app; SELECT id FROM documents",
        "SELECT set_config('search_path', 'app', false); SELECT id FROM documents",
        "COPY (SELECT set_config('search_path', 'app', false)) TO STDOUT; SELECT id FROM documents",
        "BEGIN; SET LOCAL ROLE x; SELECT id FROM documents; COMMIT",
        "ROLLBACK; SELECT id FROM documents",
        "DISCARD ALL; SELECT id FROM documents",
        "DROP TABLE documents; SELECT id FROM documents",
        "ALTER TABLE authors RENAME TO x; INSERT INTO documents (id) VALUES (1)",
        "CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql AS ''; SELECT lower('x')",
        "CREATE FUNCTION x() RETURNS int LANGUAGE sql AS ''; CREATE TABLE t (id int DEFAULT lower('x'))",
        "SET standard_conforming_strings = off; SELECT '\\'",
        "CREATE EXTENSION dblink; CREATE TABLE t (id int)",
        "CREATE EXTENSION vector; SELECT id FROM documents",
    ],
)
def test_what_follows_a_change_of_meaning_in_one_text_is_unknown(text: str) -> None:
    resolved = resolve(text, recorded_scope())
    assert resolved.unknown
    assert any(Action.UNKNOWN in statement.actions for statement in resolved.statements)


def test_definitions_may_follow_definitions_in_one_text() -> None:
    text = "CREATE TABLE t (id int); CREATE INDEX ON t (id); COMMENT ON TABLE t IS 'x'; COMMIT"
    resolved = resolve(text, recorded_scope())
    assert resolved.unknown is None
    assert all(statement.collections <= {"t"} for statement in resolved.statements)


def test_definitions_may_follow_an_extension_whose_functions_are_known() -> None:
    """As migrations are sent (Django's, in one text)."""
    text = (
        "BEGIN; CREATE EXTENSION IF NOT EXISTS vector; CREATE TABLE t (id int, e vector(3));"
        "CREATE INDEX ON t USING hnsw ((e::halfvec(3)) halfvec_l2_ops); COMMIT"
    )
    resolved = resolve(text, recorded_scope())
    assert resolved.unknown is None
    assert all("*" not in statement.collections for statement in resolved.statements[2:])


# Origins.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT title FROM documents", {"title:column"}),
        ("SELECT title::text FROM documents", {"title:value"}),
        ("SELECT t FROM (SELECT title AS t FROM documents) x", {"title:column"}),
        ("WITH x AS (SELECT title FROM documents) SELECT * FROM x", {"title:column"}),
        ("SELECT emb FROM public_docs", {"embedding:column"}),
        ("SELECT e FROM over_view", {"embedding:value"}),
        ("SELECT embedding <=> $1 FROM documents", {"embedding:distance"}),
        ("SELECT 1 - (embedding <=> $1) FROM documents", {"embedding:distance"}),
        ("SELECT subvector(embedding, 1, 1) <=> $1 FROM documents", {"embedding:value"}),
        ("SELECT embedding + '[1,1,1]' <=> $1 FROM documents", {"embedding:value"}),
        ("SELECT l2_distance(embedding, $1) FROM documents", {"embedding:distance"}),
        ("SELECT l2_distance(title::vector, $1) FROM documents", {"title:distance"}),
        ("SELECT count(ssn) FROM documents", {"ssn:count"}),
        ("SELECT ssn IS NULL FROM documents", {"ssn:count"}),
        ("SELECT EXISTS (SELECT ssn FROM documents)", {"ssn:count"}),
        ("SELECT (SELECT ssn FROM documents LIMIT 1)", {"ssn:value"}),
        ("SELECT CASE ssn WHEN '1' THEN title END FROM documents", {"ssn:value", "title:value"}),
        ("SELECT id IN (SELECT id FROM authors) FROM documents", {"id:value"}),
        ("SELECT title FROM documents UNION ALL SELECT ssn FROM documents", {"title:value", "ssn:value"}),
        ("SELECT x.v FROM documents d, LATERAL (VALUES (d.ssn)) x(v)", {"ssn:column"}),
        ("SELECT j.b FROM (documents d JOIN authors a ON true) AS j(a, b)", {"tenant:column"}),
        ("SELECT (d).ssn FROM documents d", {"ssn:value"}),
        ("SELECT (x.d).ssn FROM (SELECT d FROM documents d) x", None),
        ("SELECT u FROM unnest(ARRAY(SELECT ssn FROM documents)) u", {"ssn:value"}),
        ("DELETE FROM documents RETURNING old.ssn", {"ssn:column"}),
        ("INSERT INTO documents (id) VALUES (1) RETURNING ssn || title", {"ssn:value", "title:value"}),
    ],
)
def test_a_value_comes_from_these_columns(text: str, expected: set[str] | None) -> None:
    found = origins(text)
    if expected is None:
        assert "ssn:value" in found
    else:
        assert found == expected


def test_a_row_as_a_whole_comes_from_all_columns() -> None:
    every = {
        f"{column.name}:value" for column in recorded_scope().catalog.names["public", "documents"].columns
    }
    for text in (
        "SELECT d FROM documents d",
        "SELECT row_to_json(d) FROM documents d",
        "SELECT d::text FROM documents d",
    ):
        assert origins(text) == every


def test_a_recursive_query_brings_in_columns_round_by_round() -> None:
    text = (
        "WITH RECURSIVE r(a, b, c) AS (SELECT 'x', 'x', ssn FROM documents"
        " UNION ALL SELECT b, c, title FROM r, documents) SELECT a FROM r"
    )
    assert {"ssn:value", "title:value"} <= origins(text)


# What is written.


def test_what_flows_into_a_relation_is_told() -> None:
    made = one("INSERT INTO authors (id, name) SELECT id, ssn FROM documents").writes[0]
    assert {origin.name for origin in made.flows} == {"id", "ssn"}
    assert one("CREATE TABLE t AS SELECT ssn FROM documents").writes[0].flows
    assert one("SELECT ssn INTO t FROM documents").writes[0].flows
    assert not one("INSERT INTO authors (id) VALUES ($1)").writes[0].flows
    updated = one("UPDATE documents SET (title, body) = (ssn, $1)").writes[0]
    assert updated.columns == ("title", "body")
    assert {origin.name for origin in updated.flows} == {"ssn"}


def test_paths_lead_to_what_they_say() -> None:
    text = (
        "WITH x AS (SELECT id FROM authors a) INSERT INTO documents (id, title) VALUES (1, 'a'), (2, (SELECT"
        " name FROM authors LIMIT 1)) ON CONFLICT (id) DO UPDATE SET title = excluded.title"
    )
    resolved = resolve(text, recorded_scope())
    assert resolved.tree is not None
    statement = resolved.statements[0]
    for reference in statement.references:
        node = sql_parse.find(resolved.tree, reference.path)
        assert (node.get("RangeVar") or node)["relname"] == reference.name
        assert sql_parse.find(resolved.tree, reference.within)
    write = statement.writes[0]
    assert len(write.values) == 2
    assert sql_parse.find(resolved.tree, write.values[0][1])["A_Const"]["sval"] == {"sval": "a"}
    assert write.conflict_columns == ("title",)


def test_paths_of_every_reference_of_the_corpus_lead_to_a_relation_of_that_name() -> None:
    from tests.unit.engines.test_sql_corpus import lines

    for line in lines():
        resolved = resolve(line.split(" | ", 4)[4], recorded_scope())
        for statement in resolved.statements:
            for reference in (
                *statement.references,
                *(statement.inner.references if statement.inner else ()),
            ):
                if (
                    reference.use == "ddl"
                    or resolved.tree is None
                    or statement.command in ("EXECUTE", "FETCH")
                ):
                    continue
                node = sql_parse.find(resolved.tree, reference.path)
                assert (node.get("RangeVar") or node)["relname"] == reference.name.rpartition(".")[2], line


# Counts.


def test_the_limit_that_counts_is_the_outermost_or_the_only_one_beneath() -> None:
    assert one("SELECT * FROM (SELECT id FROM documents LIMIT 7) x").limit.literal == 7
    assert one("SELECT * FROM (SELECT id FROM documents LIMIT 7) x LIMIT 3").limit.literal == 3
    assert one("SELECT * FROM (SELECT id FROM documents LIMIT 7) x, authors").limit.all
    assert one("WITH x AS (SELECT id FROM documents LIMIT 7) SELECT id FROM x").limit.literal == 7
    assert one("SELECT generate_series(1, 100) FROM (SELECT id FROM documents LIMIT 7) x").limit.all
    assert one("SELECT id FROM documents ORDER BY id FETCH FIRST 3 ROWS WITH TIES").ties


def test_query_vectors_are_counted_once_each() -> None:
    base = "SELECT embedding <=> $1 FROM documents ORDER BY embedding <=> $1::vector"
    assert one(f"{base} LIMIT 1").queries == 1
    assert one(f"{base}, embedding <=> $2 LIMIT 1").queries == 2
    inner = "SELECT id FROM documents ORDER BY embedding <=> q.v LIMIT 1"
    many = f"SELECT s.id FROM unnest($1::vector[]) q(v), LATERAL ({inner}) s"
    assert one(many).queries > 1000


# Without a catalog.


def test_without_a_catalog_names_are_taken_as_they_are_written() -> None:
    guess = Scope(EMPTY, guess=True)
    found = one("SELECT id, a <=> $1 FROM docs WHERE t = 1 ORDER BY a <=> $1 LIMIT 5", guess)
    assert found.actions == {Action.SEARCH}
    assert found.collections == {"docs"}
    assert found.queries == 1
    assert {probe.name for probe in found.probes if probe.via != "distance"} == {"t"}
    assert one("SELECT * FROM app.docs", guess).collections == {"app.docs"}
    assert one("SELECT typname FROM pg_type", guess).actions == {Action.SESSION}
    assert resolve("SELECT pg_read_file('x')", guess).unknown


# Whatever comes.

WORDS = """SELECT * FROM documents d WHERE ( ) , id = 1 $1 JOIN ON USING authors WITH x AS RECURSIVE UNION ALL
ORDER BY embedding <=> LIMIT GROUP INSERT INTO VALUES UPDATE SET DELETE RETURNING ; LATERAL EXISTS IN 'a' .
::text count(*) EXPLAIN COPY TO STDOUT DECLARE CURSOR FOR FETCH PREPARE"""


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=30))
def test_no_text_raises_and_what_is_parsed_has_actions(words: list[str]) -> None:
    resolved = resolve(" ".join(words), recorded_scope())
    assert isinstance(resolved, Resolved)
    assert resolved.tree is not None or resolved.unknown
    assert all(statement.actions for statement in resolved.statements)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 300 + "id" + ")" * 300 + " FROM documents",
        "SELECT 1 FROM documents WHERE " + " AND ".join(["id = 1"] * 2000),
        "SELECT " + "CASE WHEN id = 1 THEN " * 60 + "1" + " END" * 60 + " FROM documents",
        "SELECT * FROM " + "(SELECT * FROM " * 40 + "documents" + ") x" * 40,
        "SELECT id" + " + id" * 400 + " FROM documents",
        "SELECT 1;" * 2000,
    ],
)
def test_deep_and_long_texts_are_resolved_or_unknown_and_never_raise(text: str) -> None:
    resolved = resolve(text, recorded_scope())
    assert resolved.unknown or all(not statement.unknown for statement in resolved.statements)
