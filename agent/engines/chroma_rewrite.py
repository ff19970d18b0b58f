# SPDX-License-Identifier: Apache-2.0
"""A Chroma request brought under its verdict: clamps, embeddings off, fields, mandatory filter.

Changes a decoded body in place and says whether it did. The client's own filter is nested whole
under an outer ``$and``; nothing is merged. Bias: what cannot be brought under the verdict is refused.
"""

from __future__ import annotations

from typing import Final

from agent.engines.ask import as_object
from agent.engines.body import Raw, Tree, is_array
from agent.protocols.http import Refusal
from policy.model import Limit, Scalar, Verdict

_BODY_FIELDS: Final = ("documents", "uris")  # columns that a list of fields can leave out


def rewrite(kind: str, body: dict[str, Tree], verdict: Verdict) -> bool:
    """Bring `body` under `verdict`. Returns whether it changed. Raises Refusal where it cannot."""
    changed = False
    for clamp in verdict.clamps:
        changed |= _clamp(kind, body, clamp)
    if kind in ("get", "query"):
        changed |= _trim_include(body, verdict)
    elif kind == "search":
        changed |= _trim_select(body, verdict)
    if verdict.filters:
        changed |= _add_filter(kind, body, verdict.filters)
    return changed


def _clamp(kind: str, body: dict[str, Tree], limit: Limit) -> bool:
    match kind, limit.name:
        case "get", "top_k":
            body["limit"] = limit.value
        case "query", "top_k":
            queries = len(body["query_embeddings"])
            if queries > limit.value:
                raise Refusal("clamp", f"{queries} queries cannot be cut to {limit.value} rows")
            body["n_results"] = limit.value // max(1, queries)
        case "get", "offset":
            body["offset"] = limit.value
        case "query", "queries":
            body["query_embeddings"] = body["query_embeddings"][: limit.value]
        case "search", "top_k":
            _clamp_searches(body, limit.value)
        case "search", "offset":
            for search in body["searches"]:
                limits = search.get("limit") or {}
                if (limits.get("offset") or 0) > limit.value:
                    search["limit"] = {**limits, "offset": limit.value}
        case _:
            raise Refusal("clamp", f"{limit.name} of this request cannot be cut to {limit.value}")
    return True


def _clamp_searches(body: dict[str, Tree], most: int) -> None:
    searches = body["searches"]
    if len(searches) > most:
        raise Refusal("clamp", f"{len(searches)} searches cannot be cut to {most} rows")
    each = most // max(1, len(searches))
    for search in searches:
        limits = search.get("limit") or {}
        asked = limits.get("limit")
        search["limit"] = {**limits, "limit": each if asked is None else min(asked, each)}


def _unwanted(verdict: Verdict) -> set[str]:
    """Columns that are not asked for under this verdict."""
    out: set[str] = set() if verdict.vectors else {"embeddings"}
    if verdict.fields is not None:
        out |= {column for column in _BODY_FIELDS if column not in verdict.fields}
    return out


def _trim_include(body: dict[str, Tree], verdict: Verdict) -> bool:
    unwanted = _unwanted(verdict)
    asked = body.get("include")
    if not asked or unwanted.isdisjoint(asked):
        return False  # the answer is stripped all the same; the default asks for no embeddings
    body["include"] = [column for column in asked if column not in unwanted]
    return True


def _trim_select(body: dict[str, Tree], verdict: Verdict) -> bool:
    changed = False
    for search in body["searches"]:
        select = search.get("select") or {}
        keys = select.get("keys") or []
        kept = [key for key in keys if _is_selectable(key, verdict)]
        if len(kept) != len(keys):
            search["select"] = {"keys": kept}
            changed = True
    return changed


def _is_selectable(key: str, verdict: Verdict) -> bool:
    if key == "#embedding":
        return verdict.vectors
    if verdict.fields is None or key in ("#metadata", "#score", "#id"):
        return True
    return ("documents" if key == "#document" else key) in verdict.fields


def nest(client: Tree, filters: tuple[tuple[str, Scalar], ...]) -> Tree:
    """The client's filter AND ours, each whole."""
    ours: list[Tree] = [{key: {"$eq": value}} for key, value in filters]
    members = ours if not client else [client, *ours]
    return members[0] if len(members) == 1 else {"$and": members}


def _add_filter(kind: str, body: dict[str, Tree], filters: tuple[tuple[str, Scalar], ...]) -> bool:
    match kind:
        case "get" | "query" | "delete":
            client = body.get("where")
            if client is not None and not client:
                raise Refusal("bad-filter", "an empty where is not a filter")
            body["where"] = nest(client, filters)
        case "search":
            for search in body["searches"]:
                search["filter"] = nest(search.get("filter"), filters)
        case "add":
            _check_rows(body, filters)
            return False
        case _:
            raise Refusal("filter", "this request cannot carry the filter the policy asks for")
    return True


def _check_rows(body: dict[str, Tree], filters: tuple[tuple[str, Scalar], ...]) -> None:
    """Each row written must carry the value of the mandatory filter."""
    rows = len(body.get("ids") or ())
    metadatas = body.get("metadatas") or [None] * rows
    if metadatas.__class__ is not list or len(metadatas) != rows:
        raise Refusal(
            "filter", "each row that is written needs metadata with the value of the policy's filter"
        )
    for metadata in metadatas:
        held = {} if metadata is None else as_object(metadata)
        for key, value in filters:
            if not carries(held, key, value):
                raise Refusal(
                    "filter", f"each row that is written must have {key} = {value!r} in its metadata"
                )


def carries(metadata: dict[str, Tree], key: str, value: Scalar) -> bool:
    """Whether a metadata object holds exactly this scalar (True is not 1)."""
    held = metadata.get(key)
    if held.__class__ is Raw:
        return isinstance(value, float) and not is_array(held) and float(bytes(held)) == value
    return (
        (held.__class__ is bool) == isinstance(value, bool)
        and not isinstance(held, list | dict)
        and held == value
    )
