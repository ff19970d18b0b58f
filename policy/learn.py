# SPDX-License-Identifier: Apache-2.0
"""Least-privilege rules out of what was observed. Pure: the same observations give the same rules.

Owns who a caller is named by, which collections and actions one rule may hold together, and the limits. Bias:
a pair of collection and action that was not seen is not allowed; what was refused by a rule, is unknown, or
came from a caller that only itself could name is not proposed but listed. What was seen is not what is right:
a person reads the rules before they are put in force.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from policy.compile import Policy
from policy.decide import decide
from policy.learn_names import Named, is_writable, name_caller, pattern, rule_ids
from policy.match import Truth, compile_condition, what_failures
from policy.model import ANY_COLLECTION, Action, Subject
from policy.operation import Operation
from policy.rules import UNATTESTED, LimitSpec, Rule, What

MAX_KINDS = 100_000
"""Different (caller, kind of request) that are kept; beyond, `Observations.full` is set."""
MAX_TOLD = 1000
"""Processes, and sessions, of one kind that are told apart for the comments."""
MAX_NAMES = 1000
"""Collections of one rule."""
READS = frozenset({Action.SEARCH, Action.READ, Action.SCAN})
HARMLESS = READS | {Action.COUNT, Action.SESSION}
WITHOUT_COLLECTION = frozenset({Action.SESSION, Action.COUNT, Action.SCHEMA, Action.ADMIN})
"""Actions on no collection that are proposed: such an allow cannot be narrower, and reaches no row."""

WITHOUT_CATALOG = frozenset({"pgvector"})

Process = tuple[int, int, str]  # pid, start time, program
Caller = tuple[str, "Named"]  # guard, and who


@dataclass(slots=True)
class Use:
    """One kind of request of one caller: how often, how much, when (ns since 1970), by whom."""

    subject: Subject  # see `identity`
    operation: Operation  # the widest seen: highest top_k, vectors and unbounded if ever
    count: int = 0
    first: int = 0
    last: int = 0
    processes: set[Process] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)

    def add(self, operation: Operation, at: int, session: str, process: Process | None) -> None:
        self.count += 1
        self.first = min(self.first or at, at)
        self.last = max(self.last, at)
        if len(self.sessions) < MAX_TOLD:
            self.sessions.add(session)
        if process is not None and len(self.processes) < MAX_TOLD:
            self.processes.add(process)
        old = self.operation
        self.operation = Operation(
            old.engine, old.guard, min(old.method, operation.method), old.actions, old.collections,
            top_k=max((n for n in (old.top_k, operation.top_k) if n is not None), default=None),
            unbounded=old.unbounded or operation.unbounded,
            vectors=old.vectors or operation.vectors,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Left:
    """What was seen and is not proposed, and why. `rule` is one that a person may take over."""

    guard: str
    who: str
    what: str
    count: int
    why: str
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """One rule, and what it was made of."""

    rule: Rule
    uses: tuple[Use, ...]  # what it allows; of a tunnel, what passed unread
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Learnt:
    proposals: tuple[Proposal, ...]
    left: tuple[Left, ...]


class Observations:
    """What was seen, folded. Feed it in any order; within a session, one after the other."""

    def __init__(self) -> None:
        self.uses: dict[tuple[object, ...], Use] = {}
        self.unread: dict[tuple[object, ...], Use] = {}
        self.refused: dict[tuple[str, str, str], int] = defaultdict(int)
        self.full = False
        self.exchanges = 0

    def add(
        self, subject: Subject, operation: Operation, at: int, session: str, process: Process | None = None
    ) -> None:
        """A request that was allowed, or (in observe) that no rule was against."""
        self.exchanges += 1
        kind = (operation.guard, _key(subject), operation.actions, operation.collections)
        self._add(self.uses, kind, subject, operation).add(operation, at, session, process)

    def add_unread(
        self, guard: str, engine: str, subject: Subject, protocol: str, at: int, session: str,
        process: Process | None = None,
    ) -> None:  # fmt: skip
        """A connection whose bytes were passed on unread."""
        operation = Operation(engine, guard, protocol, frozenset({Action.UNKNOWN}))
        use = self._add(self.unread, (guard, _key(subject), protocol), subject, operation)
        use.add(operation, at, session, process)

    def add_refused(self, operation: Operation, subject: Subject, why: str) -> None:
        """A request that a rule was against, or that was refused: counted, not proposed."""
        self.exchanges += 1
        key = (operation.guard, name_caller(identity(subject)).text, why)
        self.full = self.full or len(self.refused) >= MAX_KINDS
        if not self.full:
            self.refused[key] += 1

    def _add(
        self, uses: dict[tuple[object, ...], Use], key: tuple[object, ...], subject: Subject, asked: Operation
    ) -> Use:
        use = uses.get(key)
        if use is None:
            use = Use(identity(subject), asked)
            if len(uses) < MAX_KINDS:
                uses[key] = use
            else:
                self.full = True
        return use


KEPT = ("user", "uid", "unit", "exe", "image", "container", "login_user")


def identity(subject: Subject) -> Subject:
    """Only what a proposed rule may name: attested, and constant for a service."""
    return Subject(
        subject.attribution, uid=subject.uid, user=subject.user, unit=subject.unit, exe=subject.exe,
        image=subject.image, container=None if subject.image else subject.container,
        login_user=subject.login_user, is_self=subject.is_self, remote=subject.remote,
        tls_subject=subject.tls_subject, unobtained=subject.unobtained & set(KEPT), database=subject.database,
    )  # fmt: skip


def _key(subject: Subject) -> tuple[object, ...]:
    """`identity` as what can be looked up."""
    known = (getattr(subject, name) for name in KEPT)
    more = (subject.attribution, subject.is_self, subject.remote, subject.tls_subject, subject.database)
    return (*known, *more, subject.unobtained & set(KEPT))


def learn(
    seen: Observations, peers: Mapping[str, Sequence[str]], guards: Sequence[str] | None = None
) -> Learnt:
    """The rules under which everything seen would be allowed, and hardly anything else.

    `peers`: networks that each guard's configuration lists as cluster peers. `guards`: those of the
    configuration, None = not known; what was seen of others is left out.
    """
    left = [Left(guard, who, "", count, why) for (guard, who, why), count in seen.refused.items()]
    asked: dict[Caller, list[Use]] = defaultdict(list)
    tunnels: dict[Caller, list[Use]] = defaultdict(list)
    for use in (*seen.uses.values(), *seen.unread.values()):
        guard, named = use.operation.guard, name_caller(use.subject)
        why = _unnameable(named, use, guards)
        if why is None and Action.UNKNOWN not in use.operation.actions:
            asked[guard, named].append(use)
        elif why is None and _may_tunnel(use.subject, peers.get(guard, ())):
            tunnels[guard, named].append(use)
        else:
            why = why or _unread_reason(named)
            left.append(Left(guard, named.text, _what_text(use.operation), use.count, why))
    callers = sorted({*asked, *tunnels}, key=lambda key: (key[0], key[1].text))
    drafts = [
        draft for key in callers for draft in _of_caller(*key, asked.get(key, []), tunnels.get(key, []), left)
    ]
    proposals = [_limited(one, list(seen.uses.values())) for one in rule_ids(drafts)]
    left += _uncovered(proposals)
    order = sorted(left, key=lambda one: (one.guard, one.who, one.what, one.why))
    return Learnt(tuple(proposals), tuple(order))


def _unnameable(named: Named, use: Use, guards: Sequence[str] | None) -> str | None:
    operation = use.operation
    if guards is not None and operation.guard not in guards:
        return "no guard of the configuration has this name"
    if not all(is_writable(name) for name in operation.collections):
        return "a collection has a name that no rule can hold"
    if use.subject.database is not None and not is_writable(use.subject.database):
        return "the database has a name that no rule can hold"
    if named.why is not None:
        return named.why
    if {condition.key for condition in named.who} <= UNATTESTED:
        return "nothing attested names it"
    return None


def _may_tunnel(subject: Subject, peers: Sequence[str]) -> bool:
    """What `policy check` takes a tunnel for: the database's own processes, and listed peers."""
    if subject.is_self:
        return True
    if subject.remote is None:
        return False
    address = ipaddress.ip_address(subject.remote.partition("%")[0])
    networks = [ipaddress.ip_network(peer, strict=False) for peer in peers]
    return any(address.version == network.version and address in network for network in networks)


