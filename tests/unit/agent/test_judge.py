# SPDX-License-Identifier: Apache-2.0
"""The judge of one session: enforce, observe, off, and what it does when the policy itself fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.judge import Bindings, SessionJudge
from policy.login import UNREAD, Login
from policy.model import Action, Attribution, RecordMode, Subject, Verdict
from policy.operation import Operation
from tests.unit.policy.tables import policy

SUBJECT = Subject(Attribution.KERNEL, pid=1)
SEARCH = Operation("qdrant", "q", "POST /collections/{c}/points/query", frozenset({Action.SEARCH}))

ALLOWS = "  - {id: a, what: {action: [search]}, allow: true}"
DENIES = "  - {id: d, what: {action: [search]}, deny: no}"


class Bound:
    """A policy bound to a subject: gives one verdict, or fails."""

    def __init__(self, verdict: Verdict | Exception) -> None:
        self.verdict = verdict

    def decide(self, operation: Operation, now: float) -> Verdict:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def reads_body(self, operation: Operation) -> bool:
        return self.decide(operation, 0).outcome == "deny"

    def has_rights(self, now: float) -> bool:
        return self.decide(SEARCH, now).outcome == "allow"


class Rules:
    """The worker's snapshot of this moment."""

    def __init__(self, verdict: Verdict | Exception, enforcing: bool = True, off: bool = False) -> None:
        self.bound: Any = Bound(verdict)
        self.enforcing, self.off = enforcing, off
        self.policy_hash = "hash-1"
        self.in_force: object = "rules 1"
        self.defaults: Any = ("masked", "strict")
        self.stands = True
        self.binds = 0

    def bind(self, subject: Subject, guard: str, login: Login | None) -> Any:
        self.binds += 1
        return self.bound

    def guard_mode(self, guard: str) -> tuple[bool, bool]:
        return self.enforcing, self.off

    def evidence_stands(self) -> bool:
        return self.stands


def verdict(outcome: Any = "allow", mode: RecordMode = "strict") -> Verdict:
    return Verdict(outcome, "r", "rules.yaml:1", "because", "hash-1", mode=mode)


def judge(rules: Rules, bugs: list[BaseException] | None = None) -> SessionJudge:
    return SessionJudge(rules, SUBJECT, "q", lambda: 0.0, (bugs if bugs is not None else []).append)


def test_enforce_gives_the_policys_verdict() -> None:
    assert judge(Rules(verdict("allow")))(SEARCH) == verdict("allow")
    assert judge(Rules(verdict("deny")))(SEARCH) == verdict("deny")


def test_observe_allows_and_says_what_enforce_would_do() -> None:
    seen = judge(Rules(verdict("deny"), enforcing=False))(SEARCH)
    assert (seen.outcome, seen.would, seen.rule) == ("allow", "deny", "r")


def test_a_guard_that_is_off_allows_without_asking_the_policy() -> None:
    rules = Rules(RuntimeError("not to be asked"), off=True)
    rules.stands = False
    seen = judge(rules)(SEARCH)
    assert (seen.outcome, seen.would, seen.message) == ("allow", None, "the guard is off")
    assert seen.mode == "best-effort", "off is out of the way, also when the disk is full"


@pytest.mark.parametrize(("enforcing", "outcome"), [(True, "deny"), (False, "allow")])
def test_an_exception_in_the_policy_denies_in_enforce_and_allows_in_observe(
    enforcing: bool, outcome: str
) -> None:
    bugs: list[BaseException] = []
    rules = Rules(ZeroDivisionError(), enforcing)
    seen = judge(rules, bugs)(SEARCH)
    assert (seen.outcome, seen.policy) == (outcome, "hash-1")
    assert [type(bug) for bug in bugs] == [ZeroDivisionError]


