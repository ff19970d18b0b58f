# SPDX-License-Identifier: Apache-2.0
"""Parse-tree nodes that the rewriting puts into a statement, and the few readings of nodes it needs.

Owns construction only: literals are nodes, never text, and every function, operator and relation is named
with its schema, so that no search path changes what was judged. Nodes are libpg_query's JSON
(``sql_tree.Node``). Raises nothing but ValueError for a scalar that SQL has no literal for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from policy.mask import HIDDEN, REDACTED, SHOWN
from policy.model import Scalar

Node = dict[str, Any]

DISTANCE_OPERATORS: Final = frozenset({"<->", "<#>", "<=>", "<+>", "<~>", "<%>"})
DISTANCE_FUNCTIONS: Final = frozenset(
    {"l2_distance", "inner_product", "cosine_distance", "l1_distance", "hamming_distance", "jaccard_distance"}
)
VECTOR_TYPES: Final = frozenset({"vector", "halfvec", "sparsevec", "bit"})
BODIES: Final = ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt")
WRAPPERS: Final = {"PrepareStmt": "query", "DeclareCursorStmt": "query", "CopyStmt": "query"}
"""Statements around another one, and where in them it stands."""
_INT4: Final = 2**31


def string(text: str) -> Node:
    return {"String": {"sval": text}}


def column(*names: str) -> Node:
    return {"ColumnRef": {"fields": [string(name) for name in names]}}


def star_of(alias: str) -> Node:
    return {"ColumnRef": {"fields": [string(alias), {"A_Star": {}}]}}


def target(value: Node, name: str | None = None) -> Node:
    made: Node = {"val": value}
    if name is not None:
        made["name"] = name
    return {"ResTarget": made}


def literal(value: Scalar) -> Node:
    """A constant of the parse tree. Raises ValueError for what SQL has no number for."""
    if isinstance(value, bool):
        return {"A_Const": {"boolval": {"boolval": True} if value else {}}}
    if isinstance(value, int):
        if -_INT4 < value < _INT4:
            return {"A_Const": {"ival": {"ival": value} if value else {}}}
        return {"A_Const": {"fval": {"fval": str(value)}}}
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not a number that SQL can write")
        return {"A_Const": {"fval": {"fval": f"{value:.17g}" if "." in f"{value:.17g}" else f"{value!r}"}}}
    if "\0" in value:
        raise ValueError("PostgreSQL has no text with a zero byte")
    return {"A_Const": {"sval": {"sval": value} if value else {}}}


NULL: Final[Node] = {"A_Const": {"isnull": True}}


def operation(name: str, left: Node, right: Node) -> Node:
    """``left OPERATOR(pg_catalog.name) right``."""
    return {
        "A_Expr": {
            "kind": "AEXPR_OP",
            "name": [string("pg_catalog"), string(name)],
            "lexpr": left,
            "rexpr": right,
        }
    }


def call(name: str, *args: Node) -> Node:
    return {
        "FuncCall": {
            "funcname": [string("pg_catalog"), string(name)],
            "args": list(args),
            "funcformat": "COERCE_EXPLICIT_CALL",
        }
    }


def cast(value: Node, *type_name: str) -> Node:
    return {
        "TypeCast": {"arg": value, "typeName": {"names": [string(name) for name in type_name], "typemod": -1}}
    }


def both(left: Node | None, right: Node) -> Node:
    """The conjunction, each side whole."""
    if left is None:
        return right
    return {"BoolExpr": {"boolop": "AND_EXPR", "args": [left, right]}}


def every(conditions: Sequence[Node]) -> Node | None:
    made: Node | None = None
    for condition in conditions:
        made = both(made, condition)
    return made


def when(condition: Node, value: Node, otherwise: Node | None = None) -> Node:
    made: Node = {"args": [{"CaseWhen": {"expr": condition, "result": value}}]}
    if otherwise is not None:
        made["defresult"] = otherwise
    return {"CaseExpr": made}


def null_of(value: Node) -> Node:
    """NULL of the type and modifier of `value`, which is never evaluated: planning leaves a constant."""
    return when(literal(False), value)


def redacted(value: Node) -> Node:
    """The mask's own word, of a text."""
    return when(literal(False), value, literal(REDACTED))


