# SPDX-License-Identifier: Apache-2.0
"""The demo itself: it ends well, says what it must, stops cleanly, and says in a line why it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kernel import attach as kernel
from tests import venvs
from tests.demo.ground import PREFIX, pick_users

ROOT = Path(__file__).resolve().parents[2]
APP, NOSY, _ = pick_users()
SAID = (
    "the search gives what it gave without Vecward",
    "allow (would deny) scan contracts",
    "allow (would mask) search contracts",
    "chromadb.errors.AuthorizationError: denied by rule contracts-are-the-apps",
    "embeddings: none",
    f"failed who.user: wants {APP}, got {NOSY}",
    "NOT WHOLE",
    f"not even {APP} is let through",
    "nor its cgroup",
    "checks, all of them true",
)


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for the demo's own, below one that every user may pass."""
    venvs.python("chroma")
    folder = Path("/tmp") / f"vwtest-demo-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _demo(temporary: Path, **more: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HOST"} | more | {"TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo"],
        cwd=ROOT,
        env=environment | {"VECWARD_DEMO_FAST": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _left(pid: int) -> list[Path]:
    return [
        p
        for p in (kernel.BPFFS / f"{PREFIX}{pid}", kernel.find_cgroup2_root() / f"{PREFIX}{pid}")
        if p.exists()
    ]


@pytest.mark.limit(300)
def test_the_demo_ends_with_exit_0_says_what_it_shows_and_leaves_only_what_it_names(temporary: Path) -> None:
    with _demo(temporary) as demo:
        said, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, said
    for words in SAID:
        assert words in said
    assert not _left(demo.pid)
    kept = list(temporary.glob("*/*"))
    assert [path.name for path in kept] == ["keep"], kept
    assert (kept[0] / "session.html").stat().st_size > 1000


@pytest.mark.parametrize("until", ["chroma run", "vecward: ready", "workers are dead"])
def test_a_demo_that_is_stopped_takes_everything_away(temporary: Path, until: str) -> None:
    with _demo(temporary) as demo:
        assert demo.stdout is not None
        said = ""
        deadline = time.monotonic() + 120
        while until not in said and time.monotonic() < deadline:
            line = demo.stdout.readline()
            assert line, said
            said += line
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, said + rest
    assert rest.rstrip().endswith("stopped; all of it was taken away")
    assert not _left(demo.pid)
    left = {path.name for path in temporary.glob("*/*")}
    assert left <= {"keep"}, left


@pytest.mark.unprivileged
def test_where_it_cannot_be_shown_one_line_says_why() -> None:
    command = ["unshare", "--user", sys.executable, "-m", "tests.demo"]  # nobody here: no root
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip("user namespaces are not allowed here")
    assert done.returncode == 1
    assert done.stderr == "demo: cannot be shown here: needs root\n"
    assert done.stdout == ""