def test_an_exception_while_binding_is_one_in_the_policy() -> None:
    bugs: list[BaseException] = []
    rules = Rules(verdict())
    rules.bind = lambda subject, guard, login: 1 / 0  # type: ignore[method-assign]
    asked = judge(rules, bugs)
    assert asked(SEARCH).outcome == "deny"
    assert asked.reads_body(SEARCH), "what cannot be decided may need the body"
    assert not asked.has_rights()
    assert len(bugs) == 3


@pytest.mark.parametrize(
    ("mode", "outcome"), [("best-effort", "allow"), ("strict", "deny"), ("strict-sync", "deny")]
)
def test_evidence_that_does_not_stand_denies_strict_rules_only(mode: Any, outcome: str) -> None:
    rules = Rules(verdict("allow", mode))
    rules.stands = False
    seen = judge(rules)(SEARCH)
    assert seen.outcome == outcome
    assert seen.mode == "best-effort", "the refusal itself must not wait for the disk"
    rules.enforcing = False
    assert judge(rules)(SEARCH).outcome == "allow"


def test_a_denial_stays_the_rules_own_when_evidence_does_not_stand() -> None:
    rules = Rules(verdict("deny"))
    rules.stands = False
    assert judge(rules)(SEARCH).rule == "r"


def test_a_judge_binds_once_and_again_after_a_reload() -> None:
    rules = Rules(verdict())
    asked = judge(rules)
    for _ in range(3):
        asked(SEARCH)
    assert rules.binds == 1
    rules.in_force, rules.bound = "rules 2", Bound(verdict("deny"))
    assert asked(SEARCH).outcome == "deny"
    assert rules.binds == 2


def test_rules_are_bound_once_to_a_subject_and_anew_to_another_or_by_other_rules() -> None:
    kept, first, second = Bindings(), policy(ALLOWS), policy(DENIES)
    subject = replace(SUBJECT)
    bound = kept.bind(first, subject, "q")
    assert kept.bind(first, subject, "q") is bound
    assert kept.bind(first, replace(subject), "q") is not bound, "an equal Subject may be another process"
    assert kept.bind(first, subject, "c").guard == "c"
    assert kept.bind(second, subject, "q").policy is second
    assert kept.bind(second, subject, "q").decide(SEARCH, 0.0).outcome == "deny"


def test_rules_stay_bound_for_a_bounded_number_of_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.judge.MAX_BOUND", 2)
    kept, rules = Bindings(), policy(ALLOWS)
    one, two, three = (replace(SUBJECT) for _ in range(3))
    first = kept.bind(rules, one, "q")
    kept.bind(rules, two, "q")
    assert kept.bind(rules, one, "q") is first
    kept.bind(rules, three, "q")
    assert kept.bind(rules, one, "q") is first, "it was asked for later than the second"
    assert len(kept._kept) == 2


def test_what_the_client_named_is_judged_from_then_on_and_bound_once_for_all_who_name_it() -> None:
    kept, subject = Bindings(), replace(SUBJECT)
    asking = policy("  - {id: a, what: {guard: pg, database: app}, allow: true}")
    asked = Operation("pgvector", "pg", "SELECT", frozenset({Action.SESSION}))
    rules = Rules(verdict())
    rules.bind = lambda subject, guard, login: kept.bind(asking, subject, guard, login)  # type: ignore[method-assign]
    made = SessionJudge(rules, subject, "pg", lambda: 0.0, print, UNREAD)
    assert made(asked).outcome == "deny"
    assert made.has_rights(), "what it will name may be allowed"
    made.begin(Login("u", "app"))
    assert (made(asked).outcome, made.has_rights()) == ("allow", True)
    made.begin(Login("u", "other"))
    assert (made(asked).outcome, made.has_rights()) == ("deny", False)
    bound = kept.bind(asking, subject, "pg", Login("u", "app"))
    assert kept.bind(asking, subject, "pg", Login("u", "app")) is bound
    assert kept.bind(asking, subject, "q", Login("u", "app")) is kept.bind(asking, subject, "q")
