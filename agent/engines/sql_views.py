# SPDX-License-Identifier: Apache-2.0
"""Views: what they stand on and where their columns come from, by their own definitions.

A definition is what pg_get_viewdef wrote on our connection, resolved by the same walk as a client's query
and by the search path of that connection; what it was found to stand on must be what pg_depend says. Bias:
a view where the two differ, or whose definition cannot be judged, stays opaque.
"""

from __future__ import annotations

from dataclasses import replace

from agent.engines.sql_catalog import Catalog, Scope
from agent.engines.sql_catalog_read import Views
from agent.engines.sql_tree import Output, Relation, Statement
from agent.engines.sql_walk import resolve
from policy.model import Action

HARMLESS = frozenset({Action.SEARCH, Action.READ, Action.SCAN, Action.COUNT, Action.SESSION, Action.SCHEMA})


def with_views(catalog: Catalog, views: Views, path: tuple[str, ...]) -> Catalog:
    """The catalog with every view resolved that can be. `path`: of the connection that told it."""
    relations = dict(catalog.relations)
    names = dict(catalog.names)
    outputs: dict[int, tuple[Output, ...]] = {}
    made = replace(catalog, relations=relations, names=names, outputs=outputs)
    for oid in _in_order(views):
        relation = relations.get(oid)
        if relation is None:
            continue
        under = frozenset(
            {
                oid
                for base in views.depends.get(oid, ())
                if base in relations
                for oid in _whole(relations, base)
            }
        )
        known = _resolve(made, views, relation, path)
        relation = replace(relation, bases=(relation.bases | under) - {oid}, opaque=known is None)
        if known is not None:
            outputs[oid] = known
        relations[oid] = names[relation.schema, relation.name] = relation
    return made


def _whole(relations: dict[int, Relation], oid: int) -> frozenset[int]:
    return relations[oid].bases | {oid}


def _in_order(views: Views) -> list[int]:
    """Views after those that they stand on."""
    done: dict[int, None] = {}
    busy: set[int] = set()

    def visit(oid: int) -> None:
        if oid in done or oid in busy:
            return
        busy.add(oid)
        for base in sorted(views.depends.get(oid, ())):
            if base in views.depends or base in views.texts:
                visit(base)
        done[oid] = None

    for oid in sorted(views.texts.keys() | views.depends.keys()):
        try:
            visit(oid)
        except RecursionError:
            continue
    return list(done)


def _resolve(
    catalog: Catalog, views: Views, relation: Relation, path: tuple[str, ...]
) -> tuple[Output, ...] | None:
    """The outputs of a view under the names of its columns; None where it stays opaque."""
    resolved = resolve(views.texts.get(relation.oid, ""), Scope(catalog, path))
    if resolved.unknown is not None or len(resolved.statements) != 1:
        return None
    statement = resolved.statements[0]
    if statement.command != "SELECT" or not statement.actions <= HARMLESS or statement.outputs is None:
        return None
    if statement.everything or len(statement.outputs) != len(relation.columns):
        return None
    if _mentioned(statement) != frozenset(views.depends.get(relation.oid, ())) & catalog.relations.keys():
        return None
    return tuple(
        replace(output, name=column.name, target=None, star=False)
        for output, column in zip(statement.outputs, relation.columns, strict=True)
    )


def _mentioned(statement: Statement) -> frozenset[int]:
    return frozenset(one.relation.oid for one in statement.references if one.relation is not None)
