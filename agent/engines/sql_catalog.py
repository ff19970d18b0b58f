# SPDX-License-Identifier: Apache-2.0
"""What a database holds, as values: relations, columns, types, functions, and how a connection names them.

Owns the value types and name resolution by the rules of PostgreSQL (docs 5.10 Schemas, 10 Type
Conversion). ``sql_catalog_queries`` fetches them, ``sql_catalog_read`` reads them, ``sql_views`` resolves
views. Bias: a name that two things could have is not known. A user's function, operator or cast
with the name of a built-in one is enough, wherever it stands in the path: the server picks by argument
types, which we do not know (CVE-2018-1058).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.engines.sql_functions import DISTANCE_OPERATORS, EXTENSIONS, NOT_PURE, Deed
from agent.engines.sql_functions import function as built_in
from agent.engines.sql_tree import Origin, Output, Relation, VectorKind

SYSTEM_SCHEMAS: Final = frozenset({"pg_catalog", "information_schema"})
TEMPORARY: Final = "pg_temp"
MAX_VIEW: Final = 64 * 1024
"""Bytes of one view's definition."""


def collection_name(schema: str, name: str) -> str:
    """As policy names it: "documents" in public, else "app.documents"; a part with a dot is quoted."""
    parts = (name,) if schema == "public" else (schema, name)
    return ".".join(
        '"' + part.replace('"', '""') + '"' if "." in part or '"' in part else part for part in parts
    )


@dataclass(frozen=True, slots=True)
class Catalog:
    """One database at one moment. Shared by all connections whose session reads it."""

    number: int  # unique in this process, for `Resolved.version`
    fingerprint: str
    relations: Mapping[int, Relation] = field(default_factory=dict)
    names: Mapping[tuple[str, str], Relation] = field(default_factory=dict)
    system: frozenset[tuple[str, str]] = frozenset()  # relations of pg_catalog and information_schema
    outputs: Mapping[int, tuple[Output, ...]] = field(default_factory=dict)  # of views, down to tables
    functions: Mapping[str, tuple[tuple[str, str | None], ...]] = field(default_factory=dict)
    """Not built in: by name, the (schema, extension) of each."""
    operators: Mapping[str, tuple[tuple[str, str | None], ...]] = field(default_factory=dict)
    casts: frozenset[str] = frozenset()  # names of types that a user's function casts to
    vectors: Mapping[int, VectorKind] = field(default_factory=dict)  # type OIDs, arrays and domains too
    types: frozenset[str] = frozenset()  # names of the types in `vectors`
    notations: frozenset[str] = frozenset()
    """Functions of pg_catalog that x.name or (x).name could call, and that are not immutable."""
    trouble: str | None = None  # why it cannot be used: too large, not readable

    def under(self, relation: Relation) -> frozenset[Relation]:
        """The relation and all it stands on."""
        known = (self.relations.get(oid) for oid in relation.bases)
        return frozenset({relation, *(one for one in known if one is not None)})


EMPTY: Final = Catalog(0, "")


@dataclass(frozen=True, slots=True)
class Scope:
    """A catalog as one connection sees it: `path` is ``current_schemas(true)``.

    `guess`: there is no catalog (observe): names are taken as they are written.
    """

    catalog: Catalog
    path: tuple[str, ...] = ()
    temporary: Mapping[str, Relation] = field(default_factory=dict)
    temporary_schema: str | None = None
    guess: bool = False

    def relation(self, schema: str | None, name: str) -> Relation | None:
        """A user's relation; None also for those of the system (`is_system`)."""
        if schema is None:
            for one in self.path:
                if one == self.temporary_schema:
                    if name in self.temporary:
                        return self.temporary[name]
                elif (one, name) in self.catalog.system:
                    return None
                elif (one, name) in self.catalog.names:
                    return self.catalog.names[one, name]
            return None
        if schema == TEMPORARY or schema == self.temporary_schema:
            return self.temporary.get(name)
        return self.catalog.names.get((schema, name))

    def is_system(self, schema: str | None, name: str) -> str | None:
        """The system schema a name means a relation of, None when it means another or none."""
        if self.guess:
            if schema in SYSTEM_SCHEMAS:
                return schema
            return "pg_catalog" if schema is None and name.startswith("pg_") else None
        if schema is not None:
            return schema if (schema, name) in self.catalog.system else None
        for one in self.path:
            if one == self.temporary_schema:
                if name in self.temporary:
                    return None
            elif (one, name) in self.catalog.system:
                return one
            elif (one, name) in self.catalog.names:
                return None
        return None

    def function(self, schema: str | None, name: str) -> Deed | bool:
        """What a call of this name does: True only computing, False not known."""
        others = [
            extension
            for where, extension in self.catalog.functions.get(name, ())
            if (where in self.path if schema is None else where == schema)
        ]
        if any(extension not in EXTENSIONS for extension in others) or (others and name in NOT_PURE):
            return False
        if schema is None and not self.guess and "pg_catalog" not in self.path:
            return False
        return bool(others) if schema not in (None, "pg_catalog") else built_in(None, name) or bool(others)

    def operator(self, schema: str | None, name: str) -> bool:
        """Whether an operator of this name only computes."""
        others = [
            extension
            for where, extension in self.catalog.operators.get(name, ())
            if (where in self.path if schema is None else where == schema)
        ]
        if any(extension not in EXTENSIONS for extension in others):
            return False
        if self.guess or others or schema == "pg_catalog":
            return True
        return schema is None and name not in DISTANCE_OPERATORS - {"<->"}

    def aggregates(self, name: str) -> bool:
        """Whether a call of this name can be an aggregate that is not built in (vector's avg and sum are)."""
        return name in self.catalog.functions

    def columns(self, relation: Relation) -> tuple[tuple[str, frozenset[Origin], bool], ...]:
        """(name, origins, opaque) of each column, a view's down to the tables beneath."""
        if relation.oid in self.catalog.outputs:
            return tuple((one.name, one.origins, one.opaque) for one in self.catalog.outputs[relation.oid])
        return tuple(
            (
                one.name,
                frozenset({Origin(relation.oid, one.number, one.name, one.vector is not None)}),
                relation.opaque,
            )
            for one in relation.columns
        )
