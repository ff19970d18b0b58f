# SPDX-License-Identifier: Apache-2.0
"""Expressions: which columns flow into a value, what is compared, and what is called on the way.

Owns the walk below a target, a condition or an argument. Queries inside of expressions go back to
``sql_select`` through `Walker.query`. Bias: a kind of node that is not in the tables here makes the
statement unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agent.engines.sql_functions import (
    COUNTS,
    DISTANCE_OPERATORS,
    DISTANCES,
    PURE,
    Deed,
)
from agent.engines.sql_nodes import constant, has_column, is_whole, query_text
from agent.engines.sql_parse import names
from agent.engines.sql_scope import (
    ANYTHING,
    NOTHING,
    SYSTEM_COLUMNS,
    Facts,
    Found,
    Frame,
    Item,
    Value,
    find_item,
    look_up,
    through,
    union,
)
from agent.engines.sql_tree import Call, Node, Path
from agent.protocols.sql import Fault
from policy.model import Action

ARITHMETIC: Final = frozenset({"+", "-", "*", "/", "%", "^", "|/", "||/", "@"})
_GENERIC: Final = frozenset(
    {
        "A_ArrayExpr", "RowExpr", "CoalesceExpr", "MinMaxExpr", "BoolExpr", "BooleanTest", "CaseExpr",
        "CaseWhen", "CollateClause", "NamedArgExpr", "XmlExpr", "XmlSerialize", "List", "ResTarget",
        "JsonObjectConstructor", "JsonArrayConstructor", "JsonArrayQueryConstructor", "JsonObjectAgg",
        "JsonArrayAgg", "JsonAggConstructor", "JsonParseExpr", "JsonScalarExpr",
        "JsonSerializeExpr", "JsonKeyValue", "JsonValueExpr", "JsonFuncExpr", "JsonIsPredicate",
        "JsonOutput", "JsonReturning", "JsonFormat",
        "JsonArgument", "JsonBehavior", "A_Indices", "MultiAssignRef", "SortBy", "WindowDef",
    }
)  # fmt: skip
"""Kinds whose value is made of their children's."""
_LEAVES: Final = frozenset(
    {"A_Const", "SQLValueFunction", "SetToDefault", "String", "TypeName", "A_Star", "MergeSupportFunc",
     "CurrentOfExpr", "Integer", "DefElem", "JsonTablePathSpec"}
)  # fmt: skip


@dataclass(slots=True)
class Walker:
    """The walk over one statement. `query` and `select` are for subqueries."""

    facts: Facts
    query: Callable[[Walker, Node, Frame | None, Path], Found]
    """Of a wrapper: ``{"SelectStmt": {...}}``, ``{"InsertStmt": {...}}`` with RETURNING..., and its path."""
    select: Callable[[Walker, Node, Frame | None, Path], Found]
    """Of the body of a SelectStmt, and the path of that."""


