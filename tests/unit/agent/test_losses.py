# SPDX-License-Identifier: Apache-2.0
"""A loss of steering is told when it begins, changes and ends, not each second."""

from __future__ import annotations

from typing import Any

from agent.losses import Losses


def test_a_loss_is_written_once_and_its_end_too() -> None:
    seen: list[dict[str, str]] = [{}, {"steer-1": "detached"}, {"steer-1": "detached"}, {}]
    written: list[dict[str, Any]] = []
    said: list[tuple[str, str, dict[str, object]]] = []
    looks = iter(seen)
    losses = Losses(lambda: next(looks), written.append, lambda *told: said.append(told))
    states = []
    for _ in seen:
        losses.check()
        states.append(dict(losses.lost))
    assert states == seen
    assert [one["kind"] for one in written] == ["steering-lost", "steering-back"]
    assert [event for event, _, _ in said] == ["steering-lost", "steering-back"]
    assert said[0][2] == {"links": "steer-1 detached"}
    assert "steer-1 detached" in said[0][1]


def test_a_second_loss_is_told_beside_the_first() -> None:
    looks = iter([{"connect4": "unpinned"}, {"connect4": "unpinned", "track": "detached"}])
    written: list[dict[str, Any]] = []
    losses = Losses(lambda: next(looks), written.append, lambda *told: None)
    losses.check()
    losses.check()
    assert written[-1]["links"] == {"connect4": "unpinned", "track": "detached"}
