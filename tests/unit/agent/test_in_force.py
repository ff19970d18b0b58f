# SPDX-License-Identifier: Apache-2.0
"""What judges at this moment is the last snapshot, as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent.in_force import InForce
from agent.messages import Settings
from tests.unit.agent.side import SUBJECT, guard
from tests.unit.agent.test_worker import snapshot


def rules(stands: bool = True) -> Any:
    stream: Any = SimpleNamespace(stands=stands)
    return InForce(stream)


def test_before_the_first_snapshot_nothing_is_allowed_and_nothing_is_known() -> None:
    made = rules()
    assert made.snapshot is None
    assert made.policy_hash == ""
    assert made.guard_mode("q") == (True, False)
    assert not made.names("q", "exe_sha256")
    with pytest.raises(RuntimeError):
        made.bind(SUBJECT, "q")
    with pytest.raises(RuntimeError):
        _ = made.settings


def test_a_guard_that_is_not_known_any_more_enforces() -> None:
    made = rules()
    made.take(snapshot(guards=(guard("observe"),)))
    name = guard("observe").name
    assert made.guard_mode(name) == (False, False)
    made.take(snapshot(guards=(guard("enforce", off=True),)))
    assert made.guard_mode(name) == (True, True)
    made.take(snapshot())
    assert made.guard_mode(name) == (True, False)


def test_sessions_are_bound_anew_only_when_rules_or_settings_changed() -> None:
    made = rules()
    made.take(snapshot())
    first = made.in_force
    made.take(snapshot(version="2", guards=(guard("observe"),)))
    assert made.in_force is first
    made.take(snapshot(version="3", settings=Settings(1024, 2, 2, 60.0, 60.0, "best-effort", "meta")))
    assert made.in_force is not first
    assert made.defaults == ("meta", "best-effort")


def test_rules_that_cannot_be_read_leave_the_old_ones_in_force() -> None:
    made = rules()
    made.take(snapshot(guards=(guard("observe"),)))
    kept, held = made.in_force, made.snapshot
    with pytest.raises(msgspec.DecodeError):
        made.take(snapshot(version="2", policy=b"\xff"))
    assert (made.in_force, made.snapshot) == (kept, held)


def test_evidence_stands_as_long_as_the_stream_does() -> None:
    assert rules().evidence_stands()
    assert not rules(stands=False).evidence_stands()