def expression(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    """Where the value of an expression comes from. `node` is a wrapper, ``{"ColumnRef": {...}}``."""
    ((kind, inner),) = node.items()
    handler = _HANDLERS.get(kind)
    if handler is not None:
        return handler(walker, inner, frame, (*path, kind))
    if kind in _LEAVES:
        return NOTHING
    if kind == "CaseExpr" and "arg" in inner:
        compares(walker.facts)
    if kind in _GENERIC:
        return through(_children(walker, inner, frame, (*path, kind)), "value")
    walker.facts.puzzle(f"expressions of the kind {kind} are not known")
    return ANYTHING


def compares(facts: Facts) -> None:
    """USING and CASE x WHEN look up the operator ``=`` by the search path, as if it stood there."""
    if not facts.scope.operator(None, "="):
        facts.puzzle("what the operator = does is not known")


def _children(walker: Walker, node: Any, frame: Frame, path: Path) -> Value:
    """All expressions below a node, each wrapped or in a list."""
    found: list[Value] = []
    for key, value in node.items():
        if value.__class__ is dict:
            if len(value) == 1 and next(iter(value))[:1].isupper():
                found.append(expression(walker, value, frame, (*path, key)))
            else:
                found.append(_children(walker, value, frame, (*path, key)))
        elif value.__class__ is list:
            for index, item in enumerate(value):
                if item.__class__ is dict and item:
                    found.append(expression(walker, item, frame, (*path, key, index)))
    return union(found)


def listed(walker: Walker, nodes: Any, frame: Frame, path: Path) -> Value:
    """The union over a list of wrapped expressions."""
    return union(
        expression(walker, node, frame, (*path, index)) for index, node in enumerate(nodes or ()) if node
    )


# Names.


def _column(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    parts = names(node["fields"])
    facts = walker.facts
    if parts[-1] == "*":
        if len(parts) == 1:  # count(*) is written otherwise: this is row(*), f(*)
            return union(item.whole for item in frame.items)
        item = find_item(frame, parts[-3] if len(parts) > 2 else None, parts[-2])
        if item is not None:
            return item.whole
    elif len(parts) == 1:
        return look_up(facts, frame, parts[0])
    else:
        item = find_item(frame, parts[-3] if len(parts) > 2 else None, parts[-2])
        if item is not None:
            return _field(facts, item, parts[-1])
    missing = (
        Fault("42P01", f'missing FROM-clause entry for table "{parts[-2]}"') if len(parts) == 2 else None
    )
    facts.puzzle(f"there is no column {'.'.join(parts)!r} that is known", missing)
    return ANYTHING


def _field(facts: Facts, item: Item, name: str) -> Value:
    """x.name: a column; where there is none, PostgreSQL calls the function `name` on the row."""
    found = item.find(name)
    if found is not None:
        return found
    if name in SYSTEM_COLUMNS and (item.relation is not None or item.system):
        return NOTHING
    if item.open is not None and (item.system or not _may_call(facts, name)):
        return item.other(name)
    if name not in PURE or facts.scope.function(None, name) is not True:
        missing = Fault("42703", f"column {item.name}.{name} does not exist")
        fault = None if item.open is not None or _may_call(facts, name) else missing
        facts.puzzle(f"{name!r} is neither a column nor a function that is known", fault)
    return item.whole


def _may_call(facts: Facts, name: str) -> bool:
    """Whether x.name can be a call that does more than compute."""
    catalog = facts.scope.catalog
    return name in catalog.notations or name in catalog.functions


def _indirection(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    found = [expression(walker, node["arg"], frame, (*path, "arg"))]
    row = _row(node["arg"], frame)
    if row is not None and "String" in node["indirection"][0]:  # (t).a
        value = row.find(node["indirection"][0]["String"].get("sval", ""))
        if value is not None:
            found = [value]
    for index, step in enumerate(node["indirection"]):
        if "A_Indices" in step:
            found.append(expression(walker, step, frame, (*path, "indirection", index)))
        elif "String" in step:
            name = step["String"].get("sval", "")
            if _may_call(walker.facts, name):
                walker.facts.puzzle(f"(x).{name} may be a call of the function {name!r}")
    return through(union(found), "value")


def _row(node: Node, frame: Frame) -> Item | None:
    """The entry of FROM that a bare name means, where it is not a column."""
    parts = names(node["ColumnRef"]["fields"]) if "ColumnRef" in node else ()
    if len(parts) != 1 or any(item.find(parts[0]) for level in frame.levels() for item in level.items):
        return None
    return find_item(frame, None, parts[0])


# Operators.


def _operator(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    parts = names(node["name"])
    symbol, schema = parts[-1], parts[-2] if len(parts) > 1 else None
    facts = walker.facts
    if not facts.scope.operator(schema, "<=" if symbol[:1].isalpha() else symbol):  # BETWEEN
        facts.puzzle(f"what the operator {'.'.join(parts)} does is not known")
    sides = [
        (side, node[side], (*path, side)) for side in ("lexpr", "rexpr") if node.get(side) not in (None, {})
    ]
    if symbol in DISTANCE_OPERATORS and len(sides) == 2 and _is_vectors(facts, symbol):
        return _distance(walker, [(one, at) for _, one, at in sides], frame)
    values = [
        listed(walker, one["List"]["items"], frame, (*at, "List", "items"))
        if "List" in one
        else expression(walker, one, frame, at)
        for _, one, at in sides
    ]
    value = through(union(values), "value")
    if symbol not in ARITHMETIC and any(one.distance for one in values):
        facts.thresholds = True
    return value


def _is_vectors(facts: Facts, symbol: str) -> bool:
    """``<->`` is a geometric operator too; it is taken for a distance of vectors where there are such."""
    return facts.scope.guess or symbol in facts.scope.catalog.operators


def _distance(walker: Walker, operands: list[tuple[Node, Path]], frame: Frame) -> Value:
    """A distance between operands: the vector columns in it come through as a distance only."""
    values = [(node, expression(walker, node, frame, at)) for node, at in operands]
    facts = walker.facts
    facts.distances += 1
    columns = [_of_vectors(facts, node, value) for node, value in values]
    for (node, _), is_column in zip(values, columns, strict=True):
        if is_column:
            continue
        if has_column(node):  # from rows that hold no vectors themselves: as many as there are rows
            facts.many = True
        facts.queries.add(query_text(node))
    if all(columns):
        facts.many = facts.many or len(columns) < 2
        facts.queries.add(f"column {len(facts.queries)}")
    return (
        union(
            through(value, "distance") if is_whole(node) else through(value, "value") if is_column else value
            for (node, value), is_column in zip(values, columns, strict=True)
        )
        if any(columns)
        else through(union(value for _, value in values), "distance")
    )


def _of_vectors(facts: Facts, node: Node, value: Value) -> bool:
    """Whether an operand is a column of vectors; without a catalog, any column."""
    guessed = facts.scope.guess and has_column(node)
    return guessed or value.opaque or any(one.vector for one in value.origins)


# Calls.


def _call(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    parts = names(node["funcname"])
    schema, name = parts[-2] if len(parts) > 1 else None, parts[-1]
    facts = walker.facts
    deed = facts.scope.function(schema, name)
    if deed is False:
        facts.calls.append(Call(".".join(parts), path, "what it does is not known"))
        facts.puzzle(f"what the function {'.'.join(parts)} does is not known")
    elif deed is not True:
        _do(walker, deed, name, node, path)
    arguments = [(one, (*path, "args", index)) for index, one in enumerate(node.get("args", ()))]
    if name in DISTANCES and len(arguments) == 2:
        return _distance(walker, arguments, frame)
    value = union(expression(walker, one, frame, at) for one, at in arguments)
    if "agg_filter" in node:
        facts.probe(expression(walker, node["agg_filter"], frame, (*path, "agg_filter")))
    facts.probe(_sorted(walker, node.get("agg_order"), frame, (*path, "agg_order")))
    if "over" in node:
        window(walker, node["over"], frame, (*path, "over"))
    if node.get("agg_distinct"):
        facts.probe(value)
    if name in COUNTS:
        return through(value, "count")
    return ANYTHING if deed is False else through(value, "value")


def _do(walker: Walker, deed: Deed, name: str, node: Node, path: Path) -> None:
    """What a call does beside computing."""
    facts = walker.facts
    facts.act(deed.action)
    facts.calls.append(Call(name, path, deed.action.value))
    first = constant(node["args"][0]) if node.get("args") else None
    if name == "set_config":
        value = constant(node["args"][1]) if len(node["args"]) > 1 else None
        if first is None or facts.setting is not None:  # any setting: what is not reported may move the path
            facts.actions.add(Action.ADMIN)
            facts.setting = ("search_path", None)
        else:
            facts.setting = (first.lower(), value)
    if deed.named:
        parts = tuple((first or "").rsplit(".", 1))
        relation = facts.scope.relation(parts[0] if len(parts) > 1 else None, parts[-1]) if first else None
        if relation is None:
            facts.everything = True
        else:
            facts.touch(relation)
        facts.carries = False
    if deed.everything:
        facts.everything = True
        facts.carries = False


def _sorted(walker: Walker, nodes: Any, frame: Frame, path: Path) -> Value:
    return union(
        expression(walker, one["SortBy"]["node"], frame, (*path, index, "SortBy", "node"))
        for index, one in enumerate(nodes or ())
    )


def window(walker: Walker, node: Node, frame: Frame, path: Path) -> None:
    """PARTITION BY and ORDER BY of a window tell about their columns; a distance there is a search."""
    parts = listed(walker, node.get("partitionClause"), frame, (*path, "partitionClause"))
    order = _sorted(walker, node.get("orderClause"), frame, (*path, "orderClause"))
    for bound in ("startOffset", "endOffset"):
        if bound in node:
            walker.facts.probe(expression(walker, node[bound], frame, (*path, bound)))
    walker.facts.probe(parts)
    walker.facts.probe(order)


# The rest.


def _cast(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    kind = names(node["typeName"].get("names"))
    if kind and kind[-1] in walker.facts.scope.catalog.casts:
        walker.facts.puzzle(f"the cast to {kind[-1]} calls a function that is not known")
    return through(expression(walker, node["arg"], frame, (*path, "arg")), "value")


def _parameter(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    walker.facts.parameters.add(node.get("number", 0))
    return NOTHING


def _null_test(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    return through(expression(walker, node["arg"], frame, (*path, "arg")), "count")


def _subquery(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    """EXISTS gives only whether there are rows; all others give what the query gives."""
    value = NOTHING
    if "testexpr" in node:
        value = expression(walker, node["testexpr"], frame, (*path, "testexpr"))
        operator = names(node.get("operName")) or ("=",)  # IN
        if not walker.facts.scope.operator(operator[-2] if len(operator) > 1 else None, operator[-1]):
            walker.facts.puzzle(f"what the operator {'.'.join(operator)} does is not known")
    found = walker.query(walker, node["subselect"], frame, (*path, "subselect"))
    if node.get("subLinkType") == "EXISTS_SUBLINK":
        return through(found.value, "count")
    result = through(union((value, found.value)), "value")
    if "testexpr" in node and result.distance:
        walker.facts.thresholds = True
    return ANYTHING if found.open and found.value.opaque else result


def _grouping(walker: Walker, node: Node, frame: Frame, path: Path) -> Value:
    return through(listed(walker, node.get("args"), frame, (*path, "args")), "count")


_HANDLERS: Final[dict[str, Callable[[Walker, Node, Frame, Path], Value]]] = {
    "ColumnRef": _column,
    "A_Indirection": _indirection,
    "A_Expr": _operator,
    "FuncCall": _call,
    "TypeCast": _cast,
    "ParamRef": _parameter,
    "NullTest": _null_test,
    "SubLink": _subquery,
    "GroupingFunc": _grouping,
}
