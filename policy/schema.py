# SPDX-License-Identifier: Apache-2.0
"""The shape of a policy file, checked by pydantic; the agent's and the command line's door only.

What the shape cannot say (two rules with one id, a rule that never matches) is ``checks``'s.
Workers never import this: they get rules that have been through it.
"""

from __future__ import annotations

import ipaddress
import math
import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from policy.globs import MAX_PATTERN
from policy.model import LIMIT_NAMES, MaskAs, RecordLevel, RecordMode, RuleMode

ActionName = Literal[
    "search", "read", "scan", "count", "write", "delete", "schema", "snapshot", "admin", "session", "unknown"
]
AttributionName = Literal["kernel", "nat", "forwarder", "peer", "remote", "pre-existing", "unattributed"]
PiiKind = Literal["api_key", "credit_card", "email", "iban", "ip", "phone", "us_ssn"]
MAX_LIST = 4096
MAX_NUMBER = 2**53
"""Larger numbers are not the same in every JSON reader."""
SIZE = re.compile(r"(\d{1,15})\s*(KiB|MiB|GiB)")
SIZES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _name(value: str) -> str:
    if not value or len(value) > MAX_PATTERN or not value.isprintable():
        raise ValueError(f"a name has 1 to {MAX_PATTERN} printable characters")
    return value


def _path(value: str) -> str:
    if any("**" in part and part != "**" for part in value.split("/")):
        raise ValueError("`**` stands for whole segments: /srv/**/python")
    return _name(value)


