# SPDX-License-Identifier: Apache-2.0
"""What the bodies of Chroma's requests ask for.

Pure functions from a decoded body to `Ask`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agent.engines.ask import Ask, as_object, count_rows, know, listed, text_of
from agent.engines.body import Tree, is_array, whole
from agent.protocols.http import Refusal
from policy.model import Action

QUERY_INCLUDE: Final = ("metadatas", "documents", "distances")  # rust/types/src/api_types.rs, IncludeList
GET_INCLUDE: Final = ("metadatas", "documents")
DEFAULT_RESULTS: Final = 10  # of a query
KNN_LIMIT: Final = 16  # of a $knn, execution/operator.rs default_knn_limit
MAX_RANK_DEPTH: Final = 48
_COLUMNS: Final = frozenset({"distances", "documents", "embeddings", "metadatas", "uris"})
_SELECT: Final = {
    "#document": "documents",
    "#embedding": "embeddings",
    "#metadata": "metadatas",
    "#score": "distances",
}
# Columns as filters and groups name them; 1.5.9 stores them under the second two, and filters on those too.
_COLUMN_OF: Final = {
    "#document": "documents",
    "#uri": "uris",
    "chroma:document": "documents",
    "chroma:uri": "uris",
}
_NO_FIELD: Final = frozenset({"#id", "#score", "#embedding"})
_ANY_FIELD: Final = "*"


def probe(key: Tree, probed: set[str]) -> None:
    """One key that a filter, group or rank reads; a reserved one that is not known may be any field."""
    if key.__class__ is not str:
        probed.add(_ANY_FIELD)
    elif key in _COLUMN_OF:
        probed.add(_COLUMN_OF[key])
    elif key not in _NO_FIELD:
        probed.add(_ANY_FIELD if key.startswith(("$", "#", "chroma:")) else key)


def walk_where(where: Tree, probed: set[str]) -> None:
    """Collect the metadata fields a ``where`` reads (rust/types/src/where_parsing.rs, parse_where)."""
    for key, value in as_object(where).items():
        if key in ("$and", "$or"):
            if value.__class__ is not list:
                raise Refusal("bad-filter", f"{key} must be an array")
            for member in value:
                walk_where(member, probed)
        else:
            probe(key, probed)


def _filters(ask: Ask, body: dict[str, Tree]) -> None:
    where, text = body.get("where"), body.get("where_document")
    if where is not None:
        walk_where(where, ask.probed)
        ask.filtered = True
    if text is not None:
        as_object(text)
        ask.probed.add("documents")
        ask.filtered = True


def _include(ask: Ask, body: dict[str, Tree], default: tuple[str, ...]) -> None:
    asked = body.get("include")
    columns = (
        set(default) if asked is None else {c for c in listed(body, "include") or () if c.__class__ is str}
    )
    if asked is not None and (len(columns) != len(set(map(str, asked))) or not columns <= _COLUMNS):
        ask.actions |= {Action.UNKNOWN}
    ask.vectors = "embeddings" in columns
    ask.fields = None if "metadatas" in columns else columns & {"documents", "uris"}


_GET_KEYS: Final = frozenset({"ids", "where", "where_document", "limit", "offset", "include"})


def read_get(body: dict[str, Tree]) -> Ask:
    ids, limit = listed(body, "ids"), whole(body.get("limit"), "limit")
    ask = Ask(frozenset({Action.SCAN if ids is None else Action.READ}), carries_filter=True)
    if ids is None:
        ask.top_k, ask.unbounded = limit, limit is None
    else:
        ask.top_k = len(ids) if limit is None else min(len(ids), limit)
    ask.offset = whole(body.get("offset"), "offset")
    _filters(ask, body)
    _include(ask, body, GET_INCLUDE)
    return know(ask, body, _GET_KEYS)


def read_conditional_get(body: dict[str, Tree]) -> Ask:
    """Newer than 1.5.9: read like ``get``; its answer is not known well enough to be filtered."""
    ask = read_get({key: value for key, value in body.items() if key in _GET_KEYS})
    ask.actions |= {Action.UNKNOWN} if not body.keys() <= _GET_KEYS else frozenset()
    ask.carries_filter = False
    return ask


_QUERY_KEYS: Final = frozenset({"ids", "where", "where_document", "query_embeddings", "n_results", "include"})


def read_query(body: dict[str, Tree]) -> Ask:
    embeddings = body.get("query_embeddings")
    if embeddings.__class__ is not list or not all(map(is_array, embeddings)):
        raise Refusal("bad-body", "query_embeddings must be an array of vectors")
    each = whole(body.get("n_results"), "n_results", DEFAULT_RESULTS) or 0
    ids = listed(body, "ids")
    most = each if ids is None else min(each, len(ids))
    ask = Ask(
        frozenset({Action.SEARCH}), top_k=most * len(embeddings), queries=len(embeddings), carries_filter=True
    )
    _filters(ask, body)
    _include(ask, body, QUERY_INCLUDE)
    return know(ask, body, _QUERY_KEYS)


def _knns(rank: Tree, depth: int = 0) -> Iterator[dict[str, Tree]]:
    """Every ``$knn`` anywhere in a rank expression."""
    if depth > MAX_RANK_DEPTH:
        raise Refusal("too-deep", f"the rank expression nests deeper than {MAX_RANK_DEPTH}")
    if rank.__class__ is dict:
        for key, value in rank.items():
            if key == "$knn":
                yield as_object(value)
            else:
                yield from _knns(value, depth + 1)
    elif rank.__class__ is list:
        for member in rank:
            yield from _knns(member, depth + 1)


_SEARCH_KEYS: Final = frozenset({"filter", "rank", "group_by", "limit", "select"})
_KNN_KEYS: Final = frozenset({"query", "key", "limit", "default", "return_rank"})


def _section(search: dict[str, Tree], key: str) -> dict[str, Tree]:
    value = search.get(key)
    return {} if value is None else as_object(value)


def _read_one_search(ask: Ask, search: dict[str, Tree]) -> None:
    know(ask, search, _SEARCH_KEYS)
    if _section(search, "filter"):
        walk_where(search["filter"], ask.probed)
        ask.filtered = True
    ranked = 0
    for knn in _knns(search.get("rank")):
        ranked += 1
        know(ask, knn, _KNN_KEYS)
        probe(knn.get("key", "#embedding"), ask.probed)
    ask.queries += ranked
    rank = search.get("rank")
    if rank is not None and set(as_object(rank)) != {"$knn"}:
        ask.thresholds = True  # arithmetic can scale and shift scores at will
    ask.actions |= {Action.SEARCH if ranked else Action.SCAN}
    limits = _known_section(ask, search, "limit", frozenset({"limit", "offset"}))
    limit, offset = whole(limits.get("limit"), "limit"), whole(limits.get("offset"), "offset")
    ask.unbounded |= limit is None
    ask.top_k = (ask.top_k or 0) + (limit or 0)
    if offset is not None:
        ask.offset = max(ask.offset or 0, offset)
    _read_select(ask, _known_section(ask, search, "select", frozenset({"keys"})))
    _read_groups(ask, _known_section(ask, search, "group_by", frozenset({"keys", "aggregate"})))


def _known_section(ask: Ask, search: dict[str, Tree], key: str, keys: frozenset[str]) -> dict[str, Tree]:
    section = _section(search, key)
    know(ask, section, keys)
    return section


def _read_select(ask: Ask, select: dict[str, Tree]) -> None:
    for key in listed(select, "keys") or ():
        if key.__class__ is not str:
            raise Refusal("bad-body", "select.keys must be names")
        ask.vectors |= key == "#embedding"
        name = _SELECT.get(key, key)
        if ask.fields is not None and name not in ("embeddings", "distances"):
            ask.fields.add(name)


def _read_groups(ask: Ask, groups: dict[str, Tree]) -> None:
    for key in listed(groups, "keys") or ():
        probe(key, ask.probed)
    for aggregate in _section(groups, "aggregate").values():
        for key in listed(as_object(aggregate), "keys") or ():
            probe(key, ask.probed)


def read_search(body: dict[str, Tree]) -> Ask:
    ask = Ask(frozenset(), fields=set(), carries_filter=True)
    searches = listed(body, "searches")
    if searches is None:
        raise Refusal("bad-body", "searches must be an array")
    for search in searches:
        _read_one_search(ask, as_object(search))
    if not searches:
        ask.actions |= {Action.SEARCH}
    if ask.unbounded:
        ask.top_k = None
    if ask.fields is not None and "metadatas" in ask.fields:
        ask.fields = None
    return know(ask, body, frozenset({"searches", "read_level"}))


_WRITE_KEYS: Final = frozenset({"ids", "embeddings", "metadatas", "documents", "uris"})


def read_add(body: dict[str, Tree]) -> Ask:
    """``add`` leaves rows that exist alone, so a filter holds when each new row carries its value."""
    return know(
        Ask(frozenset({Action.WRITE}), rows=count_rows(body, "ids"), carries_filter=True), body, _WRITE_KEYS
    )


def read_write(body: dict[str, Tree]) -> Ask:
    return know(Ask(frozenset({Action.WRITE}), rows=count_rows(body, "ids")), body, _WRITE_KEYS)


def read_delete(body: dict[str, Tree]) -> Ask:
    """The server takes ids and where together, and means both (1.5.9)."""
    ask = Ask(frozenset({Action.DELETE}), rows=count_rows(body, "ids"), carries_filter=True)
    whole(body.get("limit"), "limit")
    _filters(ask, body)
    return know(ask, body, frozenset({"ids", "where", "where_document", "limit"}))


def read_create(body: dict[str, Tree]) -> Ask:
    keys = frozenset({"name", "configuration", "schema", "metadata", "get_or_create"})
    return know(Ask(frozenset({Action.SCHEMA}), also=[text_of(body, "name")]), body, keys)


def read_alter(body: dict[str, Tree]) -> Ask:
    also = [] if body.get("new_name") is None else [text_of(body, "new_name")]
    keys = frozenset({"new_name", "new_metadata", "new_configuration"})
    return know(Ask(frozenset({Action.SCHEMA}), also=also), body, keys)


def read_fork(body: dict[str, Tree]) -> Ask:
    ask = Ask(frozenset({Action.SNAPSHOT, Action.SCHEMA}), also=[text_of(body, "new_name")])
    return know(ask, body, frozenset({"new_name"}))


def read_attach(body: dict[str, Tree]) -> Ask:
    ask = Ask(frozenset({Action.SNAPSHOT, Action.SCHEMA}), also=[text_of(body, "output_collection")])
    return know(ask, body, frozenset({"name", "function_id", "output_collection", "params"}))


def read_commit(body: dict[str, Tree]) -> Ask:
    """Newer than 1.5.9 and not proven here: its members are not judged one by one."""
    return Ask(frozenset({Action.WRITE, Action.DELETE, Action.UNKNOWN}))


def read_detach(body: dict[str, Tree]) -> Ask:
    return know(Ask(frozenset({Action.SCHEMA, Action.DELETE})), body, frozenset({"delete_output"}))


def read_add_input(body: dict[str, Tree]) -> Ask:
    """Newer than 1.5.9: it may name another collection by UUID, which is not resolved here."""
    return Ask(frozenset({Action.SCHEMA, Action.SNAPSHOT, Action.UNKNOWN}))


READERS: Final = {
    "query": read_query,
    "search": read_search,
    "get": read_get,
    "conditional-get": read_conditional_get,
    "conditional-commit": read_commit,
    "add": read_add,
    "upsert": read_write,
    "update": read_write,
    "delete": read_delete,
    "create": read_create,
    "alter": read_alter,
    "fork": read_fork,
    "attach": read_attach,
    "detach": read_detach,
    "add-input": read_add_input,
}
