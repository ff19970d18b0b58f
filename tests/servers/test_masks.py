# SPDX-License-Identifier: Apache-2.0
"""Masks, fields, tenants and clamps on real answers, in every form that a server may write them in."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.raw import Talk, request, say
from tests.servers.stage import Stage

MAIL, CARD = "ada.lovelace@example.org", "4111 1111 1111 1111"
POLICY = """\
version: 1
rules:
  - {id: keeper, who: {user: root}, what: {guard: docs}, allow: true}
  - id: reader
    who: {user: nobody}
    what: {guard: docs}
    allow: true
    vectors: false
    mask:
      - {pii: [email, credit_card], as: redact}
      - {field: payload.ssn, as: "null"}
  - id: tenant
    who: {user: daemon}
    what: {guard: docs}
    allow: true
    filter: {tenant: acme}
  - id: narrow
    who: {user: games}
    what: {guard: docs}
    allow: true
    vectors: false
    fields: [title]
    limit: {top_k: 2, over: clamp}
"""
FILL = """
from qdrant_client import QdrantClient, models
q = QdrantClient(host="127.0.0.1", port=6333)
for name in ("kb", "other"):
    q.create_collection(name, vectors_config=models.VectorParams(size=2, distance="Dot"))
    q.upsert(name, points=[models.PointStruct(id=n, vector=[n, 1], payload={
        "tenant": "acme" if n % 2 else "evil", "title": f"title {n}", "ssn": "078-05-1120",
        "n": n,
        "text": f"write to MAIL or pay with CARD, {n}", "deep": {"list": [{"mail": "MAIL"}]}})
        for n in range(1, 9)])
