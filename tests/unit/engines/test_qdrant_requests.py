# SPDX-License-Identifier: Apache-2.0
"""What Qdrant's requests ask for, attacks first, and how they are brought under a verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.protocols.http import Lookup, Refusal
from policy.model import Action, Limit, Mask
from tests.unit.cost import assert_linear
from tests.unit.engines.calls import VECTOR, Clock, answer, ask, engine, request, rewritten, verdict

P = "/collections/docs/points"
MASK = Mask("m", field="payload.ssn")
ACME = (("tenant", "acme"),)
OURS = {"key": "tenant", "match": {"value": "acme"}}
FIELD = {"must": [{"key": "city", "match": {"value": "x"}}]}


def post(path: str, body: Any) -> Any:
    return ask(engine("qdrant"), request("POST", path, body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"query":[1,2],"limit":1,"limit":1000}',
        b'{"query":[1,2],"limi\\u0074":1000}',
        b'{"query":[1,2],"limit":"10"}',
        b'{"query":[1,2],"limit":-1}',
        b'{"query":[1,2],"limit":10.0}',
        b'{"query":[1,2],"limit":1e1}',
        b'{"query":[1,2],"limit":true}',
        b'{"query":[1,2],"offset":-1}',
        b'{"query":[NaN]}',
        b'{"query":true}',
        b"[[0.1],null]",
        b'{"query":[1],"with_vector":false,"with_vectors":true}',
        b'{"query":[1],"prefetch":[[1,2]]}',
        b'{"query":[1],"filter":[[]]}',
        b'{"query":[1],"filter":{"must":[["city",{"value":1}]]}}',
        b'{"query":[1],"filter":{"Must":[]}}',
        b'{"query":[1],"lookup_from":"other"}',
        b"",
        b'{"query":[1],"filter":' + b'{"must":' * 70 + b"{}" + b"}" * 71,
    ],
)
def test_bodies_with_two_readings_are_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        post(f"{P}/query", body)


@pytest.mark.parametrize(
    "body", [{"Limit": 5}, {"query": {"nearst": [1]}}, {"with_Vector": True}, {"cursor": 1}]
)
def test_a_key_that_is_not_known_makes_the_request_unknown(body: dict[str, Any]) -> None:
    assert Action.UNKNOWN in post(f"{P}/query", body).actions


def test_a_search_with_defaults_counts_ten_rows_and_one_query() -> None:
    operation = post(f"{P}/query", {"query": VECTOR})
    assert (operation.actions, operation.collections) == ({Action.SEARCH}, {"docs"})
    assert (operation.top_k, operation.queries, operation.vectors) == (10, 1, False)
    assert operation.fields == frozenset()
    assert operation.carries_filter


@pytest.mark.parametrize(
    ("path", "body", "top_k", "queries"),
    [
        ("query/batch", {"searches": [{"query": VECTOR, "limit": 3}, {"query": VECTOR}]}, 13, 2),
        ("query/groups", {"query": VECTOR, "group_by": "a"}, 30, 1),
        (
            "query/groups",
            {"query": VECTOR, "group_by": "a", "limit": 4, "group_size": 5, "with_lookup": "o"},
            24,
            1,
        ),
        (
            "query",
            {"prefetch": [{"query": VECTOR, "limit": 99}] * 2, "query": {"fusion": "rrf"}, "limit": 2},
            2,
            2,
        ),
        ("query", {"prefetch": {"prefetch": {"query": VECTOR}, "query": VECTOR}, "query": VECTOR}, 10, 3),
        ("query", {"query": {"recommend": {"positive": [VECTOR, VECTOR], "negative": [VECTOR]}}}, 10, 3),
        ("query", {"query": {"context": [{"positive": VECTOR, "negative": VECTOR}]}}, 10, 2),
        ("query", {"query": {"discover": {"target": VECTOR, "context": []}}}, 10, 1),
        ("search", {"vector": VECTOR, "top": 7}, 7, 1),
        ("search", {"vector": {"name": "a", "vector": VECTOR}, "limit": 7}, 7, 1),
        ("search/batch", {"searches": [{"vector": VECTOR, "limit": 7}] * 3}, 21, 3),
        ("search/groups", {"vector": VECTOR, "group_by": "a", "group_size": 2, "limit": 4}, 8, 1),
        ("recommend", {"positive": [VECTOR], "limit": 5}, 5, 1),
        ("discover", {"target": VECTOR, "limit": 5}, 5, 1),
        ("search/matrix/pairs", {"sample": 50, "limit": 4}, 200, 50),
        ("search/matrix/offsets", {}, 30, 10),
    ],
)
def test_searches_count_as_what_they_return(path: str, body: Any, top_k: int, queries: int) -> None:
    operation = post(f"{P}/{path}", body)
    assert (operation.top_k, operation.queries) == (top_k, queries)
    assert operation.actions == {Action.SEARCH}


@pytest.mark.parametrize("body", [{}, {"query": {"order_by": "age"}}, {"query": {"sample": "random"}}])
def test_a_query_that_ranks_by_no_vector_is_a_scan(body: Any) -> None:
    assert post(f"{P}/query", body).actions == {Action.SCAN}


def test_retrieve_scroll_and_point_tell_their_own_defaults() -> None:
    retrieve = post(P, {"ids": [1, 2, 3]})
    assert (retrieve.actions, retrieve.top_k, retrieve.fields) == ({Action.READ}, 3, None)
    scroll = post(f"{P}/scroll", {"offset": 7, "order_by": {"key": "age"}})
    assert (scroll.actions, scroll.top_k, scroll.offset, scroll.fields) == ({Action.SCAN}, 10, None, None)
    assert scroll.probed == {"age"}
    point = ask(engine("qdrant"), request("GET", f"{P}/1"))
    assert (point.vectors, point.top_k, point.carries_filter) == (True, 1, False)


def test_vectors_are_asked_for_under_either_name_and_by_list() -> None:
    for asked in ({"with_vector": True}, {"with_vectors": True}, {"with_vector": ["a"]}):
        assert post(f"{P}/query", {"query": VECTOR, **asked}).vectors
    lookup = {"collection": "o", "with_vectors": True}
    assert post(f"{P}/query/groups", {"query": VECTOR, "group_by": "a", "with_lookup": lookup}).vectors


def test_other_collections_in_the_body_are_touched_and_no_filter_reaches_them() -> None:
    bodies = [
        {"query": 1, "lookup_from": {"collection": "other"}},
        {
            "query": VECTOR,
            "prefetch": {"query": VECTOR, "prefetch": {"query": 1, "lookup_from": {"collection": "other"}}},
        },
    ]
    for body in bodies:
        operation = post(f"{P}/query", body)
        assert operation.collections == {"docs", "other"}
        assert not operation.carries_filter


@pytest.mark.parametrize(
    "query", [7, "0b8c1e9e-0000-0000-0000-000000000000", {"recommend": {"positive": [7]}}]
)
def test_example_ids_carry_no_filter(query: Any) -> None:
    assert not post(f"{P}/query", {"query": query}).carries_filter


def test_every_field_of_filters_and_formulas_is_probed() -> None:
    where = {
        "must": {"key": "a.b[].c", "range": {"gt": 1}},
        "should": [{"is_empty": {"key": "d"}}, {"has_id": [1]}, {"must_not": [{"is_null": {"key": "e"}}]}],
        "must_not": [{"nested": {"key": "f[]", "filter": {"must": [{"key": "g", "match": {"value": 1}}]}}}],
        "min_should": {"conditions": [{"key": "h", "match": {"value": 1}}], "min_count": 1},
    }
    operation = post(f"{P}/query", {"query": VECTOR, "prefetch": {"query": VECTOR, "filter": where}})
    assert operation.probed == {"a.b.c", "d", "e", "f", "f.g", "h"}
    formula = {"sum": ["$score", {"mult": [2, "pop"]}, {"geo_distance": {"origin": {}, "to": "geo"}}]}
    decay = {"exp_decay": {"x": {"datetime_key": "at"}, "target": {"datetime": "2026-01-01"}}}
    condition = {"mult": [1, {"key": "kind", "match": {"any": ["x"]}}]}
    operation = post(
        f"{P}/query", {"query": {"formula": {"sum": [formula, decay, condition]}, "defaults": {"dflt": 1}}}
    )
    assert operation.probed == {"pop", "geo", "at", "kind", "dflt"}
    assert operation.thresholds


def test_a_condition_that_is_not_known_probes_any_field() -> None:
    assert "*" in post(f"{P}/count", {"filter": {"must": [{"magic": {"key": "ssn"}}]}}).probed


def test_a_threshold_anywhere_is_told() -> None:
    assert post(
        f"{P}/query", {"query": VECTOR, "prefetch": [{"query": VECTOR, "score_threshold": 0.5}]}
    ).thresholds


def test_facets_list_the_values_of_a_field() -> None:
    operation = post("/collections/docs/facet", {"key": "city", "limit": 500})
    assert (operation.actions, operation.top_k, operation.probed) == ({Action.SCAN}, 500, {"city"})


def test_a_mixed_batch_of_writes_is_all_of_them() -> None:
    body = {
        "operations": [
            {"upsert": {"points": [{}, {}]}},
            {"delete": {"filter": FIELD}},
            {"clear_payload": {"points": [1]}},
        ]
    }
    operation = post(f"{P}/batch", body)
    assert operation.actions == {Action.WRITE, Action.DELETE}
    assert operation.rows == 3
    assert operation.probed == {"city"}
    assert not operation.carries_filter
    assert Action.UNKNOWN in post(f"{P}/batch", {"operations": [{"move": {}}]}).actions


def test_an_unread_write_is_partial() -> None:
    operation = ask(engine("qdrant"), request("PUT", P))
    assert operation.partial
    assert operation.actions == {Action.WRITE}


# Names.


def test_an_alias_stands_for_its_collection_for_two_seconds() -> None:
    clock = Clock()
    asked = engine("qdrant", clock)
    call = request("POST", "/collections/alias/points/query", {"query": VECTOR})
    assert ask(asked, call).collections == {"docs"}
    clock.now = 1.9
    assert not isinstance(asked.operation(call, asked.route(call)), Lookup)
    clock.now = 2.0
    assert isinstance(asked.operation(call, asked.route(call)), Lookup)


def test_a_change_of_aliases_is_noticed_at_once() -> None:
    asked = engine("qdrant")
    call = request("POST", "/collections/alias/points/query", {"query": VECTOR})
    ask(asked, call)
    create = {"actions": [{"create_alias": {"collection_name": "secret", "alias_name": "alias"}}]}
    change = request("POST", "/collections/aliases", create)
    operation = ask(asked, change)
    assert operation.collections == {"secret", "alias"}
    asked.rewrite(change, operation, verdict())
    assert isinstance(asked.operation(call, asked.route(call)), Lookup)


def test_where_aliases_may_not_be_asked_for_a_name_is_taken_as_it_stands() -> None:
    asked = engine("qdrant")
    body = {"query": VECTOR, "limit": 7, "with_vector": True}
    body["lookup_from"] = {"collection": "other"}
    call = request("POST", "/collections/alias/points/query", body)
    lookup = asked.operation(call, asked.route(call))
    assert isinstance(lookup, Lookup)
    found = lookup.unresolved
    assert found is not None
    assert (found.actions, found.collections) == (
        ask(asked, call).actions,
        frozenset({"alias", "other"}),
    )
    assert (found.top_k, found.queries, found.vectors) == (7, 1, True)


def test_with_no_list_of_aliases_every_collection_may_be_meant() -> None:
    asked = engine("qdrant")
    call = request("POST", f"{P}/query", {"query": VECTOR})
    lookup = asked.operation(call, asked.route(call))
    assert isinstance(lookup, Lookup)
    asked.learn(lookup, answer({"status": {"error": "forbidden"}}, 403))
    operation = asked.operation(call, asked.route(call))
    assert not isinstance(operation, Lookup)
    assert operation.collections == {"docs", "*"}


# Under a verdict.


def rewrite(path: str, body: Any, **changes: Any) -> Any:
    return rewritten(engine("qdrant"), request("POST", path, body), verdict(**changes))


def test_a_request_that_needs_no_change_is_forwarded_as_its_own_bytes() -> None:
    raw = b'{ "query": [0.10, 1e0], "limit": 3 }'
    call = request("POST", f"{P}/query", raw)
    asked = engine("qdrant")
    assert asked.rewrite(call, ask(asked, call), verdict()).body is raw


def test_a_changed_request_keeps_the_text_of_its_numbers() -> None:
    raw = b'{"query":' + json.dumps(VECTOR).encode() + b',"score_threshold":0.50,"with_vector":true}'
    call = request("POST", f"{P}/query", raw)
    asked = engine("qdrant")
    out = asked.rewrite(call, ask(asked, call), verdict(vectors=False)).body
    assert out == raw.replace(b"true", b"false")


def test_the_filter_goes_around_the_clients_at_every_level() -> None:
    body = {
        "query": VECTOR,
        "filter": FIELD,
        "prefetch": {"query": VECTOR, "prefetch": [{"query": VECTOR, "filter": FIELD}]},
    }
    done = rewrite(f"{P}/query", body, filters=ACME)
    assert done["filter"] == {"must": [FIELD, OURS]}
    assert done["prefetch"]["filter"] == {"must": [OURS]}
    assert done["prefetch"]["prefetch"][0]["filter"] == {"must": [FIELD, OURS]}
    batch = rewrite(f"{P}/query/batch", {"searches": [{"query": VECTOR}, body]}, filters=ACME)
    assert [search["filter"] for search in batch["searches"]] == [{"must": [OURS]}, {"must": [FIELD, OURS]}]


def test_a_delete_by_id_deletes_only_what_the_filter_holds() -> None:
    done = rewrite(f"{P}/delete", {"points": [1, 2]}, filters=ACME)
    assert done == {"filter": {"must": [{"has_id": [1, 2]}, OURS]}}


@pytest.mark.parametrize(
    ("verb", "path", "body"),
    [
        ("PUT", P, {"points": []}),
        ("POST", f"{P}/payload", {"payload": {}, "points": [1]}),
        ("POST", f"{P}/batch", {"operations": []}),
        ("POST", f"{P}/query", {"query": 7}),
        ("GET", f"{P}/1", None),
        ("GET", "/telemetry", None),
        ("POST", f"{P}/delete", {"points": [1], "filter": FIELD}),
    ],
)
def test_what_cannot_carry_the_filter_is_refused(verb: str, path: str, body: Any) -> None:
    asked = engine("qdrant")
    call = request(verb, path, body)
    operation = ask(asked, call)
    assert not operation.carries_filter
    with pytest.raises(Refusal):
        asked.rewrite(call, operation, verdict(filters=ACME))


def test_clamps_cut_every_home_of_the_limit() -> None:
    clamp = (Limit("top_k", 4, "clamp", "r"),)
    assert rewrite(f"{P}/query", {"query": VECTOR}, clamps=clamp)["limit"] == 4
    assert rewrite(f"{P}/search", {"vector": VECTOR, "top": 9}, clamps=clamp)["top"] == 4
    batch = rewrite(
        f"{P}/query/batch", {"searches": [{"query": VECTOR}, {"query": VECTOR, "limit": 1}]}, clamps=clamp
    )
    assert [search["limit"] for search in batch["searches"]] == [2, 1]
    assert (
        rewrite(f"{P}/query/groups", {"query": VECTOR, "group_by": "a", "group_size": 2}, clamps=clamp)[
            "limit"
        ]
        == 2
    )
    assert rewrite(P, {"ids": [1, 2, 3, 4, 5]}, clamps=clamp)["ids"] == [1, 2, 3, 4]
    with pytest.raises(Refusal):
        rewrite(f"{P}/query/batch", {"searches": [{"query": VECTOR}] * 5}, clamps=clamp)
    with pytest.raises(Refusal):
        rewrite(f"{P}/search/matrix/pairs", {}, clamps=clamp)


def test_fields_become_an_include_list() -> None:
    only = frozenset({"title"})
    assert rewrite(f"{P}/scroll", {}, fields=only)["with_payload"] == {"include": ["title"]}
    assert rewrite(f"{P}/query", {"query": VECTOR, "with_payload": ["title", "ssn"]}, fields=only)[
        "with_payload"
    ] == {"include": ["title"]}
    assert (
        rewrite(f"{P}/query", {"query": VECTOR, "with_payload": ["ssn"]}, fields=only)["with_payload"]
        is False
    )


def test_vectors_are_asked_for_nowhere() -> None:
    lookup = {"collection": "o", "with_vectors": True}
    body = {"query": VECTOR, "group_by": "a", "with_vector": True, "with_lookup": lookup}
    done = rewrite(f"{P}/query/groups", body, vectors=False)
    assert (done["with_vector"], done["with_lookup"]["with_vectors"]) == (False, False)


def test_the_error_is_the_servers_own_form() -> None:
    response = engine("qdrant").refuse(403, "denied", "no (rule x)", "x")
    assert response.status == 403
    assert json.loads(response.body)["status"] == {"error": "no (rule x)"}


def test_a_long_list_of_number_ids_is_a_list() -> None:
    ids = list(range(1000, 1060))  # longer than what counts as a vector
    assert post(P, {"ids": ids}).top_k == 60
    assert post(f"{P}/delete", {"points": ids}).rows == 60
    assert ask(engine("qdrant"), request("PUT", P, {"batch": {"ids": ids, "vectors": []}})).rows == 60
    recommend = post(f"{P}/recommend", {"positive": ids, "limit": 3})
    assert (recommend.queries, recommend.carries_filter) == (60, False)
    clamp = (Limit("top_k", 20, "clamp", "r"),)
    out = rewritten(engine("qdrant"), request("POST", P, {"ids": ids}), verdict(clamps=clamp))
    assert out["ids"] == ids[:20]
    out = rewritten(engine("qdrant"), request("POST", f"{P}/delete", {"points": ids}), verdict(filters=ACME))
    assert out["filter"] == {"must": [{"has_id": ids}, OURS]}


def test_numbers_that_are_no_json_are_no_list_of_ids() -> None:
    with pytest.raises(Refusal):
        post(P, b'{"ids":[' + b"1 2," * 40 + b"3]}")


def test_many_members_are_read_in_linear_time() -> None:
    def read(members: int) -> None:
        searches = [{"query": [1], "limit": 1, "with_payload": [f"f{n}"]} for n in range(members)]
        lookups = [{"query": [1], "limit": 1, "lookup_from": {"collection": f"c{n}"}} for n in range(members)]
        assert len(post(f"{P}/query/batch", {"searches": searches}).fields) == members
        assert len(post(f"{P}/query/batch", {"searches": lookups}).collections) == members + 1

    assert_linear(read, 16_000)


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/collections/docs/snapshots/a.snapshot"),
        ("HEAD", "/collections/docs/snapshots/a.snapshot"),
        ("GET", "/snapshots/full.snapshot"),
        ("GET", "/collections/docs/shards/0/snapshot"),
        ("GET", "/collections/docs/shards/0/snapshots/a"),
        ("POST", "/collections/docs/shards/0/snapshot/partial/create"),
        ("GET", "/collections/docs/shards/0/wal"),
        ("GET", "/profiler/slow_requests"),
        ("POST", "/audit/logs"),
    ],
)
def test_a_copy_of_the_data_is_not_let_out_under_masks(verb: str, path: str) -> None:
    qdrant, call = engine("qdrant"), request(verb, path)
    operation = ask(qdrant, call)
    assert qdrant.rewrite(call, operation, verdict()) is call
    for decided in (verdict(vectors=False), verdict(fields=frozenset({"a"})), verdict(masks=(MASK,))):
        with pytest.raises(Refusal):
            qdrant.rewrite(call, operation, decided)
