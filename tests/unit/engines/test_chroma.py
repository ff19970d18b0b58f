# SPDX-License-Identifier: Apache-2.0
"""What Chroma's requests ask for, attacks first, and how they are brought under a verdict."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from agent.protocols.http import Lookup, Refusal
from policy.model import Action, Limit
from tests.unit.cost import assert_linear
from tests.unit.engines.calls import (
    CHROMA,
    UUID,
    VECTOR,
    Clock,
    answer,
    ask,
    engine,
    request,
    rewritten,
    verdict,
)

ONE = f"{CHROMA}/{UUID}"
ACME = (("tenant", "acme"),)
OURS = {"tenant": {"$eq": "acme"}}
QUERY = {"query_embeddings": [VECTOR]}


def post(path: str, body: Any) -> Any:
    return ask(engine("chroma"), request("POST", f"{ONE}/{path}", body))


def rewrite(path: str, body: Any, **changes: Any) -> Any:
    return rewritten(engine("chroma"), request("POST", f"{ONE}/{path}", body), verdict(**changes))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("get", b'{"limit":1,"limit":100}'),
        ("get", b'{"limit":1,"limi\\u0074":100}'),
        ("get", b'{"where":{"a":1,"a":2}}'),
        ("get", b'{"limit":"1"}'),
        ("get", b'{"limit":-1}'),
        ("get", b'{"limit":1.0}'),
        ("get", b'{"offset":-1}'),
        ("get", b'["a"]'),
        ("get", b"null"),
        ("get", b""),
        ("get", b'{"ids":"a"}'),
        ("get", b'{"where":[]}'),
        ("get", b'{"where":{"$and":{"a":1}}}'),
        ("get", b'{"where_document":"x"}'),
        ("get", b'{"include":"embeddings"}'),
        ("get", b'{"where":' + b'{"$and":[' * 40 + b"1" + b"]}" * 40 + b"}"),
        ("query", b'{"query_embeddings":[NaN]}'),
        ("query", b'{"n_results":3}'),
        ("query", b'{"query_embeddings":[1,2]}'),
        ("query", b'{"query_embeddings":{"0":[1]}}'),
        ("search", b'{"searches":{}}'),
        ("search", b'{"searches":[["x"]]}'),
        ("fork", b"{}"),
    ],
)
def test_bodies_with_two_readings_are_refused(path: str, body: bytes) -> None:
    with pytest.raises(Refusal):
        post(path, body)


@pytest.mark.parametrize("key", ["Limit", "N_results", "limit\0", "select"])
def test_a_key_that_is_not_known_makes_the_request_unknown(key: str) -> None:
    assert Action.UNKNOWN in post("get", {key: 1}).actions
    assert Action.UNKNOWN in post("query", {**QUERY, key: 1}).actions


def test_a_column_that_is_not_known_makes_the_request_unknown() -> None:
    assert Action.UNKNOWN in post("get", {"include": ["Embeddings"]}).actions


def test_a_query_with_defaults_counts_ten_rows_for_each_embedding() -> None:
    operation = post("query", {"query_embeddings": [VECTOR, VECTOR]})
    assert (operation.actions, operation.collections) == ({Action.SEARCH}, {"docs"})
    assert (operation.top_k, operation.queries, operation.vectors, operation.fields) == (20, 2, False, None)
    assert post("query", {**QUERY, "n_results": 3, "ids": ["a"]}).top_k == 1
    assert post("query", {**QUERY, "n_results": None}).top_k == 10


def test_a_get_is_a_read_by_ids_and_a_scan_otherwise() -> None:
    everything = post("get", {})
    assert (everything.actions, everything.unbounded, everything.top_k) == ({Action.SCAN}, True, None)
    some = post("get", {"limit": 5, "offset": 10, "ids": None})
    assert (some.actions, some.unbounded, some.top_k, some.offset) == ({Action.SCAN}, False, 5, 10)
    named = post("get", {"ids": ["a", "b"], "include": ["embeddings", "documents"]})
    assert (named.actions, named.top_k, named.vectors) == ({Action.READ}, 2, True)
    assert named.fields == {"documents"}


def test_every_field_of_filters_is_probed() -> None:
    where = {
        "$and": [
            {"a": 1},
            {"$or": [{"b.c": {"$in": ["x"]}}, {"#document": {"$contains": "y"}}]},
            {"#id": "q"},
        ]
    }
    operation = post("get", {"where": where})
    assert operation.probed == {"a", "b.c", "documents"}
    assert operation.filtered
    assert post("query", {**QUERY, "where_document": {"$contains": "x"}}).probed == {"documents"}
    assert "*" in post("get", {"where": {"$magic": [{"ssn": 1}]}}).probed


def test_a_search_counts_its_members() -> None:
    knn = {"$knn": {"query": VECTOR, "limit": 50}}
    one = {"rank": {"$sum": [knn, {"$mul": [knn, {"$val": 2}]}]}, "limit": {"limit": 4, "offset": 2}}
    body = {"searches": [{**one, "filter": {"a": 1}, "select": {"keys": ["#embedding", "title"]}}, one]}
    operation = post("search", body)
    assert (operation.actions, operation.queries, operation.top_k) == ({Action.SEARCH}, 4, 8)
    assert (operation.vectors, operation.fields, operation.probed, operation.offset) == (
        True,
        {"title"},
        {"a"},
        2,
    )
    scan = post(
        "search",
        {"searches": [{"group_by": {"keys": ["g"], "aggregate": {"$min_k": {"keys": ["s"], "k": 1}}}}]},
    )
    assert (scan.actions, scan.unbounded, scan.probed) == ({Action.SCAN}, True, {"g", "s"})


@pytest.mark.parametrize(
    ("verb", "path", "body", "actions", "collections"),
    [
        ("GET", "/api/v2/heartbeat", None, {Action.SESSION}, set()),
        ("GET", "/api/v2/auth/identity", None, {Action.SESSION}, set()),
        ("POST", "/api/v2/reset", None, {Action.ADMIN, Action.DELETE}, {"*"}),
        ("DELETE", CHROMA.rsplit("/", 1)[0], None, {Action.ADMIN, Action.DELETE}, {"*"}),
        ("GET", CHROMA, None, {Action.SCHEMA}, {"*"}),
        ("POST", CHROMA, {"name": "new"}, {Action.SCHEMA}, {"new"}),
        ("GET", f"{CHROMA}/docs", None, {Action.SESSION}, {"docs"}),
        ("GET", f"{CHROMA}/by-id/{UUID}", None, {Action.SESSION}, {"docs"}),
        ("PUT", ONE, {"new_name": "b"}, {Action.SCHEMA}, {"docs", "b"}),
        ("DELETE", f"{CHROMA}/docs", None, {Action.SCHEMA, Action.DELETE}, {"docs"}),
        ("GET", f"{ONE}/count", None, {Action.COUNT}, {"docs"}),
        ("POST", f"{ONE}/fork", {"new_name": "b"}, {Action.SNAPSHOT, Action.SCHEMA}, {"docs", "b"}),
        (
            "POST",
            f"{ONE}/functions/attach",
            {"name": "n", "function_id": "f", "output_collection": "b"},
            {Action.SNAPSHOT, Action.SCHEMA},
            {"docs", "b"},
        ),
        ("POST", f"{ONE}/add", {"ids": ["a"], "embeddings": ["AAAA"]}, {Action.WRITE}, {"docs"}),
        ("POST", f"{ONE}/delete", {"where": {"a": 1}}, {Action.DELETE}, {"docs"}),
        ("GET", "/api/v2/collections/t:d:n", None, {Action.SESSION}, {"t/d/n"}),
        ("GET", "/api/v1/collections", None, {Action.UNKNOWN}, {"*"}),
        ("POST", f"{ONE}/conditional/commit", {}, {Action.WRITE, Action.DELETE, Action.UNKNOWN}, {"docs"}),
        ("PATCH", ONE, {}, {Action.UNKNOWN}, {"*"}),
    ],
)
def test_routes_are_what_they_do(
    verb: str, path: str, body: Any, actions: set[Action], collections: set[str]
) -> None:
    operation = ask(engine("chroma"), request(verb, path, body))
    assert operation.actions == actions
    assert operation.collections == collections


# Names.


def test_a_uuid_is_looked_up_where_its_path_says_and_is_anything_elsewhere() -> None:
    path = f"/api/v2/tenants/default_tenant/databases/other/collections/{UUID}/get"
    assert ask(engine("chroma"), request("POST", path, {})).collections == {"default_tenant/other/docs"}
    path = path.replace("default_tenant", "nobody")
    assert ask(engine("chroma"), request("POST", path, {})).collections == {"*"}


@pytest.mark.parametrize(
    "uuid", [UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}", "docs", UUID + "0"]
)
def test_other_spellings_of_a_uuid_are_refused(uuid: str) -> None:
    with pytest.raises(Refusal):
        ask(engine("chroma"), request("POST", f"{CHROMA}/{uuid}/get", {}))


def test_a_uuid_in_capitals_is_the_same_collection() -> None:
    assert ask(engine("chroma"), request("POST", f"{CHROMA}/{UUID.upper()}/get", {})).collections == {"docs"}


def test_slashes_in_a_tenant_cannot_forge_a_name() -> None:
    path = "/api/v2/tenants/a%2Fb/databases/c/collections/docs"
    assert ask(engine("chroma"), request("GET", path)).collections == {"a%2Fb/c/docs"}


def test_a_name_is_held_for_two_seconds_and_forgotten_when_the_schema_changes() -> None:
    clock = Clock()
    asked = engine("chroma", clock)
    call = request("POST", f"{ONE}/get", {})
    ask(asked, call)
    clock.now = 1.9
    assert not isinstance(asked.operation(call, asked.route(call)), Lookup)
    clock.now = 2.0
    assert isinstance(asked.operation(call, asked.route(call)), Lookup)
    ask(asked, call)
    drop = request("DELETE", f"{CHROMA}/docs")
    asked.observe(drop, ask(asked, drop), answer({}))
    assert isinstance(asked.operation(call, asked.route(call)), Lookup)


def test_a_collection_described_in_passing_needs_no_look_up() -> None:
    asked = engine("chroma")
    described = {"id": UUID, "name": "docs", "tenant": "default_tenant", "database": "default_database"}
    call = request("GET", f"{CHROMA}/docs")
    asked.observe(call, ask(asked, call), answer(described))
    call = request("POST", f"{ONE}/get", {})
    assert not isinstance(asked.operation(call, asked.route(call)), Lookup)


def unresolved(asked: Any, call: Any) -> Any:
    lookup = asked.operation(call, asked.route(call))
    assert isinstance(lookup, Lookup)
    assert lookup.unresolved is not None
    return lookup.unresolved


def test_where_no_name_may_be_asked_all_but_the_name_is_told() -> None:
    call = request("POST", f"{ONE}/query", {**QUERY, "n_results": 7, "include": ["embeddings"]})
    found = unresolved(engine("chroma"), call)
    assert (found.actions, found.collections) == ({Action.SEARCH}, {"*"})
    assert (found.top_k, found.queries, found.vectors) == (7, 1, True)
    assert found.method.startswith("POST /api/v2/")
    found = unresolved(engine("chroma"), request("GET", f"{ONE}/count"))
    assert (found.actions, found.collections) == ({Action.COUNT}, {"*"})
    partial = unresolved(engine("chroma"), request("POST", f"{ONE}/add"))
    assert (partial.actions, partial.partial) == ({Action.WRITE}, True)


def test_where_no_name_may_be_asked_the_last_one_known_is_told_until_the_schema_changes() -> None:
    clock = Clock()
    asked = engine("chroma", clock)
    call = request("POST", f"{ONE}/get", {})
    ask(asked, call)
    clock.now = 3600.0
    assert unresolved(asked, call).collections == {"docs"}
    drop = request("DELETE", f"{CHROMA}/docs")
    asked.observe(drop, ask(asked, drop), answer({}))
    assert unresolved(asked, call).collections == {"*"}


def test_a_bad_body_is_refused_before_anything_is_looked_up() -> None:
    asked = engine("chroma")
    call = request("POST", f"{ONE}/get", b'{"limit":1,"limit":9}')
    with pytest.raises(Refusal):
        asked.operation(call, asked.route(call))


def test_an_answer_about_another_collection_names_nothing() -> None:
    asked = engine("chroma")
    call = request("POST", f"{ONE}/get", {})
    lookup = asked.operation(call, asked.route(call))
    assert isinstance(lookup, Lookup)
    other = {
        "id": UUID.replace("7", "8"),
        "name": "open",
        "tenant": "default_tenant",
        "database": "default_database",
    }
    asked.learn(lookup, answer(other))
    operation = asked.operation(call, asked.route(call))
    assert not isinstance(operation, Lookup)
    assert operation.collections == {"*"}


# Under a verdict.


def test_a_request_that_needs_no_change_is_forwarded_as_its_own_bytes() -> None:
    raw = b'{ "query_embeddings": [[0.10, 1e0]], "n_results": 3 }'
    call = request("POST", f"{ONE}/query", raw)
    asked = engine("chroma")
    assert asked.rewrite(call, ask(asked, call), verdict(vectors=False)).body is raw


@pytest.mark.parametrize(("path", "body"), [("get", {}), ("query", QUERY), ("delete", {"ids": ["a"]})])
def test_the_filter_goes_around_the_clients(path: str, body: Any) -> None:
    assert rewrite(path, body, filters=ACME)["where"] == OURS
    mine = {"$or": [{"a": 1}, {"b": 2}]}
    assert rewrite(path, {**body, "where": mine}, filters=ACME)["where"] == {"$and": [mine, OURS]}
    if path == "delete":
        assert rewrite(path, body, filters=ACME)["ids"] == ["a"]


def test_the_filter_goes_into_every_search() -> None:
    body = {"searches": [{"filter": {"a": 1}}, {}]}
    done = rewrite("search", body, filters=ACME)
    assert [search["filter"] for search in done["searches"]] == [{"$and": [{"a": 1}, OURS]}, OURS]


def test_rows_are_added_only_with_the_value_of_the_filter() -> None:
    call = request(
        "POST", f"{ONE}/add", {"ids": ["a"], "embeddings": [VECTOR], "metadatas": [{"tenant": "acme"}]}
    )
    asked = engine("chroma")
    assert asked.rewrite(call, ask(asked, call), verdict(filters=ACME)).body == call.body
    wrong: list[Any] = [[{"tenant": "other"}], [{}], [None], None, [], [{"tenant": ["acme"]}]]
    for metadatas in wrong:
        call = request("POST", f"{ONE}/add", {"ids": ["a"], "embeddings": [VECTOR], "metadatas": metadatas})
        with pytest.raises(Refusal):
            asked.rewrite(call, ask(asked, call), verdict(filters=ACME))


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [("POST", "update", {"ids": []}), ("POST", "upsert", {"ids": []}), ("GET", "count", None)],
)
def test_what_cannot_carry_the_filter_is_refused(verb: str, path: str, body: Any) -> None:
    asked = engine("chroma")
    call = request(verb, f"{ONE}/{path}", body)
    operation = ask(asked, call)
    assert not operation.carries_filter
    with pytest.raises(Refusal):
        asked.rewrite(call, operation, verdict(filters=ACME))


def test_embeddings_and_columns_are_asked_for_no_more() -> None:
    body = {"include": ["embeddings", "documents", "metadatas"]}
    assert rewrite("get", body, vectors=False)["include"] == ["documents", "metadatas"]
    assert rewrite("get", body, fields=frozenset({"title"}))["include"] == ["embeddings", "metadatas"]
    search = {"searches": [{"select": {"keys": ["#embedding", "#score", "title", "ssn"]}}]}
    done = rewrite("search", search, vectors=False, fields=frozenset({"title"}))
    assert done["searches"][0]["select"]["keys"] == ["#score", "title"]


def test_clamps_cut_every_home_of_the_limit() -> None:
    clamp = (Limit("top_k", 4, "clamp", "r"),)
    assert rewrite("get", {}, clamps=clamp)["limit"] == 4
    assert rewrite("query", {"query_embeddings": [VECTOR, VECTOR]}, clamps=clamp)["n_results"] == 2
    assert rewrite("search", {"searches": [{}, {"limit": {"limit": 1}}]}, clamps=clamp)["searches"][0][
        "limit"
    ] == {"limit": 2}
    with pytest.raises(Refusal):
        rewrite("query", {"query_embeddings": [VECTOR] * 5}, clamps=clamp)
    with pytest.raises(Refusal):
        rewrite("add", {"ids": []}, clamps=(Limit("rows", 1, "clamp", "r"),))


def test_the_error_is_one_that_chromadb_knows() -> None:
    response = engine("chroma").refuse(403, "denied", "no (rule x)", "x")
    assert json.loads(response.body) == {"error": "AuthorizationError", "message": "no (rule x)"}


def test_a_digest_covers_embeddings_in_both_spellings() -> None:
    packed = base64.b64encode(bytes(4 * 64)).decode()
    body = {
        "ids": [packed],
        "embeddings": [packed, None, packed],
        "documents": [f'"embeddings":["{packed}"]'],
    }
    for separators in ((",", ":"), (", ", ": ")):
        raw = json.dumps(body, separators=separators).encode()
        recorded, count = engine("chroma").digest(raw)
        tree = json.loads(recorded)
        assert count == 2
        assert tree["embeddings"][0]["dim"] == 64
        assert tree["embeddings"][1] is None
        assert (tree["ids"], tree["documents"]) == (body["ids"], body["documents"])
    plain = json.dumps({"embeddings": [VECTOR], "x": 1}).encode()
    assert engine("chroma").digest(plain)[1] == 1
    hostile = b'"embeddings":[' + b'"AAAA",' * 50_000 + b"x"
    assert engine("chroma").digest(hostile) == (hostile, 0)


@pytest.mark.parametrize(
    ("key", "last"), [("distances", {"include": ["embeddings"]}), ("scores", {"select": [["#score", "a:b"]]})]
)
def test_a_digest_leaves_scores_however_many_there_are(key: str, last: dict[str, Any]) -> None:
    scores = [[n / 7 for n in range(12)], [1e-9, None, -3.0] * 4]
    body = {
        "ids": [[str(n) for n in range(12)]] * 2,
        "embeddings": [[VECTOR] * 12] * 2,
        "documents": [[f'"{key}":[[1,2,3,4,5,6,7,8,9]] of "{key}":'] * 12] * 2,
        "other": [1, 2, 3, 4, 5, 6, 7, 8, 9],
        key: scores,
        **last,
    }
    recorded, count = engine("chroma").digest(json.dumps(body, separators=(",", ":")).encode())
    tree = json.loads(recorded)
    assert tree[key] == scores
    assert count == 25
    assert tree["other"]["dim"] == 9
    assert tree["embeddings"][1][11]["dim"] == len(VECTOR)
    assert tree["documents"] == body["documents"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"distances":[[%s]]}',
        b'{"query_embeddings":[[1]],"distances":[[%s]]}',
        b'{"ids":["a"],"scores":[[%s]]}',
        b'{"ids":["a"],"metadatas":[{"scores":[%s]}]}',
        b'{"ids":["a"],"metadatas":[{"x\\"distances":[%s]}]}',
        b'{"ids":["a"],"metadatas":[{"scores":[%s]}],"include":["metadatas"]}',
        b'{"ids":["a"],"metadatas":[{"scores":[%s],"include":["a"]}],"include":["metadatas"]}',
    ],
)
def test_a_digest_leaves_no_vector_that_is_called_a_score_elsewhere(raw: bytes) -> None:
    assert engine("chroma").digest(raw % b",".join([b"0.5"] * 64))[1] == 1


@pytest.mark.parametrize("key", ["#document", "chroma:document"])
def test_every_name_of_the_document_column_is_a_probe_of_it(key: str) -> None:
    knn = {"$knn": {"query": VECTOR, "key": key}}
    groups = {"keys": [key], "aggregate": {"$min_k": {"keys": ["#score"], "k": 1}}}
    best = {"keys": ["a"], "aggregate": {"$min_k": {"keys": [key], "k": 1}}}
    assert post("get", {"where": {key: "the whole text"}}).probed == {"documents"}
    assert post("query", {**QUERY, "where": {"$or": [{key: {"$contains": "x"}}]}}).probed == {"documents"}
    assert post("search", {"searches": [{"rank": knn}]}).probed == {"documents"}
    assert post("search", {"searches": [{"group_by": groups}]}).probed == {"documents"}
    assert post("search", {"searches": [{"group_by": best}]}).probed == {"a", "documents"}


@pytest.mark.parametrize("key", ["chroma:other", "#other", "$other"])
def test_a_reserved_key_that_is_not_known_may_be_any_field(key: str) -> None:
    assert post("get", {"where": {key: 1}}).probed == {"*"}


@pytest.mark.parametrize(
    ("rank", "scales"),
    [
        (None, False),
        ({"$knn": {"query": VECTOR}}, False),
        ({"$mul": [{"$val": 1e9}, {"$knn": {"query": VECTOR}}]}, True),
        ({"$sub": {"left": {"$knn": {"query": VECTOR}}, "right": {"$val": 0.5}}}, True),
    ],
)
def test_a_rank_that_calculates_is_an_oracle_on_scores(rank: Any, scales: bool) -> None:
    search = {"limit": {"limit": 1}} if rank is None else {"rank": rank}
    assert post("search", {"searches": [search]}).thresholds is scales


def test_a_list_of_numbers_in_the_place_of_a_mandatory_value_is_refused() -> None:
    rows = {"ids": ["a"], "embeddings": [VECTOR], "metadatas": [{"tenant": [1] * 80}]}
    with pytest.raises(Refusal):
        rewrite("add", rows, filters=(("tenant", 1.5),))


def test_many_searches_are_read_in_linear_time() -> None:
    def read(members: int) -> None:
        searches = [{"select": {"keys": [f"f{n}"]}} for n in range(members)]
        assert len(post("search", {"searches": searches}).fields) == members

    assert_linear(read, 16_000)


def test_what_was_read_of_one_body_is_not_taken_for_another() -> None:
    """Bodies are remembered by what they say beside their vectors."""
    held = engine("chroma")

    def asked(path: str, body: bytes) -> Any:
        return ask(held, request("POST", f"{ONE}/{path}", body))

    vector = json.dumps(VECTOR * 20).encode()
    query = b'{"query_embeddings":[' + vector + b'],"n_results":%d}'
    assert asked("query", query % 3).top_k == 3
    assert asked("query", query % 4).top_k == 4
    assert asked("query", query % 3).top_k == 3
    assert asked("query", query.replace(b"]", b" ]", 1) % 3).bytes != asked("query", query % 3).bytes
    assert asked("add", b'{"ids":["a"],"embeddings":[' + vector + b"]}").rows == 1
    for path, body in (
        ("query", (query % 3).replace(vector, b"NaN")),  # the very bytes that stand for the cut body
        ("query", (query % 3).replace(vector, b'"' + vector + b'"')),
        ("get", query % 3 + b"x"),
    ):
        with pytest.raises(Refusal):
            asked(path, body)


def test_a_restriction_reaches_a_body_of_a_known_shape() -> None:
    held = engine("chroma")
    vector = VECTOR * 20
    body = {"query_embeddings": [vector], "n_results": 3, "include": ["embeddings", "documents"]}
    for _ in range(2):
        call = request("POST", f"{ONE}/query", body)
        assert rewritten(held, call, verdict()) == body
        assert rewritten(held, call, verdict(vectors=False))["include"] == ["documents"]
        assert rewritten(held, call, verdict(filters=ACME))["where"] == OURS
