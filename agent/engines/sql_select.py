# SPDX-License-Identifier: Apache-2.0
"""Queries: SELECT, VALUES, TABLE and set operations, on every level.

Owns outputs and their origins, what is probed, how many rows can come, and whether a level searches, reads
by key, counts or scans. Bias: what does not surely search, count or read by key scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from agent.engines.sql_expressions import Walker, expression, window
from agent.engines.sql_from import add, open_with
from agent.engines.sql_functions import AGGREGATES, COUNTS, WINDOW
from agent.engines.sql_nodes import sets
from agent.engines.sql_parse import names
from agent.engines.sql_rows import by_key, limits
from agent.engines.sql_scope import ANYTHING, Cell, Found, Frame, Item, Rows, Value, through, union
from agent.engines.sql_tree import Amount, Node, Output, Path
from policy.model import Action

WRITING: Final = frozenset({"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})


def select(walker: Walker, node: Node, parent: Frame | None, path: Path) -> Found:
    """The body of a SelectStmt; `path` leads to it."""
    facts = walker.facts
    frame = Frame(parent)
    if "withClause" in node:
        open_with(walker, node["withClause"], frame, (*path, "withClause"))
    if "intoClause" in node:
        facts.act(Action.SCHEMA)
        facts.act(Action.WRITE)
        facts.carries = False
    if node.get("lockingClause"):
        facts.row_lock = True
    if node.get("op", "SETOP_NONE") != "SETOP_NONE":
        return _set_operation(walker, node, frame, path)
    if "valuesLists" in node:
        return _values(walker, node, frame, path)
    return _level(walker, node, frame, path)


def _level(walker: Walker, node: Node, frame: Frame, path: Path) -> Found:
    """One SELECT ... FROM ... WHERE ... level."""
    facts = walker.facts
    before = len(facts.references)
    for index, one in enumerate(node.get("fromClause", ())):
        add(walker, one, frame, (*path, "fromClause", index), path)
    own = any(not one.system and one.within == path for one in facts.references[before:])
    distances = facts.distances
    if "whereClause" in node:
        facts.filtered = True
        condition(walker, node["whereClause"], frame, (*path, "whereClause"))
    outputs, opened = targets(walker, node.get("targetList", ()), frame, (*path, "targetList"))
    order = _order(walker, node, frame, path, outputs)
    _group(walker, node, frame, path, outputs)
    counts, aggregated = _aggregates(walker, node)
    rows, offset = _rows(walker, node, frame, path, aggregated)
    if own:
        keyed = by_key(node, frame)
        if keyed and not aggregated and not any(sets(one) for one in node.get("targetList", ())):
            rows = Rows(rows.limit, keyed, rows.ties)
        if facts.distances > distances or any(one.distance for one in order):
            facts.act(Action.SEARCH)
            if not (order and order[0].searches):
                facts.act(Action.SCAN)
        elif counts:
            facts.act(Action.COUNT)
        elif keyed is not None:
            facts.act(Action.READ)
        else:
            facts.act(Action.SCAN)
    return Found(tuple(outputs), opened, rows, offset)


def condition(walker: Walker, node: Node, frame: Frame, path: Path) -> None:
    """WHERE, HAVING, ON: what is in it is probed; subqueries in it return no rows to the client."""
    walker.facts.probing += 1
    walker.facts.probe(expression(walker, node, frame, path))
    walker.facts.probing -= 1


# What comes out.


def targets(walker: Walker, nodes: Sequence[Node], frame: Frame, path: Path) -> tuple[list[Output], bool]:
    """The outputs of a target list with stars expanded; True: it has columns that cannot be told."""
    outputs: list[Output] = []
    opened = False
    for index, one in enumerate(nodes):
        inner, at = one["ResTarget"], (*path, index)
        value = inner["val"]
        if _is_star(value):
            cells, is_open = _star(walker, value, frame)
            opened = opened or is_open
            outputs += [Output(name, got.origins, at, True, got.opaque) for name, got in cells]
            continue
        got = expression(walker, value, frame, (*at, "ResTarget", "val"))
        outputs.append(Output(inner.get("name") or _name(value), got.origins, at, False, got.opaque))
    return outputs, opened


def _is_star(node: Node) -> bool:
    last = (
        node["ColumnRef"]["fields"]
        if "ColumnRef" in node
        else node.get("A_Indirection", {}).get("indirection")
    )
    return bool(last) and "A_Star" in last[-1]


def _star(walker: Walker, node: Node, frame: Frame) -> tuple[list[Cell], bool]:
    if "A_Indirection" in node:  # (x).*
        value = expression(walker, node["A_Indirection"]["arg"], frame, ())
        return [("*", through(value, "value"))], True
    parts = names(node["ColumnRef"]["fields"])
    if len(parts) == 1:
        items: list[Item] = [item for item in frame.items if not item.starless]
        cells = list(frame.merged)
    else:
        schema = parts[-3] if len(parts) > 2 else None
        found = [
            item
            for level in frame.levels()
            for item in level.items
            if item.name == parts[-2] and schema in (None, item.schema)
        ]
        if not found:
            walker.facts.puzzle(f"there is no {'.'.join(parts[:-1])!r} that is known")
            return [("*", ANYTHING)], True
        items, cells = found[:1], []
    is_open = False
    for item in items:
        taken = item.used if len(parts) == 1 else frozenset()
        cells += [cell for cell in item.cells if cell[0] not in taken]
        if item.open is not None:
            is_open = True
            cells.append(("*", item.open))
    return cells, is_open


def _name(node: Node) -> str:
    """The name PostgreSQL gives a column without one (FigureColname, parser/parse_target.c)."""
    ((kind, inner),) = node.items()
    if kind == "ColumnRef":
        return names(inner["fields"])[-1]
    if kind == "FuncCall":
        return names(inner["funcname"])[-1]
    if kind == "TypeCast":
        under = _name(inner["arg"])
        return under if under != "?column?" else names(inner["typeName"]["names"])[-1]
    if kind == "A_Indirection":
        found = [part for part in names(inner["indirection"]) if part not in ("", "*")]
        return found[-1] if found else _name(inner["arg"])
    if kind == "CollateClause":
        return _name(inner["arg"])
    return {"CaseExpr": "case", "A_ArrayExpr": "array", "RowExpr": "row", "CoalesceExpr": "coalesce"}.get(
        kind, "?column?"
    )


# What decides the order and the groups.


def _order(
    walker: Walker, node: Node, frame: Frame, path: Path, outputs: list[Output], inputs: bool = True
) -> list[Value]:
    found: list[Value] = []
    for index, one in enumerate(node.get("sortClause", ())):
        at = (*path, "sortClause", index, "SortBy", "node")
        using = names(one["SortBy"].get("useOp"))
        if using and not walker.facts.scope.operator(using[-2] if len(using) > 1 else None, using[-1]):
            walker.facts.puzzle(f"what the operator {'.'.join(using)} does is not known")
        value = _by_output(one["SortBy"]["node"], outputs)
        if value is None and inputs:
            value = expression(walker, one["SortBy"]["node"], frame, at)
        found.append(value or ANYTHING)
        walker.facts.probe(found[-1])
    return found


def _by_output(node: Node, outputs: list[Output]) -> Value | None:
    """ORDER BY 2, ORDER BY score: an output by its number or name."""
    ((kind, inner),) = node.items()
    if kind == "A_Const" and "ival" in inner:
        number = inner["ival"].get("ival", 0)
        if any(one.star and one.name == "*" for one in outputs):
            return union(Value(one.origins, one.opaque) for one in outputs)
        if 0 < number <= len(outputs):
            return Value(outputs[number - 1].origins, outputs[number - 1].opaque)
        return ANYTHING
    if kind == "ColumnRef" and len(inner["fields"]) == 1:
        name = names(inner["fields"])[0]
        found = [Value(one.origins, one.opaque) for one in outputs if one.name == name]
        return union(found) if found else None
    return None


def _group(walker: Walker, node: Node, frame: Frame, path: Path, outputs: list[Output]) -> None:
    facts = walker.facts
    for index, one in enumerate(node.get("groupClause", ())):
        _group_by(walker, one, frame, (*path, "groupClause", index), outputs)
    if node.get("groupByAll"):
        facts.probe(union(Value(one.origins, one.opaque) for one in outputs))
    if "havingClause" in node:
        condition(walker, node["havingClause"], frame, (*path, "havingClause"))
    for index, one in enumerate(node.get("windowClause", ())):
        window(walker, one["WindowDef"], frame, (*path, "windowClause", index, "WindowDef"))
    distinct = node.get("distinctClause")
    if distinct:
        if any(one for one in distinct):
            for index, one in enumerate(distinct):
                if one:
                    _group_by(walker, one, frame, (*path, "distinctClause", index), outputs)
        else:
            facts.probe(union(Value(one.origins, one.opaque) for one in outputs))


def _group_by(walker: Walker, node: Node, frame: Frame, path: Path, outputs: list[Output]) -> None:
    if "GroupingSet" in node:
        for index, one in enumerate(node["GroupingSet"].get("content", ())):
            _group_by(walker, one, frame, (*path, "GroupingSet", "content", index), outputs)
        return
    value = _by_output(node, outputs)
    if value is not None:
        walker.facts.probe(value)
    ((kind, inner),) = node.items()
    if kind == "A_Const":
        return
    if (
        kind == "ColumnRef"
        and value is not None
        and not any(item.find(names(inner["fields"])[0]) for item in frame.items)
    ):
        return
    walker.facts.probe(expression(walker, node, frame, path))


def _aggregates(walker: Walker, node: Node) -> tuple[bool, bool]:
    """(it only counts, it gives one row): an aggregate with no GROUP BY beside it."""
    if node.get("groupClause"):
        return False, False
    calls: list[str] = []
    todo: list[Any] = [node.get("targetList"), node.get("havingClause")]
    while todo:
        one = todo.pop()
        if one.__class__ is list:
            todo += one
        elif one.__class__ is dict:
            call = one.get("FuncCall")
            if call is not None and "over" not in call:
                name = names(call["funcname"])[-1]
                if (name in AGGREGATES and name not in WINDOW) or call.get("agg_star"):
                    calls.append(name)
            todo += [value for key, value in one.items() if key != "SubLink"]
    if not calls or any(sets(one) for one in node.get("targetList", ())):
        return False, False
    only = all(_counts(one["ResTarget"]["val"]) for one in node.get("targetList", ()))
    return only, True


def _counts(node: Node) -> bool:
    ((kind, inner),) = node.items()
    if kind == "TypeCast":
        return _counts(inner["arg"])
    if kind == "FuncCall":
        return names(inner["funcname"])[-1] in COUNTS
    return kind in ("A_Const", "ParamRef")


# Rows.


def _rows(walker: Walker, node: Node, frame: Frame, path: Path, aggregated: bool) -> tuple[Rows, Amount]:
    limit, offset = limits(walker, node, frame, path)
    ties = node.get("limitOption") == "LIMIT_OPTION_WITH_TIES"
    many = any(sets(one) for one in node.get("targetList", ()))
    if aggregated:
        return Rows(limit, 1), offset
    if not frame.items:
        return Rows(limit, None if many else 1, ties), offset
    if len(frame.items) == 1 and not many and limit.path is None:
        under = frame.items[0].rows
        if under is not None:
            return under, offset
    return Rows(limit, None, ties), offset


def _values(walker: Walker, node: Node, frame: Frame, path: Path) -> Found:
    lists = node["valuesLists"]
    columns: list[list[Value]] = []
    for row, one in enumerate(lists):
        for at, value in enumerate(one["List"].get("items", ())):
            got = expression(walker, value, frame, (*path, "valuesLists", row, "List", "items", at))
            if at >= len(columns):
                columns.append([])
            columns[at].append(got)
    outputs = [
        Output(f"column{at + 1}", got.origins, None, False, got.opaque)
        for at, got in enumerate(map(union, columns))
    ]
    _order(walker, node, frame, path, outputs)
    limit, offset = limits(walker, node, frame, path)
    many = any(sets(one) for one in lists)
    return Found(tuple(outputs), False, Rows(limit, None if many else len(lists)), offset)


def _set_operation(walker: Walker, node: Node, frame: Frame, path: Path) -> Found:
    left, right = (select(walker, node[side], frame, (*path, side)) for side in ("larg", "rarg"))
    outputs: list[Output] = []
    for index in range(max(len(left.outputs), len(right.outputs))):
        both = [side.outputs[index] for side in (left, right) if index < len(side.outputs)]
        value = union(Value(one.origins, one.opaque) for one in both)
        if len({one.origins for one in both}) > 1 or len(both) < 2:
            value = through(value, "value")
        outputs.append(Output(both[0].name, value.origins, None, False, value.opaque))
    if left.open or right.open:  # positions do not match: any column may be any
        value = union((left.value, right.value))
        outputs = [Output(one.name, value.origins, None, False, value.opaque) for one in outputs]
    if not (node["op"] == "SETOP_UNION" and node.get("all")):
        walker.facts.probe(union(Value(one.origins, one.opaque) for one in outputs))
    _order(walker, node, frame, path, outputs, inputs=False)
    limit, offset = limits(walker, node, frame, path)
    most = _most(left.rows), _most(right.rows)
    total = most[0] + most[1] if most[0] is not None and most[1] is not None else None
    return Found(tuple(outputs), left.open or right.open, Rows(limit, total), offset)


def _most(rows: Rows) -> int | None:
    """The most rows by what stands in the text; a parameter is not known."""
    known = [one for one in (rows.most, rows.limit.literal if not rows.ties else None) if one is not None]
    return min(known) if known else None
