# SPDX-License-Identifier: Apache-2.0
"""SQL under a verdict, without a server: what is forwarded, and what is refused with whose name."""

from __future__ import annotations

import hashlib
import re
from struct import pack
from typing import Any

import msgspec
import pytest

from agent.engines import pgvector_values as values
from agent.engines.pgvector_describe import Stated, describe
from agent.engines.pgvector_errors import show_error
from agent.engines.pgvector_kept import Kept
from agent.engines.pgvector_rewrite import Rewritten, rewrite
from agent.engines.pgvector_written import check_parameters, check_queries
from agent.engines.sql_catalog import Catalog, Scope
from agent.engines.sql_parse import parse
from agent.engines.sql_tree import Attribute, Relation, Resolved
from agent.engines.sql_walk import resolve
from agent.protocols.http import Refusal
from agent.protocols.sql_made import Parameter
from policy.model import Limit, Mask, Verdict

KEY = b"k" * 32
DOCS = Relation(
    20001,
    "public",
    "docs",
    "r",
    "docs",
    (
        Attribute("id", 1, values.INT4),
        Attribute("tenant", 2, values.TEXT),
        Attribute("title", 3, values.TEXT),
        Attribute("email", 4, values.TEXT),
        Attribute("embedding", 5, 90001, "vector"),
    ),
    frozenset({1}),
)
OTHER = Relation(
    20002, "app", "other", "r", "app.other", (Attribute("id", 1, values.INT4), Attribute("n", 2, values.INT4))
)
SCOPE = Scope(
    Catalog(
        1,
        "f",
        {one.oid: one for one in (DOCS, OTHER)},
        {(one.schema, one.name): one for one in (DOCS, OTHER)},
        operators={"<=>": (("public", "vector"),), "<->": (("public", "vector"),)},
        vectors={90001: "vector"},
        types=frozenset({"vector"}),
    ),
    ("pg_catalog", "public", "app"),
)
HIDE = {"vectors": False, "masks": (Mask("m", field="email"),)}
TENANT = {"filters": (("tenant", "acme"),), "filter_rules": ("t",)}


def verdict(**changes: Any) -> Verdict:
    return Verdict("allow", "r", None, "", "hash", **changes)


def read(text: str) -> Resolved:
    made = resolve(text, SCOPE)
    assert made.unknown is None, made.unknown
    return made


def forwarded(text: str, **changes: Any) -> Rewritten:
    return rewrite(read(text), verdict(**changes), KEY)


