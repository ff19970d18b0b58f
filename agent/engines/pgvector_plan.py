# SPDX-License-Identifier: Apache-2.0
"""What happens to each column of a result: by where it comes from, by its type, by what was asked.

The second line behind ``pgvector_rewrite``: most of what is hidden is not in the result at all. Here fall
the tokens (mask as hmac: the key never goes to the database), personal data in texts, what RETURNING shows
of the relation that is written, and the check that rows are within the filter. A column is known by the
OID and attribute that RowDescription gives it. Bias: a raw vector in the result of a verdict without
vectors becomes NULL by its type alone, whatever it comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agent.engines import pgvector_values as values
from agent.engines.pgvector_cells import Cell, Texts, chain, check, hide
from agent.engines.pgvector_copy import CopyPlan, copy_form
from agent.engines.pgvector_hidden import Hidden, Treatment
from agent.engines.pgvector_reach import known_relations
from agent.engines.pgvector_rows import RowPlan, Step
from agent.engines.pgvector_values import Shape
from agent.engines.sql_tree import Output, Relation, Resolved, Statement, VectorKind
from agent.protocols.http import Refusal
from agent.protocols.sql import Column, Plan
from policy.model import Verdict

_VECTORS = Treatment("null", "vectors", "drop", "")


def make_plan(
    resolved: Resolved,
    statement: int,
    columns: Sequence[Column] | None,
    verdict: Verdict,
    vectors: Mapping[int, VectorKind],
    key: bytes,
) -> Plan:
    """The plan for the rows of one statement. `vectors`: OIDs of this database's vector types.

    `key`: of masks. `columns` None: COPY. Raises Refusal where a COPY's form cannot be read and must be,
    and for what was not read at all.
    """
    if statement >= len(resolved.statements):  # observed: the database ran what could not be read
        raise Refusal("unread", "rows of a statement that was not read")
    one = resolved.statements[statement]
    making = _Making(one, verdict, vectors, key)
    if columns is None:
        return making.copied(copy_form(resolved.tree, one))
    return making.rows(columns)


class _Making:
    def __init__(
        self, statement: Statement, verdict: Verdict, vectors: Mapping[int, VectorKind], key: bytes
    ) -> None:
        self._hidden = Hidden.of(verdict)
        self._records = verdict.level == "masked"
        self._vectors = vectors
        self._key = key
        self._known = known_relations(statement)
        self._outputs = _outputs(statement)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._texts = Texts(self._hidden.pii, key, self._counts) if self._hidden.pii else None
        self._treated: dict[int, Mapping[int, Treatment]] = {}

    def rows(self, columns: Sequence[Column]) -> RowPlan:
        keyed = self._keyed([(one.table, one.attribute) for one in columns])
        outputs = self._outputs if self._outputs and len(self._outputs) == len(columns) else ()
        each: Counter[tuple[str, str]] = Counter()
        steps = []
        is_plain = True
        for at, column in enumerate(columns):
            cells = self._cells(column)
            if at < len(outputs) and self._treatment(column.table, column.attribute) is None:
                self._tell(outputs[at], each)
            is_plain &= not cells
            if self._texts is not None and (texts := self._texts.cell(column.type, column.format == 1)):
                cells.append(texts)
            shape = self._shape(column.type) if self._records else None
            steps.append(Step(chain(cells), shape, column.format == 1, column.type if at in keyed else 0))
        return RowPlan(steps, self._counts, each, self._texts if is_plain else None)

    def copied(self, form: tuple[str, bool, bool]) -> CopyPlan:
        """`form`: format, whether there is a header line, whether it is the default otherwise."""
        outputs = self._outputs or ()
        each: Counter[tuple[str, str]] = Counter()
        steps = []
        origins = [one.column for one in outputs]
        keyed = self._keyed([(0, 0) if one is None else (one.relation, one.attribute) for one in origins])
        for at, output in enumerate(outputs):
            self._tell(output, each)
            origin = origins[at]
            relation = None if origin is None else self._known.get(origin.relation)
            kind = 0
            if relation is not None and origin is not None:
                kind = next((c.type for c in relation.columns if c.number == origin.attribute), 0)
            cell = None if self._texts is None else self._texts.cell(kind, form[0] == "binary")
            hides = bool(origin and self._treatment(origin.relation, origin.attribute))
            shape = self._shape(kind) if self._records and not hides else None
            steps.append(Step(cell, shape, form[0] == "binary", kind if at in keyed else 0))
        return CopyPlan(form, steps, self._counts, each, bool(self._hidden.pii))

    def _cells(self, column: Column) -> list[Cell]:
        treatment = self._treatment(column.table, column.attribute)
        if treatment is None and not self._hidden.vectors and self._shape(column.type) not in (None, "bit"):
            treatment = _VECTORS
        if treatment is not None:
            return [hide(treatment, column.type, self._key, self._counts)]
        relation = self._known.get(column.table)
        if relation is None or not column.attribute:
            return []
        name = next((one.name for one in relation.columns if one.number == column.attribute), None)
        return [
            check(column.type, column.format == 1, name, value)
            for key, value in self._hidden.filters
            if name is not None and key.rpartition(".")[2] == name
        ]

    def _treatment(self, table: int, attribute: int) -> Treatment | None:
        relation = self._known.get(table)
        if relation is None or not attribute:
            return None
        if table not in self._treated:
            self._treated[table] = self._hidden.columns(relation, self._known)
        return self._treated[table].get(attribute)

    def _shape(self, kind: int) -> Shape | None:
        return self._vectors.get(kind) or values.FIXED_SHAPES.get(kind)

    def _tell(self, output: Output, each: Counter[tuple[str, str]]) -> None:
        """What the database left out of this column already, for evidence."""
        found: set[tuple[str, str]] = set()
        for origin in output.origins:
            if origin.via == "distance" and self._hidden.scores is not None:
                found.add(("scores", f"{self._hidden.scores} digits"))
            if origin.via not in ("column", "value"):
                continue
            if origin.attribute or origin.relation not in self._known:
                treatment = self._hidden.origin(origin, self._known)
                found |= {(treatment.what, treatment.told)} if treatment is not None else set()
            else:  # the whole row
                columns = self._hidden.columns(self._known[origin.relation], self._known)
                found |= {(one.what, one.told) for one in columns.values()}
        for what in found:
            each[what] += 1

    def _keyed(self, origins: Sequence[tuple[int, int]]) -> set[int]:
        """Columns that together are the primary key of the first relation whose key is there whole."""
        for table, _ in origins:
            relation: Relation | None = self._known.get(table)
            if relation is None or not relation.key:
                continue
            places = {number: at for at, (oid, number) in reversed(list(enumerate(origins))) if oid == table}
            if relation.key <= places.keys():
                return {places[number] for number in relation.key}
        return set()


def _outputs(statement: Statement) -> tuple[Output, ...] | None:
    here: Statement | None = statement
    while here is not None:
        if here.outputs is not None:
            return here.outputs
        here = here.inner
    return None
