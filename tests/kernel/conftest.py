# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the steering tests: skipped, with the reason, where the kernel part cannot run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.identity import identifier
from agent.kernel.steering import Steering
from tests.kernel.arena import PATIENCE, Arena, why_not


@pytest.fixture(scope="session")
def _able() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _patient_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """No read of identity is given up because the machine is busy; that it is bounded is tested elsewhere."""
    for bound in ("READ_S", "NAMES_S", "HASH_S", "ROUTE_S"):
        monkeypatch.setattr(identifier, bound, PATIENCE)


@pytest.fixture
def arena(_able: None) -> Iterator[Arena]:
    with Arena() as made:
        yield made


@pytest.fixture
def steering(arena: Arena) -> Steering:
    return arena.attach()
