# SPDX-License-Identifier: Apache-2.0
"""INSERT, UPDATE, DELETE, MERGE and COPY FROM brought under filters and hidden columns.

Owns the relation that is written, which no subquery can stand for: conditions are added to the
statement's own, written values are checked against the filter, and a mention of a hidden column of it is
refused. Relations such a statement reads are ``pgvector_wrap``'s. Bias: a value that is not a constant or
a parameter is not known to be the filter's, and refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from struct import Struct
from typing import Any, Final

from agent.engines import pgvector_nodes as nodes
from agent.engines import pgvector_values as values
from agent.engines.pgvector_hidden import Hidden, Treatment
from agent.engines.pgvector_level import UNIT, distances, is_free, is_unit, operand
from agent.engines.pgvector_nodes import DISTANCE_OPERATORS, Node
from agent.engines.pgvector_wrap import condition
from agent.engines.sql_parse import find
from agent.engines.sql_tree import Path, Reference, Relation, Resolved, Statement, Write
from agent.protocols.http import Refusal
from agent.protocols.sql import Parameter
from policy.model import Scalar, Verdict

Treatments = Callable[[Relation], Mapping[int, Treatment]]

_TARGETS: Final = frozenset({"insert", "update", "delete", "merge"})
_BODIES: Final = {
    "insert": "InsertStmt",
    "update": "UpdateStmt",
    "delete": "DeleteStmt",
    "merge": "MergeStmt",
}
_PLAIN_CASTS: Final = frozenset(
    {"text", "varchar", "int2", "int4", "int8", "bool", "uuid", "float8", "numeric"}
)


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


def _keys(filters: Sequence[tuple[str, Scalar]]) -> Iterator[tuple[str, Scalar]]:
    for key, value in filters:
        yield key.rpartition(".")[2], value


def written(
    statement: Statement, tree: Node, filters: Sequence[tuple[str, Scalar]]
) -> Iterator[tuple[str, Scalar, Any]]:
    """(key, value it must have, node that is written) of every write; the node None where there is none."""
    here: Statement | None = statement
    while here is not None:
        for write in here.writes:
            for key, value in _keys(filters):
                yield from ((key, value, node) for node in _values(write, tree, key))
        here = here.inner if here.command not in ("EXECUTE", "FETCH", "MOVE") else None


def _values(write: Write, tree: Node, key: str) -> Iterator[Any]:
    if write.conflict is not None:
        clause = find(tree, write.conflict)
        clause = nodes.kind_of(clause)[1] or clause
        for one in clause.get("targetList", ()):
            if one["ResTarget"].get("name") == key:
                yield one["ResTarget"].get("val")
    if write.source == "set":
        if key in write.columns:
            at = write.columns.index(key)
            for row in write.values:
                yield find(tree, row[at])
        return
    if key not in write.columns or write.source in ("default", "copy"):
        yield None
        return
    at = write.columns.index(key)
    if write.source == "values":
        for row in write.values:
            yield find(tree, row[at]) if at < len(row) else None
        return
    yield _selected(write, tree, at)


def _selected(write: Write, tree: Node, at: int) -> Any:
    """What INSERT ... SELECT writes into its column `at`, where the SELECT says it plainly."""
    body = find(tree, write.reference.within)
    kind, inner = nodes.kind_of(body.get("selectStmt"))
    if kind != "SelectStmt" or inner.get("op") != "SETOP_NONE" or "targetList" not in inner:
        return None
    targets = inner["targetList"]
    if any(
        nodes.names_of(found["fields"])[-1] == "*"
        for one in targets
        for kind, found in [nodes.kind_of(one["ResTarget"].get("val"))]
        if kind == "ColumnRef"
    ):
        return None
    return targets[at]["ResTarget"].get("val") if at < len(targets) else None


def check_literals(
    tree: Node, statement: Statement, filters: Sequence[tuple[str, Scalar]], rule: str
) -> None:
    """Every value that is written to a filter's column is its value, or a parameter that Bind will tell."""
    for key, value, node in written(statement, tree, filters):
        kind, inner = nodes.kind_of(plain(node))
        if kind == "ParamRef":
            continue
        if kind == "ColumnRef" and nodes.names_of(inner["fields"]) == ("excluded", key):
            continue  # the row that was to be inserted, which is checked
        if kind == "A_Const" and holds(inner, value):
            continue
        raise Refusal("filter", f"denied by rule {rule}: rows that are written must have {key} = {value!r}")


