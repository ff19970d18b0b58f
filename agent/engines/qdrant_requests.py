# SPDX-License-Identifier: Apache-2.0
"""What the bodies of Qdrant's requests ask for.

Pure functions from a decoded body to `Ask`. Keys, aliases (``top``, ``with_vectors``) and defaults
are those of lib/api/src/rest/schema.rs, lib/collection/src/operations/types.rs and
lib/shard/src/scroll.rs. Prefetches return no rows but are queries; ids used as examples bring in
vectors no filter covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.engines.ask import Ask, as_object, count_ids, know, listed, opened
from agent.engines.body import Tree, is_array, whole
from agent.engines.qdrant_filter import members, probe, walk_filter, walk_formula
from agent.protocols.http import Refusal
from policy.model import Action

DEFAULT_LIMIT: Final = 10
DEFAULT_GROUP_SIZE: Final = 3
DEFAULT_SAMPLE: Final = 10
DEFAULT_MATRIX_LIMIT: Final = 3

_COMMON: Final = frozenset({"filter", "params", "with_payload", "with_vector", "with_vectors", "shard_key"})
_QUERY: Final = _COMMON | {"prefetch", "query", "using", "score_threshold", "lookup_from"}
_GROUP: Final = frozenset({"group_by", "group_size", "limit", "with_lookup"})
_LIMITS: Final = frozenset({"limit", "offset"})
_PREFETCH: Final = _QUERY - _COMMON | {"filter", "params", "limit"}
_RECOMMEND: Final = _COMMON | {"positive", "negative", "strategy", "score_threshold", "using", "lookup_from"}
_DISCOVER: Final = _COMMON | {"target", "context", "using", "lookup_from"}
_SEARCH: Final = _COMMON | {"vector", "score_threshold"}


def one_of(body: dict[str, Tree], name: str, alias: str) -> Tree:
    """A key the server also reads under another name; both at once are refused."""
    if name in body and alias in body:
        raise Refusal("duplicate-key", f"{name} and {alias} are one field, and both are given")
    return body.get(name, body.get(alias))


def asks_vectors(value: Tree) -> bool:
    return value is not None and value is not False


def asked_fields(value: Tree, default: bool) -> frozenset[str] | None:
    """The payload fields of ``with_payload``; None = all."""
    if value is None:
        return None if default else frozenset()
    if value is True:
        return None
    if value is False:
        return frozenset()
    if value.__class__ is dict and value.keys() <= {"include"}:
        value = listed(value, "include") or []
    if value.__class__ is list and all(name.__class__ is str for name in value):
        return frozenset(value)
    return None


def _outputs(ask: Ask, body: dict[str, Tree], payload_default: bool) -> None:
    ask.vectors |= asks_vectors(one_of(body, "with_vector", "with_vectors"))
    fields = asked_fields(body.get("with_payload"), payload_default)
    if fields is None:
        ask.fields = None
    elif ask.fields is not None:
        ask.fields |= fields


def read_filters(ask: Ask, body: dict[str, Tree]) -> None:
    if body.get("filter") is not None:
        walk_filter(body["filter"], ask.probed)
        ask.filtered = True
    if body.get("score_threshold") is not None:
        ask.thresholds = True


def _offset(ask: Ask, body: dict[str, Tree]) -> None:
    offset = whole(body.get("offset"), "offset")
    if offset is not None:
        ask.offset = max(ask.offset or 0, offset)


def name_other(ask: Ask, name: Tree) -> None:
    """Another collection that is read; no filter of ours reaches it."""
    if name.__class__ is not str or not name:
        raise Refusal("bad-body", "a collection must be a name")
    ask.also.append(name)
    ask.carries_filter = False


def _lookup_from(ask: Ask, body: dict[str, Tree]) -> None:
    if body.get("lookup_from") is not None:
        name_other(ask, as_object(body["lookup_from"]).get("collection"))


def _example(ask: Ask, value: Tree) -> None:
    """One vector input: a vector of the client's own, or the id of a point that has one."""
    if value is None:
        return
    ask.queries += 1
    if value.__class__ is int or value.__class__ is str:
        ask.carries_filter = False
    elif value.__class__ is not dict and not is_array(value):
        raise Refusal("bad-body", "a query vector must be an array, an object or a point id")


def _examples(ask: Ask, value: Tree) -> None:
    value = opened(value)  # a long list of ids
    if value.__class__ is not list:
        if value is not None:
            raise Refusal("bad-body", "examples must be an array")
        return
    for example in value:
        _example(ask, example)


def _pairs(ask: Ask, value: Tree) -> None:
    for pair in members(value):
        _example(ask, as_object(pair).get("positive"))
        _example(ask, as_object(pair).get("negative"))


