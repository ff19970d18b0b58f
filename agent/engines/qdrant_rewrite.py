# SPDX-License-Identifier: Apache-2.0
"""A Qdrant request brought under its verdict: clamps, vectors off, fields, mandatory filter.

Changes a decoded body in place and says whether it did. The filter goes around the client's at every
level: each batch member, each prefetch. Points named by id become a filter with ``has_id``, or are
fetched with the filter's field and checked in the answer. Bias: what cannot be brought under the
verdict is refused.
"""

from __future__ import annotations

from typing import Final

from agent.engines.ask import as_object, opened
from agent.engines.body import Tree, is_array
from agent.engines.qdrant_filter import members, nest
from agent.engines.qdrant_requests import DEFAULT_GROUP_SIZE, DEFAULT_LIMIT, asked_fields, asks_vectors
from agent.protocols.http import Refusal
from policy.model import Limit, Scalar, Verdict

Filters = tuple[tuple[str, Scalar], ...]
_BATCHES: Final = frozenset({"query-batch", "search-batch", "recommend-batch", "discover-batch"})
_GROUPS: Final = frozenset({"query-groups", "search-groups", "recommend-groups"})
_SINGLE: Final = frozenset({"query", "search", "recommend", "discover"})
_ROWS: Final = _BATCHES | _GROUPS | _SINGLE | {"scroll", "retrieve"}
_FILTERED: Final = (
    _BATCHES | _GROUPS | _SINGLE | {"scroll", "count", "facet", "matrix-pairs", "matrix-offsets"}
)
_BY_ID: Final = frozenset({"delete", "delete-vectors"})
PAYLOAD_DEFAULT: Final = frozenset({"scroll", "retrieve"})  # kinds that return the payload unasked


def rewrite(kind: str, body: dict[str, Tree], verdict: Verdict) -> bool:
    """Bring `body` under `verdict`. Returns whether it changed. Raises Refusal where it cannot."""
    changed = False
    for clamp in verdict.clamps:
        _clamp(kind, body, clamp)
        changed = True
    if kind in _ROWS:
        for member in _members(kind, body):
            changed |= _trim(kind, member, verdict)
    if verdict.filters:
        _add_filter(kind, body, verdict.filters)
        changed = True
    return changed


def _members(kind: str, body: dict[str, Tree]) -> list[dict[str, Tree]]:
    if kind not in _BATCHES:
        return [body]
    return [as_object(search) for search in body.get("searches") or ()]


def _clamp(kind: str, body: dict[str, Tree], limit: Limit) -> None:
    most = limit.value
    if limit.name == "offset" and kind in _SINGLE | _BATCHES:
        for member in _members(kind, body):
            if (member.get("offset") or 0) > most:
                member["offset"] = most
        return
    if limit.name != "top_k":
        raise Refusal("clamp", f"{limit.name} of this request cannot be cut to {most}")
    if kind in _SINGLE | {"scroll", "facet"}:
        _cut(body, most)
    elif kind in _BATCHES:
        searches = _members(kind, body)
        if len(searches) > most:
            raise Refusal("clamp", f"{len(searches)} searches cannot be cut to {most} rows")
        for member in searches:
            _cut(member, most // len(searches))
    elif kind in _GROUPS:
        _cut_groups(body, most)
    elif kind == "retrieve" and is_array(body.get("ids")):
        body["ids"] = opened(body["ids"])[:most]
    else:
        raise Refusal("clamp", f"the rows of this request cannot be cut to {most}")


def _cut(body: dict[str, Tree], most: int) -> None:
    name = "top" if "top" in body else "limit"
    asked = body.get(name)
    if most < 1:
        raise Refusal("clamp", "the request cannot be cut to no rows")
    body[name] = most if asked is None and most < DEFAULT_LIMIT else min(asked or DEFAULT_LIMIT, most)


def _cut_groups(body: dict[str, Tree], most: int) -> None:
    size = body.get("group_size")
    each = (DEFAULT_GROUP_SIZE if size is None else size) + (body.get("with_lookup") is not None)
    if most < each:
        raise Refusal("clamp", f"groups of {each} rows cannot be cut to {most} rows")
    _cut(body, most // max(1, each))


def _trim(kind: str, body: dict[str, Tree], verdict: Verdict) -> bool:
    changed = _trim_outputs(body, verdict, kind in PAYLOAD_DEFAULT)
    lookup = body.get("with_lookup")
    if lookup is not None and (not verdict.vectors or verdict.fields is not None):
        if lookup.__class__ is str:
            lookup = body["with_lookup"] = {"collection": lookup}
        changed |= _trim_outputs(as_object(lookup), verdict, True)
    return changed


def _trim_outputs(body: dict[str, Tree], verdict: Verdict, default: bool) -> bool:
    changed = False
    if not verdict.vectors:
        for name in ("with_vector", "with_vectors"):
            if asks_vectors(body.get(name)):
                body[name] = False
                changed = True
    if verdict.fields is not None:
        fields = asked_fields(body.get("with_payload"), default)
        kept = (
            verdict.fields
            if fields is None
            else {name for name in fields if _is_within(name, verdict.fields)}
        )
        if fields is None and body.get("with_payload").__class__ is dict:
            return changed  # an exclusion: the answer is stripped
        if kept != fields:
            body["with_payload"] = {"include": sorted(kept)} if kept else False
            changed = True
    return changed


def _is_within(name: str, fields: frozenset[str]) -> bool:
    return any(name == field or name.startswith((f"{field}.", f"{field}[")) for field in fields)


def _add_filter(kind: str, body: dict[str, Tree], filters: Filters) -> None:
    if kind == "retrieve":
        _fetch_fields(body, filters)
    elif kind in _FILTERED:
        for member in _members(kind, body):
            _nest_everywhere(member, filters)
    elif kind in _BY_ID:
        ids = body.pop("points", None)
        body["filter"] = nest(body.get("filter"), filters, ids)
    else:
        raise Refusal("filter", "this request cannot carry the filter the policy asks for")


def _nest_everywhere(body: dict[str, Tree], filters: Filters) -> None:
    body["filter"] = nest(body.get("filter"), filters)
    for prefetch in members(body.get("prefetch")):
        _nest_everywhere(as_object(prefetch), filters)


def _fetch_fields(body: dict[str, Tree], filters: Filters) -> None:
    """By-id reads: ask for the filter's fields too, the answer's rows are checked and stripped."""
    fields = asked_fields(body.get("with_payload"), True)
    if fields is not None:
        body["with_payload"] = {"include": sorted(fields | {key for key, _ in filters})}
    elif body.get("with_payload").__class__ is dict:
        raise Refusal("filter", "fields cannot be excluded from a read by id under the policy's filter")
