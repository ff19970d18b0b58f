# SPDX-License-Identifier: Apache-2.0
"""Rewritten texts and plans, kept by what they depend on: making one anew costs milliseconds.

Owns a bounded memory for each engine instance, shared by its connections. A key is the resolved text
itself (by identity: it is held here, and made anew whenever the catalog or the path changes) and the
restrictions; what is recorded of a statement is kept by its whole text. It must not keep anything of rows
or parameters. Bias: what raised is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.engines.pgvector_describe import Stated, describe
from agent.engines.pgvector_hidden import Hidden
from agent.engines.pgvector_plan import make_plan
from agent.engines.pgvector_rewrite import Rewritten, rewrite
from agent.engines.pgvector_rows import RowPlan
from agent.engines.sql_tree import Resolved, VectorKind
from agent.protocols.sql import Column, Plan
from agent.protocols.sql_made import Described, Parameter
from policy.model import Verdict

MOST: Final = 1024
"""Texts, and plans, of one worker and guard; the oldest go first. Each is a few KiB."""
MOST_STATED: Final = 256
MAX_STATED: Final = 8 * 1024  # characters of a statement whose recorded form is kept


class Kept:
    """`key`: of masks, and of the names that clients cannot know."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._texts: dict[tuple[Any, ...], tuple[Resolved, Rewritten]] = {}
        self._plans: dict[tuple[Any, ...], tuple[Resolved, Mapping[int, VectorKind], Plan]] = {}
        self._stated: dict[str, Stated] = {}
        self._verdict: Verdict | None = None
        self._restrictions: tuple[Any, ...] = ()

    def rewrite(self, resolved: Resolved, verdict: Verdict) -> Rewritten:
        """As `pgvector_rewrite.rewrite`."""
        key = (id(resolved), *self._under(verdict))
        held = self._texts.get(key)
        if held is not None:
            return held[1]
        made = rewrite(resolved, verdict, self._key)
        _make_room(self._texts)
        self._texts[key] = (resolved, made)
        return made

    def plan(
        self,
        resolved: Resolved,
        statement: int,
        columns: Sequence[Column] | None,
        verdict: Verdict,
        vectors: Mapping[int, VectorKind],
    ) -> Plan:
        """As `pgvector_plan.make_plan`. A COPY's plan has a beginning, and is made for each."""
        if columns is None:
            return make_plan(resolved, statement, columns, verdict, vectors, self._key)
        key = (id(resolved), statement, tuple(columns), id(vectors), *self._under(verdict))
        held = self._plans.get(key)
        if held is not None:
            return held[2]
        made = make_plan(resolved, statement, columns, verdict, vectors, self._key)
        if isinstance(made, RowPlan):
            _make_room(self._plans)
            self._plans[key] = (resolved, vectors, made)
        return made

    def describe(
        self, text: str, parameters: Sequence[Parameter], vectors: Mapping[int, VectorKind], masked: bool
    ) -> Described:
        """As `pgvector_describe.describe`; what the text alone tells is kept."""
        stated = self._stated.get(text)
        if stated is None:
            stated = Stated(text)
            if len(text) <= MAX_STATED:
                if len(self._stated) >= MOST_STATED:
                    self._stated.clear()
                self._stated[text] = stated
        return describe(stated, parameters, vectors, masked)

    def _under(self, verdict: Verdict) -> tuple[Any, ...]:
        """What of a verdict changes a text or a plan. Most requests in a row are under one verdict."""
        if verdict is not self._verdict:
            self._verdict = verdict
            self._restrictions = (
                Hidden.of(verdict),
                verdict.limits,
                verdict.clamps,
                verdict.level == "masked",
            )
        return self._restrictions


def _make_room(held: dict[tuple[Any, ...], Any]) -> None:
    while len(held) >= MOST:
        del held[next(iter(held))]
