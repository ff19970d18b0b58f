# SPDX-License-Identifier: Apache-2.0
"""Rules made quick: closures for `who`, bit sets for `what`, one `Bound` for each session.

Owns no meaning: `match` says what a condition means, `combine` what restrictions add up to, `decide`
what follows; a test holds this module to them. `Bound` is total: an exception inside becomes a denial.
Bit i of every set stands for the guard's i-th rule by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from policy.combine import RecordDefaults, Restrictions, combine, reads_body
from policy.decide import UNKNOWN_MESSAGE, Match, Trial, deny_all, is_unknown, judge, with_permit
from policy.index import WhatIndex, WhoIndex
from policy.login import CANCEL_METHOD, for_any_login
from policy.match import compile_condition, matches_name
from policy.model import ANY_COLLECTION, Action, Attribution, NearMiss, Subject, Verdict
from policy.nearest import first_miss
from policy.operation import Operation
from policy.rules import LOGIN_KEYS, Condition, Rule, What, hash_rules

MAX_KINDS = 256
"""Kinds of operation (actions x collections) a session remembers; collections are the client's to choose,
so that a full table is emptied rather than grown."""
TUNNEL = Operation(
    engine="",
    guard="",
    method="tunnel",
    actions=frozenset(Action),
    collections=frozenset({ANY_COLLECTION}),
    unbounded=True,
)
"""What raw bytes may be: anything."""


def encode_rules(rules: Iterable[Rule]) -> bytes:
    """Checked rules for a worker, as msgpack."""
    return msgspec.msgpack.encode(tuple(rules))


def decode_rules(data: bytes) -> tuple[Rule, ...]:
    """The other end of `encode_rules`. Raises msgspec.ValidationError."""
    return msgspec.msgpack.decode(data, type=tuple[Rule, ...])


class GuardRules:
    """The rules that can concern one guard, sorted by id, with everything about them but the subject."""

    def __init__(self, rules: Iterable[Rule], guard: str) -> None:
        self.rules = tuple(rule for rule in rules if _names_guard(rule.what, guard))
        self.what = WhatIndex([rule.what for rule in self.rules])
        self.who = WhoIndex([rule.conditions for rule in self.rules])
        self.unless_who = WhoIndex([rule.unless.conditions if rule.unless else () for rule in self.rules])
        self.remote = _bits(any(c.key == "remote" for c in rule.who) for rule in self.rules)
        self.unless = WhatIndex([rule.unless.what if rule.unless else None for rule in self.rules])
        self.has_unless = _bits(
            rule.unless is not None and _names_guard(rule.unless.what or What(), guard) for rule in self.rules
        )
        # Their exception is about who alone: for that subject the rule is not there.
        self.unless_who_alone = self.has_unless & _bits(
            rule.unless is not None and (rule.unless.what is None or _is_of_session(rule.unless.what))
            for rule in self.rules
        )
        self.denies = _bits(rule.deny is not None for rule in self.rules)
        self.allows = _bits(rule.allow for rule in self.rules)
        self.tunnels = _bits(rule.tunnel for rule in self.rules)
        self.adds = _bits(rule.restricts or rule.record is not None for rule in self.rules)
        self.restricts = _bits(rule.restricts for rule in self.rules)
        self.readers = _bits(reads_body(rule) for rule in self.rules)
        self.names_login = bool(LOGIN_KEYS & {condition.key for condition in _conditions(self.rules)})
        self.untils = tuple(sorted({rule.until for rule in self.rules if rule.until is not None}))


def _is_of_session(what: What) -> bool:
    """It says the same of all that is asked in a session."""
    return what == What(guard=what.guard, database=what.database)


def _names_guard(what: What, guard: str) -> bool:
    return what.guard is None or matches_name(what.guard, guard)


def allowable(subject: Subject, remote: int, everything: int) -> int:
    """`may_be_allowed` for all rules: `remote` are those that name it."""
    if subject.attribution is Attribution.UNATTRIBUTED:
        return 0
    is_remote = subject.attribution is Attribution.REMOTE or subject.remote is not None
    return remote if is_remote else everything


def _bits(flags: Iterable[bool]) -> int:
    return sum(1 << at for at, flag in enumerate(flags) if flag)


def _each(bits: int) -> Iterator[int]:
    """The positions of the bits that are set, lowest first."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


