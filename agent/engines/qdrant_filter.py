# SPDX-License-Identifier: Apache-2.0
"""Qdrant's filters and expressions: which payload fields they read, and how ours is put around them.

Shapes from lib/segment/src/types.rs (Filter, Condition) and lib/api/src/rest/schema.rs (Expression).
serde also reads a struct from a positional array; that form is refused. Bias: a condition that is
not known counts as reading any field.
"""

from __future__ import annotations

from typing import Any, Final

from agent.engines.ask import as_object
from agent.engines.body import Raw, Tree
from agent.protocols.http import Refusal
from policy.model import Scalar

ANY_FIELD: Final = "*"
_CLAUSES: Final = ("must", "should", "must_not")
_OF_FIELD: Final = frozenset(
    {
        "key",
        "match",
        "range",
        "geo_bounding_box",
        "geo_radius",
        "geo_polygon",
        "values_count",
        "is_empty",
        "is_null",
    }
)
_NO_FIELD: Final = frozenset({"has_id", "has_vector", "slice"})


def plain_key(key: str) -> str:
    """A JSON path without its list marks: ``a[].b`` and ``a[0].b`` read field ``a.b``."""
    if "[" not in key and '"' not in key:
        return key
    out, skip = [], False
    for char in key:
        skip = char == "[" or (skip and char != "]")
        if not skip and char not in '"]':
            out.append(char)
    return "".join(out) or ANY_FIELD


def probe(value: Tree, probed: set[str], under: str = "") -> None:
    """One field name as a body gives it."""
    if value.__class__ is not str:
        probed.add(ANY_FIELD)
        return
    probed.add(f"{under}.{plain_key(value)}" if under else plain_key(value))


def members(value: Tree) -> list[Tree]:
    """serde's MaybeOneOrMany: one object, a list of them, or nothing."""
    if value is None:
        return []
    if value.__class__ is list:
        return value
    return [as_object(value)]


def walk_filter(tree: Tree, probed: set[str], under: str = "") -> None:
    for clause, value in as_object(tree).items():
        if clause in _CLAUSES:
            for condition in members(value):
                _walk_condition(condition, probed, under)
        elif clause == "min_should":
            if value is not None:
                for condition in members(as_object(value).get("conditions")):
                    _walk_condition(condition, probed, under)
        else:
            raise Refusal("bad-filter", f"a filter has no {clause[:40]!r}")


def _walk_condition(tree: Tree, probed: set[str], under: str) -> None:
    """serde tries the kinds in turn: every kind this object could be read as is counted."""
    condition = as_object(tree)
    keys = condition.keys()
    if "key" in keys:
        probe(condition["key"], probed, under)
    for name in ("is_empty", "is_null"):
        value = condition.get(name)
        if value.__class__ is dict:
            probe(value.get("key"), probed, under)
    if "nested" in keys:
        nested = as_object(condition["nested"])
        probe(nested.get("key"), probed, under)
        below = nested.get("key")
        root = plain_key(below) if below.__class__ is str else ANY_FIELD
        walk_filter(nested.get("filter", {}), probed, f"{under}.{root}" if under else root)
    clauses = {name: condition[name] for name in (*_CLAUSES, "min_should") if name in keys}
    if clauses:
        walk_filter(clauses, probed, under)
    if not keys <= _OF_FIELD | _NO_FIELD | {"nested", "min_should", *_CLAUSES}:
        probed.add(ANY_FIELD)


_INNER: Final = frozenset(
    {
        "mult", "sum", "neg", "abs", "div", "sqrt", "pow", "exp", "log10", "ln", "lin_decay", "exp_decay",
        "gauss_decay", "left", "right", "base", "exponent", "x", "target",
    }
)  # fmt: skip


def walk_formula(tree: Tree, probed: set[str]) -> None:
    """The payload fields an expression reads; ``$score`` variables are not fields."""
    if tree.__class__ is str:
        if not tree.startswith("$score"):
            probe(tree, probed)
    elif tree.__class__ is list:
        for member in tree:
            walk_formula(member, probed)
    elif tree.__class__ is dict:
        for key, value in tree.items():
            if key == "geo_distance":
                probe(as_object(value).get("to"), probed)
            elif key == "datetime_key":
                probe(value, probed)
            elif key in _INNER:
                walk_formula(value, probed)
            elif key not in ("datetime", "scale", "midpoint", "by_zero_default"):
                _walk_condition(tree, probed, "")
                return


def condition(key: str, value: Scalar) -> dict[str, Tree]:
    """Equality with one value."""
    if isinstance(value, float):
        return {"key": key, "range": {"gte": value, "lte": value}}
    return {"key": key, "match": {"value": value}}


def nest(client: Tree, filters: tuple[tuple[str, Scalar], ...], ids: Tree = None) -> Tree:
    """The client's filter AND ours, each whole; `ids` limits it to points named by id."""
    must: list[Tree] = [] if client is None else [as_object(client)]
    if ids is not None:
        must.append({"has_id": ids})
    must += [condition(key, value) for key, value in filters]
    return {"must": must}


def holds(payload: Any, key: str, value: Scalar) -> bool:
    """Whether a payload carries this value at this path, as the server's own match sees it."""
    return _holds(payload, key.split("."), value)


def _holds(node: Any, path: list[str], value: Scalar) -> bool:
    if isinstance(node, list):
        return any(_holds(member, path, value) for member in node)
    if path:
        return isinstance(node, dict) and path[0] in node and _holds(node[path[0]], path[1:], value)
    if isinstance(node, Raw):
        return isinstance(value, float) and bytes(node)[:1] != b"[" and float(bytes(node)) == value
    return (
        isinstance(node, bool) == isinstance(value, bool)
        and not isinstance(node, dict)
        and bool(node == value)
    )
