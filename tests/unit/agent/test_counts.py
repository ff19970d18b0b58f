# SPDX-License-Identifier: Apache-2.0
"""Counters do not fall because a worker was replaced."""

from __future__ import annotations

import pytest

from agent.counts import MAX_COUNT, MAX_COUNTERS, MAX_SUM, Counts, bounded


def test_what_a_worker_counted_stays_when_it_is_gone() -> None:
    counts = Counts()
    first = {"accepted": 7, "bugs": 1, "evidence_lost": 3}
    assert counts.total([first, {"accepted": 2}]) == {"accepted": 9, "bugs": 1, "evidence_lost": 3}
    counts.end(first)
    assert counts.total([{"accepted": 2}]) == {"accepted": 9, "bugs": 1}  # a gauge goes with its worker
    assert counts.total([{"accepted": 2}, {"accepted": 1}]) == {"accepted": 10, "bugs": 1}


def test_sums_and_names_are_bounded_whatever_workers_say() -> None:
    counts = Counts()
    for n in range(5000):
        counts.end({"accepted": MAX_COUNT, f"name{n}": 1})
    total = counts.total([{"accepted": MAX_COUNT}])
    assert total["accepted"] == MAX_SUM
    assert len(total) == MAX_COUNTERS


@pytest.mark.parametrize("values", [{"a b": 1}, {"": 1}, {"a": -1}, {"a": MAX_COUNT + 1}, {"x" * 65: 1}])
def test_what_is_no_counter_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="counter"):
        bounded(values)
