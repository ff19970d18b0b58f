# SPDX-License-Identifier: Apache-2.0
"""What the shape of a file cannot say: rules that never match, contradict, repeat or surprise.

Errors are rules that cannot do what they say; warnings are rules that do something their author may
not expect. Nothing here decides about an operation.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations

from policy.context import GuardContext, GuardInfo
from policy.globs import globs_overlap, is_glob
from policy.login import LOGIN_ENGINES
from policy.match import matches_name
from policy.model import ANY_COLLECTION
from policy.nearest import written
from policy.problem import Problem, did_you_mean
from policy.rules import LOCAL_ONLY, LOGIN_KEYS, UNATTESTED, Condition, Rule, What
from policy.yaml_text import Path, SourceFile

UNTIL_WARNING = 14 * 24 * 3600.0
MAX_OVERLAPS = 20
"""Overlap warnings shown; a file with more is told so."""

Placed = tuple[Rule, SourceFile, Path]
# (path within the rule, message, hint)
Finding = tuple[Path, str, str]


def check_rules(placed: Sequence[Placed], context: GuardContext) -> tuple[list[Problem], list[Problem]]:
    """(errors, warnings) of the rules, each at its line."""
    errors = _repeated_ids(placed)
    warnings: list[Problem] = []
    for rule, source, path in placed:
        for check in (_effects, _who, _unless, _restrictions):
            errors += [source.problem((*path, *at), text, hint) for at, text, hint in check(rule)]
        errors += [source.problem((*path, *at), text, hint) for at, text, hint in _guards(rule, context)]
        warnings += [source.problem((*path, *at), text, hint) for at, text, hint in _cautions(rule, context)]
    if not errors:
        warnings += _overlaps(placed)
        warnings += _restricted_tunnels(placed)
    return errors, warnings


def _repeated_ids(placed: Sequence[Placed]) -> list[Problem]:
    first: dict[str, Rule] = {}
    found = []
    for rule, source, path in placed:
        if rule.id in first:
            hint = f"first used at {first[rule.id].where}"
            found.append(source.problem((*path, "id"), f"two rules have the id `{rule.id}`", hint))
        first.setdefault(rule.id, rule)
    return found


def _effects(rule: Rule) -> Iterator[Finding]:
    """One rule permits, denies, or only restricts; a key without effect is an error."""
    if not (rule.permits or rule.deny is not None or rule.restricts or rule.record is not None):
        yield (), "the rule does nothing", "give it allow, deny, tunnel, a restriction or record"
    if rule.deny is not None and rule.permits:
        yield ("deny",), "one rule cannot both permit and deny", "make it two rules"
    if rule.allow and rule.tunnel:
        yield ("tunnel",), "a tunnel is unread bytes, it cannot also be allowed", "leave `allow` out"
    if rule.deny is not None and rule.restricts:
        yield ("deny",), "what is denied cannot be restricted as well", "make it two rules"
    if rule.tunnel and rule.restricts:
        yield ("tunnel",), "a tunnel passes raw bytes, nothing in it can be restricted", "make it two rules"
    if rule.until is not None and rule.mode == "enforce":
        yield ("until",), "`until` ends warn or shadow, this rule enforces already", "add `mode: shadow`"
    if rule.record is not None and rule.record.level is None and rule.record.mode is None:
        yield ("record",), "`record` names neither level nor mode", ""
    if rule.record is not None and rule.record.force and rule.record.level is None:
        yield ("record", "force"), "`force` sets the level, and there is none", "add `level:`"


def _who(rule: Rule) -> Iterator[Finding]:
    for at, text in _impossible(rule.who):
        yield ("who", at), f"this rule can never match: {text}", "make it two rules"
    if rule.allow and rule.what.action == ("unknown",):
        yield ("what", "action"), "what is unknown is never allowed", "name the actions, or use a tunnel"


def _impossible(who: Sequence[Condition]) -> Iterator[tuple[str, str]]:
    keys = [condition.key for condition in who]
    local = [key for key in keys if key in LOCAL_ONLY]
    if "remote" in keys and local:
        yield local[0], f"a caller of another host has no `{local[0]}`"


def _unless(rule: Rule) -> Iterator[Finding]:
    unless = rule.unless
    if unless is None:
        return
    for at, text in _impossible(unless.who):
        yield ("unless", "who", at), f"this exception can never apply: {text}", ""
    mine, other = {c.key for c in rule.who}, {c.key for c in unless.who}
    if ("remote" in mine and other & LOCAL_ONLY) or ("remote" in other and mine & LOCAL_ONLY):
        yield ("unless",), "this exception can never apply: it and `who` cannot be one caller", ""
    inside = all(any(_within(mine, other) for mine in rule.who) for other in unless.who)
    if inside and _what_within(rule.what, unless.what or What()):
        yield ("unless",), "this rule can never match: its exception covers all of it", "narrow `unless`"


def _within(inner: Condition, outer: Condition) -> bool:
    return inner.key == outer.key and set(inner.values) <= set(outer.values)


def _what_within(inner: What, outer: What) -> bool:
    for key in ("guard", "engine", "collection", "action", "database"):
        mine, other = getattr(inner, key), getattr(outer, key)
        if other is not None and (mine is None or not set(mine) <= set(other)):
            return False
    return True


def _restrictions(rule: Rule) -> Iterator[Finding]:
    for at, spec in enumerate(rule.masks):
        if sum((spec.field is not None, bool(spec.pii), spec.scores is not None)) != 1:
            yield ("mask", at), "a mask names exactly one of field, pii, scores", "make it several entries"
        if spec.pii and spec.how in ("drop", "null"):
            yield ("mask", at, "as"), f"pii is part of a text, it cannot be `{spec.how}`", "use redact"
    if rule.tunnel:
        yield from _tunnel(rule)


def _tunnel(rule: Rule) -> Iterator[Finding]:
    for key in ("collection", "action", "database"):
        if getattr(rule.what, key) is not None:
            yield ("what", key), f"a tunnel is unread bytes, no `{key}` can be told in it", "leave it out"
    if "db_user" in {condition.key for condition in rule.who}:
        yield ("who", "db_user"), "a tunnel is unread bytes, no `db_user` can be told in it", "leave it out"
    if not {"self", "remote"} & {condition.key for condition in rule.who}:
        yield ("tunnel",), "a tunnel is for the database's own traffic", "add `who: {self: true}`"


def _guards(rule: Rule, context: GuardContext) -> Iterator[Finding]:
    """Names of guards and engines that are not there, and fields that none of the guards has."""
    if context.guards is None:
        return
    yield from _names(rule.what, ("what",), context.guards)
    if rule.unless is not None and rule.unless.what is not None:
        yield from _names(rule.unless.what, ("unless", "what"), context.guards)
    concerned = [guard for guard in context.guards if _concerns(rule.what, guard)]
    if not concerned:
        if not any(True for _ in _names(rule.what, ("what",), context.guards)):
            yield ("what",), "this rule can never match: no guard has both this name and this engine", ""
        return
    if not any(guard.engine in LOGIN_ENGINES for guard in concerned):
        yield from _without_login(rule, concerned)
    for at, spec in enumerate(rule.masks):
        if spec.field is not None:
            yield from _root(spec.field, ("mask", at, "field"), concerned)
    if rule.tunnel:
        yield from _peers(rule, concerned)


def _without_login(rule: Rule, guards: Sequence[GuardInfo]) -> Iterator[Finding]:
    names = ", ".join(sorted({guard.engine for guard in guards}))
    asked: list[tuple[Path, str, tuple[Condition, ...]]] = [
        ((), "this rule can never match", rule.conditions)
    ]
    if rule.unless is not None:
        asked.append((("unless",), "this exception can never apply", rule.unless.conditions))
    for path, what, conditions in asked:
        for key in sorted(LOGIN_KEYS & {condition.key for condition in conditions}):
            place = (*path, *written(key).split("."))
            yield (
                place,
                f"{what}: a client of {names} names no `{key}`",
                f"only {_listed(LOGIN_ENGINES)} has it",
            )


def _concerns(what: What, guard: GuardInfo) -> bool:
    named = what.guard is None or matches_name(what.guard, guard.name)
    return named and (what.engine is None or guard.engine in what.engine)


def _names(what: What, path: Path, guards: Sequence[GuardInfo]) -> Iterator[Finding]:
    names = {guard.name for guard in guards}
    for pattern in what.guard or ():
        if not any(matches_name((pattern,), name) for name in names):
            yield (*path, "guard"), f"no guard is named `{pattern}`", did_you_mean(pattern, names)
    engines = {guard.engine for guard in guards}
    for engine in what.engine or ():
        if engine not in engines:
            yield (*path, "engine"), f"no guard has the engine `{engine}`", did_you_mean(engine, engines)


ANY_ROOT = "*"
"""Among an engine's roots: its fields are columns, which have any name."""


