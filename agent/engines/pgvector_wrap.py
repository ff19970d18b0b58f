# SPDX-License-Identifier: Apache-2.0
"""A relation in FROM becomes what its reader may see of it: a subquery without the hidden, filtered.

Owns the replacement of references that are read. Each becomes ``(SELECT t.id, ..., NULL AS email FROM
app.docs t WHERE t.tenant = 'acme') AS docs``: whatever the statement does with ``docs`` (a cast, an
aggregate, a whole row, a correlated subquery) finds the mask's word or NULL where the column was, of the
same type. Nothing has to be proven of the client's expressions. Names of relations and columns are
qualified, so that a stale catalog makes an error and never another meaning.

What must reach a hidden column nevertheless (the operand of a distance, a column that is to become a
token on its way out) does so by names that nobody can write: the raw columns stand in a relation of
their own beside, ``(SELECT t.embedding AS v9c... FROM ...) AS v3f... CROSS JOIN LATERAL (SELECT ...) AS
docs``, and only the rewriting's own references use them. Planning flattens both forms, so that indexes
serve as before (tests/servers/test_sql_red_team.py compares plans).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agent.engines import pgvector_nodes as nodes
from agent.engines.pgvector_hidden import Treatment
from agent.engines.pgvector_nodes import Node
from agent.engines.pgvector_values import PLAIN_TEXT
from agent.engines.sql_tree import Attribute, Reference, Relation
from agent.protocols.http import Refusal

_INNER: Final = "t"  # within a subquery of ours, where every name is qualified by it


class Names:
    """Names that the client cannot know: of the key, the text that they are for, and a count.

    A text that repeats one of them is another text, for which they are others.
    """

    def __init__(self, key: bytes, text: str) -> None:
        self._seed = hmac.new(key, b"vecward names\0" + text.encode(), hashlib.sha256).digest()
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return "v" + hashlib.sha256(self._seed + self._count.to_bytes(4, "big")).hexdigest()[:24]


@dataclass(slots=True)
class Wrap:
    """One reference in FROM, as it will be replaced."""

    reference: Reference
    relation: Relation
    place: Node  # the wrapper in the copied tree
    treatments: Mapping[int, Treatment]
    filters: Sequence[tuple[str, Any]]
    shown: tuple[str, ...]  # names by which the statement knows the columns
    raw_alias: str = ""
    raw: dict[int, str] = field(default_factory=dict)  # attribute number -> unguessable name

    def attribute(self, name: str) -> Attribute | None:
        if name not in self.shown or self.shown.count(name) > 1:
            return None
        return self.relation.columns[self.shown.index(name)]

    def take_raw(self, column: Attribute, names: Names) -> Node:
        """A reference to the raw column."""
        if not self.raw_alias:
            self.raw_alias = names()
        return nodes.column(self.raw_alias, self.raw.setdefault(column.number, names()))


def shown_names(reference: Reference, relation: Relation, place: Node) -> tuple[str, ...]:
    """Column names as the statement may use them: aliases of ``docs AS d(a, b)`` come first."""
    own = [one.name for one in relation.columns]
    if reference.column_aliases:
        _, variable = nodes.kind_of(place)
        variable = variable.get("relation", {}).get("RangeVar", variable)
        aliases = nodes.names_of(variable.get("alias", {}).get("colnames", ()))
        own[: len(aliases)] = aliases
    return tuple(own)


def condition(relation: Relation, alias: str, filters: Sequence[tuple[str, Any]], rule: str) -> Node | None:
    """The mandatory equalities over a relation. Raises Refusal where it has no such column."""
    made: list[Node] = []
    for key, value in filters:
        name = key.rpartition(".")[2]
        if relation.column(name) is None:
            raise Refusal(
                "filter", f"denied by rule {rule}: {relation.name} has no column {name} to be filtered by"
            )
        try:
            made.append(nodes.operation("=", nodes.column(alias, name), nodes.literal(value)))
        except ValueError as error:
            raise Refusal("filter", f"the filter of rule {rule} cannot be written: {error}") from None
    return nodes.every(made)


def masked(value: Node, column: Attribute, treatment: Treatment | None) -> Node:
    """A column as it may be seen, of its own type. A type that the mask's word does not fit gives NULL."""
    if treatment is None:
        return value
    if column.type in PLAIN_TEXT:
        if treatment.how in ("redact", "hmac"):
            return nodes.redacted(value)
        if treatment.how == "partial":
            return nodes.last_shown(value)
    return nodes.null_of(value)


def replace(wrap: Wrap, rule: str, fence: bool, names: Names) -> None:
    """Put the subquery in the place of the reference. Raises Refusal where a filter has no column."""
    relation = wrap.relation
    kind, inner = nodes.kind_of(wrap.place)
    sampled = kind == "RangeTableSample"
    variable = inner["relation"]["RangeVar"] if sampled else inner
    source = nodes.relation(relation.schema, relation.name, _INNER, bool(variable.get("inh")))
    if sampled:
        source = {"RangeTableSample": {**inner, "relation": source}}
    where = condition(relation, _INNER, wrap.filters, rule)
    alias = variable.get("alias") or {"aliasname": variable["relname"]}
    if not wrap.raw:
        targets = [
            nodes.target(_seen(wrap, nodes.column(_INNER, one.name), one), one.name)
            for one in relation.columns
        ]
        made = nodes.subquery(nodes.select(targets, [source], where, fence), alias)
    else:
        made = _beside(wrap, source, where, fence, alias, names)
    wrap.place.clear()
    wrap.place.update(made)


def _seen(wrap: Wrap, value: Node, column: Attribute) -> Node:
    return masked(value, column, wrap.treatments.get(column.number))


def _beside(wrap: Wrap, source: Node, where: Node | None, fence: bool, alias: Node, names: Names) -> Node:
    """The raw columns under names of ours, and beside them what the statement may see.

    Every one of them has such a name: an unqualified name of the client's must not find any.
    """
    under = {one.number: wrap.raw.get(one.number) or names() for one in wrap.relation.columns}
    targets = [
        nodes.target(nodes.column(_INNER, one.name), under[one.number]) for one in wrap.relation.columns
    ]
    raw = nodes.subquery(nodes.select(targets, [source], where, fence), {"aliasname": wrap.raw_alias})
    seen = [
        nodes.target(_seen(wrap, nodes.column(wrap.raw_alias, under[one.number]), one), one.name)
        for one in wrap.relation.columns
    ]
    return nodes.cross(raw, nodes.subquery(nodes.select(seen, [], None), alias, lateral=True))
