# SPDX-License-Identifier: Apache-2.0
"""From the rules that match to one verdict. Pure and total: no clock, no I/O, no exception.

deny > restrictions > allow (`approve`, which stands between the first two, is not in this build).
Bias: whatever cannot be decided is denied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from policy.combine import Restrictions, exceeds, refuse
from policy.model import Action, Hit, Limit, Mask, NearMiss, Subject, Verdict
from policy.operation import Operation
from policy.rules import Rule

if TYPE_CHECKING:
    from policy.compile import Policy

Would = Literal["deny", "hold", "mask", "clamp"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A rule in warn or shadow that matches, and what it would add."""

    rule: Rule
    denies: bool
    restrictions: Restrictions | None


@dataclass(frozen=True, slots=True)
class Match:
    """The rules that match one kind of operation (its actions, collections and engine), combined."""

    deny: Rule | None
    allow: Rule | None
    tunnel: Rule | None
    restrictions: Restrictions
    trials: tuple[Trial, ...]
    nearest: NearMiss | None
    unallowed: str  # the message where neither `allow` nor `tunnel` is there
    permit: Verdict | None = None  # of what is not refused, where it is the same for all of the kind


def decide(
    policy: Policy, subject: Subject, operation: Operation, counters: Mapping[str, int], now: float
) -> Verdict:
    """Judge one operation of one subject as enforce mode does.

    `now` is seconds since the epoch (for `until`). `counters` are the budgets of `rate`, which this
    build refuses in policy files: nothing reads them. Sessions keep a `Bound` instead of calling this.
    """
    return policy.judging(operation).bind(subject, operation.guard).decide(operation, now)


def judge(match: Match, operation: Operation, policy: str) -> Verdict:
    """The verdict over an operation, given what matches it; `policy` is the hash to name."""
    rule, refusal = _refusal(match, operation)
    found = match.restrictions
    if refusal is not None:
        return Verdict(
            outcome="deny",
            rule=None if rule is None else rule[0],
            where=None if rule is None else rule[1],
            message=refusal,
            policy=policy,
            limits=found.limits,
            masks=found.masks,
            level=found.level,
            mode=found.mode,
            nearest=match.nearest if rule is None else None,
            hits=(),
        )
    return match.permit or _permit(match, operation, policy)


def with_permit(match: Match, operation: Operation, policy: str) -> Match:
    """`match` with the one verdict over all that it does not refuse, where no number of theirs changes it."""
    is_permitted = match.deny is None and (match.allow is not None or match.tunnel is not None)
    cuts = any(bound.over == "clamp" for bound in match.restrictions.bounds)
    if not is_permitted or cuts or match.trials:
        return match
    return replace(match, permit=_permit(match, operation, policy))


def _refusal(match: Match, operation: Operation) -> tuple[tuple[str, str | None] | None, str | None]:
    """((rule, where), message) of the refusal; a message of None is no refusal."""
    if match.deny is not None:
        return (match.deny.id, match.deny.where), denial(match.deny.id, match.deny.deny or "")
    if match.allow is None and match.tunnel is None:
        return None, match.unallowed
    refused = refuse(match.restrictions, operation)
    if refused is None:
        return None, None
    rule, reason = refused
    return (rule, match.restrictions.where(rule)), denial(rule, reason)


def denial(rule: str, reason: str) -> str:
    """The sentence a client is given."""
    return f"denied by rule {rule}: {reason}" if reason else f"denied by rule {rule}"


def _permit(match: Match, operation: Operation, policy: str) -> Verdict:
    found = match.restrictions
    allow = match.allow
    is_tunnel = match.tunnel is not None and not found.changes_answer and not found.bounds
    rule = match.tunnel if is_tunnel or allow is None else allow
    if rule is None:  # not reached: _refusal has refused already
        return deny_all("no rule allows it", policy)
    if not is_tunnel and allow is None:
        return replace(
            deny_all(
                denial(rule.id, "a tunnel passes raw bytes, and other rules restrict what may pass"), policy
            ),
            rule=rule.id,
            where=rule.where,
            level=found.level,
            mode=found.mode,
        )
    verdict = Verdict(
        outcome="tunnel" if is_tunnel else "allow",
        rule=rule.id,
        where=rule.where,
        message=f"allowed by rule {rule.id}",
        policy=policy,
        limits=found.limits,
        clamps=_clamps(found, operation),
        vectors=found.vectors_rule is None,
        vectors_rule=found.vectors_rule,
        fields=found.fields,
        fields_rule=found.fields_rule,
        filters=found.filters,
        filter_rules=found.filter_rules,
        masks=found.masks,
        level=found.level,
        mode=found.mode,
    )
    return replace(verdict, hits=try_out(match.trials, operation)) if match.trials else verdict


