# SPDX-License-Identifier: Apache-2.0
"""FROM: which relations, subqueries and functions a query's rows come from, and how they are called there.

Owns entries of FROM, joins and WITH. Bias: an entry that is not known makes the statement unknown; a name
that WITH gives hides a table only where PostgreSQL lets it (docs 7.8).
"""

from __future__ import annotations

from typing import Any, Final

from agent.engines.sql_expressions import Walker, compares, expression, listed
from agent.engines.sql_functions import system_relation
from agent.engines.sql_parse import names
from agent.engines.sql_scope import (
    ANYTHING,
    NOTHING,
    Cell,
    Cte,
    Found,
    Frame,
    Item,
    Rows,
    Value,
    through,
    union,
)
from agent.engines.sql_tree import Node, Origin, Path, Reference, Use
from agent.protocols.sql import Fault
from policy.model import ANY_COLLECTION, Action

_NOT_LISTED: Final = ("pg_temp_", "pg_toast")
"""Schemas of relations that may be there and no catalog of ours holds."""
MAX_ROUNDS: Final = 8
"""Times a recursive query is gone through until its columns stay what they are."""


def relation_name(node: Node) -> tuple[str | None, str]:
    """(schema, name) of a RangeVar."""
    return node.get("schemaname"), node.get("relname", "")


def refer(
    walker: Walker,
    node: Node,
    path: Path,
    within: Path,
    use: Use,
    outer: bool = False,
    sampled: Path | None = None,
) -> Item:
    """A RangeVar that is a relation of the catalog or the system: the reference, and its columns."""
    schema, name = relation_name(node)
    facts = walker.facts
    scope = facts.scope
    alias = node.get("alias", {})
    called = alias.get("aliasname") or name
    system = scope.is_system(schema, name)
    relation = None if system else scope.relation(schema, name)
    written = name if schema is None else f"{schema}.{name}"
    if "catalogname" in node:
        facts.puzzle("a name with a database in it")
    facts.references.append(
        Reference(
            path, within, relation, written, called, use,
            only=not node.get("inh", False), outer=outer, system=system is not None,
            column_aliases="colnames" in alias, sampled=sampled,
        )
    )  # fmt: skip
    if system is not None:
        action = system_relation(system, name)
        facts.act(action)
        if action is Action.UNKNOWN:
            facts.puzzle(f"{name} may show values of rows, or other clients' statements")
        if use != "read":
            facts.puzzle("it changes a relation of the system")
        return Item(called, [], None if alias else schema, open=NOTHING, system=True)
    if relation is None:
        facts.carries = False
        value = Value(frozenset({Origin(0, 0, ANY_COLLECTION, False, "column")}), opaque=True)
        if not scope.guess:
            missing = Fault("42P01", f'relation "{written}" does not exist')
            fault = None if (schema or "").startswith(_NOT_LISTED) else missing
            facts.puzzle(f"there is no relation {written!r} that is known", fault)
        return Item(called, [], None if alias else schema, open=value, guessed=scope.guess)
    facts.touch(relation)
    cells: list[Cell] = [(cell, Value(origins, opaque)) for cell, origins, opaque in scope.columns(relation)]
    return Item(called, renamed(cells, alias), None if alias else relation.schema, relation)


def renamed(cells: list[Cell], alias: Node) -> list[Cell]:
    """Columns under the names that AS t(a, b) gives them."""
    given = names(alias.get("colnames"))
    return [(given[at] if at < len(given) else name, value) for at, (name, value) in enumerate(cells)]


def entry(walker: Walker, node: Node, frame: Frame, path: Path, within: Path, outer: bool) -> Item:
    """One entry of FROM. It is added to the frame by the caller, so that only LATERAL sees its siblings."""
    ((kind, inner),) = node.items()
    at = (*path, kind)
    match kind:
        case "RangeVar":
            return _named(walker, inner, frame, path, within, outer)
        case "RangeSubselect":
            inside = frame if inner.get("lateral") else frame.parent
            found = walker.query(walker, inner["subquery"], inside, (*at, "subquery"))
            alias = inner.get("alias", {})
            opened = found.value if found.open else None
            return Item(alias.get("aliasname", ""), renamed(found.cells, alias), open=opened, rows=found.rows)
        case "RangeFunction":
            return _function(walker, inner, frame, at)
        case "RangeTableSample":
            if names(inner.get("method"))[-1:] not in (("system",), ("bernoulli",)):
                walker.facts.puzzle("how TABLESAMPLE picks rows is not known")
            listed(walker, inner.get("args"), frame, (*at, "args"))
            if "repeatable" in inner:
                expression(walker, inner["repeatable"], frame, (*at, "repeatable"))
            ((_, table),) = inner["relation"].items()
            return refer(walker, table, (*at, "relation"), within, "read", outer, sampled=path)
        case "RangeTableFunc":
            return _table_function(walker, inner, frame, at, ("docexpr", "rowexpr", "namespaces"))
        case "JsonTable":
            return _table_function(walker, inner, frame, at, ("context_item", "passing", "pathspec"))
    walker.facts.puzzle(f"an entry of FROM of the kind {kind} is not known")
    return Item("", [], open=ANYTHING)


