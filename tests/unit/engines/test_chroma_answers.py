# SPDX-License-Identifier: Apache-2.0
"""Masks on every shape of Chroma's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import chroma_answers
from agent.engines.veil import Veil
from agent.protocols.http import Refusal, Response
from tests.unit.engines.calls import CHROMA, UUID, VECTOR, answer, ask, engine, mask, masked, request, verdict

ONE = f"{CHROMA}/{UUID}"
GET = request("POST", f"{ONE}/get", {"include": ["embeddings", "metadatas", "documents"]})
QUERY = request("POST", f"{ONE}/query", {"query_embeddings": [VECTOR, VECTOR]})
ROW = {"ssn": "123", "title": "t", "mail": "u@b.org", "tenant": "acme"}
FLAT: dict[str, Any] = {
    "ids": ["a", "b"],
    "embeddings": [VECTOR, VECTOR],
    "documents": ["from u@b.org", None],
    "uris": None,
    "metadatas": [ROW, None],
    "include": ["embeddings", "documents", "metadatas"],
}
NESTED: dict[str, Any] = {
    **{name: value if value is None else [value, value] for name, value in FLAT.items() if name != "include"},
    "distances": [[0.123456, 1.9876], [0.5, None]],
    "include": FLAT["include"],
}
SHAPES = [(GET, FLAT), (QUERY, NESTED)]
STRICT = verdict(
    vectors=False,
    masks=(mask(field="metadatas.ssn", how="drop"), mask(pii=("email",)), mask(scores=2)),
)


@pytest.mark.parametrize(("call", "body"), SHAPES)
def test_masks_leave_every_column_its_length(call: Any, body: Any) -> None:
    tree, out = masked(engine("chroma"), call, STRICT, answer(body))
    assert tree["embeddings"] is None
    assert tree["include"] == ["documents", "metadatas"]
    rows = tree["metadatas"] if call is GET else tree["metadatas"][1]
    documents = tree["documents"] if call is GET else tree["documents"][1]
    assert rows == [{"title": "t", "mail": "[email]", "tenant": "acme"}, None]
    assert documents == ["from [email]", None]
    assert out.rows == (2 if call is GET else 4)
    assert out.ids[:2] == ("a", "b")
    assert b"@b.org" not in out.body
    if call is QUERY:
        assert tree["distances"][0] == [0.12, 1.99]
        assert tree["distances"][1] == [0.5, None]


@pytest.mark.parametrize(("call", "body"), SHAPES)
def test_only_the_allowed_fields_remain(call: Any, body: Any) -> None:
    tree, _ = masked(engine("chroma"), call, verdict(fields=frozenset({"title"})), answer(body))
    rows = tree["metadatas"] if call is GET else tree["metadatas"][0]
    documents = tree["documents"] if call is GET else tree["documents"][0]
    assert (rows, documents) == ([{"title": "t"}, None], [None, None])
    shown = verdict(fields=frozenset({"title", "documents"}))
    tree, _ = masked(engine("chroma"), call, shown, answer(body))
    assert (tree["documents"] if call is GET else tree["documents"][0])[0] == "from u@b.org"


@pytest.mark.parametrize(("call", "body"), SHAPES)
def test_what_is_not_changed_keeps_its_values(call: Any, body: Any) -> None:
    asked, response = engine("chroma"), answer(body)
    kept = asked.mask(
        call, ask(asked, call), verdict(masks=(mask(field="payload.none", how="drop"),)), response
    )
    assert json.loads(kept.body) == json.loads(response.body)
    seen = asked.observe(call, ask(asked, call), response)
    assert (seen.ids, seen.rows, seen.body) == (kept.ids, kept.rows, response.body)


def test_documents_are_a_field_of_their_own() -> None:
    decided = verdict(masks=(mask(field="documents", how="redact"),))
    tree, _ = masked(engine("chroma"), GET, decided, answer(FLAT))
    assert tree["documents"] == ["[redacted]", None]


def test_ids_are_read_from_the_first_column_whatever_stands_in_them() -> None:
    ids = ['],"embeddings', "é\n", "[", "plain"]
    asked = engine("chroma")
    response = answer(b'{"ids":' + answer(ids).body + b',"embeddings":null}')
    assert asked.observe(GET, ask(asked, GET), response).ids == tuple(ids)


def test_a_row_outside_the_filter_is_never_released() -> None:
    with pytest.raises(Refusal):
        masked(engine("chroma"), GET, verdict(filters=(("tenant", "acme"),)), answer(FLAT))
    own = {**FLAT, "metadatas": [ROW, ROW]}
    tree, _ = masked(engine("chroma"), GET, verdict(filters=(("tenant", "acme"),)), answer(own))
    assert tree["ids"] == ["a", "b"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"ids":5}', b'{"ids":[],"metadatas":5}', b"<html>"])
def test_an_answer_of_another_form_is_not_released(body: bytes) -> None:
    asked = engine("chroma")
    with pytest.raises(Refusal):
        asked.mask(GET, ask(asked, GET), STRICT, answer(body))
    assert asked.observe(GET, ask(asked, GET), answer(body)).body == body


def test_error_bodies_are_masked_like_answers() -> None:
    error = answer({"error": "ChromaError", "message": "no u@b.org"}, 400)
    tree, _ = masked(engine("chroma"), GET, STRICT, error)
    assert tree["message"] == "no [email]"


def test_an_answer_that_cannot_be_read_is_not_released_under_a_mask() -> None:
    asked = engine("chroma")
    for call in (request("POST", f"{ONE}/conditional/get", {}), request("GET", "/api/v1/x")):
        with pytest.raises(Refusal):
            asked.mask(call, ask(asked, call), STRICT, answer(FLAT))


def test_embeddings_are_stripped_whatever_else_is_not_masked() -> None:
    tree, out = masked(engine("chroma"), QUERY, verdict(vectors=False), answer(NESTED))
    assert (tree["embeddings"], tree["include"]) == (None, ["documents", "metadatas"])
    assert ("vectors", 2) in {(taken.what, taken.count) for taken in out.masks}
    spaced = b'{"ids":["a"],"embeddings" : [[1]],"include":[]}'
    assert masked(engine("chroma"), GET, verdict(vectors=False), answer(spaced))[0]["embeddings"] is None
    spelt = b'{"ids":["a"],"embe\\u0064dings":[[1]],"include":[]}'
    assert masked(engine("chroma"), GET, verdict(vectors=False), answer(spelt))[0]["embeddings"] is None
    without = answer({**FLAT, "embeddings": None, "include": []})
    out = engine("chroma").mask(GET, ask(engine("chroma"), GET), verdict(vectors=False), without)
    assert out.ids == ("a", "b")


def test_a_long_column_of_scores_is_coarsened_like_a_short_one() -> None:
    ids = [f"i{n}" for n in range(10)]  # ten rows are what a query returns when it names no number
    scores = [n + 0.12345678901234567 for n in range(10)]
    body = {"ids": [ids], "distances": [scores], "include": ["distances"]}
    tree, out = masked(engine("chroma"), QUERY, verdict(masks=(mask(scores=2),)), answer(body))
    assert tree["distances"] == [[n + 0.12 for n in range(10)]]
    assert out.masks


@pytest.mark.parametrize(("call", "nulls"), [(GET, [None] * 60), (QUERY, [[None] * 60])])
@pytest.mark.parametrize("field", ["documents", "payload.ssn"])
def test_long_columns_of_nulls_are_read(call: Any, nulls: Any, field: str) -> None:
    ids = ["a"] * 60 if call is GET else [["a"] * 60]
    body = {"ids": ids, "documents": nulls, "metadatas": nulls}
    tree, _ = masked(engine("chroma"), call, verdict(masks=(mask(field=field),)), answer(body))
    assert (tree["documents"], tree["metadatas"]) == (nulls, nulls)


@pytest.mark.parametrize("value", ["12 Main St", 5, ["12 Main St"], [7] * 80])
def test_a_value_that_stands_where_an_allowed_field_has_its_parent_goes(value: Any) -> None:
    body = {"ids": ["a"], "metadatas": [{"address": value}]}
    tree, _ = masked(engine("chroma"), GET, verdict(fields=frozenset({"address.city"})), answer(body))
    assert tree["metadatas"][0]["address"] in (None, [])


@pytest.mark.parametrize(("call", "body"), SHAPES)
@pytest.mark.parametrize("status", [302, 400, 500])
def test_rows_under_a_status_of_an_error_are_not_released(call: Any, body: Any, status: int) -> None:
    with pytest.raises(Refusal):
        masked(engine("chroma"), call, STRICT, answer(body, status))


@pytest.mark.parametrize("spelling", ["embeddings", r"\u0065mbeddings"])
@pytest.mark.parametrize(
    "decided",
    [verdict(vectors=False), verdict(vectors=False, masks=(mask(pii=("email",)),)), STRICT],
    ids=["vectors", "vectors and text", "all"],
)
def test_a_database_that_names_a_column_twice_releases_neither_vectors_nor_text(
    spelling: str, decided: Any
) -> None:
    vectors = json.dumps([VECTOR, VECTOR])
    twice = f'{{"ids":["a","b"],"{spelling}":{vectors},"documents":["x","from u@b.org"],'
    twice += '"embeddings":null,"documents":["x","y"],"metadatas":[null,null],"uris":null,"include":[]}'
    asked = engine("chroma")
    out = asked.mask(GET, ask(asked, GET), decided, answer(twice.encode()))
    assert b"0.063" not in out.body
    assert out.body.count(b'"embeddings"') == 1
    if decided.masks:
        assert b"u@b.org" not in out.body


OFF = verdict(vectors=False)
LONG = [n / 7 for n in range(64)]
ODD: dict[str, bytes] = {
    "a name twice": b'{"ids":["a"],"embeddings":[%V],"embeddings":[%V],"include":["embeddings"]}',
    "an escaped name": b'{"ids":["a"],"\\u0065mbeddings":[%V],"embeddings":[%V],"include":[]}',
    "a row's own member": b'{"ids":["a"],"embeddings":[%V],"metadatas":[{"embeddings":[%V]}],"include":[]}',
    "in a row first": b'{"ids":["a"],"metadatas":[{"embeddings":[%V]}],"embeddings":[%V],"include":[]}',
    "in a text": b'{"ids":["a"],"documents":["\\"embeddings\\":[%V]"],"embeddings":[%V],"include":[]}',
    "white space": b'{"ids" : ["a"], "embeddings" : [%V], "include" : [ "embeddings" ] }',
    "columns first": b'{"include":["embeddings"],"ids":["a"],"embeddings":[%V]}',
    "columns twice": b'{"ids":["a"],"embeddings":[%V],"metadatas":[["embeddings"]],"include":["embeddings"]}',
    "no columns": b'{"ids":["a"],"embeddings":[%V]}',
    "scores around": b'{"distances":[%V],"ids":["a"],"embeddings":[%V,null,%V],"scores":[%V],"include":[]}',
    "a sparse one": b'{"ids":["a"],"embeddings":[{"indices":%V,"values":%V}],"include":[]}',
    "a short one beside": b'{"ids":["a","b"],"embeddings":[%V,[1,2]],"include":["embeddings","uris"]}',
}


@pytest.mark.parametrize("odd", ODD)
def test_vectors_taken_out_unread_leave_what_reading_leaves(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = GET
    body = ODD[odd].replace(b"%V", json.dumps(LONG, separators=(",", ":")).encode())
    tree, out = masked(engine("chroma"), call, OFF, Response(200, (), body))
    monkeypatch.setattr(chroma_answers, "_strip_unread", lambda body, veil: None)
    read, slow = masked(engine("chroma"), call, OFF, Response(200, (), body))
    assert tree == read
    assert (out.ids, out.rows, out.masks) == (slow.ids, slow.rows, slow.masks)
    assert tree["embeddings"] is None
    assert not isinstance(tree.get("include"), list) or "embeddings" not in tree["include"]


@given(st.data())
def test_an_answer_of_any_shape_loses_the_same_unread_as_read(data: st.DataObject) -> None:
    values = st.sampled_from(
        [LONG, [1, 2], None, "[1,2]", '"embeddings":', "\\u0000", {"embeddings": LONG}, []]
    )
    names = st.sampled_from(["ids", "embeddings", "documents", "distances", "include", "metadatas", 'a"b'])
    pairs = data.draw(st.lists(st.tuples(names, st.lists(values, max_size=3)), max_size=7))
    gaps = data.draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    text = gaps[0].join(f"{json.dumps(n)}{gaps[1]}{json.dumps(v, separators=gaps)}" for n, v in pairs)
    body = b"{%b}" % text.encode()
    veil = Veil(OFF, b"k")
    spliced = chroma_answers._strip_unread(body, veil)
    if spliced is None:
        return
    tree, whole = json.loads(spliced.body), json.loads(body)
    whole["embeddings"] = None
    if isinstance(whole.get("include"), list):
        whole["include"] = [name for name in whole["include"] if name != "embeddings"]
    assert tree == whole


@pytest.mark.parametrize("distances", [[], [0.25], LONG])
def test_the_vectors_of_an_ordinary_answer_are_never_read(distances: list[float]) -> None:
    body = {
        "ids": [["a", "b"]],
        "embeddings": [[LONG, LONG]],
        "documents": [["[1,2,3", 'say "x"']],
        "metadatas": [[ROW, None]],
        "distances": [distances],
        "include": ["embeddings", "documents"],
    }
    out = chroma_answers._strip_unread(json.dumps(body, separators=(",", ":")).encode(), Veil(OFF, b"k"))
    assert out is not None
    assert json.loads(out.body) == {**body, "embeddings": None, "include": ["documents"]}
    assert (out.ids, out.rows) == (("a", "b"), 2)
