# SPDX-License-Identifier: Apache-2.0
"""The vocabulary that every other module shares: who asks, what is asked, and what was decided.

Plain frozen values only. Nothing here parses, matches or decides; nothing here may import from
``agent``. Engines make an `Operation`, identity makes a `Subject`, ``decide`` makes a `Verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Scalar = str | int | float | bool
ANY_COLLECTION = "*"
"""Member of `Operation.collections` that says: all of them, or it cannot be told which."""


class Action(StrEnum):
    """What an operation does, in one vocabulary for all engines (docs/policy.md, Actions)."""

    SEARCH = "search"
    READ = "read"
    SCAN = "scan"
    COUNT = "count"
    WRITE = "write"
    DELETE = "delete"
    SCHEMA = "schema"
    SNAPSHOT = "snapshot"
    ADMIN = "admin"
    SESSION = "session"
    UNKNOWN = "unknown"

    __hash__ = str.__hash__  # enum's own is written in Python, and sets of actions are made for every request


class Attribution(StrEnum):
    """How the subject of a connection became known."""

    KERNEL = "kernel"
    NAT = "nat"
    FORWARDER = "forwarder"
    PEER = "peer"
    REMOTE = "remote"
    PRE_EXISTING = "pre-existing"
    UNATTRIBUTED = "unattributed"


@dataclass(frozen=True, slots=True)
class Parent:
    pid: int
    exe: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """The attested process and user behind one connection.

    ``None`` in a field means that it cannot exist for this caller (no container, a remote address):
    no condition on it matches. A field named in `unobtained` exists but could not be read: a
    condition on it is an *error*, which makes a deny apply and an allow not. `null_reason` says why
    for each null field, for the record. `exe` and `parent_exe` are paths as the host sees them, or
    ``foreign:<path>`` where the path was not proven to be the file that runs.
    """

    attribution: Attribution
    pid: int | None = None
    start_time: int | None = None  # ns since boot, of the thread group leader
    uid: int | None = None
    euid: int | None = None
    gid: int | None = None
    user: str | None = None
    group: str | None = None
    groups: tuple[str, ...] | None = None
    login_uid: int | None = None
    login_user: str | None = None
    audit_session: int | None = None
    login_session: bool = False
    comm: str | None = None
    exe: str | None = None
    exe_sha256: str | None = None
    parent_exe: str | None = None
    parents: tuple[Parent, ...] = ()
    argv: tuple[str, ...] | None = None
    cwd: str | None = None
    script: str | None = None
    cgroup: str | None = None
    unit: str | None = None
    user_unit: str | None = None
    slice: str | None = None
    container: str | None = None
    image: str | None = None
    user_ns: int | None = None
    mnt_ns: int | None = None
    net_ns: int | None = None
    is_self: bool = False  # the connector is in the cgroup of the listener's owner
    remote: str | None = None  # the address of a caller on another host, None for local callers
    tls_subject: str | None = None
    db_user: str | None = None  # whom it named to the database when it began its session (policy/login.py)
    database: str | None = None  # and in which database; no kernel attests either
    login_tty: str | None = None
    login_peer: str | None = None
    unobtained: frozenset[str] = frozenset()
    null_reason: Mapping[str, str] = field(default_factory=dict)


Over = Literal["deny", "clamp"]
RecordLevel = Literal["meta", "hashes", "masked", "full"]
RecordMode = Literal["best-effort", "strict", "strict-sync"]
RuleMode = Literal["enforce", "warn", "shadow"]
MaskAs = Literal["redact", "partial", "hmac", "drop", "null"]
LIMIT_NAMES = ("top_k", "offset", "queries", "rows", "bytes")


@dataclass(frozen=True, slots=True)
class Limit:
    """One bound in force, and the rule it came from."""

    name: str  # one of LIMIT_NAMES
    value: int
    over: Over
    rule: str


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask in force: exactly one of `field`, `pii`, `scores` is set."""

    rule: str
    field: str | None = None  # dotted path, "payload.ssn"
    pii: tuple[str, ...] = ()
    scores: int | None = None  # significant digits
    how: MaskAs = "redact"


@dataclass(frozen=True, slots=True)
class NearMiss:
    """The rule that came closest to allowing, and the first of its conditions that failed."""

    rule: str
    condition: str  # "who.user"
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule in warn or shadow that would have changed the verdict."""

    rule: str
    mode: RuleMode
    would: Literal["deny", "hold", "mask", "clamp"]
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, by which rule, and what the answer must undergo.

    In observe `outcome` is always "allow", nothing restricts, and `would` tells what enforce does.
    """

    outcome: Literal["allow", "deny", "hold", "tunnel"]
    rule: str | None  # the rule that decided; None = no rule allows it
    where: str | None  # "file:line" of that rule
    message: str
    policy: str  # hash of the policy that decided
    limits: tuple[Limit, ...] = ()
    clamps: tuple[Limit, ...] = ()  # the limits that this operation exceeds and that it is cut to
    vectors: bool = True  # False: ask for none, strip any
    vectors_rule: str | None = None
    fields: frozenset[str] | None = None  # only these payload fields; None = all
    fields_rule: str | None = None
    filters: tuple[tuple[str, Scalar], ...] = ()  # mandatory equality on every row
    filter_rules: tuple[str, ...] = ()
    masks: tuple[Mask, ...] = ()
    level: RecordLevel = "masked"
    mode: RecordMode = "strict"
    nearest: NearMiss | None = None
    would: Literal["deny", "hold", "mask", "clamp"] | None = None
    hits: tuple[Hit, ...] = ()
    touches_answer: bool = field(init=False, repr=False, compare=False)
    """The answer has to be read and may be changed before it is released. Kept: asked for at every turn."""

    def __post_init__(self) -> None:
        touches = bool(self.masks or self.filters) or not self.vectors or self.fields is not None
        object.__setattr__(self, "touches_answer", touches)
