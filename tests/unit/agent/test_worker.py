# SPDX-License-Identifier: Apache-2.0
"""What a worker does with the connections it has when the policy changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.worker import Worker
from tests.unit.agent.side import SUBJECT, guard
from tests.unit.policy.tables import policy

TUNNEL = "  - {id: own, who: {self: true}, what: {guard: q}, tunnel: true}\n"
SEARCH = "  - {id: search, who: {uid: 1000}, what: {action: search}, allow: true}\n"
DENY = "  - {id: none, what: {guard: q, action: snapshot}, deny: no copies}\n"
OTHER = "  - {id: other, who: {uid: 2}, what: {action: search}, allow: true}\n"


class Watched:
    """As much of a relay as a worker looks at."""

    def __init__(self) -> None:
        self.guard = guard()
        self.subject = replace(SUBJECT, is_self=True)
        self.tunnelled = False
        self.ended: list[str] = []

    def end(self, reason: str) -> None:
        self.ended.append(reason)


def reloaded(monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> list[str]:
    """Why a connection that was opened under one policy is ended by another."""
    worker = Worker(Path("/nowhere"), "g")
    relay: Any = Watched()
    held = SimpleNamespace(settings=relay.guard, engine=None)
    monkeypatch.setattr(worker._server, "find", lambda name: held)
    monkeypatch.setattr(worker, "_settings", lambda: SimpleNamespace(max_body=1))
    worker._policy = policy(before)
    worker.open_protocol(relay)
    worker._policy = policy(after)
    worker._recheck(relay)
    ended: list[str] = relay.ended
    return ended


@pytest.mark.parametrize("after", [SEARCH, SEARCH + TUNNEL + DENY])
def test_a_tunnel_ends_when_no_rule_covers_it_any_more(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    assert reloaded(monkeypatch, SEARCH + TUNNEL, after) == ["tunnel-withdrawn"]


def test_a_tunnel_that_is_still_covered_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reloaded(monkeypatch, TUNNEL, SEARCH + TUNNEL) == []


def test_a_connection_that_is_read_goes_on_under_new_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reloaded(monkeypatch, SEARCH, SEARCH + DENY) == []
    assert reloaded(monkeypatch, SEARCH, OTHER) == ["no-rights-left"]
