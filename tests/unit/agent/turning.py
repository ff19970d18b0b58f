# SPDX-License-Identifier: Apache-2.0
"""How a test that needs an event loop runs, waits, and lets time pass.

No test here may depend on how fast the machine is. What waits for something polls it with a bound that no
load reaches; what is about a timer runs on a `StillLoop`, whose clock stands until the test moves it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any


class StillLoop(asyncio.SelectorEventLoop):
    """A loop on which no timer ends by itself: its clock moves in `pass_time` alone."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine on a loop of its own."""
    asyncio.run(story())


def run_still(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine on a loop whose clock stands."""
    with asyncio.Runner(loop_factory=StillLoop) as runner:
        runner.run(story())


async def pass_time(seconds: float) -> None:
    """Move the clock of a `StillLoop`, and let everything run that was due by then."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StillLoop), "run this test with run_still"
    loop.now += seconds
    await turns()


async def until(condition: Callable[[], Any], seconds: float = 40.0) -> None:
    """Let others run until `condition` holds. Raises TimeoutError after so many seconds of real time."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"it did not come about within {seconds:g} s")
        await asyncio.sleep(0)
        time.sleep(0.0001)  # noqa: ASYNC251 - for other threads: a sleep on a loop that stands has no end


async def turns(count: int = 10) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)
