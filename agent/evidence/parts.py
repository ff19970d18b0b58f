# SPDX-License-Identifier: Apache-2.0
"""What was asked and what was decided, as the parts of a frame that say so.

Between ``policy.model`` and ``frames``, apart from the structs because it is compiled and they cannot be.
"""

from __future__ import annotations

from typing import Final

from agent.evidence.frames import HitPart, LimitPart, MaskPart, NearPart, OperationPart, VerdictPart
from policy.model import Verdict
from policy.operation import Operation

_MOST: Final = 2**63 - 1
"""A client may ask for more rows than 64 bits can say; that it asked must be on record."""


def operation_part(operation: Operation) -> OperationPart:
    fields, top_k, offset = operation.fields, operation.top_k, operation.offset
    return OperationPart(
        engine=operation.engine, guard=operation.guard, method=operation.method,
        actions=sorted(operation.actions),
        collections=sorted(operation.collections),
        top_k=None if top_k is None else min(top_k, _MOST),
        unbounded=operation.unbounded,
        offset=None if offset is None else min(offset, _MOST),
        vectors=operation.vectors,
        fields=None if fields is None else sorted(fields),
        probed=sorted(operation.probed) if operation.probed else [],
        thresholds=operation.thresholds,
        filtered=operation.filtered,
        carries_filter=operation.carries_filter,
        queries=min(operation.queries, _MOST),
        rows=operation.rows, bytes=operation.bytes, partial=operation.partial,
    )  # fmt: skip


def verdict_part(verdict: Verdict) -> VerdictPart:
    fields, near = verdict.fields, verdict.nearest
    return VerdictPart(
        outcome=verdict.outcome,
        rule=verdict.rule,
        where=verdict.where,
        message=verdict.message,
        policy=verdict.policy,
        limits=[LimitPart(x.name, x.value, x.over, x.rule) for x in verdict.limits],
        clamps=[LimitPart(x.name, x.value, x.over, x.rule) for x in verdict.clamps],
        vectors=verdict.vectors,
        vectors_rule=verdict.vectors_rule,
        fields=None if fields is None else sorted(fields),
        fields_rule=verdict.fields_rule,
        filters=list(verdict.filters),
        filter_rules=verdict.filter_rules,
        masks=[MaskPart(x.rule, x.field, x.pii, x.scores, x.how) for x in verdict.masks],
        level=verdict.level,
        mode=verdict.mode,
        nearest=None if near is None else NearPart(near.rule, near.condition, near.wanted, near.got),
        would=verdict.would,
        hits=[HitPart(x.rule, x.mode, x.would, x.message) for x in verdict.hits],
    )