_QUERY_KINDS: Final = frozenset(
    {
        "nearest", "mmr", "recommend", "discover", "context", "order_by", "fusion", "rrf", "formula",
        "defaults", "sample", "relevance_feedback",
    }
)  # fmt: skip
_INPUT_KINDS: Final = frozenset(
    {"indices", "values", "text", "model", "options", "image", "object", "bm25_config", "language"}
)


def _query(ask: Ask, query: Tree) -> bool:
    """Reads ``query``. Returns whether it ranks by vectors (else it lists)."""
    if query.__class__ is not dict:
        _example(ask, query)
        return query is not None
    if not query.keys() <= _QUERY_KINDS:
        if not query.keys() <= _INPUT_KINDS:
            ask.actions |= {Action.UNKNOWN}
        _example(ask, query)
        return True
    _example(ask, query.get("nearest"))
    if query.get("recommend") is not None:
        recommend = as_object(query["recommend"])
        _examples(ask, recommend.get("positive"))
        _examples(ask, recommend.get("negative"))
    if query.get("discover") is not None:
        discover = as_object(query["discover"])
        _example(ask, discover.get("target"))
        _pairs(ask, discover.get("context"))
    _pairs(ask, query.get("context"))
    if query.get("relevance_feedback") is not None:
        feedback = as_object(query["relevance_feedback"])
        _example(ask, feedback.get("target"))
        for item in listed(feedback, "feedback") or ():
            _example(ask, as_object(item).get("example"))
    if query.get("order_by") is not None:
        _order_by(ask, query["order_by"])
    if query.get("formula") is not None:
        walk_formula(query["formula"], ask.probed)
        for key in as_object(query.get("defaults") or {}):
            walk_formula(key, ask.probed)
        ask.thresholds = True  # it can scale scores at will
    return not query.keys() <= {"order_by", "sample"}


def _order_by(ask: Ask, value: Tree) -> None:
    if value is not None:
        probe(value.get("key") if value.__class__ is dict else value, ask.probed)


def _prefetches(ask: Ask, value: Tree) -> None:
    for member in members(value):
        prefetch = as_object(member)
        know(ask, prefetch, _PREFETCH)
        whole(prefetch.get("limit"), "prefetch limit")
        _query(ask, prefetch.get("query"))
        read_filters(ask, prefetch)
        _lookup_from(ask, prefetch)
        _prefetches(ask, prefetch.get("prefetch"))


def _add_rows(ask: Ask, rows: int) -> None:
    ask.top_k = (ask.top_k or 0) + rows


def _read_query(ask: Ask, body: dict[str, Tree], keys: frozenset[str]) -> None:
    know(ask, body, keys)
    ranks = _query(ask, body.get("query"))
    _prefetches(ask, body.get("prefetch"))
    read_filters(ask, body)
    _lookup_from(ask, body)
    _outputs(ask, body, False)
    ask.actions |= {Action.SEARCH if ranks or body.get("prefetch") else Action.SCAN}


def _limit(body: dict[str, Tree], default: int | None = DEFAULT_LIMIT) -> int:
    limit = whole(one_of(body, "limit", "top"), "limit", default)
    if limit is None:
        raise Refusal("bad-body", "limit is missing")
    return limit


def _read_groups(ask: Ask, body: dict[str, Tree]) -> None:
    groups, size = _limit(body), whole(body.get("group_size"), "group_size", DEFAULT_GROUP_SIZE)
    _add_rows(ask, groups * (size or 0))
    probe(body.get("group_by"), ask.probed)
    lookup = body.get("with_lookup")
    if lookup is None:
        return
    _add_rows(ask, groups)
    if lookup.__class__ is str:
        name_other(ask, lookup)
        ask.fields = None
        return
    lookup = as_object(lookup)
    know(ask, lookup, frozenset({"collection", "with_payload", "with_vectors", "with_vector"}))
    name_other(ask, lookup.get("collection"))
    _outputs(ask, lookup, True)


def add_query(ask: Ask, body: dict[str, Tree]) -> None:
    _read_query(ask, body, _QUERY | _LIMITS)
    _offset(ask, body)
    _add_rows(ask, _limit(body))


def add_query_groups(ask: Ask, body: dict[str, Tree]) -> None:
    _read_query(ask, body, _QUERY | _GROUP)
    _read_groups(ask, body)


def _read_old(ask: Ask, body: dict[str, Tree], keys: frozenset[str], grouped: bool) -> None:
    know(ask, body, keys | (_GROUP if grouped else _LIMITS | {"top"}))
    ask.actions |= {Action.SEARCH}
    read_filters(ask, body)
    _lookup_from(ask, body)
    _outputs(ask, body, False)
    if grouped:
        _read_groups(ask, body)
    else:
        _offset(ask, body)
        _add_rows(ask, _limit(body))