def _unread_reason(named: Named) -> str:
    reason = "what is unknown or unread is never allowed by a rule"
    if any(condition.key == "remote" for condition in named.who):
        return f"{reason}; a cluster peer? list it under `peers:` of the guard, then learn again"
    return f"{reason}; TLS needs `tls:` of the guard, gRPC is not read"


# -- what one caller needs ------------------------------------------------------------------------


def _of_caller(
    guard: str, named: Named, uses: list[Use], unread: list[Use], left: list[Left]
) -> Iterator[tuple[str, Proposal]]:
    """(name to make the id of, rule) of one caller of one guard. A tunnel makes its other rules idle."""
    if unread:
        rule = Rule("", "", who=named.who, what=What((guard,)), tunnel=True)
        note = "passes unread and unjudged: be sure that this is the database's own traffic"
        yield named.slug, Proposal(rule, tuple(unread + uses), (note, *named.notes))
        return
    databases: dict[str | None, list[Use]] = defaultdict(list)
    for use in uses:
        databases[use.subject.database].append(use)
    for database, some in sorted(databases.items(), key=lambda item: item[0] or ""):
        yield from _of_database(guard, database, named, some, left)


def _of_database(
    guard: str, database: str | None, named: Named, uses: list[Use], left: list[Left]
) -> Iterator[tuple[str, Proposal]]:
    """The same for what was asked of one database; None: of an engine whose clients name none."""
    within = None if database is None else (pattern(database),)
    for actions, collections in cover([one for use in uses for one in as_enforced(use.operation)]):
        what = What((guard,), None, collections, tuple(sorted(actions)), within)
        rule = Rule("", "", who=named.who, what=what, allow=True)
        mine = tuple(use for use in uses if not what_failures(what, use.operation, every=True))
        if collections is None and not actions <= WITHOUT_COLLECTION:
            why = "on no collection: an allow for that would hold for every collection"
            count = sum(use.count for use in mine if not use.operation.collections)
            wide = replace(rule, id=f"learned-{named.slug}-everywhere")
            left.append(Left(guard, named.text, ", ".join(sorted(actions)), count, why, wide))
            continue
        unseen = () if mine else ("to open a session is judged in enforce, and not recorded in observe",)
        yield named.slug, Proposal(rule, mine, (*unseen, *named.notes))


