# SPDX-License-Identifier: Apache-2.0
"""How a test says that something is linear, whatever machine it runs on: by comparing it with itself."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

TIMES = 8
ATTEMPTS = 6


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Fails where `work(size)` never costs less than four times its share of `work(size / 8)`.

    CPU time of this thread, without the collector of garbage. Noise only adds, and what is quadratic costs
    eight times its share in every attempt: so one attempt that is cheap is the proof.
    """
    ratios = []
    for _ in range(ATTEMPTS):
        small, large = min(_cost(work, size // TIMES) for _ in range(3)), _cost(work, size)
        ratios.append(large / max(small, 1e-6) / TIMES)
        if ratios[-1] < 4:
            return
    raise AssertionError(f"{TIMES} times as much costs {min(ratios):.1f} times its share")


def _cost(work: Callable[[int], object], size: int) -> float:
    collects = gc.isenabled()
    gc.disable()
    try:
        began = time.thread_time()
        work(size)
        return time.thread_time() - began
    finally:
        if collects:
            gc.enable()
