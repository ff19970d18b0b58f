# SPDX-License-Identifier: Apache-2.0
"""What tries to read a masked column or another tenant's row is refused or masked, and none of it by luck."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agent.protocols.http import Refusal
from agent.protocols.postgres_messages import message
from policy.model import Action, Limit, Mask, Verdict
from tests.servers.red_team import Client, Database, leaks, messages, texts_of
from tests.venvs import NoVenv

CASES: list[dict[str, Any]] = YAML(typ="safe").load(
    (Path(__file__).parents[1] / "data" / "sql_red_team.yaml").read_text()
)
ALLOW = """
  - id: app
    what:
      guard: pg
      collection: [docs, notes, parts, contacts, titles]
      action: [search, read, scan, count, write, delete]
    allow: true
  - {id: start, what: {guard: pg, action: session}, allow: true}
"""
DATA = "{guard: pg, action: [search, read, scan, count, write, delete]}"
RULES = {
    "masks": ALLOW
    + f"""
  - id: hide
    what: {DATA}
    vectors: false
    mask: [{{field: docs.email}}, {{field: docs.phone, as: hmac}}, {{field: docs.note, as: partial}},
      {{field: docs.salary, as: "null"}}, {{field: docs.meta.ssn}}]
""",
    "scores": ALLOW
    + f"""
  - {{id: coarse, what: {DATA}, vectors: false, mask: [{{scores: 2}}]}}
""",
    "fields": ALLOW
    + f"""
  - {{id: few, what: {DATA}, fields: [id, tenant, title, doc_id, body]}}
""",
    "personal": ALLOW
    + f"""
  - {{id: people, what: {DATA}, mask: [{{pii: [email]}}]}}
""",
    "tenant": ALLOW
    + f"""
  - {{id: own, what: {DATA}, filter: {{tenant: acme}}}}
