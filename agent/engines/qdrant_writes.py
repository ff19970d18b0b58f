# SPDX-License-Identifier: Apache-2.0
"""What the bodies of Qdrant's writes ask for.

Pure functions from a decoded body to `Ask`, as `qdrant_requests`. Shapes from src/common/update.rs.
Bias: a write by id may replace another's point, so it carries no filter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.engines.ask import Ask, as_object, count_ids, know, listed
from agent.engines.body import Tree
from agent.engines.qdrant_filter import walk_filter
from agent.engines.qdrant_requests import name_other, read_filters
from policy.model import Action


def _rows_named(body: dict[str, Tree]) -> int:
    batch = body.get("batch")
    return count_ids(as_object(batch), "ids") if batch is not None else count_ids(body, "points")


def read_upsert(body: dict[str, Tree]) -> Ask:
    """By id: it may replace another's point, and not every server knows ``update_filter``."""
    ask = Ask(frozenset({Action.WRITE}), rows=_rows_named(body))
    if body.get("update_filter") is not None:
        walk_filter(body["update_filter"], ask.probed)
    return know(ask, body, frozenset({"points", "batch", "shard_key", "update_filter", "update_mode"}))


def _selecting(action: Action, *keys: str, carries: bool) -> Callable[[dict[str, Tree]], Ask]:
    """A change of the points named by id or by filter."""

    def read(body: dict[str, Tree]) -> Ask:
        ask = Ask(frozenset({action}), rows=count_ids(body, "points"), carries_filter=carries)
        read_filters(ask, body)
        if body.get("points") is not None and body.get("filter") is not None:
            ask.carries_filter = False  # which of the two the server means is the server's choice
        return know(ask, body, frozenset({"points", "filter", "shard_key", *keys}))

    return read


read_delete = _selecting(Action.DELETE, carries=True)
read_set_payload = _selecting(Action.WRITE, "payload", "key", carries=False)
_MEMBERS: Final = {
    "upsert": read_upsert,
    "delete": read_delete,
    "set_payload": read_set_payload,
    "overwrite_payload": read_set_payload,
    "delete_payload": _selecting(Action.DELETE, "keys", carries=False),
    "clear_payload": _selecting(Action.DELETE, carries=False),
    "update_vectors": read_upsert,
    "delete_vectors": _selecting(Action.DELETE, "vector", "vectors", carries=True),
}


def read_update_batch(body: dict[str, Tree]) -> Ask:
    ask = Ask(frozenset())
    for operation in listed(body, "operations") or ():
        for name, inner in as_object(operation).items():
            reader = _MEMBERS.get(name)
            if reader is None:
                ask.actions |= {Action.UNKNOWN}
                continue
            one = reader(as_object(inner))
            ask.actions |= one.actions
            ask.rows += one.rows
            ask.probed |= one.probed
            ask.filtered |= one.filtered
    if not ask.actions:
        ask.actions = frozenset({Action.WRITE, Action.DELETE})
    return know(ask, body, frozenset({"operations"}))


_ALIASES: Final = {
    "create_alias": ("collection_name", "alias_name"),
    "delete_alias": ("alias_name",),
    "rename_alias": ("old_alias_name", "new_alias_name"),
}


def read_aliases(body: dict[str, Tree]) -> Ask:
    """An alias makes a collection answer to another name: every name in it is touched."""
    ask = Ask(frozenset({Action.SCHEMA}))
    for action in listed(body, "actions") or ():
        for kind, inner in as_object(action).items():
            names = _ALIASES.get(kind)
            if names is None:
                ask.actions |= {Action.UNKNOWN}
                continue
            for name in names:
                name_other(ask, as_object(inner).get(name))
            know(ask, as_object(inner), frozenset(names))
    return know(ask, body, frozenset({"actions"}))


def read_create(body: dict[str, Tree]) -> Ask:
    """``init_from`` (servers before 1.16) copies the rows of another collection."""
    ask = Ask(frozenset({Action.SCHEMA}))
    if body.get("init_from") is not None:
        name_other(ask, as_object(body["init_from"]).get("collection"))
        ask.actions |= {Action.SNAPSHOT}
    return ask


WRITES: Final[dict[str, Callable[[dict[str, Tree]], Ask]]] = {
    "upsert": read_upsert,
    "update-batch": read_update_batch,
    "update-vectors": read_upsert,
    "delete-vectors": _MEMBERS["delete_vectors"],
    "set-payload": read_set_payload,
    "overwrite-payload": read_set_payload,
    "delete-payload": _MEMBERS["delete_payload"],
    "clear-payload": _MEMBERS["clear_payload"],
    "delete": read_delete,
    "aliases": read_aliases,
    "create": read_create,
}