"""
FILL = FILL.replace("MAIL", MAIL).replace("CARD", CARD)
FORMS = ("plain", "chunked", "gzip", "deflate", "gzip-chunked")
C = "/collections/kb"
READS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "one point": ("GET", f"{C}/points/1", None),
    "points": ("POST", f"{C}/points", {"ids": [1, 2], "with_vector": True}),
    "scroll": ("POST", f"{C}/points/scroll", {"limit": 5, "with_vector": True, "with_payload": True}),
    "query": ("POST", f"{C}/points/query", {"query": [1, 0], "with_payload": True, "with_vector": True}),
    "query of old": (
        "POST",
        f"{C}/points/search",
        {"vector": [1, 0], "limit": 3, "with_payload": True, "with_vector": True},
    ),
    "batch": (
        "POST",
        f"{C}/points/query/batch",
        {"searches": [{"query": [1, 0], "with_payload": True, "with_vector": True}] * 2},
    ),
    "groups": (
        "POST",
        f"{C}/points/query/groups",
        {"query": [1, 0], "group_by": "n", "limit": 3, "with_payload": True, "with_vector": True},
    ),
    "recommend": (
        "POST",
        f"{C}/points/recommend",
        {"positive": [1], "limit": 3, "with_payload": True, "with_vector": True},
    ),
}


def ask(
    stage: Stage, method: str, path: str, body: Any = None, user: str = "nobody"
) -> tuple[int, Any, Talk]:
    """Status, decoded answer, and the bytes."""
    data = b"" if body is None else json.dumps(body).encode()
    found = say(stage, request(path, data, method), user=user)
    assert found.status is not None, found
    head, _, rest = found.got.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        whole = b""
        while (size := int(rest.split(b"\r\n", 1)[0], 16)) != 0:
            start = rest.index(b"\r\n") + 2
            whole, rest = whole + rest[start : start + size], rest[start + size + 2 :]
        rest = whole
    if b"content-encoding: gzip" in head.lower():
        rest = gzip.decompress(rest)
    elif b"content-encoding: deflate" in head.lower():
        rest = zlib.decompress(rest)
    return found.status, json.loads(rest), found


@pytest.fixture(scope="module", params=FORMS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with Stage("qdrant") as made:
        made.start_database("127.0.0.1", "--answers", request.param)
        made.vecward(POLICY)
        made.client(FILL)
        yield made


def vectors_in(value: Any) -> list[Any]:
    if isinstance(value, dict):
        here = [value["vector"]] if value.get("vector") else []
        return here + [found for one in value.values() for found in vectors_in(one)]
    return [found for one in value for found in vectors_in(one)] if isinstance(value, list) else []


def test_personal_data_and_vectors_do_not_leave_by_any_route(stage: Stage) -> None:
    for name, (method, path, body) in READS.items():
        status, answer, talk = ask(stage, method, path, body)
        if status == 403:  # a route that cannot be brought under the rule: refused whole
            assert name in ("recommend",), (name, answer)
            continue
        assert status == 200, (name, answer)
        text = json.dumps(answer)
        assert "title 1" in text or "title 8" in text, (name, text[:200])  # the rest is there
        for secret in (MAIL, CARD, "078-05-1120", "lovelace"):
            assert secret not in text, (name, secret)
            assert secret.encode() not in talk.got
        assert vectors_in(answer) == [], name
    # And they are there to be taken.
    status, answer, _ = ask(stage, "POST", f"{C}/points", {"ids": [1], "with_vector": True}, user="root")
    assert MAIL in json.dumps(answer)
    assert vectors_in(answer)


def test_an_error_that_repeats_what_a_row_holds_is_masked(stage: Stage) -> None:
    status, answer, _ = ask(stage, "POST", f"/collections/{MAIL}/points/count", {})
    assert status == 404
    assert MAIL not in json.dumps(answer)
    status, answer, _ = ask(stage, "POST", f"/collections/{MAIL}/points/count", {}, user="root")
    assert MAIL in json.dumps(answer)


def test_what_is_masked_is_no_oracle(stage: Stage) -> None:
    for probe in (
        {"filter": {"must": [{"key": "ssn", "match": {"value": "078-05-1120"}}]}},
        {"filter": {"should": [{"must_not": [{"key": "ssn", "match": {"value": "x"}}]}]}},
        {"order_by": "ssn"},
    ):
        assert ask(stage, "POST", f"{C}/points/scroll", probe)[0] == 403, probe
    assert ask(stage, "POST", f"{C}/facet", {"key": "ssn"})[0] == 403


def test_fields_and_clamps_hold_and_the_client_is_told(stage: Stage) -> None:
    wanted = {"query": [1, 0], "limit": 7, "with_payload": True, "with_vector": True}
    status, answer, talk = ask(stage, "POST", f"{C}/points/query", wanted, user="games")
    assert status == 200
    points = answer["result"]["points"]
    assert len(points) == 2
    assert all(point["payload"].keys() == {"title"} and not point.get("vector") for point in points)
    assert b"x-vecward-clamped: top_k=2" in talk.got.lower()
    status, answer, _ = ask(stage, "GET", f"{C}/points/1", user="games")
    assert status in (200, 403)
    assert "lovelace" not in json.dumps(answer)
    for probe in (
        {"key": "text", "match": {"text": "write"}},
        {"key": "deep.list[].mail", "match": {"value": MAIL}},
    ):
        asked = {"query": [1, 0], "limit": 2, "filter": {"must": [probe]}}
        assert ask(stage, "POST", f"{C}/points/query", asked, user="games")[0] == 403


EVIL = {"key": "tenant", "match": {"value": "evil"}}
Q: dict[str, Any] = {"query": [1, 0], "limit": 50, "with_payload": True}
ESCAPES: dict[str, tuple[str, str, Any]] = {
    "no filter": ("POST", f"{C}/points/query", Q),
    "a must of its own": ("POST", f"{C}/points/query", {**Q, "filter": {"must": [EVIL]}}),
    "should": ("POST", f"{C}/points/query", {**Q, "filter": {"should": [EVIL, {"must": []}]}}),
    "min should": (
        "POST",
        f"{C}/points/query",
        {**Q, "filter": {"min_should": {"conditions": [EVIL], "min_count": 1}}},
    ),
    "must not": (
        "POST",
        f"{C}/points/query",
        {**Q, "filter": {"must_not": [{"key": "tenant", "match": {"value": "acme"}}]}},
    ),
    "an empty filter": ("POST", f"{C}/points/query", {**Q, "filter": {}}),
    "a filter of null": ("POST", f"{C}/points/query", {**Q, "filter": None}),
    "by prefetch": (
        "POST",
        f"{C}/points/query",
        {
            "prefetch": {"query": [1, 0], "limit": 50},
            "query": {"fusion": "rrf"},
            "limit": 50,
            "with_payload": True,
        },
    ),
    "by prefetch in prefetch": (
        "POST",
        f"{C}/points/query",
        {**Q, "prefetch": {"prefetch": {"query": [1, 0]}, "query": [0, 1]}},
    ),
    "by a batch": ("POST", f"{C}/points/query/batch", {"searches": [Q, {**Q, "filter": {"must": [EVIL]}}]}),
    "by groups": ("POST", f"{C}/points/query/groups", {**Q, "group_by": "n"}),
    "by groups and a lookup": (
        "POST",
        f"{C}/points/query/groups",
        {**Q, "group_by": "n", "with_lookup": "other"},
    ),
    "by an example": ("POST", f"{C}/points/query", {**Q, "query": 2}),
    "by a recommendation": (
        "POST",
        f"{C}/points/recommend",
        {"positive": [2], "limit": 50, "with_payload": True},
    ),
    "by a search elsewhere": (
        "POST",
        f"{C}/points/query",
        {**Q, "query": 2, "lookup_from": {"collection": "other"}},
    ),
    "by scroll": ("POST", f"{C}/points/scroll", {"limit": 50}),
    "by scroll from a point": ("POST", f"{C}/points/scroll", {"limit": 50, "offset": 2}),
    "by its ids": ("POST", f"{C}/points", {"ids": [2, 4, 6]}),
    "by one id": ("GET", f"{C}/points/2", None),
    "by has_id": ("POST", f"{C}/points/query", {**Q, "filter": {"must": [{"has_id": [2]}]}}),
    "by a facet": ("POST", f"{C}/facet", {"key": "title"}),
    "by the tenant's facet": ("POST", f"{C}/facet", {"key": "tenant"}),
    "by the old search": (
        "POST",
        f"{C}/points/search",
        {"vector": [1, 0], "limit": 50, "with_payload": True},
    ),
    "by pairs": ("POST", f"{C}/points/search/matrix/pairs", {"sample": 50, "limit": 9}),
    "without its payload": ("POST", f"{C}/points/query", {**Q, "with_payload": ["title"]}),
    "by a snapshot": ("POST", f"{C}/snapshots", None),
}
EVILS = {2, 4, 6, 8}


def ids_in(value: Any) -> set[int]:
    if isinstance(value, dict):
        here = {value[key] for key in ("id", "a", "b") if isinstance(value.get(key), int)}
        return here.union(*[ids_in(one) for key, one in value.items() if key != "lookup"])
    return set().union(*[ids_in(one) for one in value]) if isinstance(value, list) else set()


def test_no_request_brings_a_row_of_another_tenant(stage: Stage) -> None:
    for name, (method, path, body) in ESCAPES.items():
        status, answer, _ = ask(stage, method, path, body, user="daemon")
        assert status in (200, 400, 403, 404), (name, answer)
        assert not ids_in(answer) & EVILS, (name, answer)
        text = json.dumps(answer)
        assert "evil" not in text, (name, answer)
        assert all(f"title {n}" not in text for n in EVILS), (name, answer)
    status, answer, _ = ask(stage, "POST", f"{C}/points/scroll", {"limit": 50}, user="daemon")
    assert (status, ids_in(answer)) == (200, {1, 3, 5, 7})
    assert ask(stage, "POST", f"{C}/points/count", {"exact": True}, user="daemon")[1]["result"]["count"] == 4


WRITES: dict[str, tuple[str, str, Any]] = {
    "a row of another tenant": (
        "PUT",
        f"{C}/points",
        {"points": [{"id": 2, "vector": [0, 0], "payload": {"tenant": "evil"}}]},
    ),
    "a row without tenant": ("PUT", f"{C}/points", {"points": [{"id": 2, "vector": [0, 0]}]}),
    "a payload by id": ("POST", f"{C}/points/payload", {"payload": {"tenant": "acme"}, "points": [2]}),
    "a payload by filter": (
        "POST",
        f"{C}/points/payload",
        {"payload": {"tenant": "evil"}, "filter": {"must": [EVIL]}},
    ),
    "no payload": ("POST", f"{C}/points/payload/clear", {"points": [2]}),
    "vectors": ("PUT", f"{C}/points/vectors", {"points": [{"id": 2, "vector": [0, 0]}]}),
    "a delete by id": ("POST", f"{C}/points/delete", {"points": [2]}),
    "a delete by filter": ("POST", f"{C}/points/delete", {"filter": {"must": [EVIL]}}),
    "a batch": ("POST", f"{C}/points/batch", {"operations": [{"delete": {"points": [2]}}]}),
}


def test_no_request_changes_a_row_of_another_tenant(stage: Stage) -> None:
    rows = {"ids": sorted(EVILS), "with_vector": True}
    before = ask(stage, "POST", f"{C}/points", rows, user="root")[1]["result"]
    assert len(before) == len(EVILS)
    for name, (method, path, body) in WRITES.items():
        status, answer, _ = ask(stage, method, path, body, user="daemon")
        assert status in (200, 400, 403), (name, answer)
        assert ask(stage, "POST", f"{C}/points", rows, user="root")[1]["result"] == before, name