def _clamps(found: Restrictions, operation: Operation) -> tuple[Limit, ...]:
    """Only top_k can be cut: the lowest bound that says clamp (one that says deny is not exceeded here)."""
    exceeded = [bound for bound in found.bounds if bound.over == "clamp" and exceeds(operation, bound)]
    if not exceeded:
        return ()
    return (min(exceeded, key=lambda bound: (bound.value, bound.rule)),)


def try_out(trials: tuple[Trial, ...], operation: Operation) -> tuple[Hit, ...]:
    """What each rule in warn or shadow would have done to an operation that was let through."""
    hits = []
    for trial in trials:
        rule = trial.rule
        would: Would | None = None
        message = ""
        if trial.denies:
            would, message = "deny", rule.deny or ""
        elif trial.restrictions is not None:
            would, message = _would(trial.restrictions, operation)
        if would is not None:
            hits.append(Hit(rule.id, rule.mode, would, message or f"{would} by rule {rule.id}"))
    return tuple(hits)


def _would(found: Restrictions, operation: Operation) -> tuple[Would | None, str]:
    refused = refuse(found, operation)
    if refused is not None:
        return "deny", refused[1]
    if found.masks or found.filters or found.fields is not None or (found.vectors_rule and operation.vectors):
        return "mask", ""
    clamps = _clamps(found, operation)
    return ("clamp", f"{clamps[0].name} cut to {clamps[0].value}") if clamps else (None, "")


def deny_all(message: str, policy: str) -> Verdict:
    """The refusal that no rule is behind."""
    return Verdict(outcome="deny", rule=None, where=None, message=message, policy=policy)


UNKNOWN_MESSAGE: Final = (
    "this request is not one that is known for this database, and what is unknown is never allowed"
)


def is_unknown(operation: Operation) -> bool:
    return not operation.actions or Action.UNKNOWN in operation.actions


def observed(verdict: Verdict, operation: Operation | None = None) -> Verdict:
    """What a guard in observe gets: allow, nothing restricted, `would` naming what enforce does.

    With `operation`, removal of vectors that nobody asked for is not counted as a change.
    Level and mode of the record stay: recording is no restriction.
    """
    would, rule, message = _enforcement(verdict, operation)
    return Verdict(
        outcome="tunnel" if verdict.outcome == "tunnel" else "allow",
        rule=rule,
        where=verdict.where if rule == verdict.rule else None,
        message=message,
        policy=verdict.policy,
        level=verdict.level,
        mode=verdict.mode,
        nearest=verdict.nearest,
        would=would,
        hits=verdict.hits,
    )


def _enforcement(verdict: Verdict, operation: Operation | None) -> tuple[Would | None, str | None, str]:
    if verdict.outcome == "deny":
        return "deny", verdict.rule, verdict.message
    if verdict.outcome == "hold":
        return "hold", verdict.rule, verdict.message
    changes = [(describe_mask(mask), mask.rule) for mask in verdict.masks]
    changes += [
        (f"filter {key} = {value!r}", rule)
        for (key, value), rule in zip(verdict.filters, verdict.filter_rules, strict=False)
    ]
    if verdict.fields is not None:
        changes.append(("fields", verdict.fields_rule or ""))
    if not verdict.vectors and (operation is None or operation.vectors):
        changes.append(("vectors", verdict.vectors_rule or ""))
    if changes:
        listed = ", ".join(f"{what} (rule {rule})" for what, rule in changes)
        return "mask", changes[0][1] or None, f"enforce would mask: {listed}"
    if verdict.clamps:
        clamp = verdict.clamps[0]
        return "clamp", clamp.rule, f"enforce would cut {clamp.name} to {clamp.value} (rule {clamp.rule})"
    return None, verdict.rule, verdict.message


def describe_mask(mask: Mask) -> str:
    """A mask in a few words: "payload.ssn as hmac", "pii email, iban as redact", "scores to 2 digits"."""
    if mask.scores is not None:
        return f"scores to {mask.scores} digits"
    what = mask.field if mask.field is not None else "pii " + ", ".join(mask.pii)
    return f"{what} as {mask.how}"
