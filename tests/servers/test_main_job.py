# SPDX-License-Identifier: Apache-2.0
"""The main job on a real Chroma: steered, attributed, judged, masked, recorded, proven."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from tests import venvs
from tests.servers.stage import Stage

POLICY = """\
version: 1
rules:
  - id: searchers
    who: {user: nobody}
    what: {guard: docs, collection: papers, action: [search, count]}
    allow: true
    limit: {top_k: 5}
    vectors: false
    mask: [{pii: [email], as: redact}]
  - id: hello
    what: {guard: docs, action: session}
    allow: true
  - id: look-up
    what: {guard: docs, action: schema, collection: papers}
    allow: true
  - id: keeper
    who: {user: root}
    what: {guard: docs}
    allow: true
"""
FILL = """
import chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
papers = client.create_collection("papers", embedding_function=None)
papers.add(ids=["a", "b", "c"], embeddings=[[1, 0, 0], [0, 1, 0], [0, 0, 1]],
           documents=["write to ada@example.org", "second", "third"],
           metadatas=[{"n": 1}, {"n": 2}, {"n": 3}])
"""
SEARCH = """
import json, sys, chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
papers = client.get_collection("papers", embedding_function=None)
try:
    found = getattr(papers, sys.argv[1])(**json.loads(sys.argv[2]))
    print(json.dumps(found, default=lambda v: v.tolist()))
except Exception as error:
    print("refused", type(error).__module__.split(".")[0], error)
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage("chroma") as made:
        made.start_database()
        made.vecward(POLICY)
        made.client(FILL)
        yield made


def _ask(stage: Stage, method: str, **arguments: object) -> str:
    return stage.client(SEARCH, method, json.dumps(arguments), user="nobody").stdout.decode().strip()


def test_an_allowed_search_gets_its_hits_masked_and_without_embeddings(stage: Stage) -> None:
    found = json.loads(_ask(stage, "query", query_embeddings=[[1, 0.1, 0]], n_results=2))
    assert found["ids"] == [["a", "b"]]
    assert "ada@example.org" not in found["documents"][0][0]
    assert found["documents"][0][0].startswith("write to ")


def test_what_no_rule_allows_is_an_ordinary_error_of_the_client_that_names_the_reason(stage: Stage) -> None:
    said = _ask(stage, "get")
    assert said.startswith("refused chromadb"), said
    assert "no rule allows it" in said


def test_a_limit_that_is_exceeded_names_its_rule(stage: Stage) -> None:
    said = _ask(stage, "query", query_embeddings=[[1, 0, 0]], n_results=6)
    assert said.startswith("refused")
    assert "searchers" in said


def test_every_session_names_the_process_and_user_that_made_it(stage: Stage) -> None:
    _ask(stage, "count")
    sessions = stage.json("sessions", "--user", "nobody")
    assert sessions
    for session in sessions:
        assert session["attribution"] == "kernel"
        assert session["user"] == "nobody"
        assert session["exe"] == os.path.realpath(venvs.python("chroma"))
        assert session["argv"][1].endswith(".py")
        assert session["pid"] > 1


def test_the_evidence_is_whole_and_counts_what_the_kernel_counted(stage: Stage) -> None:
    coverage = stage.status["coverage"]
    assert coverage["bypass"] == coverage["unobserved"] == 0
    assert coverage["connects"] == coverage["steered"] == len(stage.json("sessions", "--limit", "1000"))
    assert stage.cli("verify", str(stage.folder / "evidence")).returncode == 0


def test_what_is_written_is_signed_within_seconds(stage: Stage) -> None:
    _ask(stage, "count")
    deadline = time.monotonic() + 90
    while (evidence := stage.status["evidence"])["unsigned"] or not evidence["epoch"]:
        assert time.monotonic() < deadline, evidence
        time.sleep(0.2)
    assert evidence["failures"] == 0
    assert all(stream["signed"] == stream["seq"] for stream in evidence["streams"])
