# SPDX-License-Identifier: Apache-2.0
"""Masks on every shape of Qdrant's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.protocols.http import Refusal
from tests.unit.engines.calls import VECTOR, answer, ask, engine, mask, masked, request, verdict

P = "/collections/docs/points"
SSN = mask(field="payload.ssn", how="redact")
EMAIL = mask(pii=("email",), how="redact")


def row(ident: int, **more: Any) -> dict[str, Any]:
    payload = {
        "ssn": f"ssn-{ident}",
        "title": "t",
        "vector": VECTOR,
        "tenant": "acme",
        "note": f"u{ident}@b.org",
    }
    return {"id": ident, "version": 0, "score": 0.98765, "payload": payload, "vector": VECTOR, **more}


ROWS = [row(1), row(2)]
SHAPES: list[tuple[str, str, Any, Any]] = [
    ("POST", f"{P}/query", {"query": VECTOR}, {"points": ROWS}),
    (
        "POST",
        f"{P}/query/batch",
        {"searches": [{"query": VECTOR}] * 2},
        [{"points": [row(1)]}, {"points": [row(2)]}],
    ),
    (
        "POST",
        f"{P}/query/groups",
        {"query": VECTOR, "group_by": "a"},
        {"groups": [{"id": "a", "hits": ROWS}]},
    ),
    ("POST", f"{P}/search", {"vector": VECTOR, "limit": 2}, ROWS),
    ("POST", f"{P}/search/batch", {"searches": [{"vector": VECTOR, "limit": 2}]}, [ROWS]),
    ("POST", f"{P}/recommend", {"positive": [1], "limit": 2}, ROWS),
    ("POST", f"{P}/discover", {"target": 1, "limit": 2}, ROWS),
    ("POST", P, {"ids": [1, 2]}, ROWS),
    ("GET", f"{P}/1", None, row(1)),
    ("POST", f"{P}/scroll", {}, {"points": ROWS, "next_page_offset": 3}),
]


def envelope(result: Any) -> Any:
    return {"result": result, "status": "ok", "time": 0.01}


def find_rows(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, list):
        return [found for member in tree for found in find_rows(member)]
    if isinstance(tree, dict):
        return (
            [tree] if "payload" in tree else [found for value in tree.values() for found in find_rows(value)]
        )
    return []


@pytest.mark.parametrize(("verb", "path", "body", "result"), SHAPES)
def test_vectors_and_masked_fields_leave_no_shape(verb: str, path: str, body: Any, result: Any) -> None:
    decided = verdict(vectors=False, masks=(SSN, EMAIL, mask(scores=2)))
    tree, out = masked(engine("qdrant"), request(verb, path, body), decided, answer(envelope(result)))
    rows = find_rows(tree)
    assert out.rows == len(rows) > 0
    assert out.ids == tuple(str(found["id"]) for found in rows)
    for found in rows:
        assert found["vector"] is None
        assert found["score"] == 0.99
        assert found["payload"]["ssn"] == "[redacted]"
        assert found["payload"]["note"] == "[email]"
        assert found["payload"]["vector"] == VECTOR, "a payload field is not a vector"
    assert b"ssn-" not in out.body
    assert b"@b.org" not in out.body
    assert {taken.what for taken in out.masks} == {"vectors", "payload.ssn", "pii:email", "scores"}


@pytest.mark.parametrize(("verb", "path", "body", "result"), SHAPES)
def test_only_the_allowed_fields_remain(verb: str, path: str, body: Any, result: Any) -> None:
    decided = verdict(fields=frozenset({"title"}))
    tree, _ = masked(engine("qdrant"), request(verb, path, body), decided, answer(envelope(result)))
    assert all(found["payload"] == {"title": "t"} for found in find_rows(tree))
    assert all(found["vector"] == VECTOR for found in find_rows(tree))


@pytest.mark.parametrize(("verb", "path", "body", "result"), SHAPES)
def test_what_is_not_changed_keeps_its_values(verb: str, path: str, body: Any, result: Any) -> None:
    response = answer(envelope(result))
    asked = engine("qdrant")
    call = request(verb, path, body)
    kept = asked.mask(
        call, ask(asked, call), verdict(masks=(mask(field="payload.none", how="drop"),)), response
    )
    assert json.loads(kept.body) == json.loads(response.body)
    seen = asked.observe(call, ask(asked, call), response)
    assert (seen.ids, seen.rows, seen.body) == (kept.ids, kept.rows, response.body)


@pytest.mark.parametrize(
    "vector", [VECTOR, {"a": VECTOR}, [VECTOR, VECTOR], {"s": {"indices": [1], "values": [0.5]}}, [1.0]]
)
def test_named_sparse_and_multi_vectors_are_stripped_by_path(vector: Any) -> None:
    result = {"points": [row(1, vector=vector)]}
    tree, _ = masked(
        engine("qdrant"),
        request("POST", f"{P}/query", {"query": VECTOR}),
        verdict(vectors=False),
        answer(envelope(result)),
    )
    assert tree["result"]["points"][0]["vector"] is None
    assert tree["result"]["points"][0]["payload"]["vector"] == VECTOR


def test_a_lookup_record_is_masked_too() -> None:
    result = {"groups": [{"id": "a", "hits": [row(1)], "lookup": row(9)}]}
    call = request("POST", f"{P}/query/groups", {"query": VECTOR, "group_by": "a", "with_lookup": "o"})
    tree, _ = masked(engine("qdrant"), call, verdict(vectors=False, masks=(SSN,)), answer(envelope(result)))
    lookup = tree["result"]["groups"][0]["lookup"]
    assert (lookup["vector"], lookup["payload"]["ssn"]) == (None, "[redacted]")


def test_rows_of_others_read_by_id_are_taken_out_and_the_fetched_field_again() -> None:
    asked = engine("qdrant")
    call = request("POST", P, {"ids": [1, 2], "with_payload": ["title"]})
    decided = verdict(filters=(("tenant", "acme"),))
    sent = json.loads(asked.rewrite(call, ask(asked, call), decided).body or b"")
    assert sent["with_payload"] == {"include": ["tenant", "title"]}
    rows = [
        {"id": 1, "payload": {"title": "t", "tenant": "acme"}},
        {"id": 2, "payload": {"title": "t", "tenant": "other"}},
        {"id": 3, "payload": None},
    ]
    tree, out = masked(asked, call, decided, answer(envelope(rows)))
    assert tree["result"] == [{"id": 1, "payload": {"title": "t"}}]
    assert out.ids == ("1",)


def test_a_row_outside_the_filter_is_never_released() -> None:
    result = {"points": [row(1, payload={"tenant": "other"})]}
    call = request("POST", f"{P}/query", {"query": VECTOR})
    with pytest.raises(Refusal):
        masked(engine("qdrant"), call, verdict(filters=(("tenant", "acme"),)), answer(envelope(result)))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"result":5}', b'{"result":{"points":{}}}', b'{"result":{"points":[1]}}', b"<html>"],
)
def test_an_answer_of_another_form_is_not_released(body: bytes) -> None:
    asked = engine("qdrant")
    call = request("POST", f"{P}/query", {"query": VECTOR})
    with pytest.raises(Refusal):
        asked.mask(call, ask(asked, call), verdict(vectors=False), answer(body))
    assert asked.observe(call, ask(asked, call), answer(body)).body == body


def test_error_bodies_are_masked_like_answers() -> None:
    call = request("POST", f"{P}/query", {"query": VECTOR})
    error = answer({"status": {"error": "no index for jo@b.org"}, "time": 0}, 400)
    tree, _ = masked(engine("qdrant"), call, verdict(masks=(EMAIL,)), error)
    assert tree["status"]["error"] == "no index for [email]"
    out = engine("qdrant").mask(
        call, ask(engine("qdrant"), call), verdict(masks=(EMAIL,)), answer(b"bad jo@b.org", 502)
    )
    assert out.body == b"bad [email]"


def test_an_answer_that_cannot_be_read_is_not_released_under_a_mask() -> None:
    asked = engine("qdrant")
    for call in (request("POST", "/collections/d/shards/0/points/scroll", {}), request("GET", "/unlisted")):
        with pytest.raises(Refusal):
            asked.mask(call, ask(asked, call), verdict(vectors=False), answer(envelope({"points": ROWS})))


def test_scores_between_points_and_facet_values_are_masked() -> None:
    coarse = verdict(masks=(mask(scores=1), EMAIL))
    pairs = envelope({"pairs": [{"a": 1, "b": 2, "score": 0.98765}]})
    call = request("POST", f"{P}/search/matrix/pairs", {})
    assert masked(engine("qdrant"), call, coarse, answer(pairs))[0]["result"]["pairs"][0]["score"] == 1.0
    offsets = envelope({"offsets_row": [0], "offsets_col": [1], "scores": [0.12345] * 60, "ids": [1, 2]})
    call = request("POST", f"{P}/search/matrix/offsets", {})
    for decided in (coarse, verdict(masks=(mask(scores=1),))):
        assert masked(engine("qdrant"), call, decided, answer(offsets))[0]["result"]["scores"] == [0.1] * 60
    call = request("POST", "/collections/docs/facet", {"key": "note"})
    hits = envelope({"hits": [{"value": "jo@b.org", "count": 2}]})
    assert masked(engine("qdrant"), call, coarse, answer(hits))[0]["result"]["hits"][0]["value"] == "[email]"


def test_a_scaled_query_buys_no_digits() -> None:
    decided = verdict(masks=(mask(scores=2),))
    call = request("POST", f"{P}/query", {"query": [10000.0, 0.0]})
    result = envelope({"points": [{"id": 1, "score": 123.456}]})
    tree, _ = masked(engine("qdrant"), call, decided, answer(result))
    assert tree["result"]["points"][0]["score"] == 100.0


def test_a_field_with_a_dot_or_a_list_is_masked_as_a_path_too() -> None:
    payload = {"people": [{"ssn": 1, "name": "a"}, {"ssn": 2}], "a.ssn": 3, "a": {"ssn": 4}}
    decided = verdict(
        masks=(mask(field="payload.people[].ssn", how="drop"), mask(field="payload.a.ssn", how="null"))
    )
    call = request("POST", f"{P}/scroll", {})
    tree, _ = masked(engine("qdrant"), call, decided, answer(envelope({"points": [row(1, payload=payload)]})))
    assert tree["result"]["points"][0]["payload"] == {
        "people": [{"name": "a"}, {}],
        "a.ssn": None,
        "a": {"ssn": None},
    }


def test_a_star_masks_every_field_below() -> None:
    decided = verdict(masks=(mask(field="payload.*.ssn", how="redact"),))
    call = request("POST", f"{P}/scroll", {})
    payload = {"a": {"ssn": 1, "b": 2}, "c": [{"ssn": 3}], "d": 4}
    tree, _ = masked(engine("qdrant"), call, decided, answer(envelope({"points": [row(1, payload=payload)]})))
    done = tree["result"]["points"][0]["payload"]
    assert done == {"a": {"ssn": "[redacted]", "b": 2}, "c": [{"ssn": "[redacted]"}], "d": 4}


def test_ids_of_a_large_answer_are_read_around_its_vectors() -> None:
    asked = engine("qdrant")
    call = request("POST", f"{P}/query", {"query": VECTOR})
    rows = [row(n, note=f"x{VECTOR * 9}") for n in range(20)]
    seen = asked.observe(call, ask(asked, call), answer(envelope({"points": rows})))
    assert seen.ids == tuple(str(n) for n in range(20))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("query", {"query": {"indices": [1], "values": [1e-6]}}),
        ("recommend", {"positive": [[1e-6, 0]], "limit": 1}),
        ("query", {"query": {"nearest": 7}}),
    ],
)
def test_a_score_near_zero_tells_no_more_digits_where_the_norm_is_not_known(path: str, body: Any) -> None:
    row = {"id": 1, "version": 1, "score": 1.23456e-3}
    result: Any = {"points": [row]} if path == "query" else [row]
    call = request("POST", f"/collections/docs/points/{path}", body)
    tree, _ = masked(engine("qdrant"), call, verdict(masks=(mask(scores=2),)), answer({"result": result}))
    got = tree["result"]["points"] if path == "query" else tree["result"]
    assert got[0]["score"] == 0.0


@pytest.mark.parametrize("status", [302, 400, 500])
def test_rows_under_a_status_of_an_error_are_not_released(status: int) -> None:
    call = request("POST", "/collections/docs/points/scroll", {})
    body = {"result": {"points": [{"id": 1, "payload": {"ssn": "1"}}]}}
    decided = verdict(masks=(mask(field="payload.ssn"),))
    with pytest.raises(Refusal):
        masked(engine("qdrant"), call, decided, answer(body, status))
    error = {"result": None, "status": {"error": "Not found"}, "time": 0.1}
    assert masked(engine("qdrant"), call, decided, answer(error, status))[0] == error