def _named(walker: Walker, node: Node, frame: Frame, path: Path, within: Path, outer: bool) -> Item:
    schema, name = relation_name(node)
    cte = frame.cte(name) if schema is None else None
    if cte is None:
        return refer(walker, node, path, within, "read", outer)
    resolve(walker, cte)
    alias = node.get("alias", {})
    return Item(
        alias.get("aliasname") or name, renamed(list(cte.cells or ()), alias), open=cte.open, rows=cte.rows
    )


def _function(walker: Walker, node: Node, frame: Frame, path: Path) -> Item:
    """FROM f(x): what it gives is made of its arguments; its columns are known by their aliases alone."""
    values: list[Value] = []
    single: list[str] = []
    for index, function in enumerate(node["functions"]):
        items = function["List"]["items"]
        here = (*path, "functions", index, "List", "items")
        values.append(through(expression(walker, items[0], frame, (*here, 0)), "value"))
        call = items[0].get("FuncCall")
        single.append(names(call["funcname"])[-1] if call else "value")
    alias = node.get("alias", {})
    called = alias.get("aliasname") or single[0]
    value = union(values)
    given = names(alias.get("colnames")) or tuple(
        one["ColumnDef"].get("colname", "") for one in node.get("coldeflist", ()) if "ColumnDef" in one
    )
    cells: list[Cell] = [(name, value) for name in given]
    return Item(called, cells, open=value)


def _table_function(walker: Walker, node: Node, frame: Frame, path: Path, parts: tuple[str, ...]) -> Item:
    """XMLTABLE and JSON_TABLE: columns of a document."""
    value = through(
        union(_part(walker, node[part], frame, (*path, part)) for part in parts if part in node), "value"
    )
    for index, column in enumerate(node.get("columns", ())):
        _, inner = next(iter(column.items()))
        for part in ("colexpr", "coldefexpr"):
            if part in inner:
                value = union(
                    (value, expression(walker, inner[part], frame, (*path, "columns", index, part)))
                )
    alias = node.get("alias", {})
    return Item(alias.get("aliasname", ""), [], open=value)


def _part(walker: Walker, node: Any, frame: Frame, path: Path) -> Value:
    if node.__class__ is list:
        return listed(walker, node, frame, path)
    if len(node) == 1 and next(iter(node))[:1].isupper():
        return expression(walker, node, frame, path)
    return union(
        _part(walker, value, frame, (*path, key))
        for key, value in node.items()
        if value.__class__ in (dict, list)
    )


# Joins.


def add(
    walker: Walker, node: Node, frame: Frame, path: Path, within: Path, outer: bool = False
) -> list[Item]:
    """One entry of FROM or a join into the frame; the entries that it brought."""
    if "JoinExpr" not in node:
        item = entry(walker, node, frame, path, within, outer)
        frame.items.append(item)
        return [item]
    join, at = node["JoinExpr"], (*path, "JoinExpr")
    kind = join.get("jointype", "JOIN_INNER")
    left = add(
        walker, join["larg"], frame, (*at, "larg"), within, outer or kind in ("JOIN_RIGHT", "JOIN_FULL")
    )
    right = add(
        walker, join["rarg"], frame, (*at, "rarg"), within, outer or kind in ("JOIN_LEFT", "JOIN_FULL")
    )
    merged = _merge(walker, join, frame, left, right)
    if "quals" in join:
        inside = Frame(frame.parent, [*left, *right], list(frame.merged))
        inside.ctes = frame.ctes
        walker.facts.filtered = True
        walker.facts.probing += 1
        walker.facts.probe(expression(walker, join["quals"], inside, (*at, "quals")))
        walker.facts.probing -= 1
    alias = join.get("alias")
    if not alias:
        if "join_using_alias" in join:
            frame.items.append(Item(join["join_using_alias"].get("aliasname", ""), merged, starless=True))
        return [*left, *right]
    return [_covered(frame, alias, merged, [*left, *right])]


