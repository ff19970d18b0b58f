# SPDX-License-Identifier: Apache-2.0
"""INSERT, UPDATE, DELETE, MERGE and COPY FROM brought under filters and hidden columns.

Owns the relation that is written, which no subquery can stand for: conditions are added to the
statement's own, written values are checked against the filter, and a mention of a hidden column of it is
refused. Relations such a statement reads are ``pgvector_wrap``'s. Bias: a value that is not a constant or
a parameter is not known to be the filter's, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from agent.engines import pgvector_nodes as nodes
from agent.engines.pgvector_hidden import Hidden, Treatment
from agent.engines.pgvector_level import is_free, operand
from agent.engines.pgvector_nodes import DISTANCE_OPERATORS, Node
from agent.engines.pgvector_wrap import condition
from agent.engines.pgvector_written import check_literals
from agent.engines.sql_parse import find
from agent.engines.sql_tree import Path, Reference, Relation, Statement
from agent.protocols.http import Refusal
from policy.model import Scalar

Treatments = Callable[[Relation], Mapping[int, Treatment]]

_TARGETS: Final = frozenset({"insert", "update", "delete", "merge"})
_BODIES: Final = {
    "insert": "InsertStmt",
    "update": "UpdateStmt",
    "delete": "DeleteStmt",
    "merge": "MergeStmt",
}


def bring_writes(
    tree: Node,
    statement: Statement,
    touched: Sequence[Reference],
    hidden: Hidden,
    treatments: Treatments,
    fence: bool,
    outermost: Path,
) -> bool:
    """Change the writing bodies of a statement in place. Whether any changed. Raises Refusal."""
    rule = hidden.filter_rules[0] if hidden.filter_rules else ""
    changed = False
    for reference in touched:
        relation = reference.relation
        if relation is None or reference.use in ("read", "copy-out"):
            continue
        if reference.use in _TARGETS:
            body = find(tree, reference.within)
            _check_hidden(body, reference, treatments(relation), reference.within == outermost)
            if hidden.filters:
                changed |= _narrow(body, reference, relation, hidden.filters, rule, fence)
        elif hidden.filters:
            raise Refusal(
                "filter", f"denied by rule {rule}: {statement.command} cannot carry the policy's filter"
            )
    if hidden.filters:
        check_literals(tree, statement, hidden.filters, rule)
    return changed


# Hidden columns of the relation that is written.


def _check_hidden(
    body: Node, reference: Reference, treatments: Mapping[int, Treatment], outermost: bool
) -> None:
    """What the statement says of its target must not need a hidden column; RETURNING a bare one may be
    asked for, because who masks rows finds it by its origin."""
    relation = reference.relation
    if not treatments or relation is None:
        return
    names = {one.name: treatments[one.number] for one in relation.columns if one.number in treatments}
    aliases = {reference.alias, "old", "new", "excluded", *_returning_aliases(body)}
    returning = body.get("returningClause", {})
    columns = {one.name for one in relation.columns} | {"*"}
    skipped = {id(one) for one in _bare(returning, columns)} if outermost else set()
    for name, part in body.items():
        if name == "withClause":
            continue
        for found in _mentioned(part, names, aliases, skipped, relation):
            treatment = names.get(found[-1]) or next(iter(names.values()))
            what = found[-1] if found[-1] in names else f"{relation.name}.{found[-1]}"
            raise Refusal(
                "masked-value",
                f"denied by rule {treatment.rule}: {what} is masked and may not be used in a statement that "
                "writes",
            )


def _returning_aliases(body: Node) -> Iterator[str]:
    for option in body.get("returningClause", {}).get("options", ()):
        _, inner = nodes.kind_of(option)
        if "value" in inner:
            yield inner["value"]


def _bare(returning: Node, columns: set[str]) -> Iterator[Node]:
    """Outputs that are a column or a star, and not the row."""
    for one in returning.get("exprs", ()):
        value = one.get("ResTarget", {}).get("val")
        kind, inner = nodes.kind_of(value)
        if kind == "ColumnRef" and nodes.names_of(inner["fields"])[-1] in columns:
            yield value


def _mentioned(
    part: Any,
    names: Mapping[str, Treatment],
    aliases: set[str],
    skipped: set[int],
    relation: Relation,
) -> Iterator[tuple[str, ...]]:
    columns = {one.name for one in relation.columns}
    free = {id(place) for place in _distances(part, names)}
    for kind, inner, place in nodes.below(part):
        if kind != "ColumnRef" or id(place) in skipped or id(place) in free:
            continue
        found = nodes.names_of(inner["fields"])
        qualified = len(found) == 1 or found[-2] in aliases
        whole = (len(found) == 1 and found[0] in aliases and found[0] not in columns) or (
            len(found) > 1 and found[-1] == "*" and found[-2] in aliases
        )
        if (
            (found[-1] in names and qualified)
            or whole
            or (found == ("*",) and not skipped and _is_star(part))
        ):
            yield found


def _is_star(part: Any) -> bool:
    """A bare star in RETURNING (that of a subquery is of its own FROM)."""
    return part.__class__ is dict and any(
        nodes.names_of(one["fields"]) == ("*",)
        for target in part.get("exprs", ())
        for kind, one in [nodes.kind_of(target.get("ResTarget", {}).get("val"))]
        if kind == "ColumnRef"
    )


def _distances(part: Any, names: Mapping[str, Treatment]) -> Iterator[Node]:
    """Hidden vectors that are only operands of a distance to a vector of the client's own."""
    for kind, inner, _ in nodes.below(part):
        if kind == "A_Expr" and "lexpr" in inner and nodes.names_of(inner["name"])[-1] in DISTANCE_OPERATORS:
            for own, other in ((inner["lexpr"], inner["rexpr"]), (inner["rexpr"], inner["lexpr"])):
                place = operand(own)
                if place is not None and is_free(other):
                    name = nodes.names_of(place["ColumnRef"]["fields"])[-1]
                    if name in names and names[name].how == "vector":
                        yield place


