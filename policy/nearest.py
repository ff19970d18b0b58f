# SPDX-License-Identifier: Apache-2.0
"""Why a rule did not match: its first failing condition, what it wanted and what there was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policy.match import Test, Truth, actions_of, may_be_allowed, value_of, what_failures
from policy.model import NearMiss, Subject
from policy.operation import Operation
from policy.rules import Condition, Rule, What

MAX_SHOWN = 200
"""Characters of a value shown in a trace: names and paths of strangers may be long."""

Tests = Mapping[Condition, Test]


def first_miss(
    rule: Rule, subject: Subject, operation: Operation, tests: Tests, *, every: bool = True
) -> NearMiss | None:
    """The first condition that keeps the rule from applying, None if it applies.

    `every`: as allow and tunnel (every member covered, errors count as no match); else as deny and
    restrictions (any member hit, errors count as match).
    """
    wrong = {Truth.NO, Truth.ERROR} if every else {Truth.NO}
    for condition in rule.conditions:
        truth = tests[condition](subject)
        if truth in wrong:
            got = "not obtained" if truth is Truth.ERROR else show(value_of(subject, condition.key))
            return NearMiss(rule.id, written(condition.key), show(condition.values), got)
    if every and not may_be_allowed(rule, subject):
        if subject.remote is not None:
            return NearMiss(rule.id, "who.remote", "named, for a caller of another host", subject.remote)
        return NearMiss(rule.id, "who", "a caller that is known", subject.attribution.value)
    for key in what_failures(rule.what, operation, every=every):
        return NearMiss(rule.id, f"what.{key}", show(wanted(rule.what, key)), show(asked(operation, key)))
    return _excepted(rule, subject, operation, tests, every=every)


def _excepted(
    rule: Rule, subject: Subject, operation: Operation, tests: Tests, *, every: bool
) -> NearMiss | None:
    unless = rule.unless
    if unless is None:
        return None
    stands = {Truth.YES, Truth.ERROR} if every else {Truth.YES}
    if all(tests[condition](subject) in stands for condition in unless.conditions) and not what_failures(
        unless.what or What(), operation, every=not every
    ):
        wanted_keys = [written(condition.key) for condition in unless.conditions]
        if unless.what is not None:
            keys = ("guard", "engine", "collection", "action")
            wanted_keys += [f"what.{key}" for key in keys if wanted(unless.what, key)]
        return NearMiss(rule.id, "unless", "the exception does not apply", ", ".join(wanted_keys))
    return None


def written(key: str) -> str:
    """Where a rule writes a condition on the session."""
    return "what.database" if key == "database" else f"who.{key}"


def wanted(what: What, key: str) -> object:
    return getattr(what, key)


def asked(operation: Operation, key: str) -> object:
    if key == "action":
        return sorted(action.value for action in actions_of(operation))
    return sorted(operation.collections) if key == "collection" else getattr(operation, key)


def show(value: object) -> str:
    """A value for people: bounded, lists joined, nothing where there is nothing."""
    if value is None or value == () or value == []:
        return "nothing"
    if isinstance(value, Iterable) and not isinstance(value, str):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
