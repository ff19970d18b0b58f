# SPDX-License-Identifier: Apache-2.0
"""A host that is taken down after each test, and a finished folder to damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.evidence.thresholds import Thresholds
from tests.unit.evidence.host import Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "evidence")
    yield made
    made.release()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole evidence: two segments, three checkpoints, a clean stop. Copy it before you touch it."""
    root = tmp_path_factory.mktemp("finished") / "evidence"
    made = Host(root)
    worker = made.worker(Thresholds(segment_bytes=21_000))
    worker.recorder.open_session("s1", {"pid": 42, "exe": "/usr/bin/python3"})
    n = 0
    for _epoch in range(3):
        for _ in range(3):
            n += 1
            worker.exchange(n, body=b"x" * (20_000 if n == 5 else 300))
        worker.sign()
        made.clock.sleep(1)
    made.stop()
    return root
