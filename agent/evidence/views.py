# SPDX-License-Identifier: Apache-2.0
"""What evidence says, as the command line and exports show it: sessions and exchanges.

Field names are a promise to scripts (docs/reference, "Session fields", "Exchange fields"). Plain
frozen values; reading files is ``archive.py``'s, printing is ``agent/cli``'s. Nothing is invented
here: what evidence does not tell is None, and an exchange without a result is never shown as done.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

UNKNOWN_OUTCOME = "unknown, may have executed"
"""The outcome of an exchange whose INTENT has no RESULT, ABORT or GAP: it may have been forwarded."""


def open_outcome(verdict: str | None) -> str:
    """The outcome of an exchange without a RESULT: what was denied is never forwarded, all else may be."""
    return "refused" if verdict == "deny" else UNKNOWN_OUTCOME


def stamp(ns: int | None) -> str | None:
    """RFC 3339 UTC, to the microsecond, of nanoseconds since 1970."""
    if ns is None:
        return None
    seconds, rest = divmod(ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"


def body_text(body: bytes | None) -> str | dict[str, str] | None:
    """A body for JSON: text where it is UTF-8, else ``{"base64": ...}``."""
    if body is None:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


@dataclass(frozen=True, slots=True)
class Span:
    """Where a session's frames stand: the stream, and the first and last frame seq in it."""

    stream: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Session:
    """One client connection: who, where from, and what came of it. Times are ns since 1970."""

    session: str
    host: str | None = None
    boot: str | None = None
    started: int | None = None
    ended: int | None = None
    guard: str | None = None
    engine: str | None = None
    attribution: str | None = None
    pid: int | None = None
    start_time: int | None = None
    comm: str | None = None
    exe: str | None = None
    exe_sha256: str | None = None
    argv: tuple[str, ...] | None = None
    uid: int | None = None
    euid: int | None = None
    user: str | None = None
    gid: int | None = None
    groups: tuple[str, ...] | None = None
    login_uid: int | None = None
    login_user: str | None = None
    audit_session: int | None = None
    login_from: Mapping[str, str | None] | None = None
    unit: str | None = None
    user_unit: str | None = None
    slice: str | None = None
    container: str | None = None
    cgroup: str | None = None
    user_ns: int | None = None
    mnt_ns: int | None = None
    net_ns: int | None = None
    parents: tuple[Mapping[str, Any], ...] = ()
    client_addr: str | None = None
    client_port: int | None = None
    server_addr: str | None = None
    server_port: int | None = None
    protocol: str | None = None
    tls: bool | None = None
    tls_subject: str | None = None
    requests: int = 0
    allowed: int = 0
    denied: int = 0
    held: int = 0
    masked: int = 0
    would: int = 0
    rows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    null_reason: Mapping[str, str] = field(default_factory=dict)
    evidence: Span | None = None
    beside: Mapping[str, Any] = field(
        default_factory=dict
    )  # what else the card tells a judge: not among the promised fields

    def as_dict(self) -> dict[str, Any]:
        """The promised fields, in the promised order, as JSON takes them."""
        made = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "beside"}
        made["started"], made["ended"] = stamp(self.started), stamp(self.ended)
        span = self.evidence
        made["evidence"] = (
            None if span is None else {"stream": span.stream, "first": span.first, "last": span.last}
        )
        return made

    @property
    def person(self) -> str | None:
        """Who it was, in one word: the user, the uid, or the address of another host."""
        if self.user is not None or self.uid is not None:
            return self.user if self.user is not None else f"uid {self.uid}"
        return None if self.attribution != "remote" else self.client_addr

    @property
    def client(self) -> str | None:
        return endpoint(self.client_addr, self.client_port)

    @property
    def server(self) -> str | None:
        return endpoint(self.server_addr, self.server_port)


def endpoint(address: str | None, port: int | None) -> str | None:
    """``127.0.0.1:6333`` or ``[::1]:6333``."""
    if address is None:
        return None
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Message:
    """One direction of an exchange. `body` is what the level left of it; `ids` are an answer's only."""

    head: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    sha256: str | None = None
    bytes: int = 0
    status: int | None = None
    ids: tuple[str, ...] = ()
    vectors_cut: int = 0


@dataclass(frozen=True, slots=True)
class Masking:
    """What was taken out of an answer, or (in observe) nothing."""

    what: str
    how: str
    count: int

    def as_dict(self) -> dict[str, Any]:
        return {"what": self.what, "as": self.how, "count": self.count}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, as judged, delivered and recorded. `took` is seconds."""

    session: str
    n: int
    at: int | None
    took: float | None
    actions: tuple[str, ...]
    method: str | None
    guard: str | None
    engine: str | None
    collections: tuple[str, ...]
    top_k: int | None
    offset: int | None
    vectors: bool | None
    queries: int
    rows: int
    verdict: str | None
    would: str | None
    rule: str | None
    message: str | None
    policy: str | None
    limits: tuple[Mapping[str, Any], ...]
    masks: tuple[Masking, ...]
    grant: str | None
    sender: Mapping[str, Any] | None
    outcome: str
    request: Message
    response: Message
    released_sha256: str | None
    intent_seq: int | None
    result_seq: int | None
    trace: Mapping[str, Any] = field(
        default_factory=dict
    )  # where, nearest, hits ...: not among the promised fields
    stream: str | None = None

    def as_dict(self, trace: bool = False) -> dict[str, Any]:
        """The promised fields, in the promised order; `trace` adds how the verdict came about."""
        made: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)[:_PROMISED]}
        made["at"] = stamp(self.at)
        made["masks"] = [m.as_dict() for m in self.masks]
        made["request"] = {
            "head": self.request.head,
            "body": body_text(self.request.body),
            "sha256": self.request.sha256,
            "bytes": self.request.bytes,
        }
        made["response"] = {
            "status": self.response.status,
            "head": self.response.head,
            "body": body_text(self.response.body),
            "ids": self.response.ids,
            "sha256": self.response.sha256,
            "bytes": self.response.bytes,
        }
        made["released_sha256"] = self.released_sha256
        made["seq"] = {"intent": self.intent_seq, "result": self.result_seq}
        if trace:
            made["trace"] = dict(self.trace)
        return made


_PROMISED = [f.name for f in fields(Exchange)].index("request")
