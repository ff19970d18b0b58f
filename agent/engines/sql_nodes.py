# SPDX-License-Identifier: Apache-2.0
"""What can be told of an expression's nodes alone, without a catalog: constants, whole vectors, sets."""

from __future__ import annotations

from typing import Any, Final

from agent.engines.sql_functions import SETS
from agent.engines.sql_parse import names
from agent.engines.sql_tree import Node

VECTOR_TYPES: Final = frozenset({"vector", "halfvec", "sparsevec", "bit"})
SAME_VECTOR: Final = frozenset({"l2_normalize", "binary_quantize", "vector", "halfvec", "sparsevec"})
"""Functions over a whole vector that are usual around the operand of a distance."""


def is_whole(node: Node) -> bool:
    """The column as it is, or the whole of it as another kind of vector: not a part that was picked."""
    ((kind, inner),) = node.items()
    if kind == "ColumnRef":
        return True
    if kind == "TypeCast":
        return names(inner["typeName"].get("names"))[-1] in VECTOR_TYPES and is_whole(inner["arg"])
    if kind == "FuncCall":
        arguments = inner.get("args", ())
        return names(inner["funcname"])[-1] in SAME_VECTOR and len(arguments) >= 1 and is_whole(arguments[0])
    if kind == "CollateClause":
        return is_whole(inner["arg"])
    return kind not in (
        "A_Expr",
        "A_Indirection",
        "CaseExpr",
        "A_ArrayExpr",
        "RowExpr",
        "CoalesceExpr",
    )


def has_column(node: Any) -> bool:
    if node.__class__ is list:
        return any(map(has_column, node))
    return node.__class__ is dict and ("ColumnRef" in node or any(map(has_column, node.values())))


def query_text(node: Node) -> str:
    """The same for two mentions of one query vector: $1 and $1::vector, one literal twice."""
    ((kind, inner),) = node.items()
    if kind == "TypeCast":
        return query_text(inner["arg"])
    if kind == "ParamRef":
        return f"${inner.get('number', 0)}"
    if kind == "A_Const" and "sval" in inner:
        return f"'{inner['sval'].get('sval', '')}"
    if kind == "ColumnRef":
        return ".".join(names(inner["fields"]))
    return f"{kind} {inner.get('location', 0)}"


def constant(node: Node) -> str | None:
    """A string literal, also under casts; None when it is anything else."""
    ((kind, inner),) = node.items()
    if kind == "TypeCast":
        return constant(inner["arg"])
    if kind == "A_Const" and "sval" in inner:
        text: str = inner["sval"].get("sval", "")
        return text
    return None


def sets(node: Node) -> bool:
    """Whether a set-returning function stands in it: one row becomes many."""
    todo: list[Any] = [node]
    while todo:
        one = todo.pop()
        if one.__class__ is dict:
            call = one.get("FuncCall")
            if call is not None and names(call["funcname"])[-1] in SETS:
                return True
            todo += [value for key, value in one.items() if key != "SubLink"]
        elif one.__class__ is list:
            todo += one
    return False
