# SPDX-License-Identifier: Apache-2.0
"""INSERT, UPDATE, DELETE and MERGE, as statements and inside of WITH.

Owns what is written, from where, and what RETURNING shows. Bias: a value that reaches a row from another
relation is told (`Write.flows`), so that nothing hidden can be copied to where it is not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from agent.engines.sql_expressions import Walker, expression
from agent.engines.sql_from import add, open_with, refer
from agent.engines.sql_rows import by_key
from agent.engines.sql_scope import NOTHING, Found, Frame, Item, Rows, Value, union
from agent.engines.sql_select import condition, targets
from agent.engines.sql_tree import Node, Path, Reference, Use, Write
from policy.model import Action


def write(walker: Walker, kind: str, node: Node, parent: Frame | None, path: Path) -> Found:
    """The body of a statement that writes; `path` leads to it."""
    frame = Frame(parent)
    if "withClause" in node:
        open_with(walker, node["withClause"], frame, (*path, "withClause"))
    match kind:
        case "InsertStmt":
            return _insert(walker, node, frame, path)
        case "UpdateStmt":
            return _update(walker, node, frame, path)
        case "DeleteStmt":
            return _delete(walker, node, frame, path)
    return _merge(walker, node, frame, path)


def _target(walker: Walker, node: Node, path: Path, use: Use) -> tuple[Item, Reference]:
    """The relation that is written to; a name of WITH does not hide it."""
    item = refer(walker, node["relation"], (*path, "relation"), path, use)
    return item, walker.facts.references[-1]


def _columns(item: Item, node: Node) -> tuple[str, ...]:
    named = tuple(one["ResTarget"].get("name", "") for one in node.get("cols", ()))
    if named or item.relation is None:
        return named
    return tuple(one.name for one in item.relation.columns)


def _insert(walker: Walker, node: Node, frame: Frame, path: Path) -> Found:
    facts = walker.facts
    item, reference = _target(walker, node, path, "insert")
    facts.act(Action.WRITE)
    at = (*path, "selectStmt", "SelectStmt")
    query = node.get("selectStmt", {}).get("SelectStmt")
    found = Found(())
    values: tuple[tuple[Path, ...], ...] = ()
    rows: int | None = 1
    if query is not None:
        found = walker.select(walker, query, frame, at)
        lists = query.get("valuesLists") if query.get("op", "SETOP_NONE") == "SETOP_NONE" else None
        rows = found.rows.most if lists is None else len(lists)
        values = tuple(
            tuple(
                (*at, "valuesLists", row, "List", "items", index)
                for index in range(len(one["List"].get("items", ())))
            )
            for row, one in enumerate(lists or ())
        )
    source: Literal["values", "query", "default"]
    source = "default" if query is None else "values" if values else "query"
    made = Write(
        reference,
        _columns(item, node),
        source,
        rows,
        values,
        flows=found.value.origins,
        flows_opaque=found.value.opaque or found.open,
    )
    conflict = node.get("onConflictClause")
    inside = Frame(frame, [item, Item("excluded", [(name, NOTHING) for name, _ in item.cells])])
    inside.items[1].open = NOTHING if item.open is not None else None
    if conflict is not None:
        made = _conflict(walker, conflict, inside, (*path, "onConflictClause"), made)
    facts.writes.append(made)
    updates = conflict is not None and conflict.get("action") == "ONCONFLICT_UPDATE"
    outputs = _returning(walker, node, Frame(frame, [item]), path, item)
    if outputs is None:
        return Found(())
    if updates:
        facts.act(Action.READ)
    return replace(outputs, rows=Rows(most=rows))


def _conflict(walker: Walker, node: Node, frame: Frame, path: Path, made: Write) -> Write:
    facts = walker.facts
    infer = node.get("infer", {})
    own = Frame(frame.parent, frame.items[:1])
    for index, one in enumerate(infer.get("indexElems", ())):
        element = one["IndexElem"]
        if "expr" in element:
            facts.probe(expression(walker, element["expr"], own, (*path, "infer", "indexElems", index)))
        elif frame.items[0].open is None:
            facts.probe(frame.items[0].find(element.get("name", "")) or NOTHING)
    if "whereClause" in infer:
        condition(walker, infer["whereClause"], own, (*path, "infer", "whereClause"))
    if "whereClause" in node:
        facts.filtered = True
        condition(walker, node["whereClause"], frame, (*path, "whereClause"))
    value, columns, _ = _set(walker, node.get("targetList", ()), frame, (*path, "targetList"))
    return replace(
        made,
        conflict=path,
        conflict_columns=columns,
        flows=made.flows | value.origins,
        flows_opaque=made.flows_opaque or value.opaque,
    )


def _set(
    walker: Walker, nodes: Any, frame: Frame, path: Path
) -> tuple[Value, tuple[str, ...], tuple[Path, ...]]:
    """SET a = x, (b, c) = (y, z): the values, the columns, and where the values stand."""
    values: list[Value] = []
    columns: list[str] = []
    places: list[Path] = []
    for index, one in enumerate(nodes):
        target, at = one["ResTarget"], (*path, index, "ResTarget", "val")
        columns.append(target.get("name", ""))
        value = target["val"]
        if "MultiAssignRef" in value:
            at = (*at, "MultiAssignRef", "source")
            value = value["MultiAssignRef"]["source"]
            row = value.get("RowExpr", {}).get("args")
            number = target["val"]["MultiAssignRef"].get("colno", 1) - 1
            if row is not None and number < len(row):
                at, value = (*at, "RowExpr", "args", number), row[number]
        for step in target.get("indirection", ()):
            if "A_Indices" in step:
                values.append(expression(walker, step, frame, at))
        values.append(expression(walker, value, frame, at))
        places.append(at)
    return union(values), tuple(columns), tuple(places)


def _returning(walker: Walker, node: Node, frame: Frame, path: Path, item: Item) -> Found | None:
    clause = node.get("returningClause")
    if clause is None:
        return None
    known = {"old": "old", "new": "new"}
    for one in clause.get("options", ()):
        option = one["ReturningOption"]
        known["old" if option.get("option", "").endswith("OLD") else "new"] = option.get("value", "")
    around = Frame(frame.parent, [Item(name, item.cells, open=item.open) for name in known.values()])
    inside = Frame(around, frame.items, frame.merged)
    outputs, opened = targets(walker, clause.get("exprs", ()), inside, (*path, "returningClause", "exprs"))
    return Found(tuple(outputs), opened)


def _seen(walker: Walker, node: Node, found: Found | None, item: Item) -> Found:
    """What UPDATE or DELETE shows with RETURNING: rows by key, or a scan."""
    if found is None:
        return Found(())
    keyed = by_key(node, Frame(items=[item]))
    walker.facts.act(Action.SCAN if keyed is None else Action.READ)
    return replace(found, rows=Rows(most=keyed or None))


def _where(walker: Walker, node: Node, frame: Frame, path: Path) -> None:
    if "whereClause" in node:
        walker.facts.filtered = True
        condition(walker, node["whereClause"], frame, (*path, "whereClause"))


def _update(walker: Walker, node: Node, frame: Frame, path: Path) -> Found:
    facts = walker.facts
    item, reference = _target(walker, node, path, "update")
    facts.act(Action.WRITE)
    frame.items.append(item)
    for index, one in enumerate(node.get("fromClause", ())):
        add(walker, one, frame, (*path, "fromClause", index), path)
    if node.get("fromClause"):
        facts.act(Action.SCAN)
    _where(walker, node, frame, path)
    value, columns, places = _set(walker, node.get("targetList", ()), frame, (*path, "targetList"))
    facts.writes.append(
        Write(
            reference, columns, "set", None, (places,), flows=value.origins, flows_opaque=value.opaque
        )
    )  # fmt: skip
    return _seen(walker, node, _returning(walker, node, frame, path, item), item)


def _delete(walker: Walker, node: Node, frame: Frame, path: Path) -> Found:
    item, _ = _target(walker, node, path, "delete")
    walker.facts.act(Action.DELETE)
    frame.items.append(item)
    for index, one in enumerate(node.get("usingClause", ())):
        add(walker, one, frame, (*path, "usingClause", index), path)
    _where(walker, node, frame, path)
    found = _returning(walker, node, frame, path, item)
    if found is not None and node.get("usingClause"):
        walker.facts.act(Action.SCAN)
    return _seen(walker, node, found, item)


def _merge(walker: Walker, node: Node, frame: Frame, path: Path) -> Found:
    facts = walker.facts
    item, reference = _target(walker, node, path, "merge")
    facts.act(Action.WRITE)
    facts.act(Action.SCAN)
    frame.items.append(item)
    add(walker, node["sourceRelation"], frame, (*path, "sourceRelation"), path)
    facts.filtered = True
    condition(walker, node["joinCondition"], frame, (*path, "joinCondition"))
    for index, one in enumerate(node.get("mergeWhenClauses", ())):
        clause, at = one["MergeWhenClause"], (*path, "mergeWhenClauses", index, "MergeWhenClause")
        if "condition" in clause:
            condition(walker, clause["condition"], frame, (*at, "condition"))
        if clause.get("commandType") == "CMD_DELETE":
            facts.act(Action.DELETE)
        value, columns, places = _set(walker, clause.get("targetList", ()), frame, (*at, "targetList")) if (
            clause.get("commandType") == "CMD_UPDATE"
        ) else _inserted(walker, clause, frame, at)  # fmt: skip
        if columns or places:
            facts.writes.append(
                Write(
                    reference, columns or _columns(item, {}), "set", None, (places,),
                    flows=value.origins, flows_opaque=value.opaque,
                )
            )  # fmt: skip
    found = _returning(walker, node, frame, path, item)
    return Found(()) if found is None else found


def _inserted(
    walker: Walker, clause: Node, frame: Frame, path: Path
) -> tuple[Value, tuple[str, ...], tuple[Path, ...]]:
    """WHEN NOT MATCHED THEN INSERT (a, b) VALUES (x, y)."""
    places = tuple((*path, "values", index) for index in range(len(clause.get("values", ()))))
    value = union(
        expression(walker, one, frame, at)
        for one, at in zip(clause.get("values", ()), places, strict=True)
        if one
    )
    columns = tuple(one["ResTarget"].get("name", "") for one in clause.get("targetList", ()))
    return value, columns, places