# Filters.


def _narrow(
    body: Node,
    reference: Reference,
    relation: Relation,
    filters: Sequence[tuple[str, Scalar]],
    rule: str,
    fence: bool,
) -> bool:
    """The filter as a condition of the statement's own. Raises Refusal where it has no place."""
    where = condition(relation, reference.alias, filters, rule)
    if where is None:
        return False
    if reference.use == "insert":
        return _narrow_conflict(body, where)
    if fence:
        raise Refusal(
            "filter",
            f"denied by rule {rule}: a condition of this statement could raise an error on rows outside of "
            "the filter",
        )
    if reference.use == "merge":
        for clause in body.get("mergeWhenClauses", ()):
            _, inner = nodes.kind_of(clause)
            if inner.get("matchKind") != "MERGE_WHEN_NOT_MATCHED_BY_TARGET":
                inner["condition"] = _and(inner.get("condition"), where)
        return True
    if any(kind == "CurrentOfExpr" for kind, _, _ in nodes.below(body.get("whereClause"))):
        raise Refusal("filter", f"denied by rule {rule}: WHERE CURRENT OF cannot carry the policy's filter")
    body["whereClause"] = _and(body.get("whereClause"), where)
    return True


def _and(own: Node | None, ours: Node) -> Node:
    """The client's condition and ours; ours first, each whole."""
    return ours if own is None else nodes.both(ours, own)


def _narrow_conflict(body: Node, where: Node) -> bool:
    """ON CONFLICT DO UPDATE changes a row that is there: only one within the filter."""
    clause = body.get("onConflictClause")
    if clause is None or clause.get("action") != "ONCONFLICT_UPDATE":
        return False
    clause["whereClause"] = _and(clause.get("whereClause"), where)
    return True
