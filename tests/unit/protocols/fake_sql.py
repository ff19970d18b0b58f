# SPDX-License-Identifier: Apache-2.0
"""A SQL engine, conversation and judge for session tests: they read a few words and write down what they saw.

Words of a text that mean something here: ``forbidden`` is denied, ``secret`` in a row is masked,
``unreadable`` cannot be rewritten, ``limited`` is clamped to two rows, ``limit $1`` makes it depend on its
parameters. The commands are told by the first word of each part between semicolons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.protocols.http import Refusal
from agent.protocols.session import Masked
from agent.protocols.sql import Column, Conversation, Fault, Plan, Reading, Rewriting, Rows, Where
from agent.protocols.sql_made import Described, Parameter, Released
from policy.login import Login
from policy.model import Action, Verdict
from policy.operation import Operation

ALLOW = Verdict("allow", "app", "10.yaml:1", "allowed", "hash")
DENY = Verdict("deny", "no-bulk", "10.yaml:9", "bulk read is for backup only", "hash")
WHERE = Where("alice", "shop", {"application_name": "unit"})


@dataclass(frozen=True)
class FakeReading:
    text: str
    methods: tuple[str, ...]
    forgets: frozenset[str] = frozenset()
    closes: frozenset[str] = frozenset()
    changes: frozenset[Literal["catalog", "path", "role"]] = frozenset()
    copies: Literal["in", "out"] | None = None

    fault: Fault | None = None  # of "nowhere" and of "misspelt"

    @property
    def reads_parameters(self) -> bool:
        return "limit $1" in self.text.lower()


def fake_reading(text: str) -> FakeReading:
    parts = [p.strip() for p in text.split(";") if p.strip()]
    methods = tuple(p.split()[0].upper() for p in parts)
    forgets: set[str] = set()
    closes: set[str] = set()
    changes: set[Literal["catalog", "path", "role"]] = set()
    copies: Literal["in", "out"] | None = None
    for method, part in zip(methods, parts, strict=True):
        words = part.lower().split()
        if method in ("PREPARE", "DEALLOCATE"):
            forgets.add("*" if words[1] == "all" else words[1])
        elif method == "DISCARD":
            forgets.add("*")
            closes.add("*")
            changes.add("path")
        elif method in ("DECLARE", "CLOSE"):
            closes.add("*" if words[1] == "all" else words[1])
        elif method in ("COMMIT", "ROLLBACK"):
            closes.add("*")
        elif method in ("CREATE", "DROP"):
            changes.add("catalog")
        elif method == "SET":
            changes.add("path")
        elif method == "COPY":
            copies = "in" if "stdin" in words else "out"
    fault = None
    if "nowhere" in text:
        fault = Fault("42P01", 'relation "nowhere" does not exist')
    elif "misspelt" in text:
        fault = Fault("42601", 'syntax error at or near "misspelt"', 1, of_catalog=False)
    return FakeReading(
        text, methods, frozenset(forgets), frozenset(closes), frozenset(changes), copies, fault
    )


class FakePlan:
    def __init__(self, mask: bool, columns: Sequence[Column] | None) -> None:
        self._mask = mask
        self.columns = (
            [replace(c, type=25) for c in columns]
            if mask and columns and columns[0].name == "vector"
            else None
        )

    def release(self, run: bytes) -> Released:
        if b"unprovable" in run:
            raise Refusal("unprovable", "a row that cannot be masked")
        recorded = run.replace(b"VECTOR", b"DIGEST")
        cut = run.count(b"VECTOR")
        if not self._mask or b"secret" not in run:
            return Released(run, recorded, -1, vectors_cut=cut)
        count = run.count(b"secret")
        return Released(
            run.replace(b"secret", b"******"),
            recorded.replace(b"secret", b"******"),
            -1,
            vectors_cut=cut,
            masks=(Masked("payload.ssn", "redact", count),),
        )


class FakeConversation:
    """Wants its catalog anew after each text that changes something, unless `asks` is False."""

    def __init__(self, *, asks: bool = True) -> None:
        self.wants: str | None = None
        self.asks = asks
        self.learnt: list[Sequence[Rows] | None] = []
        self.settled: list[tuple[str, int, str | None]] = []
        self.statuses: list[str] = []
        self.seen: dict[str, str] = {}
        self.readings: dict[str, FakeReading] = {}
        self.planned: list[tuple[str, int]] = []
        self.late = False  # the catalog is due, in a transaction that has run nothing yet
        self.made = False  # what was nowhere is there once the catalog is learnt again

    def doubt_names(self) -> bool:
        if self.asks:
            self.wants = "SELECT catalog"
        return self.asks

    def doubt_late(self, reading: Reading) -> bool:
        return self.late and reading.methods != ("SET",) and self.doubt_names()

    def learn(self, results: Sequence[Rows] | None) -> None:
        self.learnt.append(results)
        self.wants = None
        if self.made:
            self.readings = {
                text: replace(r, fault=None if r.fault and r.fault.of_catalog else r.fault)
                for text, r in self.readings.items()
            }

    def status(self, name: str, value: str) -> None:
        self.seen[name] = value

    def read(self, text: str) -> FakeReading:
        reading = self.readings.get(text)
        if reading is None:
            reading = self.readings[text] = fake_reading(text)
        return reading

    def operation(
        self, reading: Reading, parameters: Sequence[Parameter] | None, max_rows: int = 0
    ) -> Operation:
        top_k = 10
        if reading.reads_parameters:
            value = parameters[0].value if parameters else b"1"
            top_k = int(value) if value is not None and value.isdigit() else 1_000_000
        if max_rows:
            top_k = min(top_k, max_rows)
        words = frozenset(re.findall(r"[a-z]+", reading.text.lower()))
        known = all(m.isalpha() for m in reading.methods) and reading.fault is None
        return Operation(
            engine="fakesql",
            guard="g",
            method=reading.methods[0] if reading.methods else "",
            actions=frozenset({Action.SEARCH if known else Action.UNKNOWN}),
            collections=words,
            top_k=top_k,
            bytes=len(reading.text),
        )

    def rewrite(self, reading: Reading, operation: Operation, verdict: Verdict) -> Rewriting:
        if "unreadable" in reading.text:
            raise Refusal("unreadable", "a filter cannot be put into this text")
        if verdict.filters:
            return Rewriting(reading, f"{reading.text} /* filtered {verdict.filters[0][1]} */")
        if "limited" in reading.text:
            return Rewriting(reading, reading.text, 2, ("only two rows",))
        return Rewriting(reading, reading.text)

    def check(self, rewriting: Rewriting, parameters: Sequence[Parameter], verdict: Verdict) -> None:
        if any(p.value == b"other tenant" for p in parameters):
            raise Refusal("tenant", "this row is another tenant's")

    def plan(
        self, rewriting: Rewriting, statement: int, columns: Sequence[Column] | None, verdict: Verdict
    ) -> Plan:
        self.planned.append((rewriting.text, statement))
        if columns and columns[0].name == "unplannable":
            raise Refusal("origin", "a column of unknown origin")
        return FakePlan(bool(verdict.masks), columns)

    def settle(self, reading: Reading, statement: int, tag: str | None) -> None:
        self.settled.append((reading.text, statement, tag))
        if reading.changes and self.asks:
            self.wants = "SELECT catalog"

    def ended(self, status: Literal["I", "T", "E"]) -> None:
        self.statuses.append(status)

    def error(self, fields: Mapping[str, str], verdict: Verdict) -> Mapping[str, str]:
        if verdict.masks and "secret" in fields.get("M", ""):
            return {**fields, "M": fields["M"].replace("secret", "******")}
        return fields

    def describe(self, reading: Reading, parameters: Sequence[Parameter], masked: bool) -> Described:
        values = [None if p.value is None else p.value.decode("latin-1") for p in parameters]
        body = json.dumps({"text": reading.text, "parameters": values}).encode()
        return Described(body, body.replace(b"VECTOR", b"DIGEST"), body.count(b"VECTOR"))


class FakeSqlEngine:
    name = "fakesql"
    masked_fields_known = frozenset({"payload"})

    def __init__(self) -> None:
        self.conversation = FakeConversation()

    def converse(self, guard: str, where: Where) -> Conversation:
        return self.conversation


@dataclass
class SpyJudge:
    """Denies what says `forbidden` or reads more than `most` rows; `allowed` keeps every text let through."""

    verdict: Verdict = ALLOW
    most: int = 100
    denied: frozenset[str] = frozenset({"forbidden"})
    asked: list[Operation] = field(default_factory=list)
    logins: list[Login] = field(default_factory=list)

    def __call__(self, operation: Operation) -> Verdict:
        self.asked.append(operation)
        if operation.collections & self.denied or (operation.top_k or 0) > self.most:
            return DENY
        if Action.UNKNOWN in operation.actions:
            return replace(DENY, rule=None, where=None)
        return self.verdict

    def reads_body(self, operation: Operation) -> bool:
        return True

    def begin(self, login: Login) -> None:
        self.logins.append(login)
