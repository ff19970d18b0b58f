# SPDX-License-Identifier: Apache-2.0
"""Whether a rule is about a subject and an operation: three-valued conditions and sets.

Owns the meaning of one condition and of one rule; how 200 of them are judged quickly is
``compile``'s. Bias: what exists but is not known is `Truth.ERROR`, which makes a deny or a
restriction apply and an allow not apply. Never the other way.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from enum import IntEnum

from policy.globs import Matcher, name_matcher, path_matcher
from policy.model import ANY_COLLECTION, Action, Attribution, Scalar, Subject
from policy.operation import Operation
from policy.rules import LOGIN_KEYS, NAME_KEYS, WHO_PATHS, Condition, Rule, What


class Truth(IntEnum):
    """Kleene's three values: `min` is AND, `max` is OR."""

    NO = 0
    ERROR = 1
    YES = 2


Test = Callable[[Subject], Truth]

ABSENT = (None, ())
_OF_CONNECTION = {"remote", "tls_subject", *LOGIN_KEYS}
"""What the connection itself tells, also where it is not known which process made it."""
# Subject fields behind keys of another name.
FIELD_OF = {"self": "is_self"}


def field_of(key: str) -> str:
    return FIELD_OF.get(key, key)


def value_of(subject: Subject, key: str) -> object:
    """What the subject has for a key of `who`; for a group, all its groups; argv joined by spaces."""
    if key == "group":
        return tuple(name for name in (subject.group, *(subject.groups or ())) if name is not None)
    if key == "argv":
        return None if subject.argv is None else " ".join(subject.argv)
    return getattr(subject, field_of(key))


def is_unobtained(subject: Subject, key: str) -> bool:
    """The value exists but was not obtained."""
    if subject.unobtained and (
        field_of(key) in subject.unobtained or (key == "group" and "groups" in subject.unobtained)
    ):
        return True
    # Some process of this host made the connection, we cannot say which.
    return subject.attribution is Attribution.UNATTRIBUTED and key not in _OF_CONNECTION


def compile_condition(condition: Condition) -> Test:
    """One key of `who` as a total function; whatever goes wrong in it is `Truth.ERROR`."""
    holds = _value_test(condition)
    key = condition.key

    def test(subject: Subject) -> Truth:
        try:
            value = value_of(subject, key)
            if value not in ABSENT and holds(value):
                return Truth.YES
            return Truth.ERROR if is_unobtained(subject, key) else Truth.NO
        except Exception:  # a rule we cannot evaluate must not pass for one that does not match
            return Truth.ERROR

    return test


def _value_test(condition: Condition) -> Callable[[object], bool]:
    key, values = condition.key, condition.values
    if key == "remote":
        return _network_test(values)
    if key in NAME_KEYS or key in WHO_PATHS:
        compile_one = path_matcher if key in WHO_PATHS else name_matcher
        return _text_test([compile_one(str(value)) for value in values])
    # uid, exe_sha256, login_session, self: equal and of one type (True is not the uid 1).
    exact = frozenset((type(value), value) for value in values)
    return lambda value: (type(value), value) in exact


def _text_test(matchers: list[Matcher]) -> Callable[[object], bool]:
    def holds(value: object) -> bool:
        texts = value if isinstance(value, tuple) else (value,)
        return any(match(text) for text in texts for match in matchers)

    return holds


def _network_test(values: tuple[Scalar, ...]) -> Callable[[object], bool]:
    networks = [ipaddress.ip_network(str(value)) for value in values]

    def holds(value: object) -> bool:
        address = ipaddress.ip_address(str(value).partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address.version == network.version and address in network for network in networks)

    return holds


def may_be_allowed(rule: Rule, subject: Subject) -> bool:
    """What an allow asks beside its conditions: a known caller, and for one of another host `remote`."""
    if subject.attribution is Attribution.UNATTRIBUTED:
        return False
    is_remote = subject.attribution is Attribution.REMOTE or subject.remote is not None
    return not is_remote or any(condition.key == "remote" for condition in rule.who)


def actions_of(operation: Operation) -> frozenset[Action]:
    """The actions of an operation; one that names none is unknown."""
    return operation.actions or frozenset({Action.UNKNOWN})


def matches_name(patterns: tuple[str, ...], name: str) -> bool:
    return any(name_matcher(pattern)(name) for pattern in patterns)


def covers_collection(patterns: tuple[str, ...], name: str) -> bool:
    """Whether the patterns speak for this member; "all, or cannot tell" only by a plain ``*``."""
    return ANY_COLLECTION in patterns if name == ANY_COLLECTION else matches_name(patterns, name)


def what_failures(what: What, operation: Operation, *, every: bool) -> list[str]:
    """The keys of `what` that do not match: every member must be covered, or (False) any one hit."""
    failed = []
    if what.guard is not None and not matches_name(what.guard, operation.guard):
        failed.append("guard")
    if what.engine is not None and operation.engine not in what.engine:
        failed.append("engine")
    if what.action is not None:
        quantify = all if every else any
        if not quantify(action.value in what.action for action in actions_of(operation)):
            failed.append("action")
    if what.collection is not None and not _collections_match(what.collection, operation, every=every):
        failed.append("collection")
    return failed


def _collections_match(patterns: tuple[str, ...], operation: Operation, *, every: bool) -> bool:
    names = operation.collections
    if every:
        return bool(names) and all(covers_collection(patterns, name) for name in names)
    return any(name == ANY_COLLECTION or matches_name(patterns, name) for name in names)