def as_enforced(operation: Operation) -> Iterator[Operation]:
    """The operation, what enforce may call it, and what it judges before. Observe asks a PostgreSQL for no
    catalog: it does not know which columns are the key, and so calls a read by key a scan. Who may scan may
    read. And who asks anything has opened a session, which observe lets be."""
    yield operation
    if operation.engine not in WITHOUT_CATALOG:
        return
    yield Operation(operation.engine, operation.guard, operation.method, frozenset({Action.SESSION}))
    if Action.SCAN in operation.actions:
        yield Operation(
            operation.engine, operation.guard, operation.method,
            operation.actions - {Action.SCAN} | {Action.READ}, operation.collections,
        )  # fmt: skip


def cover(operations: Iterable[Operation]) -> list[tuple[frozenset[Action], tuple[str, ...] | None]]:
    """Products of actions and collections (patterns; None: no collection) that cover every operation.

    No pair of action and collection is in them that no operation has, but for what an allow without
    collection covers by itself.
    """
    some = sorted({(o.actions, o.collections) for o in operations}, key=_order)
    bare = [actions for actions, collections in some if not collections]
    free = frozenset(a for actions in bare if actions <= WITHOUT_COLLECTION for a in actions)
    found: list[tuple[frozenset[Action], tuple[str, ...] | None]] = [(free, None)] if free else []
    found += [(actions, None) for actions in bare if not actions <= free]
    need: dict[str, set[Action]] = defaultdict(set)
    for actions, collections in some:
        for name in collections:
            need[name] |= actions
    everywhere = frozenset(need.get(ANY_COLLECTION, ()))
    groups: dict[frozenset[Action], list[str]] = defaultdict(list)
    for name, wanted in need.items():
        rest = frozenset(wanted) - free - (everywhere if name != ANY_COLLECTION else frozenset())
        if rest:
            groups[rest if name != ANY_COLLECTION else everywhere - free].append(name)
    for actions, names in sorted(groups.items(), key=_order):
        if ANY_COLLECTION in names:
            found.append((actions, (ANY_COLLECTION,)))
        for chunk in _chunks(_patterns(n for n in names if n != ANY_COLLECTION)):
            found.append((actions, chunk))
    for actions, collections in some:
        probe = Operation("", "", "", actions, collections)
        if not any(_covers(entry, probe) for entry in found):
            found.append((actions, _patterns(collections)))
    return found


