# SPDX-License-Identifier: Apache-2.0
"""What a client names when it begins its session with PostgreSQL: a user and a database of the database's.

Owns how rules meet a session of which that is known, is not known yet, or may be anything. Bias: what is not
known is not obtained, so that denies and restrictions on it apply and allows do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from policy.model import Subject
from policy.rules import LOGIN_KEYS, Condition, Rule, Unless, What

LOGIN_ENGINES = frozenset({"pgvector"})
"""The engines whose clients name one; for callers of the others there is none."""
CANCEL_METHOD = "CancelRequest"
"""Names neither user nor database: it carries the secret key of a session that was judged by both. So it is
judged by the other conditions of each rule."""


@dataclass(frozen=True, slots=True)
class Login:
    """As the startup message says it, the database as the server resolves it."""

    db_user: str | None = None
    database: str | None = None
    is_any: bool = False  # it may be each that there is: `for_any_login`


UNREAD = Login()
ANY_LOGIN = Login(is_any=True)


def first_login(engine: str | None) -> Login | None:
    """What is known of it when a connection begins. None: there is no such thing."""
    return UNREAD if engine in LOGIN_ENGINES else None


def recorded_login(engine: str | None, head: Mapping[str, str]) -> Login | None:
    """By which a recorded exchange was judged; `head`: of its request."""
    login = first_login(engine)
    return login if login is None or "database" not in head else Login(head.get("user"), head["database"])


def with_login(subject: Subject, login: Login | None) -> Subject:
    """The subject as rules on its login meet it."""
    if login is None:
        return subject
    if login.database is None:
        return replace(subject, unobtained=subject.unobtained | LOGIN_KEYS)
    return replace(subject, db_user=login.db_user, database=login.database)


def names_login(conditions: tuple[Condition, ...]) -> bool:
    return any(condition.key in LOGIN_KEYS for condition in conditions)


def for_any_login(rule: Rule) -> Rule | None:
    """The rule as some login would meet it best: what it asks of one is met where it allows, or makes an
    exception from a deny, and is not met where it denies. None: it is not there.
    """
    unless = rule.unless
    excepts = unless is not None and names_login(unless.conditions)
    if not excepts and not names_login(rule.conditions):
        return rule
    if rule.permits:  # and what it restricts may be another login's
        return replace(
            rule, who=_without(rule.who), what=replace(rule.what, database=None),
            unless=None if excepts else unless, limits=(), vectors=True, fields=None, filter=(), masks=(),
        )  # fmt: skip
    if names_login(rule.conditions) or unless is None:
        return None
    rest = Unless(_without(unless.who), unless.what and replace(unless.what, database=None))
    return replace(rule, unless=rest) if rest.who or rest.what not in (None, What()) else None


def _without(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    return tuple(condition for condition in conditions if condition.key not in LOGIN_KEYS)