def _add_search(ask: Ask, body: dict[str, Tree], grouped: bool = False) -> None:
    vector = body.get("vector")
    if vector.__class__ is dict:
        know(ask, vector, frozenset({"name", "vector"}))
        vector = vector.get("vector")
    if vector.__class__ is not dict and not is_array(vector):
        raise Refusal("bad-body", "vector must be an array or an object")
    _example(ask, vector)
    _read_old(ask, body, _SEARCH, grouped)


def _add_recommend(ask: Ask, body: dict[str, Tree], grouped: bool = False) -> None:
    _examples(ask, body.get("positive"))
    _examples(ask, body.get("negative"))
    _read_old(ask, body, _RECOMMEND, grouped)


def _add_discover(ask: Ask, body: dict[str, Tree]) -> None:
    _example(ask, body.get("target"))
    _pairs(ask, body.get("context"))
    _read_old(ask, body, _DISCOVER, False)


def _asking() -> Ask:
    return Ask(frozenset(), fields=set(), carries_filter=True)


def _one(add: Callable[[Ask, dict[str, Tree]], None]) -> Callable[[dict[str, Tree]], Ask]:
    def read(body: dict[str, Tree]) -> Ask:
        ask = _asking()
        add(ask, body)
        return ask

    return read


def _batch(add: Callable[[Ask, dict[str, Tree]], None]) -> Callable[[dict[str, Tree]], Ask]:
    def read(body: dict[str, Tree]) -> Ask:
        ask = know(_asking(), body, frozenset({"searches"}))
        for search in listed(body, "searches") or ():
            add(ask, as_object(search))
        if not ask.actions:
            ask.actions |= {Action.SEARCH}
        return ask

    return read


def read_matrix(body: dict[str, Tree]) -> Ask:
    """Pairs of points of a random sample: each sampled point's vector is a query."""
    sample = whole(body.get("sample"), "sample", DEFAULT_SAMPLE) or 0
    limit = whole(body.get("limit"), "limit", DEFAULT_MATRIX_LIMIT) or 0
    ask = _asking()
    ask.actions, ask.queries, ask.top_k = frozenset({Action.SEARCH}), sample, sample * limit
    read_filters(ask, body)
    return know(ask, body, frozenset({"filter", "sample", "limit", "using", "shard_key"}))


def read_scroll(body: dict[str, Tree]) -> Ask:
    """``offset`` is the id to go on from, not a number of rows."""
    ask = _asking()
    ask.actions, ask.top_k = frozenset({Action.SCAN}), _limit(body)
    _order_by(ask, body.get("order_by"))
    read_filters(ask, body)
    _outputs(ask, body, True)
    keys = (_COMMON - {"params"}) | _LIMITS | {"order_by"}
    return know(ask, body, keys)


def read_retrieve(body: dict[str, Tree]) -> Ask:
    ask = _asking()
    ask.actions, ask.top_k = frozenset({Action.READ}), count_ids(body, "ids")
    _outputs(ask, body, True)
    return know(ask, body, frozenset({"ids", "with_payload", "with_vector", "with_vectors", "shard_key"}))


def read_facet(body: dict[str, Tree]) -> Ask:
    ask = _asking()
    ask.actions, ask.top_k = frozenset({Action.SCAN}), _limit(body)
    probe(body.get("key"), ask.probed)
    ask.fields = set(ask.probed)
    read_filters(ask, body)
    return know(ask, body, frozenset({"key", "limit", "filter", "exact", "shard_key"}))


def read_count(body: dict[str, Tree]) -> Ask:
    ask = Ask(frozenset({Action.COUNT}), carries_filter=True)
    read_filters(ask, body)
    return know(ask, body, frozenset({"filter", "exact", "shard_key"}))


READS: Final[dict[str, Callable[[dict[str, Tree]], Ask]]] = {
    "query": _one(add_query),
    "query-batch": _batch(add_query),
    "query-groups": _one(add_query_groups),
    "search": _one(_add_search),
    "search-batch": _batch(_add_search),
    "search-groups": _one(lambda ask, body: _add_search(ask, body, True)),
    "recommend": _one(_add_recommend),
    "recommend-batch": _batch(_add_recommend),
    "recommend-groups": _one(lambda ask, body: _add_recommend(ask, body, True)),
    "discover": _one(_add_discover),
    "discover-batch": _batch(_add_discover),
    "matrix-pairs": read_matrix,
    "matrix-offsets": read_matrix,
    "retrieve": read_retrieve,
    "scroll": read_scroll,
    "facet": read_facet,
    "count": read_count,
}