def last_shown(value: Node) -> Node:
    """``policy.mask.last_shown`` of a text, by the database: the mask never sees more than it shows."""
    text = cast(value, "pg_catalog", "text")
    long = operation(">", call("length", text), literal(2 * SHOWN))
    shown = call("concat", literal(HIDDEN), call("right", text, literal(SHOWN)))
    made = when(long, shown, literal(HIDDEN))
    made["CaseExpr"]["args"].insert(
        0, {"CaseWhen": {"expr": {"NullTest": {"arg": text, "nulltesttype": "IS_NULL"}}, "result": NULL}}
    )
    return made


def rounded(value: Node, digits: int) -> Node:
    """A distance to so many significant digits, and never to more decimals: read once.

    A distance under 1 would else give more of itself the nearer the query is. NaN and the infinities,
    which to_char cannot write, become the largest number. Same steps as ``Veil.score`` without a norm.
    """
    bounded: Node = {
        "MinMaxExpr": {"op": "IS_GREATEST", "args": [value, literal(-1e300)]},
    }
    bounded = {"MinMaxExpr": {"op": "IS_LEAST", "args": [bounded, literal(1e300)]}}
    bounded = cast(bounded, "pg_catalog", "float8")
    shape = "9EEEE" if digits == 1 else "9." + "9" * (digits - 1) + "EEEE"
    short = cast(call("to_char", bounded, literal(shape)), "pg_catalog", "numeric")
    return cast(call("round", short, literal(digits)), "pg_catalog", "float8")


def relation(schema: str, name: str, alias: str, inherits: bool) -> Node:
    made: Node = {"schemaname": schema, "relname": name, "relpersistence": "p", "alias": {"aliasname": alias}}
    if inherits:
        made["inh"] = True
    return {"RangeVar": made}


def select(targets: list[Node], source: list[Node], where: Node | None, fence: bool = False) -> Node:
    """``SELECT targets FROM source WHERE where``, with OFFSET 0 as a fence that no condition passes."""
    made: Node = {
        "targetList": targets,
        "limitOption": "LIMIT_OPTION_COUNT" if fence else "LIMIT_OPTION_DEFAULT",
        "op": "SETOP_NONE",
    }
    if source:
        made["fromClause"] = source
    if where is not None:
        made["whereClause"] = where
    if fence:
        made["limitOffset"] = literal(0)
    return {"SelectStmt": made}


def subquery(query: Node, alias: Node, lateral: bool = False) -> Node:
    """``(query) AS alias``; `alias` is the content of an Alias node."""
    made: Node = {"subquery": query, "alias": alias}
    if lateral:
        made["lateral"] = True
    return {"RangeSubselect": made}


def cross(left: Node, right: Node) -> Node:
    return {"JoinExpr": {"jointype": "JOIN_INNER", "larg": left, "rarg": right}}


# Reading.


def names_of(fields: Sequence[Node]) -> tuple[str, ...]:
    """The strings of a list of names; ``*`` for a star."""
    return tuple(one["String"].get("sval", "") if "String" in one else "*" for one in fields)


def kind_of(node: Any) -> tuple[str, Node]:
    """("ColumnRef", {...}) of a wrapper; ("", {}) of anything else."""
    if node.__class__ is dict and len(node) == 1:
        ((kind, inner),) = node.items()
        if inner.__class__ is dict and kind[:1].isupper():
            return kind, inner
    return "", {}


def below(node: Any, queries: bool = True) -> Iterator[tuple[str, Node, Node]]:
    """(kind, inner, wrapper) of every node below, outermost first; `queries` False: not into subqueries."""
    todo: list[Any] = [node]
    while todo:
        here = todo.pop()
        if here.__class__ is list:
            todo += reversed(here)
        elif here.__class__ is dict:
            kind, inner = kind_of(here)
            if kind:
                if kind == "SelectStmt" and not queries:
                    continue
                yield kind, inner, here
            todo += reversed(list(here.values()))