def _covered(frame: Frame, alias: Node, merged: list[Cell], inside: list[Item]) -> Item:
    """(a JOIN b) AS j: only j can be named from here on."""
    opened = [item.open for item in inside if item.open is not None]
    cells = merged + [cell for item in inside for cell in item.cells if cell[0] not in item.used]
    covering = Item(
        alias.get("aliasname", ""), renamed(cells, alias), open=union(opened) if opened else None,
        system=bool(opened) and all(item.system for item in inside if item.open is not None),
    )  # fmt: skip
    for item in inside:
        frame.items.remove(item)
    frame.merged = [cell for cell in frame.merged if cell not in merged]
    frame.items.append(covering)
    return covering


def _merge(walker: Walker, join: Node, frame: Frame, left: list[Item], right: list[Item]) -> list[Cell]:
    """USING and NATURAL: one column out of two."""
    if join.get("isNatural"):
        ours, theirs = ({cell for item in side for cell, _ in item.cells} for side in (left, right))
        common = [
            name for name in dict.fromkeys(c for item in left for c, _ in item.cells) if name in theirs & ours
        ]
        if any(item.open is not None for item in (*left, *right)):
            walker.facts.puzzle("a NATURAL JOIN with columns that are not known")
    else:
        common = list(names(join.get("usingClause")))
    merged: list[Cell] = []
    for name in common:
        values = [value for item in (*left, *right) if (value := item.find(name)) is not None]
        values += [value for cell, value in frame.merged if cell == name]
        values += [item.open for item in (*left, *right) if item.open is not None]
        value = union(values)
        walker.facts.probe(value)
        outer = join.get("jointype") in ("JOIN_FULL", "JOIN_RIGHT")
        merged.append((name, through(value, "value") if outer or len(value.origins) > 1 else value))
        for item in (*left, *right):
            item.used |= {name}
    if common:
        walker.facts.filtered = True
        compares(walker.facts)
    frame.merged = [cell for cell in frame.merged if cell[0] not in common] + merged
    return merged


# WITH.


def open_with(walker: Walker, node: Node, frame: Frame, path: Path) -> None:
    """The names of a WITH clause into the frame; each is gone through once, whether or not it is used."""
    recursive = node.get("recursive", False)
    made: list[Cte] = []
    for index, one in enumerate(node["ctes"]):
        cte = one["CommonTableExpr"]
        seen = Frame(frame, ctes={} if recursive else dict(frame.ctes))
        made.append(Cte(cte["ctename"], cte, (*path, "ctes", index, "CommonTableExpr"), seen, recursive))
        if recursive:
            continue
        resolve(walker, made[-1])
        frame.ctes = {**frame.ctes, cte["ctename"]: made[-1]}
    if recursive:
        frame.ctes = {**frame.ctes, **{cte.name: cte for cte in made}}
        for cte in made:
            resolve(walker, cte)


def resolve(walker: Walker, cte: Cte) -> None:
    """The columns of a WITH query. A recursive one is gone through until they no longer grow.

    What is found on each round is the same by its path in the tree, so nothing is counted twice.
    """
    if cte.busy:
        cte.again = True
        if cte.cells is None:
            walker.facts.puzzle("WITH queries that use each other")
            cte.cells, cte.open = [], ANYTHING
        return
    if cte.cells is not None:
        return
    cte.busy = True
    query, path = cte.node["ctequery"], (*cte.path, "ctequery")
    select = query.get("SelectStmt", {})
    if cte.recursive and select.get("op", "SETOP_NONE") != "SETOP_NONE" and "withClause" not in select:
        first = walker.select(walker, select["larg"], cte.frame, (*path, "SelectStmt", "larg"))
        cte.cells, cte.open = _columns(cte, first), first.value if first.open else None
    for _ in range(MAX_ROUNDS):
        cte.again, before = False, cte.cells
        found = walker.query(walker, query, cte.frame, path)
        cte.cells, cte.open, cte.rows = (
            _columns(cte, found),
            found.value if found.open else cte.open,
            found.rows,
        )
        if not cte.again or cte.cells == before:
            break
    else:
        cte.cells = [(name, ANYTHING) for name, _ in cte.cells or ()]
    if cte.again:
        cte.rows = Rows()
    cte.busy = False


def _columns(cte: Cte, found: Found) -> list[Cell]:
    cells = renamed(found.cells, {"colnames": cte.node.get("aliascolnames", [])})
    value = through(found.value, "value")
    search, cycle = cte.node.get("search_clause", {}), cte.node.get("cycle_clause", {})
    added = (
        search.get("search_seq_column"), cycle.get("cycle_mark_column"), cycle.get("cycle_path_column")
    )  # fmt: skip
    return cells + [(name, value) for name in added if name]
