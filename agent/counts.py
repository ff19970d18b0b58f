# SPDX-License-Identifier: Apache-2.0
"""The counters of all workers there were since the agent started, summed.

Owns what a worker may say of itself, and the sums of those that are gone: what Prometheus takes for a counter
must not fall because a worker was replaced. Bias: a worker that says what is no counter is no worker;
sums are bounded, because they end up in signed checkpoints.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

MAX_COUNTERS, MAX_COUNT = 256, 2**50  # of one worker
MAX_SUM = 2**62  # of all: what msgpack, SQLite and Prometheus hold
GAUGES = frozenset({"evidence_lost"})  # they say what is, of who lives
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # reasons are in it: protocol_client_chunked-in-1.0


def bounded(values: dict[str, int]) -> dict[str, int]:
    """Counters as the agent keeps them. Raises ValueError: one that lies must not stop the signing of all."""
    if len(values) > MAX_COUNTERS:
        raise ValueError(f"{len(values)} counters; at most {MAX_COUNTERS}")
    for name, value in values.items():
        if not _NAME.fullmatch(name) or not 0 <= value <= MAX_COUNT:
            raise ValueError("a counter that is none")
    return values


class Counts:
    """What workers counted that are gone. Names are bounded as those of a living one are, in all."""

    def __init__(self) -> None:
        self._ended: Counter[str] = Counter()

    def end(self, values: Mapping[str, int]) -> None:
        """A worker is gone that had counted this."""
        for name, value in values.items():
            if name not in GAUGES and (name in self._ended or len(self._ended) < MAX_COUNTERS):
                self._ended[name] = min(self._ended[name] + value, MAX_SUM)

    def total(self, living: Iterable[Mapping[str, int]]) -> dict[str, int]:
        """With those that live, by name."""
        sums = Counter(self._ended)
        for values in living:
            for name, value in values.items():
                sums[name] = min(sums[name] + value, MAX_SUM)
        return dict(sorted(sums.items()))