class Policy:
    """Compiled rules. Immutable in meaning; `bind` gives what one subject may do at one guard."""

    def __init__(
        self, rules: Iterable[Rule], defaults: RecordDefaults | None = None, known_as: str | None = None
    ) -> None:
        """`known_as`: the hash to name, where these rules stand for others."""
        self.rules = tuple(sorted(rules, key=lambda rule: rule.id))
        self.defaults = defaults or RecordDefaults()
        self.hash = known_as if known_as is not None else hash_rules(self.rules)
        self.tests = {condition: compile_condition(condition) for condition in _conditions(self.rules)}
        self._guards: dict[str, GuardRules] = {}
        self._for_any_login: Policy | None = None

    def for_any_login(self) -> Policy:
        """The rules as the login that suits best would meet them (`login.for_any_login`)."""
        if self._for_any_login is None:
            found = [one for rule in self.rules if (one := for_any_login(rule)) is not None]
            self._for_any_login = Policy(found, self.defaults, self.hash)
        return self._for_any_login

    def judging(self, operation: Operation) -> Policy:
        """The rules by which this operation is judged."""
        return self.for_any_login() if operation.method == CANCEL_METHOD else self

    def for_guard(self, guard: str) -> GuardRules:
        """The guard's rules, indexed at first use; guards come from the configuration, so they are few."""
        found = self._guards.get(guard)
        if found is None:
            found = self._guards[guard] = GuardRules(self.rules, guard)
        return found

    def bind(self, subject: Subject, guard: str) -> Bound:
        """Evaluate everything that the subject alone decides, once for a session."""
        return Bound(self, subject, guard)

    def subject_keys(self, guard: str) -> frozenset[str]:
        """The keys of `who` that rules of this guard ask for: identity need not hash what nobody asks."""
        return frozenset(condition.key for condition in _conditions(self.for_guard(guard).rules))


def _conditions(rules: Iterable[Rule]) -> Iterator[Condition]:
    for rule in rules:
        yield from rule.conditions
        if rule.unless is not None:
            yield from rule.unless.conditions