def plain(node: Any) -> Any:
    """A value without a cast that cannot change it."""
    kind, inner = nodes.kind_of(node)
    if kind == "TypeCast":
        name = inner["typeName"]
        is_plain = nodes.names_of(name.get("names", ()))[-1] in _PLAIN_CASTS and not name.get("typmods")
        if is_plain and not name.get("arrayBounds"):
            return inner["arg"]
    return node


def holds(constant: Node, value: Scalar) -> bool:
    """Whether an A_Const is exactly this scalar (a text is no number)."""
    if isinstance(value, bool):
        return "boolval" in constant and constant["boolval"].get("boolval", False) is value
    if isinstance(value, str):
        return "sval" in constant and constant["sval"].get("sval", "") == value
    if "ival" in constant:
        return bool(constant["ival"].get("ival", 0) == value)
    return "fval" in constant and _number(constant["fval"].get("fval", "")) == value


def _number(text: str) -> float | int | None:
    try:
        if not text.isascii() or "_" in text:
            return None
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return None


def check_parameters(resolved: Resolved, parameters: Sequence[Parameter], verdict: Verdict) -> None:
    """At Bind: parameters that are written to a filter's column have its value. Raises Refusal."""
    if not verdict.filters or resolved.tree is None:
        return
    rule = verdict.filter_rules[0] if verdict.filter_rules else ""
    for statement in resolved.statements:
        for key, value, node in written(statement, dict(resolved.tree), verdict.filters):
            kind, inner = nodes.kind_of(plain(node))
            if kind != "ParamRef":
                continue
            number = inner.get("number", 0)
            given = parameters[number - 1] if 0 < number <= len(parameters) else None
            if given is None or not equals(given, value):
                raise Refusal(
                    "filter", f"denied by rule {rule}: rows that are written must have {key} = {value!r}"
                )


def check_queries(resolved: Resolved, parameters: Sequence[Parameter], verdict: Verdict) -> None:
    """At Bind: query vectors against `refuse_unit_vectors`, where vectors are hidden. Raises Refusal."""
    if (verdict.vectors and verdict.fields is None) or resolved.tree is None:
        return
    for distance in distances(nodes.below(dict(resolved.tree))):
        for kind, inner, _ in nodes.below(list(distance.sides)):
            number = inner.get("number", 0) if kind == "ParamRef" else 0
            given = parameters[number - 1] if 0 < number <= len(parameters) else None
            if given is not None and given.value is not None and is_unit(_vector_text(given)):
                raise Refusal("probe-vector", UNIT)


def _vector_text(given: Parameter) -> str:
    """A vector parameter in text; a binary one of 4-byte floats by its own form."""
    value = given.value or b""
    if given.format == 0:
        return value.decode("utf-8", "replace")
    many = int.from_bytes(value[:2], "big")
    if len(value) != 4 + 4 * many:
        return ""
    return ",".join(str(number) for number in Struct(f"!{many}f").unpack_from(value, 4))


def equals(given: Parameter, value: Scalar) -> bool:
    """Whether a Bind parameter is this scalar, by its type. What cannot be read is not."""
    if given.value is None:
        return False
    kind = given.type
    if given.format == 1 and kind in (0, values.UNKNOWN):
        return False
    try:
        text = values.text_of(kind, given.value, given.format == 1)
    except values.Unreadable:
        return False
    return holds_text(kind, text, value)


def holds_text(kind: int, text: str, value: Scalar) -> bool:
    """Whether a value of a type, in text, is this scalar."""
    if isinstance(value, bool):
        return text.lower() in (("t", "true", "1", "on") if value else ("f", "false", "0", "off"))
    if isinstance(value, str):
        if kind == values.BPCHAR:
            return text.rstrip(" ") == value.rstrip(" ")
        return (
            _uuid(text) is not None and _uuid(text) == _uuid(value) if kind == values.UUID else text == value
        )
    return _number(text) == value


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