def refusal(text: str, **changes: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        forwarded(text, **changes)
    return caught.value


@pytest.mark.parametrize(
    "text", ["SELECT email FROM docs", "select  1;", "UPDATE docs SET title = 'x'", "BEGIN"]
)
def test_what_nothing_restricts_is_forwarded_as_it_came(text: str) -> None:
    made = forwarded(text)
    assert made == Rewritten(text, False)


@pytest.mark.parametrize("text", ["SELECT n FROM other", "SET search_path = app", "SELECT 1"])
def test_a_relation_without_hidden_columns_is_left_alone(text: str) -> None:
    assert forwarded(text, vectors=False, masks=(Mask("m", field="docs.email"),)) == Rewritten(text, False)


def test_a_hidden_column_is_not_in_what_stands_for_the_relation() -> None:
    made = forwarded("SELECT email FROM docs", **HIDE).text
    assert "CASE WHEN false THEN t.email ELSE '[redacted]' END AS email" in made
    assert "CASE WHEN false THEN t.embedding END AS embedding" in made
    assert "FROM public.docs t) docs" in made


def test_names_of_raw_columns_are_of_the_key_and_the_text() -> None:
    def alias(text: str, key: bytes = KEY) -> str:
        made = rewrite(read(text), verdict(**HIDE), key).text
        found = re.search(r"\b(v[0-9a-f]{24})\.v[0-9a-f]{24} <=> \$1", made)
        assert found is not None, made
        return found[1]

    text = "SELECT id FROM docs ORDER BY embedding <=> $1"
    assert alias(text) == alias(text)
    assert len({alias(text), alias(text + " "), alias(text, b"x" * 32)}) == 3


def test_a_distance_to_another_column_finds_nothing() -> None:
    made = forwarded("SELECT a.embedding <=> b.embedding FROM docs a, docs b", **HIDE).text
    assert "a.embedding <=> b.embedding" in made


def test_scores_are_rounded_where_they_are_shown_and_whole_where_they_order() -> None:
    text = "SELECT id, embedding <=> $1 AS d FROM docs ORDER BY d LIMIT 5"
    made = forwarded(text, vectors=False, masks=(Mask("s", scores=2),)).text
    assert re.search(r"pg_catalog\.round\(pg_catalog\.to_char\(.*<=> \$1.*'9\.9EEEE'\)", made)
    order = made.rpartition("ORDER BY")[2]
    assert "<=> $1" in order
    assert "round" not in order


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("SELECT id FROM docs", "LIMIT 20"),
        ("SELECT id FROM docs LIMIT 100 OFFSET 5", "LIMIT 20 OFFSET 5"),
        ("SELECT id FROM docs LIMIT ALL", "LIMIT 20"),
        ("SELECT id FROM docs LIMIT $1", "LIMIT LEAST($1::bigint, 20)"),
        ("SELECT id FROM docs ORDER BY id FETCH FIRST 90 ROWS WITH TIES", "LIMIT 20"),
        ("SELECT id FROM docs UNION ALL SELECT n FROM other", "LIMIT 20"),
        ("DECLARE c CURSOR FOR SELECT id FROM docs", "LIMIT 20"),
        ("COPY (SELECT id FROM docs) TO STDOUT", "LIMIT 20) TO STDOUT"),
    ],
)
def test_a_limit_is_cut(text: str, wanted: str) -> None:
    limit = Limit("top_k", 20, "clamp", "few")
    made = forwarded(text, limits=(limit,))
    assert wanted in made.text
    assert made.notices == ("top_k cut to 20 by rule few",)


@pytest.mark.parametrize(
    "text", ["SELECT id FROM docs LIMIT 3", "SELECT count(*) FROM docs", "VALUES (1), (2)"]
)
def test_what_is_within_the_limit_is_left_alone(text: str) -> None:
    assert not forwarded(text, limits=(Limit("top_k", 20, "clamp", "few"),)).changed


def test_what_cannot_be_cut_is_refused() -> None:
    limit = Limit("top_k", 1, "clamp", "few")
    assert refusal("DELETE FROM docs RETURNING id", limits=(limit,), clamps=(limit,)).reason == "clamp"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("SELECT id FROM docs", "WHERE t.tenant OPERATOR(pg_catalog.=) 'acme') docs"),
        (
            "UPDATE docs d SET title = 'x' WHERE id = 1 OR true",
            "d.tenant OPERATOR(pg_catalog.=) 'acme' AND (id = 1 OR true)",
        ),
        ("DELETE FROM docs", "WHERE docs.tenant OPERATOR(pg_catalog.=) 'acme'"),
        ("COPY docs (id) TO STDOUT", "COPY (SELECT docs.id FROM (SELECT"),
        ("SELECT id FROM docs WHERE 1 / id = 1", "'acme' OFFSET 0) docs"),
    ],
)
def test_a_filter_narrows_every_reference(text: str, wanted: str) -> None:
    assert wanted in forwarded(text, **TENANT).text


def test_a_filter_with_a_quote_is_a_literal() -> None:
    made = forwarded(
        "SELECT id FROM docs", filters=(("tenant", "o'x\\' OR true --"),), filter_rules=("t",)
    ).text
    ((_, node),) = parse(made)["stmts"][0]["stmt"].items()
    inner = node["fromClause"][0]["RangeSubselect"]["subquery"]["SelectStmt"]["whereClause"]["A_Expr"]
    assert inner["rexpr"]["A_Const"]["sval"]["sval"] == "o'x\\' OR true --"


