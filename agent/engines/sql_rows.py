# SPDX-License-Identifier: Apache-2.0
"""How many rows a query can return: LIMIT, OFFSET, FETCH, and conditions on a primary key.

Bias: a count that is not a number or a parameter is not known, and then there is no bound.
"""

from __future__ import annotations

from typing import Any

from agent.engines.sql_expressions import Walker, expression
from agent.engines.sql_parse import names
from agent.engines.sql_scope import Frame, Item
from agent.engines.sql_tree import NO_OFFSET, UNLIMITED, Amount, Node, Path

INTEGERS = ("int8", "int4", "int2", "numeric")


def limits(walker: Walker, node: Node, frame: Frame, path: Path) -> tuple[Amount, Amount]:
    limit, offset = UNLIMITED, NO_OFFSET
    if "limitCount" in node:
        limit = amount(walker, node["limitCount"], frame, (*path, "limitCount"))
    if "limitOffset" in node:
        offset = amount(walker, node["limitOffset"], frame, (*path, "limitOffset"))
        if offset.all:
            offset = Amount(offset.path, literal=0)
        walker.facts.offsets.append(offset)
    return limit, offset


def amount(walker: Walker, node: Node, frame: Frame, path: Path) -> Amount:
    """A count as it stands: a number, a parameter, nothing at all, or an expression that is not known."""
    ((kind, inner),) = node.items()
    at = path
    while kind == "TypeCast":
        if names(inner["typeName"].get("names"))[-1] not in INTEGERS:
            break
        at = (*at, kind, "arg")
        ((kind, inner),) = inner["arg"].items()
    if kind == "ParamRef":
        walker.facts.parameters.add(inner.get("number", 0))
        return Amount(path, parameter=inner.get("number", 0))
    if kind == "A_Const":
        if inner.get("isnull"):
            return Amount(path, all=True)
        if "ival" in inner:
            return Amount(path, literal=inner["ival"].get("ival", 0))
        text = inner.get("fval", {}).get("fval", "") or inner.get("sval", {}).get("sval", "")
        if text.isascii() and text.isdigit() and len(text) < 20:
            return Amount(path, literal=int(text))
        return Amount(path)
    walker.facts.probe(expression(walker, node, frame, path))
    return Amount(path)


def by_key(node: Node, frame: Frame) -> int | None:
    """The most rows that WHERE lets through by a whole primary key of the only entry of FROM.

    0: by a list whose length is not known; None: it is not by key.
    """
    item = frame.items[0] if len(frame.items) == 1 else None
    relation = item.relation if item is not None else None
    if item is None or relation is None or not relation.key:
        return None
    wanted = {one.name for one in relation.columns if one.number in relation.key}
    found: dict[str, int] = {}
    for one in _conjuncts(node.get("whereClause")):
        named = _key_of(one, item)
        if named is not None and named[0] in wanted:
            found[named[0]] = named[1]
    if found.keys() != wanted:
        return None
    if 0 in found.values():
        return 0
    product = 1
    for count in found.values():
        product *= count
    return product


def _conjuncts(node: Any) -> list[Node]:
    if not node:
        return []
    inner = node.get("BoolExpr")
    if inner is not None and inner.get("boolop") == "AND_EXPR":
        return [part for one in inner["args"] for part in _conjuncts(one)]
    return [node]


def _key_of(node: Node, item: Item) -> tuple[str, int] | None:
    """(column, how many values) of ``id = $1``, ``id IN (1, 2)``, ``id = ANY($1)``."""
    inner = node.get("A_Expr")
    if inner is None or names(inner.get("name")) != ("=",) or "ColumnRef" not in inner.get("lexpr", {}):
        return None
    parts = names(inner["lexpr"]["ColumnRef"]["fields"])
    if len(parts) > 1 and parts[-2] != item.name:
        return None
    right = inner.get("rexpr", {})
    match inner.get("kind"):
        case "AEXPR_OP" if _fixed(right):
            return parts[-1], 1
        case "AEXPR_IN" if "List" in right and all(map(_fixed, right["List"]["items"])):
            return parts[-1], len(right["List"]["items"])
        case "AEXPR_OP_ANY" if "A_ArrayExpr" in right and all(
            map(_fixed, right["A_ArrayExpr"].get("elements", ()))
        ):
            return parts[-1], len(right["A_ArrayExpr"].get("elements", ()))
        case "AEXPR_OP_ANY" if _fixed(right):
            return parts[-1], 0
    return None


def _fixed(node: Node) -> bool:
    if "TypeCast" in node:
        return _fixed(node["TypeCast"]["arg"])
    return "A_Const" in node or "ParamRef" in node
