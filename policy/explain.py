# SPDX-License-Identifier: Apache-2.0
"""Why a verdict is what it is: every rule of the guard, what it adds or why it does not match.

Judges rule by rule with ``match``, beside the verdict of ``compile``: slow, for people. Owns the words
of the trace, decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from policy.compile import Policy
from policy.decide import decide, describe_mask, is_unknown
from policy.model import NearMiss, Subject, Verdict
from policy.nearest import first_miss
from policy.operation import Operation
from policy.rules import Rule


@dataclass(frozen=True, slots=True)
class Step:
    """One rule. `effects` is what it contributes (or would, in warn and shadow), `miss` why it does not.

    A rule can allow nothing and restrict all the same: then both are set.
    """

    rule: str
    where: str
    mode: str  # enforce | warn | shadow, as of `now`
    effects: tuple[str, ...]
    miss: NearMiss | None


@dataclass(frozen=True, slots=True)
class Explanation:
    verdict: Verdict
    steps: tuple[Step, ...]

    def lines(self) -> list[str]:
        """For a terminal: the verdict, where each limit and mask came from, then rule by rule."""
        return [*_summary(self.verdict), "rules:", *(line for step in self.steps for line in _step(step))]

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        verdict = self.verdict
        return {
            "verdict": verdict.outcome,
            "rule": verdict.rule,
            "where": verdict.where,
            "message": verdict.message,
            "policy": verdict.policy,
            "limits": [asdict(limit) for limit in verdict.limits],
            "clamps": [asdict(limit) for limit in verdict.clamps],
            "vectors": {"allowed": verdict.vectors, "rule": verdict.vectors_rule},
            "fields": {
                "only": None if verdict.fields is None else sorted(verdict.fields),
                "rule": verdict.fields_rule,
            },
            "filters": [
                {"field": field, "value": value, "rule": rule}
                for (field, value), rule in zip(verdict.filters, verdict.filter_rules, strict=False)
            ],
            "masks": [
                {"what": describe_mask(mask), "as": mask.how, "rule": mask.rule} for mask in verdict.masks
            ],
            "record": {"level": verdict.level, "mode": verdict.mode},
            "nearest": None if verdict.nearest is None else asdict(verdict.nearest),
            "hits": [asdict(hit) for hit in verdict.hits],
            "rules": [
                {
                    "rule": step.rule,
                    "where": step.where,
                    "mode": step.mode,
                    "effects": list(step.effects),
                    "miss": None if step.miss is None else asdict(step.miss),
                }
                for step in self.steps
            ],
        }


def explain(
    policy: Policy,
    subject: Subject,
    operation: Operation,
    now: float,
    counters: Mapping[str, int] | None = None,
) -> Explanation:
    """The verdict over one operation as enforce mode gives it, with the part of every rule in it."""
    policy = policy.judging(operation)
    steps = tuple(
        _judge(rule, policy, subject, operation, now) for rule in policy.for_guard(operation.guard).rules
    )
    return Explanation(decide(policy, subject, operation, counters or {}, now), steps)


def _judge(rule: Rule, policy: Policy, subject: Subject, operation: Operation, now: float) -> Step:
    effects: list[str] = []
    miss = None
    if rule.permits:
        miss = first_miss(rule, subject, operation, policy.tests, every=True)
        if miss is None and is_unknown(operation):
            miss = NearMiss(rule.id, "what.action", "actions that are known", "unknown")
        if miss is None:
            effects.append("allow" if rule.allow else "tunnel")
    if rule.deny is not None or rule.restricts or rule.record is not None:
        unmatched = first_miss(rule, subject, operation, policy.tests, every=False)
        if unmatched is None:
            effects += _additions(rule)
        miss = miss or unmatched
    mode = "enforce" if rule.enforced(now) else rule.mode
    return Step(rule.id, rule.where, mode, tuple(effects), miss)


def _additions(rule: Rule) -> list[str]:
    found = [] if rule.deny is None else [f"deny: {rule.deny}"]
    found += [f"limit {spec.name} {spec.value} ({spec.over})" for spec in rule.limits]
    found += [] if rule.vectors else ["no vectors"]
    found += [] if rule.fields is None else ["only fields " + (", ".join(rule.fields) or "(none)")]
    found += [f"filter {name} = {value!r}" for name, value in rule.filter]
    for spec in rule.masks:
        what = spec.field or ("pii " + ", ".join(spec.pii) if spec.pii else f"scores to {spec.scores} digits")
        found.append(f"mask {what}" + ("" if spec.scores is not None else f" as {spec.how}"))
    if rule.record is not None:
        parts = [part for part in (rule.record.level, rule.record.mode) if part is not None]
        found.append("record " + " ".join(parts) + (" (forced)" if rule.record.force else ""))
    return found


def _summary(verdict: Verdict) -> list[str]:
    place = f" ({verdict.where})" if verdict.where else ""
    lines = [f"verdict: {verdict.outcome}, rule {verdict.rule or '-'}{place}", f"message: {verdict.message}"]
    if verdict.nearest is not None:
        near = verdict.nearest
        lines.append(f"nearest: {near.rule}, {near.condition} wants {near.wanted}, got {near.got}")
    lines += [f"limit: {one.name} {one.value} ({one.over}) from {one.rule}" for one in verdict.limits]
    lines += [f"cut: {one.name} to {one.value} by {one.rule}" for one in verdict.clamps]
    if not verdict.vectors:
        lines.append(f"vectors: taken out, by {verdict.vectors_rule}")
    if verdict.fields is not None:
        lines.append(
            f"fields: only {', '.join(sorted(verdict.fields)) or '(none)'}, by {verdict.fields_rule}"
        )
    lines += [
        f"filter: {name} = {value!r} from {rule}"
        for (name, value), rule in zip(verdict.filters, verdict.filter_rules, strict=False)
    ]
    lines += [f"mask: {describe_mask(mask)} from {mask.rule}" for mask in verdict.masks]
    lines += [f"{hit.mode}: {hit.rule} would {hit.would}: {hit.message}" for hit in verdict.hits]
    return [*lines, f"record: {verdict.level}, {verdict.mode}", f"policy: {verdict.policy}"]


def _step(step: Step) -> list[str]:
    mode = "" if step.mode == "enforce" else f" [{step.mode}]"
    lines = [f"  {step.rule}{mode} ({step.where}): {'; '.join(step.effects) or 'does not match'}"]
    if step.miss is not None:
        miss = step.miss
        lines.append(f"    failed {miss.condition}: wants {miss.wanted}, got {miss.got}")
    return lines