def test_a_relation_without_the_filters_column_is_refused() -> None:
    found = refusal("SELECT d.id FROM docs d, other", **TENANT)
    assert found.reason == "filter"
    assert found.message == "denied by rule t: other has no column tenant to be filtered by"


@pytest.mark.parametrize(
    ("parameter", "stands"),
    [
        (Parameter(values.TEXT, 0, b"acme"), True),
        (Parameter(0, 0, b"acme"), True),
        (Parameter(values.VARCHAR, 1, b"acme"), True),
        (Parameter(values.TEXT, 0, b"acme "), False),
        (Parameter(values.TEXT, 0, b"other"), False),
        (Parameter(values.TEXT, 0, None), False),
        (Parameter(0, 1, b"acme"), False),
        (Parameter(values.TEXT, 0, b"\xff"), False),
    ],
)
def test_a_parameter_that_is_written_to_the_filters_column_is_checked_at_bind(
    parameter: Parameter, stands: bool
) -> None:
    made = read("INSERT INTO docs (id, tenant) VALUES (1, $1::text)")
    assert not rewrite(made, verdict(**TENANT), KEY).changed
    if stands:
        check_parameters(made, [parameter], verdict(**TENANT))
    else:
        with pytest.raises(Refusal, match="must have tenant"):
            check_parameters(made, [parameter], verdict(**TENANT))


def test_a_cast_that_can_change_a_parameter_is_refused() -> None:
    assert refusal("INSERT INTO docs (id, tenant) VALUES (1, $1::varchar(2))", **TENANT).reason == "filter"


@pytest.mark.parametrize(
    "parameter",
    [Parameter(0, 0, b"[0,0,0,1,0,0,0,0]"), Parameter(90001, 1, pack("!HH8f", 8, 0, *([0] * 7), 2))],
)
def test_a_query_vector_with_a_single_number_is_refused_at_bind(parameter: Parameter) -> None:
    made = read("SELECT id, embedding <-> $1 FROM docs")
    check_queries(made, [parameter], verdict())
    check_queries(made, [Parameter(0, 0, b"[1,2,3,4,5,6,7,8]")], verdict(**HIDE))
    with pytest.raises(Refusal, match="single number"):
        check_queries(made, [parameter], verdict(**HIDE))


def test_the_same_text_under_the_same_restrictions_is_made_once() -> None:
    kept, made = Kept(KEY), read("SELECT email FROM docs")
    first = kept.rewrite(made, verdict(**HIDE))
    assert kept.rewrite(made, verdict(**HIDE)) is first
    assert kept.rewrite(made, verdict(vectors=False)) is not first
    assert kept.rewrite(read("SELECT email FROM docs"), verdict(**HIDE)) is not first


# Errors


NAMES = {"S": "ERROR", "V": "ERROR", "C": "23505", "s": "public", "t": "docs", "n": "docs_email_key"}
UNIQUE = {
    **NAMES,
    "M": 'duplicate key value violates unique constraint "docs_email_key"',
    "D": "Key (email)=(secret@example.org) already exists.",
}


def test_an_unrestricted_client_sees_the_whole_error() -> None:
    assert show_error(UNIQUE, verdict(), False, KEY) == UNIQUE


def test_a_value_in_an_error_is_withheld() -> None:
    made = show_error(UNIQUE, verdict(**HIDE), True, KEY)
    assert made == {**NAMES, "M": "unique violation (the database's message is withheld by policy)"}
    cast = {
        "S": "ERROR",
        "C": "22P02",
        "M": 'invalid input syntax for type integer: "secret"',
        "P": "8",
        "W": "x",
    }
    assert "secret" not in str(show_error(cast, verdict(**TENANT), False, KEY))