class Bound:
    """One policy as one subject meets it at one guard. Total: it denies what it cannot decide."""

    def __init__(self, policy: Policy, subject: Subject, guard: str) -> None:
        self.policy = policy
        self.subject = subject
        self.guard = guard
        self._rules = policy.for_guard(guard)
        self._kinds: dict[tuple[frozenset[Action], frozenset[str], str], Match] = {}
        self._enforced = 0
        self._changes_at = float("-inf")  # when the next `until` passes
        self._readers: dict[tuple[frozenset[Action], frozenset[str], str], bool] = {}
        self._misses: list[tuple[int, int]] | None = None
        rules = self._rules
        surely, self._who_maybe, self._by_key = rules.who.evaluate(subject)
        # What an allow asks beside its conditions counts as one more key.
        self._by_key.append(allowable(subject, rules.remote, rules.what.everything))
        self._who_surely = surely & self._by_key[-1]
        surely, maybe, _ = rules.unless_who.evaluate(subject)
        self._unless_surely, self._unless_maybe = surely & rules.has_unless, maybe & rules.has_unless

    def decide(self, operation: Operation, now: float) -> Verdict:
        """Judge one operation as enforce mode does (`observed` makes the observe verdict of it)."""
        try:
            if operation.guard != self.guard:
                reason = f"judged for guard {self.guard}, asked of {operation.guard}"
                return deny_all(reason, self.policy.hash)
            return judge(self._match(operation, now), operation, self.policy.hash)
        except Exception as error:  # total by contract: a bug here must not let anything through
            return deny_all(f"internal error while judging ({type(error).__name__})", self.policy.hash)

    def reads_body(self, operation: Operation) -> bool:
        """Whether any rule, shadow rules too, could need what only the body tells."""
        try:
            kind = (operation.actions, operation.collections, operation.engine)
            found = self._readers.get(kind)
            if found is None:
                if len(self._readers) >= MAX_KINDS:
                    self._readers.clear()
                found = self._readers[kind] = bool(self._restricting(operation) & self._rules.readers)
            return found
        except Exception:  # reading more than needed is the safe side
            return True

    def tunnel(self, engine: str, now: float) -> Verdict | None:
        """The verdict of a connection that may pass as raw bytes, None if it is to be parsed and judged.

        Only a `tunnel` rule gives it, and only where no deny and no restriction could apply to
        anything that the bytes may hold.
        """
        try:
            return self._tunnel(engine, now)
        except Exception:  # parsed and judged is the safe side
            return None

    def _tunnel(self, engine: str, now: float) -> Verdict | None:
        rules = self._rules
        if not rules.tunnels:
            return None
        self._refresh(now)
        anything = TUNNEL.changed(guard=self.guard, engine=engine)
        applying = self._restricting(anything) & self._enforced
        tunnel = self._first(self._permitting(anything) & self._enforced & rules.tunnels)
        if tunnel is None or applying & (rules.denies | rules.restricts):
            return None
        found = self._sum(applying & rules.adds)
        match = Match(
            deny=None, allow=None, tunnel=tunnel, restrictions=found, trials=(), nearest=None, unallowed=""
        )
        return judge(match, anything, self.policy.hash)

    def has_rights(self, now: float) -> bool:
        """Whether any rule could still allow this subject anything (else its session can be closed)."""
        self._refresh(now)
        rules = self._rules
        excepted = self._unless_surely & rules.unless_who_alone
        return bool(self._who_surely & ~excepted & self._enforced & (rules.allows | rules.tunnels))

    def _refresh(self, now: float) -> None:
        """Rules whose `until` has passed enforce from here on."""
        if now < self._changes_at:
            return
        self._enforced = _bits(rule.enforced(now) for rule in self._rules.rules)
        self._changes_at = next((until for until in self._rules.untils if until > now), float("inf"))
        self._kinds.clear()

    def _match(self, operation: Operation, now: float) -> Match:
        if now >= self._changes_at:
            self._refresh(now)
        kind = (operation.actions, operation.collections, operation.engine)
        match = self._kinds.get(kind)
        if match is None:
            if len(self._kinds) >= MAX_KINDS:
                self._kinds.clear()
            match = self._kinds[kind] = self._combine(operation)
        return match

    def _restricting(self, operation: Operation) -> int:
        """Rules that apply as deny or restriction: any member hit, and no exception that surely covers it."""
        bits = self._rules.what.hit(operation) & self._who_maybe
        excepted = bits & self._unless_surely
        return bits & ~(excepted & self._rules.unless.covering(operation)) if excepted else bits

    def _permitting(self, operation: Operation) -> int:
        """Rules that apply as allow or tunnel: every member covered, and no exception that may hit it."""
        bits = self._rules.what.covering(operation) & self._who_surely
        excepted = bits & self._unless_maybe
        return bits & ~(excepted & self._rules.unless.hit(operation)) if excepted else bits

    def _combine(self, operation: Operation) -> Match:
        rules = self._rules
        restricting = self._restricting(operation)
        applying = restricting & self._enforced
        is_known = not is_unknown(operation)
        permitting = self._permitting(operation) & self._enforced if is_known else 0
        deny = self._first(applying & rules.denies)
        allow = self._first(permitting & rules.allows)
        tunnel = self._first(permitting & rules.tunnels)
        nearest = None
        unallowed = "" if is_known else UNKNOWN_MESSAGE
        if deny is None and allow is None and tunnel is None and is_known:
            nearest = self._nearest(operation)
            unallowed = "no rule allows it"
            if nearest is not None:
                unallowed += f"; closest: {nearest.rule}, failed {nearest.condition}"
        match = Match(
            deny=deny,
            allow=allow,
            tunnel=tunnel,
            restrictions=self._sum(applying & rules.adds),
            trials=tuple(
                self._trial(rules.rules[at])
                for at in _each(restricting & ~self._enforced & (rules.adds | rules.denies))
            ),
            nearest=nearest,
            unallowed=unallowed,
        )
        return with_permit(match, operation, self.policy.hash)

    def _sum(self, bits: int) -> Restrictions:
        return combine([self._rules.rules[at] for at in _each(bits)], self.policy.defaults)

    def _trial(self, rule: Rule) -> Trial:
        return Trial(
            rule=rule,
            denies=rule.deny is not None,
            restrictions=combine([rule], self.policy.defaults) if rule.restricts else None,
        )

    def _first(self, bits: int) -> Rule | None:
        at = next(_each(bits), None)
        return None if at is None else self._rules.rules[at]

    def _nearest(self, operation: Operation) -> NearMiss | None:
        """The allow with the fewest failing conditions; among equals, one that knows the caller."""
        rules = self._rules
        if self._misses is None:
            self._misses = sorted(
                (sum(not met >> at & 1 for met in self._by_key), at)
                for at in _each(rules.allows | rules.tunnels)
            )
        what = (
            rules.what.actions_covering(operation),
            rules.what.collections_covering(operation),
            rules.what.engine(operation.engine),
            ~(self._unless_maybe & rules.unless.hit(operation)),
            self._enforced,
        )
        best: tuple[int, int, int] | None = None
        for who_count, at in self._misses:
            if best is not None and who_count >= best[0]:
                break
            count = who_count + sum([not bits >> at & 1 for bits in what])
            if best is None or (count, who_count, at) < best:
                best = (count, who_count, at)
        if best is None:
            return None
        return first_miss(rules.rules[best[2]], self.subject, operation, self.policy.tests)
