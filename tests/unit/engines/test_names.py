# SPDX-License-Identifier: Apache-2.0
"""Names are held for a short while and in bounds."""

from __future__ import annotations

from agent.engines.names import Names
from tests.unit.engines.calls import Clock


def test_a_name_is_forgotten_when_its_time_is_over() -> None:
    clock = Clock()
    names: Names[str, str] = Names(clock, ttl=2.0)
    names.put("a", "docs")
    clock.now = 1.99
    assert names.get("a") == "docs"
    clock.now = 2.0
    assert names.get("a") is None


def test_an_old_name_is_only_a_guess_until_it_is_forgotten() -> None:
    clock = Clock()
    names: Names[str, str] = Names(clock, ttl=2.0)
    names.put("a", "docs")
    clock.now = 60.0
    assert (names.get("a"), names.last("a")) == (None, "docs")
    names.forget()
    assert names.last("a") is None


def test_a_clock_that_goes_back_trusts_nothing() -> None:
    clock = Clock()
    clock.now = 5.0
    names: Names[str, str] = Names(clock)
    names.put("a", "docs")
    clock.now = 4.0
    assert names.get("a") is None


def test_the_oldest_name_goes_when_there_are_too_many() -> None:
    names: Names[int, str] = Names(Clock(), most=3)
    for key in range(5):
        names.put(key, "x")
    assert [names.get(key) for key in range(5)] == [None, None, "x", "x", "x"]
    names.forget()
    assert len(names) == 0
