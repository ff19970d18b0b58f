# SPDX-License-Identifier: Apache-2.0
"""What a verdict makes of each column of a relation, before any statement is looked at.

Owns the spelling of fields for PostgreSQL (docs/policy.md, "Columns"): ``column``, ``table.column`` or
``schema.table.column``; what follows a column (a key inside of jsonb) hides the column whole. It must not
know statements or wire formats. Bias: a column that two readings of a field could mean is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from agent.engines.pgvector_values import FLOAT4_ARRAY, FLOAT8_ARRAY
from agent.engines.sql_tree import Attribute, Origin, Relation
from agent.engines.veil import parts
from policy.model import Mask, Scalar, Verdict

How = Literal["null", "redact", "partial", "hmac", "vector"]
"""vector: the column is NULL, but for the operands of distances."""
STRENGTH: Final = {"partial": 0, "hmac": 1, "redact": 2, "null": 3, "drop": 3}

STATISTICS: Final = frozenset(
    {
        "pg_statistic",
        "pg_statistic_ext_data",
        "pg_stats",
        "pg_stats_ext",
        "pg_stats_ext_exprs",
        "pg_largeobject",
        "pg_stat_activity",
        "pg_stat_statements",
        "pg_prepared_statements",
        "pg_cursors",
    }
)
"""Relations that show values of others' columns, or other clients' statements with their literals."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """What happens to one column. `what` and `told` are what evidence calls it; `rule` said so."""

    how: How
    what: str  # "vectors", "fields", or the mask's own field
    told: str  # "drop", "redact", ...
    rule: str


@dataclass(frozen=True)
class Hidden:
    """The columns a verdict hides. Compared by the restrictions themselves, so that it keys caches."""

    vectors: bool
    fields: frozenset[str] | None
    masks: tuple[Mask, ...]
    filters: tuple[tuple[str, Scalar], ...]
    vectors_rule: str | None = field(default=None, compare=False)
    fields_rule: str | None = field(default=None, compare=False)
    filter_rules: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, verdict: Verdict) -> Hidden:
        return cls(
            verdict.vectors,
            verdict.fields,
            verdict.masks,
            verdict.filters,
            verdict.vectors_rule,
            verdict.fields_rule,
            verdict.filter_rules,
        )

    @cached_property
    def restricts(self) -> bool:
        return bool(self.masks or self.filters) or not self.vectors or self.fields is not None

    @cached_property
    def hides(self) -> bool:
        """Whether any column may be hidden."""
        return not self.vectors or self.fields is not None or bool(self._masked)

    @cached_property
    def scores(self) -> int | None:
        """Significant digits of distances; None: all of them."""
        found = [mask.scores for mask in self.masks if mask.scores is not None]
        return min(found) if found else None

    @cached_property
    def scores_rule(self) -> str:
        return next((mask.rule for mask in self.masks if mask.scores is not None), "")

    @cached_property
    def pii(self) -> tuple[Mask, ...]:
        return tuple(mask for mask in self.masks if mask.pii)

    @cached_property
    def _masked(self) -> tuple[tuple[tuple[str, ...], Mask], ...]:
        return tuple((parts(mask.field), mask) for mask in self.masks if mask.field is not None)

    @cached_property
    def _shown(self) -> tuple[tuple[str, ...], ...]:
        return tuple(parts(name) for name in self.fields or ())

    def treat(self, relation: Relation, known: Mapping[int, Relation], column: Attribute) -> Treatment | None:
        """What happens to a column; None: it is shown. `known`: relations by OID (partitions, parents)."""
        names = _spellings(relation, known, column.name)
        masks = [mask for path, mask in self._masked if _hits(path, names, column.name)]
        if masks:
            mask = max(masks, key=lambda one: STRENGTH[one.how])
            told: How = "null" if mask.how == "drop" else mask.how
            return Treatment(told, mask.field or "", mask.how, mask.rule)
        how: How
        if self.fields is not None and not any(path in names for path in self._shown):
            # Search is what vectors are for: their distances stay, as under `vectors: false`.
            how = "vector" if is_vector(column) else "null"
            return Treatment(how, "fields", "drop", self.fields_rule or "")
        if not self.vectors and is_vector(column):
            return Treatment("vector", "vectors", "drop", self.vectors_rule or "")
        return None

    def columns(self, relation: Relation, known: Mapping[int, Relation]) -> dict[int, Treatment]:
        """The hidden columns of a relation by attribute number."""
        made: dict[int, Treatment] = {}
        if self.hides:
            for column in relation.columns:
                if (found := self.treat(relation, known, column)) is not None:
                    made[column.number] = found
        return made

    def origin(self, origin: Origin, known: Mapping[int, Relation]) -> Treatment | None:
        """What happens to where an output or a probe comes from; a whole row is hidden if any column is."""
        if not self.hides:
            return None
        relation = known.get(origin.relation)
        if relation is None:
            return UNTOLD
        if origin.attribute:
            column = next((one for one in relation.columns if one.number == origin.attribute), None)
            return UNTOLD if column is None else self.treat(relation, known, column)
        return next(iter(self.columns(relation, known).values()), None)


UNTOLD: Final = Treatment("null", "fields", "drop", "")
"""Of a column that is not in the catalog: nothing can be said of it."""


def is_vector(column: Attribute) -> bool:
    """A vector of any kind; arrays of floats are taken for vectors too."""
    return column.vector is not None or column.type in (FLOAT4_ARRAY, FLOAT8_ARRAY)


def _spellings(relation: Relation, known: Mapping[int, Relation], column: str) -> set[tuple[str, ...]]:
    """How a field may name a column: also by partitions and parents, which hold the same rows."""
    kin: Iterable[Relation] = ()
    if relation.kind not in ("v", "m"):
        kin = (known[oid] for oid in relation.bases if oid in known)
    made: set[tuple[str, ...]] = {(column,)}
    for one in (relation, *kin):
        made |= {(one.name, column), (one.schema, one.name, column)}
    return made


def _hits(path: tuple[str, ...], names: set[tuple[str, ...]], column: str) -> bool:
    """The path is one of the names, or goes on into the column (a key of jsonb)."""
    if "*" in path:
        return any(
            len(name) <= len(path) and all(a in (b, "*") for a, b in zip(path, name, strict=False))
            for name in names
        )
    return path[:1] == (column,) or any(path[: len(name)] == name for name in names)