def test_a_message_of_names_passes_but_not_what_a_function_raised() -> None:
    missing = {"S": "ERROR", "C": "42P01", "M": 'relation "x" does not exist', "P": "15"}
    assert show_error(missing, verdict(**HIDE), False, KEY) == missing
    assert "P" not in show_error(missing, verdict(**HIDE), True, KEY)
    raised = {"S": "NOTICE", "C": "00000", "M": "secret", "W": "PL/pgSQL function f() line 1 at RAISE"}
    assert "secret" not in str(show_error(raised, verdict(**HIDE), False, KEY))


@pytest.mark.parametrize("severity", ["LOG", "DEBUG"])
def test_lines_of_the_servers_log_hold_rewritten_statements_and_are_withheld(severity: str) -> None:
    line = {"S": "LOG", "V": severity, "C": "00000", "M": "statement: SELECT ... WHERE tenant = 'secret'"}
    assert show_error(line, verdict(**TENANT), True, KEY)["M"].startswith("a line of the server's log (")
    assert show_error(line, verdict(), False, KEY) == line
    notice = {**line, "S": "NOTICE", "V": "NOTICE", "M": "table x does not exist, skipping"}
    assert show_error(notice, verdict(**TENANT), True, KEY) == notice


# Records


def test_vectors_of_a_statement_and_its_parameters_are_digested() -> None:
    vector = "[1,2,3,4,5,6,7,8]"
    stated = Stated(f"SELECT '{vector}' <-> $1, '[1,2]'")
    parameters = [
        Parameter(90001, 0, vector.encode()),
        Parameter(90001, 1, pack("!HH8f", 8, 0, 1, 2, 3, 4, 5, 6, 7, 8)),
        Parameter(values.TEXT, 0, b"plain"),
        Parameter(values.INT4, 1, pack("!i", 7)),
        Parameter(0, 1, b"\xff"),
        Parameter(values.TEXT, 0, None),
    ]
    made = describe(stated, parameters, {90001: "vector"}, True)
    assert made.body.count(vector.encode()) == 3
    assert made.sha256 == hashlib.sha256(made.body).digest()
    short = made.recorded
    assert made.cut == 3
    assert vector.encode() not in short
    assert short.count(b'"dim":8') + short.count(b'\\"dim\\":8') == 3
    for kept in (b"'[1,2]'", b'"plain"', b'"7"', b'{"base64":"/w==","type":0}', b"null"):
        assert kept in short
    for body in (made.body, short):
        assert set(msgspec.json.decode(body)) == {"statement", "parameters"}
    full = describe(stated, parameters, {90001: "vector"}, False)
    assert (full.body, full.recorded) == (made.body, made.body)


@pytest.mark.parametrize(
    ("value", "dim"),
    [
        ("[1,2,3,4,5,6,7,8]", 8),
        (" [ 1.5e-3 , -2,+3,.4,5.,6,7,8 ]\n", 8),
        ("{1,2,3,4,5,6,7,8,9}", 9),
        ("{1:0.5,7:2}/100", 100),
        ("[" + ",".join(["0.25"] * 768) + "]", 768),
        ("[1,2,3,4,5,6,7]", 0),
        ('["1","2","3","4","5","6","7","8"]', 0),
        ("{2024-01-01,2024-01-02,2024-01-03,2024-01-04,2024-01-05,2024-01-06,2024-01-07,2024-01-08}", 0),
        ("[1,2,3,4],[5,6,7,8,9]", 0),
        ("a [1,2,3] b", 0),
    ],
)
def test_a_parameter_that_is_a_vector_is_told_from_other_texts(value: str, dim: int) -> None:
    made = describe(Stated("SELECT $1"), [Parameter(0, 0, value.encode())], {}, True)
    (told,) = msgspec.json.decode(made.recorded)["parameters"]
    if dim:
        assert told == {"dim": dim, "sha256": hashlib.sha256(value.strip().encode()).hexdigest()}
    else:
        assert (told, made.cut) == (value, 0)
