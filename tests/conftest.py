# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: its ring's rules, a time limit, and that it leaves nothing behind.

A ring is a folder of tests/. Tests that this machine cannot run are skipped with a reason that the closing
lines repeat. Sizes come from `sized`: small in `make test`, full in `make soak`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest

from tests import leaks, machine

# Seconds one test may take: far above what it needs, far below what would hide a hang.
LIMITS = {
    "unit": 60, "harness": 120, "wire": 200, "servers": 600, "kernel": 200, "native": 900, "package": 600,
    "soak": 3600, "bench": 3600,
}  # fmt: skip
STEERED = {"servers", "kernel", "native", "soak", "bench"}  # rings that need root and eBPF

FULL = os.environ.get("VECWARD_TEST_SIZE") == "full"

hypothesis.settings.register_profile("small", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.register_profile("full", deadline=None, database=None, max_examples=5000)
hypothesis.settings.load_profile("full" if FULL else "small")

_TESTS = Path(__file__).parent
_in_unit = False
_before: set[str] = set()


def _ring(item: pytest.Item) -> str | None:
    try:
        ring = item.path.relative_to(_TESTS).parts[0]
    except ValueError:  # a test written by a test (pytester)
        return None
    return ring if ring in LIMITS else None


def _forbid_network(event: str, args: tuple[Any, ...]) -> None:
    """The unit ring is pure: a TCP or UDP socket there is a mistake in the test or in the module."""
    if not _in_unit or event not in ("socket.connect", "socket.bind"):
        return
    if args[0].family in (socket.AF_INET, socket.AF_INET6):
        raise RuntimeError("a unit test may not use the network: it belongs to another ring")


def pytest_configure() -> None:
    leaks.adopt_orphans()
    sys.addaudithook(_forbid_network)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        ring = _ring(item)
        if ring is None:
            continue
        item.add_marker(ring)
        if (
            ring in STEERED
            and not item.get_closest_marker("unprivileged")
            and (why := machine.why_no_steering())
        ):
            item.add_marker(pytest.mark.skip(reason=why))


def pytest_sessionstart() -> None:
    _before.update(leaks.host_names())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What module and session fixtures left on the host is nobody's test, so it fails the run."""
    left = leaks.abandoned(leaks.host_names() - _before)
    if left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    for name in sorted(left):
        sys.stderr.write(f"\nleft on this host by the tests: {name}\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """The time limit, in the test's own thread, so that its cleaning up still runs."""
    marker = item.get_closest_marker("limit")
    seconds = float(marker.args[0]) if marker else LIMITS.get(_ring(item) or "", 0)

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    global _in_unit
    ring = _ring(request.node)
    allowed = frozenset(what for mark in request.node.iter_markers("leaves") for what in mark.args[0].split())
    watch = leaks.Leaks(host=ring in STEERED, allowed=allowed)
    watch.begin()
    _in_unit = ring == "unit"
    try:
        with leaks.watching_asyncio(watch):
            yield
    finally:
        _in_unit = False
    if left := watch.left():
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def sized() -> Callable[[int, int], int]:
    """`sized(small, full)`: how many of something this run does (`make test`, `make soak`)."""
    return lambda small, full: full if FULL else small
