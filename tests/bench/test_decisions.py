# SPDX-License-Identifier: Apache-2.0
"""What one decision costs over 200 rules. Asserts no time."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import pytest

from policy.compile import Policy
from policy.context import GuardContext
from policy.document import load_policy
from policy.model import Action, Attribution, Subject
from policy.operation import Operation
from tests.bench.report import machine, spread, table, write_section

RULE = """\
  - id: rule-{n}
    who: {{unit: "app-{n}@*.service", user: user{n}}}
    what: {{guard: docs, collection: ["kb_{n}_*", "shared"], action: [search, read]}}
    allow: true
    limit: {{top_k: 20}}
    mask: [{{pii: [email], as: redact}}]
"""


@pytest.mark.unprivileged
def test_a_decision_over_200_rules(sized: Callable[[int, int], int]) -> None:
    number = sized(100, 20_000)
    text = "version: 1\nrules:\n" + "".join(RULE.format(n=n) for n in range(200))
    policy = Policy(load_policy([("rules.yaml", text)], GuardContext(None, time.time())).rules)
    subject = Subject(
        Attribution.KERNEL, pid=7, uid=1007, euid=1007, gid=1007, user="user150", group="users",
        groups=("users",), unit="app-150@1.service", exe="/usr/bin/python3",
    )  # fmt: skip

    def operation(collection: str) -> Operation:
        return Operation(
            "chroma",
            "docs",
            "query",
            frozenset({Action.SEARCH}),
            frozenset({collection}),
            top_k=10,
            queries=1,
        )

    bound = policy.bind(subject, "docs")
    allowed, denied = operation("kb_150_a"), operation("secret")
    assert bound.decide(allowed, 0.0).outcome == "allow"
    assert bound.decide(denied, 0.0).outcome == "deny"
    others = [operation(f"kb_150_{n}") for n in range(2000)]

    def each(act: Callable[[], object], number: int) -> str:
        return spread([took / number * 1e6 for took in timeit.repeat(act, number=number, repeat=5)], 2)

    fresh = iter(others * 100)
    rows = [
        ["bind a subject (once a connection)", each(lambda: policy.bind(subject, "docs"), number // 20)],
        ["decide, allowed, of a kind met before", each(lambda: bound.decide(allowed, 0.0), number)],
        ["decide, denied, of a kind met before", each(lambda: bound.decide(denied, 0.0), number)],
        ["decide, a collection never met", each(lambda: bound.decide(next(fresh), 0.0), number // 20)],
    ]
    write_section("decisions", f"{machine()}. 200 rules on one guard.\n\n" + table(["", "µs"], rows))
