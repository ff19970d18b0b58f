# SPDX-License-Identifier: Apache-2.0
"""Masks and a tenant's filter on a real Chroma, by its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.stage import Stage

POLICY = """\
version: 1
rules:
  - {id: keeper, who: {user: root}, what: {guard: docs}, allow: true}
  - id: reader
    who: {user: nobody}
    what: {guard: docs}
    allow: true
    vectors: false
    mask: [{pii: [email], as: redact}, {field: metadata.ssn, as: "null"}]
  - id: tenant
    who: {user: daemon}
    what: {guard: docs}
    allow: true
    filter: {tenant: acme}
"""
FILL = """
import chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
papers = client.create_collection("papers", embedding_function=None)
papers.add(ids=[f"id{n}" for n in range(8)], embeddings=[[n, 1.0] for n in range(8)],
           documents=[f"{'good' if n % 2 else 'evil'} {n}: write to ada@example.org" for n in range(8)],
           metadatas=[{"tenant": "acme" if n % 2 else "evil", "n": n, "ssn": "078-05-1120",
                       "mail": f"Ada <ada{n}@example.org>"} for n in range(8)])
"""
EVERY = ["embeddings", "documents", "metadatas"]
NEAR: dict[str, Any] = {"query_embeddings": [[0.0, 1.0]], "n_results": 8}
ASK = """
import json, sys, chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
papers = client.get_collection("papers", embedding_function=None)
said = []
for method, arguments in json.loads(sys.argv[1]):
    try:
        said.append(["ok", getattr(papers, method)(**arguments)])
    except Exception as error:
        said.append(["refused", str(error)])
print(json.dumps(said, default=lambda value: value.tolist() if hasattr(value, "tolist") else repr(value)))
"""
EVIL = {"tenant": "evil"}
ESCAPES: list[tuple[str, dict[str, Any]]] = [
    ("get", {}),
    ("get", {"ids": ["id0", "id2"]}),
    ("get", {"where": EVIL}),
    ("get", {"where": {"$or": [EVIL, {"n": {"$gte": 0}}]}}),
    ("get", {"where": {"$and": [EVIL, {"n": 0}]}}),
    ("get", {"where": {"tenant": {"$ne": "acme"}}}),
    ("get", {"where": {"tenant": {"$nin": ["acme"]}}}),
    ("get", {"where_document": {"$contains": "evil"}}),
    ("get", {"where_document": {"$or": [{"$contains": "evil"}, {"$contains": "good"}]}}),
    ("get", {"where_document": {"$regex": "evil.*"}}),
    ("get", {"limit": 100, "offset": 0, "include": EVERY}),
    ("get", {"include": []}),
    ("query", NEAR),
    ("query", {**NEAR, "where": EVIL}),
    ("query", {**NEAR, "where": {"$or": [EVIL, {"tenant": "acme"}]}}),
    ("query", {**NEAR, "ids": ["id0", "id2"]}),
    ("query", {**NEAR, "query_embeddings": [[0.0, 1.0]] * 3, "where_document": {"$contains": "evil"}}),
    ("peek", {"limit": 10}),
]
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("delete", {"ids": ["id0"]}),
    ("delete", {"where": EVIL}),
    ("update", {"ids": ["id0"], "documents": ["mine"], "embeddings": [[9.0, 9.0]]}),
    (
        "upsert",
        {"ids": ["id2"], "documents": ["mine"], "embeddings": [[9, 9]], "metadatas": [{"tenant": "acme"}]},
    ),
    ("add", {"ids": ["new"], "embeddings": [[9.0, 9.0]], "metadatas": [EVIL]}),
    ("add", {"ids": ["new"], "embeddings": [[9.0, 9.0]]}),
]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage("chroma") as made:
        made.start_database()
        made.vecward(POLICY)
        made.client(FILL)
        yield made


def ask(stage: Stage, asked: list[tuple[str, dict[str, Any]]], user: str) -> list[list[Any]]:
    said: list[list[Any]] = json.loads(stage.client(ASK, json.dumps(asked), user=user).stdout)
    return said


def test_documents_and_metadata_are_masked_and_embeddings_stay(stage: Stage) -> None:
    asked = [("get", {"include": EVERY}), ("query", {**NEAR, "include": [*EVERY, "distances"]}), ("peek", {})]
    for (outcome, answer), (method, _) in zip(ask(stage, asked, "nobody"), asked, strict=True):
        assert outcome == "ok", (method, answer)
        text = json.dumps(answer)
        assert "write to" in text
        assert "good 1" in text
        assert "example.org" not in text
        assert "078-05-1120" not in text
        assert not answer.get("embeddings")
    assert "ada1@example.org" in json.dumps(ask(stage, [("get", {})], "root"))


def test_no_request_brings_a_row_of_another_tenant(stage: Stage) -> None:
    said = ask(stage, ESCAPES, "daemon")
    for (outcome, answer), asked in zip(said, ESCAPES, strict=True):
        if outcome == "ok":
            text = json.dumps(answer)
            assert not [n for n in range(0, 8, 2) if f'"id{n}"' in text], asked
            assert "evil" not in text, asked
    assert sorted(said[0][1]["ids"]) == ["id1", "id3", "id5", "id7"]  # and its own come


def test_no_request_changes_a_row_of_another_tenant(stage: Stage) -> None:
    everything = [("get", {"include": EVERY}), ("count", {})]
    before = ask(stage, everything, "root")
    for asked, (outcome, answer) in zip(CHANGES, ask(stage, CHANGES, "daemon"), strict=True):
        assert outcome == "refused" or asked[0] == "delete", (asked, answer)
    assert ask(stage, everything, "root") == before