""",
}


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    try:
        made = Database()
        with made:
            yield made
    except NoVenv as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def clients(database: Database) -> Iterator[dict[str, Client]]:
    made = {under: Client(database, rules) for under, rules in RULES.items()}
    yield made
    for client in made.values():
        client.close()


def test_the_list_is_long_enough_and_says_what_each_tried() -> None:
    assert len(CASES) >= 60
    assert all(case["tried"] and case["under"] in RULES for case in CASES)
    assert all(len(case.keys() & {"refused", "masked", "filtered", "empty", "fails"}) == 1 for case in CASES)


@pytest.mark.parametrize("under", ["masks", "tenant"])
@pytest.mark.parametrize("extended", [False, True], ids=["text", "binary"])
def test_the_canaries_are_found_where_no_policy_hides_them(
    database: Database, under: str, extended: bool
) -> None:
    client = Client(database, ALLOW)
    try:
        answer = client.ask("SELECT * FROM docs", extended)
        assert len(leaks(under, answer, "")) >= 6
    finally:
        client.close()


@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
@pytest.mark.parametrize("case", CASES, ids=[f"{c['under']}-{c['tried']}" for c in CASES])
def test_what_is_hidden_stays_hidden(
    clients: dict[str, Client], case: dict[str, Any], extended: bool
) -> None:
    client = clients[case["under"]]
    answer = client.ask("BEGIN")
    try:
        for text in texts_of(case):
            is_one = text.startswith(("COPY", "SET")) or ";" in text
            answer = client.ask(text, extended and not is_one)
            assert leaks(case["under"], answer, text) == []
    finally:
        client.ask("ROLLBACK")
        client.ask("DEALLOCATE ALL")
    error = answer.fields()
    last = answer.intents[-1]
    if "refused" in case:
        assert error.get("C") == "42501", error
        assert case["refused"] in error["M"]
        assert last.verdict.outcome == "deny"
        assert case["refused"] in last.verdict.message
        assert answer.rows == 0
        return
    assert last.verdict.outcome == "allow"
    assert error.get("C") == case.get("fails"), error
    if "fails" in case:
        assert set(error) <= set("SVCMRctdns")
        return
    if "masked" in case:
        assert case["masked"] in answer.masks
        assert answer.rows > 0
    elif "empty" in case:
        assert answer.rows == 0
    else:
        assert last.verdict.filters == (("tenant", "acme"),)


@pytest.mark.parametrize("extended", [False, True], ids=["simple", "extended"])
def test_search_goes_on_where_vectors_are_hidden(clients: dict[str, Client], extended: bool) -> None:
    text = "SELECT id, title, embedding <=> '[1,2,3,4,5,6,7,8]' AS d FROM docs ORDER BY d LIMIT 2"
    answer = clients["masks"].ask(text, extended)
    assert answer.fields() == {}
    assert answer.rows == 2
    assert len(answer.results[-1].ids) == 2
    alike = clients["masks"].ask(
        "SELECT id FROM docs ORDER BY embedding <-> (SELECT embedding FROM docs WHERE id = 2) LIMIT 1",
        extended,
    )
    assert alike.results[-1].ids == ("2",)


def test_a_restricted_search_uses_the_index_that_it_used_before(database: Database) -> None:
    """What the wrapped statement is planned as: the rewriting must not cost the index."""
    client = Client(database, RULES["masks"])
    try:
        text = "SELECT *, embedding <=> '[1,2,3,4,5,6,7,8]' AS d FROM docs ORDER BY d LIMIT 2"
        assert client.ask(text).fields() == {}
        (forwarded,) = [held.text for _, held in client.engine.kept._texts.values() if held.changed]
    finally:
        client.close()
    plain = Client(database, ALLOW + "  - {id: all, what: {guard: pg}, allow: true}\n")
    try:
        plain.ask("SET enable_seqscan = off")
        plan = b"\n".join(
            body for kind, body in messages(plain.ask(f"EXPLAIN {forwarded}").data) if kind == b"D"
        )
    finally:
        plain.close()
    assert b"docs_embedding_idx" in plan


ALIKE = (
    "SELECT * FROM docs",
    "SELECT n.id, d.id FROM notes n LEFT JOIN docs d ON d.id = n.doc_id",
    "SELECT n.id, d.id FROM notes n RIGHT JOIN docs d ON d.id = n.doc_id",
    "SELECT n.id, d.id FROM notes n FULL JOIN docs d ON d.id = n.id + 1",
    "SELECT * FROM docs JOIN notes USING (id, tenant)",
    "SELECT * FROM docs NATURAL LEFT JOIN notes",
    "SELECT d.id, (SELECT count(*) FROM notes n WHERE n.doc_id >= d.id) FROM docs d",
    "SELECT id FROM docs WHERE id NOT IN (SELECT doc_id FROM notes)",
    "SELECT id FROM docs d WHERE NOT EXISTS (SELECT FROM notes n WHERE n.doc_id = d.id)",
    "SELECT title FROM docs UNION ALL SELECT body FROM notes",
    "SELECT id FROM docs EXCEPT SELECT doc_id FROM notes",
    "WITH RECURSIVE r(n) AS (VALUES (1) UNION ALL SELECT d.id FROM docs d JOIN r ON d.id = r.n + 1) TABLE r",
    "SELECT tenant, count(*), max(salary) FROM docs GROUP BY ROLLUP (tenant)",
    "SELECT id, rank() OVER (PARTITION BY tenant ORDER BY salary DESC) FROM docs",
    "SELECT DISTINCT ON (tenant) id FROM docs ORDER BY tenant, salary",
    "SELECT id FROM docs ORDER BY embedding <-> '[1,2,3,4,5,6,7,8]' LIMIT 2 OFFSET 1",
    "SELECT count(*) FROM parts",
    "SELECT x.* FROM docs d CROSS JOIN LATERAL (SELECT n.body FROM notes n WHERE n.doc_id = d.id LIMIT 1) x",
    "SELECT id FROM docs WHERE 10 / (salary - 918273640) >= 0",
    "UPDATE docs SET salary = salary + 1 RETURNING id, salary",
    "UPDATE docs d SET title = n.body FROM notes n WHERE n.doc_id = d.id RETURNING d.id, d.title",
    "DELETE FROM notes n USING docs d WHERE n.doc_id = d.id RETURNING n.id",
    """INSERT INTO docs (id, tenant, title) VALUES (1, 'acme', 'x'), (7, 'acme', 'y')
       ON CONFLICT (id) DO UPDATE SET title = excluded.title RETURNING id, title""",
    "DELETE FROM docs WHERE id NOT IN (SELECT doc_id FROM notes) RETURNING id",
    "UPDATE notes SET body = (SELECT title FROM docs d WHERE d.id = doc_id) WHERE id > 0 RETURNING id, body",
    "UPDATE notes n SET body = 'x' WHERE EXISTS (SELECT FROM docs d WHERE d.id > n.doc_id) RETURNING n.id",
    "INSERT INTO notes (id, tenant, body) SELECT id + 10, tenant, title FROM docs RETURNING id, body",
    """MERGE INTO notes n USING docs d ON n.doc_id = d.id WHEN MATCHED THEN UPDATE SET body = d.title
       WHEN NOT MATCHED THEN INSERT (id, tenant, body) VALUES (d.id + 20, 'acme', d.title) RETURNING n.id""",
    "WITH w AS (DELETE FROM notes RETURNING doc_id) SELECT d.title FROM docs d JOIN w ON d.id = w.doc_id",
)


@pytest.mark.parametrize("text", ALIKE)
def test_a_filter_gives_what_a_database_of_its_rows_alone_gives(
    clients: dict[str, Client], database: Database, text: str
) -> None:
    filtered, alone = clients["tenant"], Client(database, ALLOW)
    try:
        answers = []
        for client, prepare in ((filtered, False), (alone, True)):
            client.ask("BEGIN")
            if prepare:
                client.ask("DELETE FROM notes WHERE tenant <> 'acme'")
                client.ask("DELETE FROM docs WHERE tenant <> 'acme'")
                client.ask("DELETE FROM parts WHERE tenant <> 'acme'")
            answer = client.ask(text)
            client.ask("ROLLBACK")
            assert answer.fields() == {}
            answers.append(sorted(body for kind, body in messages(answer.data) if kind in b"DC"))
        assert answers[0] == answers[1]
    finally:
        alone.close()


def _parse(name: bytes, text: str) -> bytes:
    return message(ord("P"), name + b"\0" + text.encode() + b"\0\0\0")


def _bind(name: bytes) -> bytes:
    return message(ord("B"), b"\0" + name + b"\0\0\0\0\0\0\1\0\1")


@pytest.mark.parametrize("returns", ["SELECT * FROM docs", "UPDATE docs SET title = title RETURNING *"])
@pytest.mark.parametrize("described", ["never", "statement", "portal", "earlier", "two at a time"])
def test_a_result_is_masked_however_it_was_described(
    clients: dict[str, Client], returns: str, described: str
) -> None:
    client = clients["masks"]
    name = b"s" + bytes([65 + len(described), 65 + len(returns) % 26])
    execute, sync = message(ord("E"), b"\0\0\0\0\0"), message(ord("S"))
    parts = {
        "never": (_parse(name, returns), _bind(name), execute),
        "statement": (_parse(name, returns), message(ord("D"), b"S" + name + b"\0"), _bind(name), execute),
        "portal": (_parse(name, returns), _bind(name), message(ord("D"), b"P\0"), execute),
        "earlier": (_bind(name), execute),
        "two at a time": (_parse(name, returns), _bind(name), message(ord("E"), b"\0\0\0\0\2"), execute),
    }[described]
    if described == "earlier":
        client.send(_parse(name, returns) + message(ord("D"), b"S" + name + b"\0") + sync)
    answer = client.send(b"".join(parts) + sync)
    client.send(message(ord("C"), b"S" + name + b"\0") + sync)
    assert answer.fields() == {}
    assert answer.rows == 3
    assert leaks("masks", answer, returns) == []
    assert {"docs.email", "docs.phone", "vectors"} <= answer.masks


CORPUS = [
    line.split(" | ", 4)[4]
    for line in (Path(__file__).parents[1] / "data" / "sql" / "corpus.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
RESTRICTIONS: dict[str, dict[str, Any]] = {
    "vectors": {"vectors": False},
    "masks": {"masks": (Mask("m", field="title"), Mask("m", field="body", how="hmac"))},
    "scores": {"vectors": False, "masks": (Mask("m", scores=2),)},
    "filter": {"filters": (("id", 1),), "filter_rules": ("f",)},
    "fields": {"fields": frozenset({"id", "title"})},
    "limit": {"limits": (Limit("top_k", 5, "clamp", "l"),)},
}


@pytest.mark.parametrize("name", RESTRICTIONS)
def test_every_statement_of_the_corpus_is_rewritten_or_refused(database: Database, name: str) -> None:
    """And what is rewritten is a statement to the database wherever the client's own was one."""
    client, plain = Client(database, ALLOW, "corpus"), database.connect("corpus")
    verdict = Verdict("allow", "r", None, "", "hash", **RESTRICTIONS[name])
    changed = 0
    try:
        for text in CORPUS:
            reading = client.conversation.read(text)
            operation = client.conversation.operation(reading, None)
            if Action.UNKNOWN in operation.actions:
                continue
            try:
                made = client.conversation.rewrite(reading, operation, verdict)
            except Refusal:
                continue
            if made.text != text and {*reading.methods} <= {"SELECT", "UPDATE", "DELETE", "INSERT", "MERGE"}:
                changed += 1
                assert not (_fails(plain, made.text) and not _fails(plain, text)), (text, made.text)
    finally:
        client.close()
        plain.close()
    assert changed > 100


def _fails(connection: socket.socket, text: str) -> bool:
    """Whether the database cannot prepare a statement; system columns are not there after a rewrite."""
    connection.sendall(_parse(b"", text) + message(ord("S")))
    data = b""
    while not any(kind == b"Z" for kind, _ in messages(data)):
        data += connection.recv(65536)
    return any(kind == b"E" for kind, _ in messages(data)) and "ctid" not in text
