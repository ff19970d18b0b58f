# SPDX-License-Identifier: Apache-2.0
"""The policy as one session meets it: which rules, in which mode, now.

Owns the choice between enforce, observe and off, and nothing of what a rule means. Bias: total. An
exception in the policy is a deny in enforce (and a bug, reported), an allow in observe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from policy.compile import Bound, Policy
from policy.decide import observed
from policy.login import ANY_LOGIN, UNREAD, Login, with_login
from policy.model import RecordLevel, RecordMode, Subject, Verdict
from policy.operation import Operation

MAX_BOUND = 256  # subjects whose rules are kept bound after their sessions


class Rules(Protocol):
    """What a judge reads at each request: the worker's snapshot of this moment."""

    @property
    def policy_hash(self) -> str: ...

    @property
    def in_force(self) -> object:
        """Another object whenever the rules or what they record by default changed."""
        ...

    def bind(self, subject: Subject, guard: str, login: Login | None) -> Bound: ...

    def guard_mode(self, guard: str) -> tuple[bool, bool]:
        """(enforcing, off)."""
        ...

    @property
    def defaults(self) -> tuple[RecordLevel, RecordMode]: ...

    def evidence_stands(self) -> bool:
        """False when strict rules must deny because the record cannot be written or signed."""
        ...


class Bindings:
    """Rules bound to a Subject once for all its sessions, and with them what they say of kinds of operation.

    A Subject is told by identity: the same process's next connection has the very same (``agent/link.py``).
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str, Login | None], tuple[Policy, Subject, Bound]] = (
            OrderedDict()
        )  # with the Subject, so that no other has its id

    def bind(self, policy: Policy, subject: Subject, guard: str, login: Login | None = None) -> Bound:
        if login is not None and not policy.for_guard(guard).names_login:
            login = None  # the same for all that it may name
        key = id(subject), guard, login
        kept = self._kept.get(key)
        if kept is None or kept[1] is not subject or kept[0] is not policy:
            kept = self._kept[key] = policy, subject, _bind(policy, subject, guard, login)
            if len(self._kept) > MAX_BOUND:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return kept[2]


def _bind(policy: Policy, subject: Subject, guard: str, login: Login | None) -> Bound:
    if login == ANY_LOGIN:
        return policy.for_any_login().bind(subject, guard)
    return policy.bind(with_login(subject, login), guard)


class SessionJudge:
    """A `Judge` (agent/protocols/session.py) that follows policy reloads."""

    __slots__ = ("_bound", "_guard", "_held", "_login", "_now", "_report", "_rules", "_subject")

    def __init__(
        self,
        rules: Rules,
        subject: Subject,
        guard: str,
        now: Callable[[], float],
        report: Callable[[BaseException], None],
        login: Login | None = None,
    ) -> None:
        """`login`: what is known of it (`first_login`)."""
        self._rules = rules
        self._subject = subject
        self._guard = guard
        self._now = now
        self._report = report
        self._login = login
        self._held: object = None
        self._bound: Bound | None = None

    def __call__(self, operation: Operation) -> Verdict:
        enforcing, off = self._rules.guard_mode(self._guard)
        if off:
            # Out of the way, also of a disk that is full: that may be why it was turned off.
            level, _ = self._rules.defaults
            return Verdict(
                "allow",
                None,
                None,
                "the guard is off",
                self._rules.policy_hash,
                level=level,
                mode="best-effort",
            )
        try:
            verdict = self._current().decide(operation, self._now())
            if not enforcing:
                return observed(verdict, operation)
        except Exception as error:
            self._report(error)
            outcome = "deny" if enforcing else "allow"
            return Verdict(outcome, None, None, "the policy could not be evaluated", self._rules.policy_hash)  # type: ignore[arg-type]
        if verdict.mode != "best-effort" and verdict.outcome == "allow" and not self._rules.evidence_stands():
            message = "the evidence cannot be written or signed, and the rules say strict"
            return Verdict("deny", None, None, message, self._rules.policy_hash, mode="best-effort")
        return verdict

    def reads_body(self, operation: Operation) -> bool:
        try:
            return self._current().reads_body(operation)
        except Exception as error:
            self._report(error)
            return True

    def rebind(self, subject: Subject) -> None:
        """More is known of the subject: what is judged from now on is judged by it."""
        self._subject = subject
        self._held = self._bound = None

    def begin(self, login: Login) -> None:
        """The client has named its user and database: what is judged from now on is judged by them."""
        self._login = login
        self._held = self._bound = None

    def has_rights(self) -> bool:
        """Whether any rule could still allow this subject something (else its session is closed)."""
        try:
            login = ANY_LOGIN if self._login == UNREAD else self._login
            return self._rules.bind(self._subject, self._guard, login).has_rights(self._now())
        except Exception as error:
            self._report(error)
            return False

    def _current(self) -> Bound:
        if self._bound is None or self._held is not self._rules.in_force:
            self._bound = self._rules.bind(self._subject, self._guard, self._login)
            self._held = self._rules.in_force
        return self._bound
