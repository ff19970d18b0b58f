# SPDX-License-Identifier: Apache-2.0
"""The ring runner: what is counted, what is said, and that a hang ends."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from tests.rings import Outcome, check_shards, run, summary

SUITE = """
import pytest

def test_passes(): pass

def test_fails(): assert False

@pytest.mark.skip(reason="no moon")
def test_is_skipped(): pass

@pytest.fixture
def broken():
    yield
    raise OSError("in teardown")

def test_passes_and_fails_in_its_teardown(broken): pass
"""


def run_suite(folder: Path, text: str, budget: float = 60) -> Outcome:
    (folder / "test_suite.py").write_text(text)
    arguments = ["--rootdir", str(folder), "-o", f"cache_dir={folder}/cache"]
    return run("sample", [folder], budget, full=False, arguments=arguments)


def test_a_test_is_counted_once_whatever_failed_of_it(tmp_path: Path) -> None:
    outcome = run_suite(tmp_path, SUITE)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 2, 1)
    assert outcome.reasons == {"no moon": 1}
    assert outcome.closing.startswith("1 failed, 2 passed, 1 skipped, 1 error in ")


def test_a_ring_out_of_time_is_stopped_and_has_failed(tmp_path: Path) -> None:
    outcome = run_suite(tmp_path, "import time\ndef test_hangs(): time.sleep(100)\n", budget=1)
    assert outcome.failed == 1
    assert "stopped after 1 s" in outcome.notes
    assert outcome.seconds < 50, "it was waited for"


def test_a_ring_without_tests_is_said_and_has_not_failed(tmp_path: Path) -> None:
    outcome = run_suite(tmp_path, "")
    assert (outcome.failed, outcome.notes) == (0, ["no tests"])


def test_the_last_line_is_the_sum_over_all_rings() -> None:
    skipped = Outcome(
        "kernel", skipped=3, reasons=collections.Counter({"needs root": 3}), closing="3 skipped in 0.1s"
    )
    lines = summary(
        [Outcome("unit", passed=5, failed=1, closing="1 failed, 5 passed in 2s"), skipped]
    ).splitlines()
    assert lines[-1] == "5 passed, 1 failed, 3 skipped"
    assert "skipped in kernel: 3 x needs root" in lines
    assert lines[-3:-1] == ["unit: 1 failed, 5 passed in 2s", "kernel: 3 skipped in 0.1s"]


def test_a_shard_that_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit, match="no shard nonsense in tests/soak"):
        check_shards(["soak"], ["nonsense"])
