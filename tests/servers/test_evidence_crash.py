# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments: nothing released is missing, and no honest crash looks like tampering."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.evidence.blocks import FormatError, read_frames
from agent.evidence.frames import ResultFrame
from agent.evidence.ledger import Ledger
from agent.evidence.recovery import recover_streams
from agent.evidence.retention import Reserve
from agent.evidence.segment import create_segment, new_stream_id
from agent.evidence.verify import verify
from tests.unit.evidence.host import Host

ROOT = Path(__file__).resolve().parents[2]
HONEST = {"torn", "recovered", "unproven", "gap"}


def kill_a_writer(root: Path, stream: str, seconds: float) -> int:
    """Run a writer for a while, kill it; returns the last exchange it said was released."""
    first, second = (create_segment(root / "streams" / stream, number) for number in (0, 1))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.servers.evidence_writer", stream, str(first.fd), str(second.fd)],
        stdout=subprocess.PIPE,
        pass_fds=(first.fd, second.fd),
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            os.set_blocking(process.stdout.fileno(), True)
            said = process.stdout.readline()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                said += os.read(process.stdout.fileno(), 65536)
        finally:
            process.send_signal(signal.SIGKILL)
        said += process.stdout.read()
    first.close()
    second.close()
    return int(said.decode().split("\n")[-2].split()[1])


def test_a_killed_worker_loses_nothing_that_it_released_and_verify_never_says_tampered(
    tmp_path: Path,
) -> None:
    chance = random.Random(7)
    ledger = Ledger(tmp_path, host="h", boot="b")
    released: dict[str, int] = {}
    try:
        for _round in range(5):
            stream = new_stream_id()
            ledger.start_stream(stream)
            released[stream] = kill_a_writer(tmp_path, stream, chance.uniform(0.02, 0.3))
            ledger.checkpoint({})
        assert {finding.kind for finding in verify(tmp_path).findings} <= HONEST
        torn = recover_streams(tmp_path, set(), *ledger.now())
        if torn:
            ledger.append(*torn)
        ledger.checkpoint({})
    finally:
        ledger.abandon()
    report = verify(tmp_path)
    assert {finding.kind for finding in report.findings} <= HONEST - {"torn"}
    for stream, last in released.items():
        found = set()
        path = tmp_path / "streams" / stream / "000000.seg"
        # What is torn `verify` has judged above.
        with path.open("rb") as file, contextlib.suppress(FormatError):
            for located in read_frames(file, bodies=False):
                if isinstance(located.frame, ResultFrame):
                    found.add(located.frame.n)
        assert found >= set(range(1, last + 1))


AGENT = """
import sys
from pathlib import Path
from agent.evidence.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), host="h", boot="b")
print("break" if ledger.key_break else "ready", flush=True)
for _ in range(2):
    ledger.checkpoint({"recorded": 1})
print("under way", flush=True)
while True:
    ledger.checkpoint({"recorded": 1})
"""


def test_a_killed_agent_always_finds_the_key_that_continues_the_chain(tmp_path: Path) -> None:
    chance = random.Random(8)
    for _round in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", AGENT, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == b"ready\n"
                if _round % 2:  # the others may be killed in their first checkpoint
                    assert process.stdout.readline() == b"under way\n"
                time.sleep(chance.uniform(0.005, 0.1))
            finally:
                process.send_signal(signal.SIGKILL)
        report = verify(tmp_path)
        assert {finding.kind for finding in report.findings} <= HONEST, report.findings
    assert verify(tmp_path).proof.checkpoints >= 8


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_ends_in_a_gap_and_a_whole_chain(tmp_path: Path) -> None:
    target = tmp_path / "small"
    target.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(target)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        host = Host(target)
        try:
            reserve = Reserve(target, 64 * 1024)
            assert reserve.fill()
            worker = host.worker()
            n = 0
            while all(worker.answers):
                n += 1
                worker.exchange(n, body=os.urandom(20_000))
            assert worker.recorder.lost >= 1
            assert reserve.release(64 * 1024)
            worker.recorder.tick()
            worker.turn()
            worker.sign()
            report = verify(target)
            assert report.exit_code == 0, report.findings
            assert "gap" in {finding.kind for finding in report.findings}
        finally:
            host.release()
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_verify_of_a_folder_that_is_being_written_never_says_tampered_or_truncated(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                report = verify(tmp_path)
                assert {finding.kind for finding in report.findings} <= HONEST, report.findings
        finally:
            process.send_signal(signal.SIGKILL)
