# SPDX-License-Identifier: Apache-2.0
"""The parser behind its module: what it bounds, and that what it writes back means the same."""

from __future__ import annotations

import pytest

from agent.engines import sql_parse
from agent.engines.sql_parse import ParseFailure

ONE_OF_EACH = (
    "SELECT id, 1 - (e <=> $1::vector) AS s FROM docs WHERE t = $2 ORDER BY e <=> $1 LIMIT $3",
    "SELECT E'a\\nb', U&'d\\0061t', U&\"d\\0061t\", $x$ab'c$x$, -5, 9999999999, 1.5e3, B'1', X'1F', true",
    "INSERT INTO t (a) VALUES (1), (DEFAULT) ON CONFLICT (a) DO UPDATE SET a = excluded.a RETURNING *",
    "MERGE INTO t USING s ON a = b WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (1)",
    "SELECT a OPERATOR(public.<=>) b FROM ONLY s.t AS x(a, b) TABLESAMPLE system(1) ORDER BY 1 USING <",
    "WITH RECURSIVE a AS MATERIALIZED (SELECT 1 UNION ALL TABLE a) SELECT * FROM a FOR UPDATE SKIP LOCKED",
    'SET search_path TO a, "B"',
    "COPY (SELECT 1) TO STDOUT WITH (FORMAT csv)",
    "DO $$ begin end $$",
    "CREATE TABLESPACE x LOCATION '/a'",
    "DECLARE c BINARY NO SCROLL CURSOR WITH HOLD FOR SELECT 1; FETCH FORWARD 10 FROM c; CLOSE c",
)


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_a_tree_is_written_back_as_text_that_parses_to_the_same_tree(text: str) -> None:
    tree = sql_parse.parse(text)
    assert sql_parse.same(sql_parse.parse(sql_parse.deparse(tree)), tree)


def test_trees_differ_by_meaning_and_not_by_position() -> None:
    assert sql_parse.same(sql_parse.parse("select  a from T"), sql_parse.parse("SELECT a\nFROM t -- x"))
    assert not sql_parse.same(sql_parse.parse("select a from t"), sql_parse.parse('select a from "T"'))
    assert not sql_parse.same(
        sql_parse.parse("create tablespace x location '/a'"),
        sql_parse.parse("create tablespace x location '/b'"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "selec 1",
        "select 1\0; drop table t",
        "select '\ud800'",
        "select E'\\xff'",
        "select U&'\\D800'",
        "select " + "(" * 20_000,
        "select " + "case when a then " * 3000 + "1" + " end" * 3000,
        " union all ".join(["select 1"] * 3000),
    ],
)
def test_what_is_not_sql_or_is_nested_without_end_is_a_failure(text: str) -> None:
    with pytest.raises(ParseFailure):
        sql_parse.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("select 1" + "+1" * 20_000, "chain"),
        ("select 1 where (a)" + "+f(1)" * 20_000, "chain"),
        ("select 1, 2" + "+1" * 20_000, "chain"),
        ("select [" + "1+" * 20_000, "chain"),
        ("select 1 --'\n" + "+1" * 20_000, "comments"),
        ("select 1 /*'*/" + "+1" * 20_000, "comments"),
        ("select $$'$$" + "+1" * 20_000, r"\$\$"),
        ("select $ä$'$ä$" + "+1" * 20_000, r"\$\$"),
        ('select "\'"' + "+1" * 20_000, "comments"),
        ("select e'\\''" + "+1" * 20_000, "E''"),
        ("select '\\'" + "+1" * 20_000, "chain"),
        ("select " + "1," * 300_000 + "1", "too long"),
        ("select '" + "x" * sql_parse.MAX_TEXT + "'", "too long"),
        ("select " + "$1," * 150_000 + "1", "too complex"),
    ],
)
def test_what_could_exhaust_stack_or_memory_is_refused_before_it_is_parsed(text: str, message: str) -> None:
    with pytest.raises(ParseFailure, match=message):
        sql_parse.parse(text)


def test_large_inserts_of_ordinary_shape_pass_the_bounds() -> None:
    values = ", ".join(["($1::VARCHAR, $2::VECTOR(3), E'x', '" + "it''s -- /* $$ \\ " * 20 + "')"] * 2000)
    tree = sql_parse.parse(f"INSERT INTO t (a, b, c, d) VALUES {values}")
    path = ("stmts", 0, "stmt", "InsertStmt", "selectStmt", "SelectStmt", "valuesLists")
    assert len(sql_parse.find(tree, path)) == 2000


def test_a_walk_meets_every_node_once_with_the_path_that_leads_to_it() -> None:
    tree = sql_parse.parse("select a from x.t where b in (select c from u)")
    found = [(kind, path) for path, kind, _ in sql_parse.walk(tree)]
    assert [kind for kind, _ in found].count("RangeVar") == 2
    assert len(found) == len(set(found))
    assert all(kind in sql_parse.find(tree, path) for kind, path in found)


def test_a_copy_shares_nothing_that_could_be_changed() -> None:
    tree = sql_parse.parse("select a from t")
    copied = sql_parse.copy(tree)
    sql_parse.find(copied, ("stmts", 0, "stmt", "SelectStmt", "targetList"))[0]["ResTarget"]["name"] = "b"
    assert sql_parse.deparse(tree) == "SELECT a FROM t"
    assert sql_parse.deparse(copied) == "SELECT a AS b FROM t"
