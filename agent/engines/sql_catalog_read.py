# SPDX-License-Identifier: Apache-2.0
"""The reading of what a database told us of itself (``sql_catalog_queries``).

Pure functions from rows of text to the values of ``sql_catalog``. Bias: an answer that is not as
expected, or beyond the bounds, is `Trouble`, and then nothing of that database is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec

from agent.engines.sql_catalog import MAX_VIEW, TEMPORARY, Catalog, collection_name
from agent.engines.sql_catalog_queries import MAX_COLUMNS, MAX_FUNCTIONS, MAX_RELATIONS
from agent.engines.sql_tree import Attribute, Kind, Relation, VectorKind
from agent.protocols.sql import Rows

EMBEDDING_BITS: Final = 64
"""A bit(n) of at least so many bits is taken for an embedding; shorter ones are flags."""
BIT: Final = 1560


class Trouble(Exception):
    """The answers cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a connection stands. `columns` of temporary relations have no vector kinds yet."""

    path: tuple[str, ...]
    role: str
    strings: str
    encoding: str
    temporary_schema: str | None
    server: int  # server_version_num
    search_path: str
    temporary: Rows
    temporary_columns: Rows


@dataclass(frozen=True, slots=True)
class Views:
    """The definitions to resolve: by OID, the text and the relations it depends on."""

    texts: Mapping[int, str]
    depends: Mapping[int, frozenset[int]]


def read_session(results: Sequence[Rows]) -> Standing:
    """Of the results of SESSION. Raises Trouble."""
    try:
        (row,) = results[0]
        path, role, strings, encoding, schema, server, search_path = row
        return Standing(
            tuple(msgspec.json.decode(path or "[]", type=list[str])),
            role or "",
            strings or "",
            encoding or "",
            schema,
            int(server or 0),
            search_path or "",
            _bounded(results[1], MAX_RELATIONS, "temporary relations"),
            _bounded(results[2], MAX_COLUMNS, "temporary columns"),
        )
    except (ValueError, IndexError, msgspec.DecodeError) as error:
        raise Trouble(f"the database's answer about the session cannot be read ({error})") from None


def _bounded(rows: Rows, most: int, what: str) -> Rows:
    if len(rows) > most:
        raise Trouble(f"the database has more than {most} {what}")
    return rows


def read_temporary(standing: Standing, catalog: Catalog) -> dict[str, Relation]:
    """The temporary relations of a connection, by name. Their views are opaque. Raises Trouble."""
    try:
        columns = _attributes(standing.temporary_columns, catalog.vectors)
        return {
            name or "": Relation(
                int(oid or 0),
                TEMPORARY,
                name or "",
                cast("Kind", kind),
                collection_name(TEMPORARY, name or ""),
                tuple(columns.get(int(oid or 0), ())),
                opaque=kind in ("v", "m", "f"),
            )
            for oid, name, kind in standing.temporary
        }
    except ValueError as error:
        raise Trouble(f"the database's answer about temporary relations cannot be read ({error})") from None


def read_catalog(number: int, fingerprint: str, results: Sequence[Rows]) -> tuple[Catalog, Views]:
    """Of the results of WHOLE: the catalog, views opaque yet, and what to resolve. Raises Trouble."""
    try:
        return _read(number, fingerprint, results)
    except (ValueError, IndexError, TypeError, msgspec.DecodeError) as error:
        raise Trouble(f"the database's answer about its relations cannot be read ({error})") from None


def _read(number: int, fingerprint: str, results: Sequence[Rows]) -> tuple[Catalog, Views]:
    (
        relations,
        system,
        columns,
        types,
        inherits,
        keys,
        rules,
        views,
        functions,
        operators,
        casts,
        notations,
    ) = results
    _bounded(relations, MAX_RELATIONS, "relations")
    _bounded(columns, MAX_COLUMNS, "columns")
    vectors, names = _vectors(_bounded(types, MAX_COLUMNS, "types"), columns)
    attributes = _attributes(columns, vectors)
    parents: dict[int, set[int]] = defaultdict(set)
    children: dict[int, set[int]] = defaultdict(set)
    for child, parent in inherits:
        parents[_int(child)].add(_int(parent))
        children[_int(parent)].add(_int(child))
    rows = {_int(row[0]): row for row in relations}
    primary = {
        _int(oid): frozenset(msgspec.json.decode(found or "[]", type=list[int])) for oid, found in keys
    }
    depends, ruled = _rules(rules)
    made: dict[int, Relation] = {}
    for oid, (_, schema, name, kind, partition) in rows.items():
        if kind == "c":
            continue
        root = _root(oid, rows, parents) if partition == "t" else oid
        _, root_schema, root_name, *_ = rows.get(root, (None, schema, name))
        made[oid] = Relation(
            oid,
            schema or "",
            name or "",
            cast("Kind", kind),
            collection_name(root_schema or "", root_name or ""),
            tuple(attributes.get(oid, ())),
            primary.get(oid, frozenset()),
            frozenset(_all(oid, children) | _all(oid, parents)) - {oid},
            opaque=kind in ("f", "v", "m") or oid in ruled,
        )
    return (
        Catalog(
            number,
            fingerprint,
            made,
            {(one.schema, one.name): one for one in made.values()},
            frozenset((schema or "", name or "") for schema, name in system),
            {},
            _by_name(_bounded(functions, MAX_FUNCTIONS, "functions")),
            _by_name(_bounded(operators, MAX_FUNCTIONS, "operators")),
            frozenset(name or "" for name, extension in casts if extension is None),
            vectors,
            names,
            frozenset(row[0] or "" for row in notations),
        ),
        Views({_int(oid): text or "" for oid, text in views if len(text or "") <= MAX_VIEW}, depends),
    )


def _int(value: str | None) -> int:
    return int(value or 0)


def _by_name(rows: Rows) -> dict[str, tuple[tuple[str, str | None], ...]]:
    found: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
    for schema, name, extension in rows:
        found[name or ""].append((schema or "", extension))
    return {name: tuple(places) for name, places in found.items()}


def _rules(rows: Rows) -> tuple[dict[int, frozenset[int]], set[int]]:
    """What views depend on, and the relations with a rule of another kind (they do what is not written)."""
    depends: dict[int, set[int]] = defaultdict(set)
    ruled: set[int] = set()
    for owner, target, name, kind in rows:
        if name == "_RETURN" and kind == "1":
            depends[_int(owner)].add(_int(target))
        else:
            ruled.add(_int(owner))
    return {oid: frozenset(found - {0}) for oid, found in depends.items()}, ruled


def _all(oid: int, links: Mapping[int, set[int]]) -> set[int]:
    found: set[int] = set()
    todo = [oid]
    while todo:
        for one in links.get(todo.pop(), ()):
            if one not in found:
                found.add(one)
                todo.append(one)
    return found


def _root(oid: int, rows: Mapping[int, Any], parents: Mapping[int, set[int]]) -> int:
    """The partitioned table that a partition belongs to in the end."""
    seen = {oid}
    while rows.get(oid, (None,) * 5)[4] == "t" and parents.get(oid):
        oid = min(parents[oid])
        if oid in seen:
            break
        seen.add(oid)
    return oid


def _attributes(rows: Rows, vectors: Mapping[int, VectorKind]) -> dict[int, list[Attribute]]:
    found: dict[int, list[Attribute]] = defaultdict(list)
    for relation, number, name, kind, modifier, generated in rows:
        oid = _int(kind)
        vector = vectors.get(oid)
        if oid == BIT and _int(modifier) >= EMBEDDING_BITS:
            vector = "bit"
        found[_int(relation)].append(Attribute(name or "", _int(number), oid, vector, bool(generated)))
    for columns in found.values():
        columns.sort(key=lambda one: one.number)
    return found


def _vectors(types: Rows, columns: Rows) -> tuple[dict[int, VectorKind], frozenset[str]]:
    """Which types hold vectors: those of the extension, and what is made of them in any way."""
    made: dict[int, list[int]] = defaultdict(list)  # type -> types that are made of it
    rows: dict[int, int] = {}  # relation of a composite type -> the type
    found: dict[int, VectorKind] = {}
    names: set[str] = set()
    for oid, name, _, base, element, relation, extension in types:
        if extension == "vector" and name in ("vector", "halfvec", "sparsevec"):
            found[_int(oid)] = cast("VectorKind", name)
            names.add(name)
        for origin in (_int(base), _int(element)):
            made[origin].append(_int(oid))
        rows[_int(relation)] = _int(oid)
    for owner, _, _, kind, *_ in columns:
        if _int(owner) in rows:
            made[_int(kind)].append(rows[_int(owner)])
    todo = list(found)
    while todo:
        one = todo.pop()
        for user in made.get(one, ()):
            if user not in found:
                found[user] = found[one]
                todo.append(user)
    return found, frozenset(names)
