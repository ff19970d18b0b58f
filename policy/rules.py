# SPDX-License-Identifier: Apache-2.0
"""What a checked policy is made of: plain frozen rules, the form that goes from agent to worker.

Owns the shape and the list of keys; checks nothing (``document`` does) and matches nothing
(``compile`` does). Only tuples and scalars, so that msgspec can carry a `Rule` as msgpack.
Every tuple of values is sorted and free of repeats, so that equal rules encode equally.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from policy.model import MaskAs, Over, RecordLevel, RecordMode, RuleMode, Scalar

WHO_NAMES = (
    "user", "group", "login_user", "unit", "user_unit", "slice", "container", "image", "tls_subject", "comm",
    "argv", "db_user",
)  # fmt: skip
"""Keys whose values are name globs: ``*`` any run, ``?`` one character."""
WHO_PATHS = ("exe", "parent_exe", "cwd", "script")
"""Keys whose values are path globs: ``*`` within a segment, ``**`` any number of segments."""
WHO_KEYS = (*WHO_NAMES, *WHO_PATHS, "exe_sha256", "uid", "login_session", "self", "remote")
UNATTESTED = frozenset({"comm", "argv", "cwd", "script", "user_unit"})
"""What an unprivileged user can choose for its own process (architecture, Subject)."""
LOCAL_ONLY = frozenset(WHO_KEYS) - {"remote", "tls_subject", "db_user"}
"""Keys that no caller of another host can have."""
LOGIN_KEYS = frozenset({"db_user", "database"})
"""What the client named when it began its session with the database. `database` is written under `what`, and
is a condition on the session all the same: it is the same for all that is asked in it."""
NAME_KEYS = frozenset(WHO_NAMES) | LOGIN_KEYS


@dataclass(frozen=True, slots=True)
class Condition:
    """One key of `who`, or `what.database`: any of `values` satisfies it."""

    key: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class What:
    """What a rule is about. None in a field is no condition; a tuple means any of."""

    guard: tuple[str, ...] | None = None
    engine: tuple[str, ...] | None = None
    collection: tuple[str, ...] | None = None
    action: tuple[str, ...] | None = None
    database: tuple[str, ...] | None = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What of it is asked of the session."""
        return () if self.database is None else (Condition("database", self.database),)


@dataclass(frozen=True, slots=True)
class Unless:
    """The exception to a rule: everything given must match for the rule to stand aside."""

    who: tuple[Condition, ...] = ()
    what: What | None = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return self.who if self.what is None else self.who + self.what.conditions


@dataclass(frozen=True, slots=True)
class LimitSpec:
    name: str  # one of model.LIMIT_NAMES
    value: int
    over: Over


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """One entry of `mask`: exactly one of `field`, `pii`, `scores` is set."""

    field: str | None = None
    pii: tuple[str, ...] = ()
    scores: int | None = None
    how: MaskAs = "redact"


@dataclass(frozen=True, slots=True)
class RecordSpec:
    level: RecordLevel | None = None
    mode: RecordMode | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `until` is seconds since the epoch: from then on a warn or shadow rule enforces."""

    id: str
    where: str  # "file:line"
    who: tuple[Condition, ...] = ()
    what: What = What()
    unless: Unless | None = None
    allow: bool = False
    tunnel: bool = False
    deny: str | None = None
    limits: tuple[LimitSpec, ...] = ()
    vectors: bool = True  # False: ask for none, strip any
    fields: tuple[str, ...] | None = None
    filter: tuple[tuple[str, Scalar], ...] = ()
    masks: tuple[MaskSpec, ...] = ()
    record: RecordSpec | None = None
    mode: RuleMode = "enforce"
    until: float | None = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All that is asked of the session, once for what it asks: `who`, and the database."""
        return self.who + self.what.conditions

    @property
    def restricts(self) -> bool:
        """It does something to an operation that is allowed (recording aside)."""
        return bool(self.limits or self.filter or self.masks) or not self.vectors or self.fields is not None

    @property
    def permits(self) -> bool:
        return self.allow or self.tunnel

    def enforced(self, now: float) -> bool:
        """Whether it counts at `now`, or is only counted (warn, shadow)."""
        return self.mode == "enforce" or (self.until is not None and now >= self.until)


def hash_rules(rules: Iterable[Rule]) -> str:
    """SHA-256 (64 hex digits) of what the rules mean: neither their order, nor file and line, count."""
    canonical = sorted((replace(rule, where="") for rule in rules), key=lambda rule: rule.id)
    return hashlib.sha256(msgspec.msgpack.encode(canonical)).hexdigest()