def _root(field: str, path: Path, guards: Sequence[GuardInfo]) -> Iterator[Finding]:
    root = field.replace("[]", "").split(".")[0]
    roots: set[str] = set()
    for guard in guards:
        if guard.roots is None or root in guard.roots or ANY_ROOT in guard.roots:
            return
        roots |= guard.roots
    names = ", ".join(sorted({guard.engine for guard in guards}))
    close = did_you_mean(root, roots)
    yield path, f"no answer of {names} has a field `{field}`", close or f"try payload.{field}"


def _peers(rule: Rule, guards: Sequence[GuardInfo]) -> Iterator[Finding]:
    listed = [ipaddress.ip_network(peer, strict=False) for guard in guards for peer in guard.peers]
    for condition in rule.who:
        for value in condition.values if condition.key == "remote" else ():
            mine = ipaddress.ip_network(str(value))
            if not any(_contains(peer, mine) for peer in listed):
                hint = "list it under `peers:` of the guard in the configuration"
                yield ("who", "remote"), f"{value} is not a peer of the guard, it cannot have a tunnel", hint


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _contains(outer: Network, inner: Network) -> bool:
    if isinstance(outer, ipaddress.IPv4Network):
        return isinstance(inner, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _cautions(rule: Rule, context: GuardContext) -> Iterator[Finding]:
    keys = {condition.key for condition in rule.who}
    if keys and keys <= UNATTESTED:
        yield (
            ("who",),
            f"{_listed(keys)} can be chosen by any user: the rule rests on nothing attested",
            ("add unit, user, uid or exe"),
        )
    if "db_user" in keys and keys <= UNATTESTED | {"db_user"} and (guards := _believing(rule, context)):
        yield (
            ("who", "db_user"),
            f"`db_user` is the client's own word on {guards}: the rule rests on nothing attested",
            "add unit, user, uid or exe, or give the guard `auth: password`",
        )
    except_keys = {condition.key for condition in rule.unless.who} if rule.unless else set()
    if except_keys and except_keys <= UNATTESTED:
        yield (
            ("unless",),
            f"{_listed(except_keys)} can be chosen by any user: so can the exception",
            ("add unit, user, uid or exe"),
        )
    if rule.until is not None and rule.until <= context.now:
        yield (
            ("until",),
            f"`until` has passed: this rule enforces, it is not in {rule.mode}",
            ("take `mode` and `until` out"),
        )
    elif rule.until is not None and rule.until - context.now <= UNTIL_WARNING:
        days = int((rule.until - context.now) // 86400)
        yield ("until",), f"this rule enforces in {days} days", "look at what it would have refused"
    for name in rule.fields or ():
        if name.startswith("payload."):
            bare = name.removeprefix("payload.")
            yield ("fields",), f"`fields` names payload fields without their root: {bare}", f"write {bare}"
    if rule.allow and rule.what.collection is not None and rule.what.action == ("session",):
        yield (
            ("what", "collection"),
            "session operations name no collection: this allow matches none",
            ("leave `collection` out"),
        )


def _believing(rule: Rule, context: GuardContext) -> str:
    """The guards on which any client may name any user of the database."""
    mine = [guard for guard in context.guards or () if _concerns(rule.what, guard)]
    return _listed(
        {guard.name for guard in mine if guard.engine in LOGIN_ENGINES and guard.auth == "identity"}
    )


def _listed(keys: AbstractSet[str]) -> str:
    return ", ".join(sorted(keys))


def _overlaps(placed: Sequence[Placed]) -> list[Problem]:
    """Two allows that can meet on one operation with different limits: the lower one is in force."""
    allows = [(rule, source, path) for rule, source, path in placed if rule.allow]
    found = []
    for (left, _, _), (right, source, path) in combinations(allows, 2):
        if _bounds(left) != _bounds(right) and _meet(left, right):
            found.append(
                source.problem(
                    (*path, "limit") if right.limits else path,
                    f"allows `{left.id}` and `{right.id}` overlap with different limits",
                    f"where both match, the lowest limit holds; the other is at {left.where}",
                )
            )
    if len(found) > MAX_OVERLAPS:
        more = len(found) - MAX_OVERLAPS
        last = found[MAX_OVERLAPS - 1]
        found = found[:MAX_OVERLAPS]
        found.append(
            Problem(last.file, last.line, "", f"{more} more overlaps of allows with different limits")
        )
    return found


def _bounds(rule: Rule) -> set[tuple[str, int]]:
    return {(spec.name, spec.value) for spec in rule.limits}


def _meet(left: Rule, right: Rule) -> bool:
    """One names no key of `who` that the other does not (else every user rule would meet every unit
    rule), and on every key that both name some value fits both."""
    mine = {condition.key: condition.values for condition in left.who}
    other = {condition.key: condition.values for condition in right.who}
    if not (mine.keys() <= other.keys() or other.keys() <= mine.keys()):
        return False
    if not all(
        _share(tuple(map(str, mine[key])), tuple(map(str, other[key]))) for key in mine.keys() & other
    ):
        return False
    return all(
        _share(getattr(left.what, key), getattr(right.what, key))
        for key in ("guard", "engine", "collection", "action", "database")
    )


def _share(left: tuple[str, ...] | None, right: tuple[str, ...] | None) -> bool:
    if left is None or right is None or ANY_COLLECTION in left or ANY_COLLECTION in right:
        return True
    if set(left) & set(right):
        return True
    return any(globs_overlap(a, b) for a in left for b in right if is_glob(a) or is_glob(b))


def _restricted_tunnels(placed: Sequence[Placed]) -> list[Problem]:
    """A deny or restriction without `who` reaches the database's own traffic too: no tunnel is given."""
    tunnels = [rule for rule, _, _ in placed if rule.tunnel]
    found = []
    for rule, source, path in placed:
        if rule.who or rule.unless is not None or not (rule.restricts or rule.deny is not None):
            continue
        for tunnel in tunnels:
            if _share(rule.what.guard, tunnel.what.guard) and _share(rule.what.engine, tunnel.what.engine):
                found.append(
                    source.problem(
                        path,
                        f"rule `{rule.id}` also reaches what tunnel `{tunnel.id}` should pass unread",
                        "add `unless: {who: {self: true}}`, or the tunnel is not given",
                    )
                )
                break
    return found