def _order(item: tuple[Iterable[str], Iterable[str]]) -> tuple[list[str], list[str]]:
    return sorted(item[0]), sorted(item[1])


def _patterns(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({n if n == ANY_COLLECTION else pattern(n) for n in names}))


def _chunks(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for at in range(0, len(names), MAX_NAMES):
        yield tuple(names[at : at + MAX_NAMES])


def _covers(entry: tuple[frozenset[Action], tuple[str, ...] | None], operation: Operation) -> bool:
    actions, collections = entry
    return not what_failures(What(None, None, collections, tuple(actions)), operation, every=True)


# -- limits ---------------------------------------------------------------------------------------


def _limited(one: Proposal, seen: Sequence[Use]) -> Proposal:
    """The rule with limits that nothing seen exceeds, whoever else of the callers it reaches."""
    if not one.rule.allow:
        return one
    reads = READS & {Action(a) for a in one.rule.what.action or ()}
    if not reads:
        return one
    reached = [use.operation for use in seen if _reaches(one.rule, use)]
    bounds = [o.top_k for o in reached if o.top_k is not None]
    notes = list(one.notes)
    limits: tuple[LimitSpec, ...] = ()
    if any(o.unbounded for o in reached):
        notes.append("no top_k: some requests name no limit")
    elif bounds:
        limits = (LimitSpec("top_k", max(1, *bounds), "deny"),)
    asked = any(o.vectors for o in reached)
    if asked:
        notes.append("raw embeddings were asked for")
    strip = not asked and all(o.actions <= HARMLESS for o in reached)
    rule = replace(one.rule, limits=limits, vectors=not strip)
    return Proposal(rule, one.uses, tuple(notes))


def _reaches(rule: Rule, use: Use) -> bool:
    """Whether its restrictions apply: to any member, also where a condition cannot be evaluated."""
    if what_failures(rule.what, use.operation, every=False):
        return False
    return all(compile_condition(condition)(use.subject) is not Truth.NO for condition in rule.conditions)


def _uncovered(proposals: Sequence[Proposal]) -> Iterator[Left]:
    """What the rules do not allow after all; judged by the very code that will judge requests."""
    policy = Policy(tuple(one.rule for one in proposals))
    for use in {id(use): use for one in proposals if one.rule.allow for use in one.uses}.values():
        verdict = decide(policy, use.subject, use.operation, {}, 0.0)
        if verdict.outcome == "deny":
            why = f"the proposed rules would refuse it: {verdict.message}"
            named = name_caller(use.subject)
            yield Left(use.operation.guard, named.text, _what_text(use.operation), use.count, why)


def _what_text(operation: Operation) -> str:
    actions = ", ".join(sorted(operation.actions))
    names = sorted(operation.collections)
    on = f" on {', '.join(name[:80] for name in names[:5])}{' …' if len(names) > 5 else ''}" if names else ""
    return f"{actions}{on} ({operation.method})" if Action.UNKNOWN in operation.actions else f"{actions}{on}"
