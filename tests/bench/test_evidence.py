# SPDX-License-Identifier: Apache-2.0
"""How fast evidence is verified and searched. Asserts no time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.evidence.filter import Filter
from agent.evidence.index import Index
from agent.evidence.query import Query
from agent.evidence.verify import verify
from tests.bench import index_query
from tests.bench.report import ROOT, machine, spread, table, write_section
from tests.unit.evidence.host import Host


def make_evidence(folder: Path, exchanges: int) -> int:
    """Signed evidence of answers of 3 and 20 KB in turn, as a worker and an agent write it; returns bytes."""
    host = Host(folder)
    worker = host.worker()
    small, large = os.urandom(3000), os.urandom(20_000)
    for n in range(1, exchanges + 1):
        worker.exchange(n, body=small if n % 2 else large)
        if n % 500 == 0:
            worker.sign()
    host.stop()
    return sum(path.stat().st_size for path in folder.rglob("*.seg"))


def timed(act: Callable[[], object], runs: int) -> list[float]:
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        act()
        took.append(time.perf_counter() - began)
    return took


@pytest.mark.limit(3000)
@pytest.mark.unprivileged
def test_verify_and_the_index_over_a_million_exchanges(
    tmp_path: Path, sized: Callable[[int, int], int]
) -> None:
    runs, exchanges = sized(1, 5), sized(2_000, 1_000_000)
    signed = tmp_path / "signed"
    signed.mkdir()
    size = make_evidence(signed, sized(200, 40_000)) / 1e6
    assert verify(signed).exit_code == 0
    standalone = [sys.executable, str(ROOT / "agent" / "evidence" / "standalone.py"), str(signed)]
    assert subprocess.run(standalone, check=False, capture_output=True).returncode == 0
    rows = [
        ["`vecward verify`", spread([size / t for t in timed(lambda: verify(signed), runs)])],
        [
            "the standalone verifier",
            spread([size / t for t in timed(lambda: subprocess.run(standalone, capture_output=True), runs)]),
        ],
    ]
    many = tmp_path / "many"
    many.mkdir()
    index_query.write(many, exchanges)
    with Index.open(many) as index:
        took = timed(index.rebuild, 1)[0]
        known = index.info()
        query = Query(index)
        asked: dict[str, Callable[[], object]] = {
            "sessions --limit 50": lambda: query.sessions(Filter(), 50),
            "sessions --pid 2345": lambda: query.sessions(Filter(pid=2345)),
            "sessions --exe '/srv/app1*' --verdict deny --limit 50": lambda: query.sessions(
                Filter(exe="/srv/app1*", verdict="deny"), 50
            ),
            "sessions --client 10.0.0.0/8 (no match, all looked at)": lambda: query.sessions(
                Filter(client="10.0.0.0/8")
            ),
            "tail -n 20 --verdict deny": lambda: query.recent(Filter(verdict="deny"), 20),
            "seen 12345 (every sighting read and checked)": lambda: query.seen("12345"),
        }
        times = [[what, spread([t * 1e3 for t in timed(ask, runs)], 1)] for what, ask in asked.items()]
    text = (
        f"{machine()}.\n\n"
        + table([f"{size:.0f} MB of signed evidence, in memory", "MB/s"], rows)
        + f"\n\n{known.exchanges} exchanges of {known.sessions} sessions: index built in {took:.0f} s"
        f" ({known.exchanges / took:.0f} exchanges/s) and {known.bytes / known.exchanges:.0f} B each.\n\n"
        + table(["question", "ms"], times)
    )
    write_section("evidence", text)
    assert known.exchanges == exchanges
