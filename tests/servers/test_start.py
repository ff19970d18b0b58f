# SPDX-License-Identifier: Apache-2.0
"""``vecward run`` at its edges: twice, after a kill, in folders of others, without readers, interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.kernel.attach import detach
from agent.kernel.errors import SteeringError
from tests.kernel.arena import PATIENCE, ROOT
from tests.servers.raw import wait_until
from tests.servers.stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage("qdrant") as made:
        made.write_config(workers=1)
        yield made


def _start(stage: Stage, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agent", "run", "-c", str(stage.config)]
    return stage.arena.popen(command, group=None, cwd=ROOT, **options)


def _fails(stage: Stage) -> str:
    process = _start(stage, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = process.communicate(timeout=PATIENCE)[0].decode()
    assert process.returncode == 1, said
    return said


def _configure(stage: Stage, **sections: object) -> None:
    config = json.loads(stage.config.read_text())
    stage.config.write_text(json.dumps(config | sections))


def test_a_second_run_is_refused_and_takes_nothing_from_the_first(stage: Stage) -> None:
    stage.start()
    run_dir = stage.folder / "run"
    before = sorted(os.listdir(run_dir))
    for _ in range(2):  # the first refused one must not clear the way for the next
        assert "another vecward runs with" in _fails(stage)
        assert sorted(os.listdir(run_dir)) == before
        assert stage.arena.pins.exists()
    assert stage.status["workers"]


@pytest.mark.parametrize("kept", ["evidence", "steer"])
def test_a_run_that_shares_evidence_or_pins_with_another_is_refused(stage: Stage, kept: str) -> None:
    stage.start()
    first = stage.config.read_text()
    config = json.loads(first)
    config["control"]["socket"] = str(stage.folder / "other" / "control.sock")
    config["metrics"] = {"listen": None}
    if kept == "evidence":
        config["steer"]["pins"] += "-other"
    else:
        config["evidence"]["dir"] += "-other"
    stage.config.write_text(json.dumps(config))
    assert "another vecward runs with" in _fails(stage)
    stage.config.write_text(first)
    assert stage.arena.pins.exists()
    assert stage.status["workers"]


def test_what_a_killed_run_left_is_taken_away_by_the_next(stage: Stage) -> None:
    stage.start()
    left = stage.arena.cgroup / f"vecward-{stage.running.pid}"
    assert all(stage.children().values())
    stage.stop(signal.SIGKILL)
    wait_until(lambda: not any(f.read_text() for f in left.rglob("cgroup.procs")), what="children ended")
    assert left.exists()
    stage.start()
    assert not left.exists()


@pytest.mark.parametrize("shape", ["shared", "link", "busy"])
def test_a_run_folder_of_others_is_refused_and_keeps_its_owner(stage: Stage, shape: str) -> None:
    folder = stage.folder / "run"
    target = stage.folder / "elsewhere"
    target.mkdir()
    if shape == "link":
        folder.symlink_to(target)
    else:
        folder.mkdir()
        target = folder
    if shape == "shared":
        folder.chmod(0o1777)
    elif shape == "busy":
        (folder / "of somebody").touch()
    assert "control.socket needs a folder of its own" in _fails(stage)
    assert target.stat().st_uid == 0


def test_an_evidence_folder_that_holds_other_things_is_refused_and_keeps_their_owner(stage: Stage) -> None:
    folder = stage.folder / "evidence"
    folder.mkdir()
    (folder / "letters").mkdir()
    assert "holds other things than evidence" in _fails(stage)
    assert folder.stat().st_uid == (folder / "letters").stat().st_uid == 0


def test_pins_that_a_stranger_made_are_refused_and_nothing_in_them_is_detached(stage: Stage) -> None:
    with Stage("qdrant") as other:  # whose links the stranger points at
        other.write_config(workers=1)
        other.start()
        pins = stage.arena.pins
        pins.mkdir()
        (pins / "links").symlink_to(other.arena.pins / "links")
        os.chown(pins, 65534, 65534)
        try:
            assert "made by somebody else" in _fails(stage)
            with pytest.raises(SteeringError, match="somebody else"):
                detach(pins)
            assert list((other.arena.pins / "links").iterdir())
        finally:
            (pins / "links").unlink()
            pins.rmdir()


def test_one_id_for_agent_and_proxies_is_refused(stage: Stage) -> None:
    _configure(stage, users={"agent": "daemon", "proxy": "daemon"})
    assert "must differ" in _fails(stage)
    _configure(stage, users={"agent": "daemon", "proxy": "root"})
    assert "must not name root" in _fails(stage)


def test_a_run_whose_output_nobody_reads_any_more_goes_on(stage: Stage) -> None:
    reader, writer = os.pipe()
    process = _start(stage, stdout=writer, stderr=writer)
    os.close(writer)
    said = b""
    while b"vecward: ready" not in said:
        said += os.read(reader, 4096)
    os.close(reader)
    base = stage.arena.cgroup / f"vecward-{process.pid}"
    procs = base / "proxy" / "cgroup.procs"
    victim = int(procs.read_text())
    os.kill(victim, signal.SIGKILL)  # which it has something to say about
    wait_until(lambda: procs.read_text().strip() not in ("", str(victim)))
    wait_until(lambda: len(stage.status["workers"]) == 1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert not stage.arena.pins.exists()


@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9, 1.2])
def test_a_stop_at_any_moment_of_the_start_leaves_nothing(stage: Stage, delay: float) -> None:
    process = _start(stage, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay)
    process.terminate()
    process.wait(PATIENCE)
    assert not stage.arena.pins.exists()
    assert not list(stage.arena.cgroup.glob("vecward-*"))


def test_a_hang_up_of_the_terminal_ends_nobody(stage: Stage) -> None:
    process = _start(stage, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    base = stage.arena.cgroup / f"vecward-{process.pid}"
    procs = base / "proxy" / "cgroup.procs"
    wait_until(lambda: procs.exists() and procs.read_text().split())
    for _ in range(10):  # before and after it is ready
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(0.2)
    wait_until(lambda: len(stage.cli("status", check=False).stdout) > 0)
    before = procs.read_text()
    os.killpg(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert procs.read_text() == before
    process.terminate()
    assert process.wait(PATIENCE) == 0
