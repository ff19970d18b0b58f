# SPDX-License-Identifier: Apache-2.0
"""What is written to a filter's column, and query vectors: constants at once, parameters at Bind.

Owns which expression is written where, and whether it is the filter's value. Bias: what is not a constant, a
parameter, or that very column of rows read through the filter, is not known to be it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final

from agent.engines import pgvector_nodes as nodes
from agent.engines import pgvector_values as values
from agent.engines.pgvector_level import UNIT, distances, is_unit
from agent.engines.pgvector_nodes import Node
from agent.engines.sql_parse import find
from agent.engines.sql_tree import Path, Resolved, Statement, Write
from agent.protocols.http import Refusal
from agent.protocols.sql_made import Parameter
from policy.model import Scalar, Verdict

_PLAIN_CASTS: Final = frozenset(
    {"text", "varchar", "int2", "int4", "int8", "bool", "uuid", "float8", "numeric"}
)


def _keys(filters: Sequence[tuple[str, Scalar]]) -> Iterator[tuple[str, Scalar]]:
    for key, value in filters:
        yield key.rpartition(".")[2], value


def written(
    statement: Statement, tree: Node, filters: Sequence[tuple[str, Scalar]]
) -> Iterator[tuple[str, Scalar, Any]]:
    """(key, value it must have, node that is written) of every write; the node None where there is none."""
    here: Statement | None = statement
    while here is not None:
        read = {one.path for one in here.references if one.use == "read" and one.relation is not None}
        for write in here.writes:
            for key, value in _keys(filters):
                yield from ((key, value, node) for node in _values(write, tree, key, read))
        here = here.inner if here.command not in ("EXECUTE", "FETCH", "MOVE") else None


def _values(write: Write, tree: Node, key: str, read: set[Path]) -> Iterator[Any]:
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
    yield _selected(write, tree, at, read)


def _selected(write: Write, tree: Node, at: int, read: set[Path]) -> Any:
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
    if at >= len(targets):
        return None
    value = targets[at]["ResTarget"].get("val")
    place: Path = (*write.reference.within, "selectStmt", "SelectStmt", "fromClause", 0)
    return FILTERED if place in read and _is_filtered(inner, value, write.columns[at]) else value


FILTERED: Final[Node] = {"Filtered": {}}
"""In the place of a value: the filter's own column of rows that were read through the filter."""


def _is_filtered(body: Node, value: Any, key: str) -> bool:
    """The filter's column of the one relation that is read: every row of it has the filter's value."""
    kind, inner = nodes.kind_of(value)
    sources = body.get("fromClause", ())
    if kind != "ColumnRef" or len(sources) != 1:
        return False
    _, variable = nodes.kind_of(sources[0])
    alias = variable.get("alias", {})
    names = nodes.names_of(inner["fields"])
    own = alias.get("aliasname", variable.get("relname", ""))
    return "colnames" not in alias and names in ((key,), (own, key))


def check_literals(
    tree: Node, statement: Statement, filters: Sequence[tuple[str, Scalar]], rule: str
) -> None:
    """Every value that is written to a filter's column is its value, or a parameter that Bind will tell."""
    for key, value, node in written(statement, tree, filters):
        kind, inner = nodes.kind_of(plain(node))
        if kind in ("ParamRef", "Filtered"):
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
