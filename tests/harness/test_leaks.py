# SPDX-License-Identifier: Apache-2.0
"""The leak check itself: each kind of leftover fails the test that made it, and only that one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEAKY = """
import asyncio, os, socket, subprocess, sys, threading, time
import pytest

KEEP = []

def test_leaves_a_file_open():
    KEEP.append(open(__file__))

def test_leaves_a_socket_open():
    KEEP.append(socket.socket())

def test_leaves_a_child():
    KEEP.append(subprocess.Popen(["sleep", "60"]))

def test_leaves_an_orphan():
    subprocess.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 &"], check=True)

def test_leaves_a_thread():
    stop = threading.Event()
    KEEP.append(stop)
    threading.Thread(target=stop.wait, args=(20,), name="forgotten").start()

def test_leaves_a_task():
    async def main():
        KEEP.append(asyncio.get_running_loop().create_task(asyncio.sleep(60)))
        await asyncio.sleep(0)
    asyncio.run(main())

def test_lets_a_thread_go():
    for event in KEEP:
        if isinstance(event, threading.Event):
            event.set()

def test_leaves_nothing():
    subprocess.run(["true"], check=True)
    asyncio.run(asyncio.sleep(0))
    with open(__file__):
        pass

@pytest.mark.leaves("fds", reason="asked for")
def test_leaves_what_it_says():
    KEEP.append(open(__file__))

@pytest.mark.limit(0.2)
def test_takes_too_long():
    time.sleep(5)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each test above, in a pytest of its own that loads this project's conftest."""
    folder = tmp_path_factory.mktemp("leaky")
    (folder / "test_leaky.py").write_text(LEAKY)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(root / "pyproject.toml")]
    command += ["--rootdir", str(folder), "-o", f"cache_dir={folder}/cache", "-q", "-rA", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(root), "VECWARD_TEST_GRACE": "0.1"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    found: dict[str, str] = {}
    for line in run.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED", "ERROR"):
            name = rest.split("::")[-1].split(" ")[0]
            found[name] = word if found.get(name) != "ERROR" else "ERROR"
    assert found, run.stdout + run.stderr
    return found


@pytest.mark.parametrize(
    "what", ["a_file_open", "a_socket_open", "a_child", "an_orphan", "a_thread", "a_task"]
)
def test_a_test_that_leaves_something_fails(outcomes: dict[str, str], what: str) -> None:
    assert outcomes[f"test_leaves_{what}"] == "ERROR"


def test_a_test_that_leaves_nothing_passes(outcomes: dict[str, str]) -> None:
    assert outcomes["test_leaves_nothing"] == "PASSED"


def test_a_test_may_say_what_it_leaves(outcomes: dict[str, str]) -> None:
    assert outcomes["test_leaves_what_it_says"] == "PASSED"


def test_a_test_that_hangs_is_ended(outcomes: dict[str, str]) -> None:
    assert outcomes["test_takes_too_long"] == "FAILED"
