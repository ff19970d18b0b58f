# SPDX-License-Identifier: Apache-2.0
"""A guard in observe says what enforce would do, by what is really asked, though it may look nothing up."""

from __future__ import annotations

import time
from typing import Any

from tests.servers.stage import Stage

POLICY = """\
version: 1
rules:
  - id: searchers
    who: {user: nobody}
    what: {guard: docs, collection: papers, action: [search, count]}
    allow: true
    limit: {top_k: 5}
  - id: hello
    what: {guard: docs, action: session}
    allow: true
"""
CHROMA = """
import time, chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
papers = client.create_collection("papers", embedding_function=None)
papers.add(ids=["a", "b"], embeddings=[[1, 0, 0], [0, 1, 0]])
papers.query(query_embeddings=[[1, 0, 0]], n_results=2)
time.sleep(2.5)  # a name that was seen in passing is not trusted any more, but still told
papers.query(query_embeddings=[[1, 0, 0]], n_results=2)
papers.query(query_embeddings=[[1, 0, 0]], n_results=9)
papers.get()
"""
QDRANT = """
from qdrant_client import QdrantClient, models
client = QdrantClient("127.0.0.1", port=6333, prefer_grpc=False, check_compatibility=False)
client.create_collection("papers", vectors_config=models.VectorParams(size=3, distance="Cosine"))
points = [models.PointStruct(id=n + 1, vector=[n, 1 - n, 0]) for n in (0, 1)]
client.upsert("papers", points)
client.query_points("papers", query=[1, 0, 0], limit=2)
client.query_points("papers", query=[1, 0, 0], limit=9)
client.scroll("papers", limit=2)
"""


def recorded(stage: Stage, script: str) -> list[tuple[Any, ...]]:
    """(actions, collections, would) of every exchange with data, as ``vecward`` shows them."""
    with stage:
        stage.start_database()
        stage.vecward(POLICY, mode="observe", workers=1)
        stage.client(script, user="nobody")
        deadline = time.monotonic() + 90
        while not (found := stage.json("sessions")) or not all(session["ended"] for session in found):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        assert {session["user"] for session in found} == {"nobody"}
        exchanges = [
            exchange
            for session in sorted(found, key=lambda each: str(each["started"]))
            for exchange in stage.json("show", session["session"])["exchanges"]
        ]
        assert all(exchange["verdict"] == "allow" for exchange in exchanges)
        assert not any("unknown" in exchange["actions"] for exchange in exchanges), exchanges
        tail = stage.cli("tail").stdout
        assert "search" in tail
        assert "papers" in tail
        return [
            (exchange["actions"], exchange["collections"], exchange["would"])
            for exchange in exchanges
            if {"search", "scan", "write"} & set(exchange["actions"])
        ]


def test_the_would_of_chroma_is_what_enforce_would_say() -> None:
    assert recorded(Stage("chroma"), CHROMA) == [
        (["write"], ["papers"], "deny"),
        (["search"], ["papers"], None),
        (["search"], ["papers"], None),
        (["search"], ["papers"], "deny"),
        (["scan"], ["papers"], "deny"),
    ]


def test_the_would_of_qdrant_is_what_enforce_would_say() -> None:
    assert recorded(Stage("qdrant"), QDRANT) == [
        (["write"], ["papers"], "deny"),
        (["search"], ["papers"], None),
        (["search"], ["papers"], "deny"),
        (["scan"], ["papers"], "deny"),
    ]