def _rooted(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("a path starts with / and is the one the host sees; /**/python matches any folder")
    if "/./" in value or "/../" in value or "//" in value:
        raise ValueError("a path of the kernel has no `.`, `..` or empty segment")
    return _path(value)


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("a SHA-256 has 64 hex digits")
    return value.lower()


def _network(value: str) -> str:
    network = ipaddress.ip_network(value)
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise ValueError("an IPv4-mapped network is written as IPv4")
    return str(network)


def _address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _only_true(value: bool) -> bool:
    if not value:
        raise ValueError("only `true` is taken; for the opposite use `unless: {who: {...: true}}`")
    return value


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("only `false` is taken: leave it out to let vectors pass")
    return value


def _rule_id(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("an id is 1 to 64 letters, digits, `.`, `_`, `-`, the first a letter or digit")
    return value


def _moment(value: str) -> float:
    """A date (its first second, UTC) or an RFC 3339 time, as seconds since the epoch."""
    moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _bytes(value: object) -> object:
    sized = SIZE.fullmatch(value) if isinstance(value, str) else None
    return int(sized[1]) * SIZES[sized[2]] if sized else value


def _field_path(value: str) -> str:
    if any(not part for part in value.replace("[]", "").split(".")):
        raise ValueError("a field is a dotted path such as payload.address.city")
    return _name(value)


def _scalar(value: object) -> object:
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, str | int | float | bool) or not finite:
        raise ValueError("one text, number, true or false")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError("a number above 2^53 is not exact in JSON")
    return value


Name = Annotated[StrictStr, AfterValidator(_name)]
Path = Annotated[StrictStr, AfterValidator(_path)]
Rooted = Annotated[StrictStr, AfterValidator(_rooted)]
FieldPath = Annotated[StrictStr, AfterValidator(_field_path)]
Text = Annotated[StrictStr, Field(min_length=1, max_length=500)]
AnyOf = Field(min_length=1, max_length=MAX_LIST)
Names = Annotated[list[Name], BeforeValidator(_listed), AnyOf]
Paths = Annotated[list[Path], BeforeValidator(_listed), AnyOf]
RootedPaths = Annotated[list[Rooted], BeforeValidator(_listed), AnyOf]
Uids = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**32)]], BeforeValidator(_listed), AnyOf]
Digests = Annotated[list[Annotated[StrictStr, AfterValidator(_sha256)]], BeforeValidator(_listed), AnyOf]
Networks = Annotated[list[Annotated[StrictStr, AfterValidator(_network)]], BeforeValidator(_listed), AnyOf]
OnlyFalse = Annotated[StrictBool, AfterValidator(_only_false)]
OnlyTrue = Annotated[StrictBool, AfterValidator(_only_true)]
Positive = Annotated[StrictInt, Field(ge=1, le=MAX_NUMBER)]
Natural = Annotated[StrictInt, Field(ge=0, le=MAX_NUMBER)]
FilterValue = Annotated[str | int | float | bool, BeforeValidator(_scalar)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class WhoModel(_Model):
    unit: Names | None = None
    user: Names | None = None
    uid: Uids | None = None
    group: Names | None = None
    login_user: Names | None = None
    login_session: OnlyTrue | None = None
    exe: RootedPaths | None = None
    exe_sha256: Digests | None = None
    parent_exe: RootedPaths | None = None
    container: Names | None = None
    image: Names | None = None
    slice: Names | None = None
    user_unit: Names | None = None
    self: OnlyTrue | None = None
    remote: Networks | None = None
    tls_subject: Names | None = None
    db_user: Names | None = None
    comm: Names | None = None
    argv: Names | None = None
    cwd: RootedPaths | None = None
    script: Paths | None = None


class WhatModel(_Model):
    guard: Names | None = None
    engine: Names | None = None
    database: Names | None = None
    collection: Names | None = None
    action: Annotated[list[ActionName], BeforeValidator(_listed), AnyOf] | None = None


class UnlessModel(_Model):
    who: WhoModel | None = None
    what: WhatModel | None = None


class LimitModel(_Model):
    top_k: Positive | None = None
    offset: Natural | None = None
    queries: Positive | None = None
    rows: Natural | None = None
    bytes: Annotated[Natural, BeforeValidator(_bytes)] | None = None
    over: Literal["deny", "clamp"] = "deny"

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if all(getattr(self, name) is None for name in LIMIT_NAMES):
            raise ValueError("names no limit: top_k, offset, queries, rows or bytes")
        if self.over == "clamp" and self.top_k is None:
            raise ValueError("only top_k can be cut (clamp), and it is not limited here")
        return self


class MaskModel(_Model):
    field: FieldPath | None = None
    pii: Annotated[list[PiiKind], BeforeValidator(_listed), AnyOf] | None = None
    scores: Annotated[StrictInt, Field(ge=1, le=15)] | None = None
    as_: Annotated[MaskAs | None, Field(alias="as")] = None


class RecordModel(_Model):
    level: RecordLevel | None = None
    mode: RecordMode | None = None
    force: OnlyTrue | None = None


class RuleModel(_Model):
    id: Annotated[StrictStr, AfterValidator(_rule_id)]
    who: WhoModel | None = None
    what: WhatModel | None = None
    unless: UnlessModel | None = None
    allow: OnlyTrue | None = None
    tunnel: OnlyTrue | None = None
    deny: Text | None = None
    limit: LimitModel | None = None
    vectors: OnlyFalse | None = None
    fields: Annotated[list[FieldPath], Field(max_length=MAX_LIST)] | None = None
    filter: Annotated[dict[FieldPath, FilterValue], Field(min_length=1, max_length=64)] | None = None
    mask: Annotated[list[MaskModel], Field(min_length=1, max_length=MAX_LIST)] | None = None
    record: RecordModel | None = None
    mode: RuleMode = "enforce"
    until: Annotated[float, BeforeValidator(_moment)] | None = None


NOT_ENFORCED = ("approve", "rate")
"""Keys of the language that this build does not enforce: a file that uses them is refused."""


class CaseWhatModel(_Model):
    """The operation of a test case: `what`, and what the request asks for."""

    guard: Name
    engine: Name | None = None
    database: Name | None = None
    method: Name = "test"
    action: Annotated[list[ActionName], BeforeValidator(_listed), AnyOf]
    collection: Annotated[list[Name], BeforeValidator(_listed), Field(max_length=MAX_LIST)] = []
    top_k: Natural | None = None
    unbounded: StrictBool = False
    offset: Natural | None = None
    vectors: StrictBool = False
    probed: Annotated[list[FieldPath], BeforeValidator(_listed)] = []
    thresholds: StrictBool = False
    carries_filter: StrictBool = True
    queries: Natural = 0
    rows: Natural = 0
    bytes: Annotated[Natural, BeforeValidator(_bytes)] = 0


class CaseWhoModel(_Model):
    """The caller of a test case. What is not given does not exist for it; `group` are its groups."""

    attribution: AttributionName | None = None
    unit: Name | None = None
    user: Name | None = None
    uid: Annotated[StrictInt, Field(ge=0, lt=2**32)] | None = None
    group: Names | None = None
    login_user: Name | None = None
    login_session: StrictBool = False
    exe: Name | None = None
    exe_sha256: Annotated[StrictStr, AfterValidator(_sha256)] | None = None
    parent_exe: Name | None = None
    container: Name | None = None
    image: Name | None = None
    slice: Name | None = None
    user_unit: Name | None = None
    self: StrictBool = False
    remote: Annotated[StrictStr, AfterValidator(_address)] | None = None
    tls_subject: Name | None = None
    db_user: Name | None = None
    comm: Name | None = None
    argv: Annotated[list[StrictStr], BeforeValidator(_listed)] | None = None
    cwd: Name | None = None
    script: Name | None = None
    unobtained: Names | None = None


class CaseModel(_Model):
    name: Text
    who: CaseWhoModel
    what: CaseWhatModel
    expect: Literal["allow", "deny", "tunnel", "mask", "clamp"]
    rule: Name | None = None
    at: Annotated[float, BeforeValidator(_moment)] | None = None
