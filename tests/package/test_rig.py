# SPDX-License-Identifier: Apache-2.0
"""The rig itself: it never says that something went well which did not, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.package import rig

PATIENCE = 90.0
SUITE = "bookworm"


@pytest.fixture(autouse=True)
def _own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := rig.why_no_base(SUITE):
        pytest.skip(why)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def _wait(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _groups() -> list[Path]:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    return [group for root in roots for group in root.glob("vecward-rig-*")]


def test_a_booted_system_runs_its_steps_in_order_and_over_a_reboot(tmp_path: Path) -> None:
    rig.write_steps(tmp_path / "in", first="touch /var/lib/was-here", second="test -e /var/lib/was-here")
    rig.write_steps(tmp_path / "in", boot=2, third="test -e /var/lib/was-here && test $RIG_BOOT = 2")
    boot = rig.container(SUITE, tmp_path / "in", {}, 120).check()
    assert list(boot.steps) == ["first", "second", "third"]


def test_a_step_that_fails_fails_the_run_and_stops_it(tmp_path: Path) -> None:
    rig.write_steps(tmp_path / "in", good="true", bad="exit 7", after="echo after-it")
    boot = rig.container(SUITE, tmp_path / "in", {}, 120)
    assert boot.code != 0
    assert "step 11-bad failed(7)" in boot.output
    assert "after-it" not in boot.output


def test_a_step_that_fails_before_a_reboot_is_not_forgotten(tmp_path: Path) -> None:
    rig.write_steps(tmp_path / "in", bad="exit 1")
    rig.write_steps(tmp_path / "in", boot=2, good="true")
    assert rig.container(SUITE, tmp_path / "in", {}, 120).code != 0


def test_an_end_that_a_step_prints_is_not_the_end(tmp_path: Path) -> None:
    rig.write_steps(
        tmp_path / "in", liar="echo 'rig: end 0'; echo 'rig: end 0 0'; systemctl exit 0; sleep 60"
    )
    assert rig.container(SUITE, tmp_path / "in", {}, 120).code != 0


def test_a_system_that_ends_early_has_failed(tmp_path: Path) -> None:
    rig.write_steps(tmp_path / "in", ends="kill -KILL $PPID; systemctl exit 0; sleep 60")
    assert rig.container(SUITE, tmp_path / "in", {}, 120).code != 0


def test_a_step_that_hangs_is_ended_at_the_limit_and_nothing_of_it_lives(tmp_path: Path) -> None:
    rig.write_steps(tmp_path / "in", hangs="trap '' TERM; while :; do sleep 1; done")
    boot = rig.container(SUITE, tmp_path / "in", {}, 20)
    assert boot.code != 0
    assert "rig: start" in boot.output
    assert boot.name not in [group.name for group in _groups()]  # others may run beside it
    assert not list(tmp_path.glob("vecward-rig-*"))


def test_what_a_killed_rig_left_ends_with_it_and_is_swept_by_the_next(tmp_path: Path) -> None:
    rig.write_steps(tmp_path / "in", stays="echo it-stays; sleep 1000")
    rig.write_steps(tmp_path / "next", short="true")
    command = [str(rig.RIG / "container"), SUITE, str(tmp_path / "in")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        work = tmp_path / f"vecward-rig-{process.pid}"
        log = work / "rig" / "out" / "log"
        _wait(lambda: log.exists() and "it-stays" in log.read_text(), "it boots")
        group = next(found for found in _groups() if found.name == work.name)
        process.send_signal(signal.SIGKILL)
    _wait(lambda: "populated 0" in (group / "cgroup.events").read_text(), "its processes end with it")
    rig.container(SUITE, tmp_path / "next", {}, 120).check()
    assert not group.exists()
    assert not work.exists()


def test_what_is_bound_is_there_and_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "bound").mkdir()
    (tmp_path / "bound" / "file").write_text("as it was")
    rig.write_steps(tmp_path / "in", reads="grep -q 'as it was' /opt/bound/file && ! touch /opt/bound/file")
    rig.container(SUITE, tmp_path / "in", {tmp_path / "bound": "/opt/bound"}, 120).check()
    assert (tmp_path / "bound" / "file").read_text() == "as it was"


def test_the_network_and_the_cgroups_of_the_host_are_out_of_sight(tmp_path: Path) -> None:
    rig.write_steps(
        tmp_path / "in",
        network="test \"$(ls /sys/class/net)\" = lo",
        groups="! find /sys/fs/cgroup -name 'vecward-rig-*' | grep . && ! grep -q vecward-rig /proc/1/cgroup",
        bpf="! ls /sys/fs/bpf | grep -v '[.]debug$'",  # those two are the kernel's own
        processes=f"test ! -e /proc/{os.getpid()}/environ || ! grep -qz PYTEST /proc/{os.getpid()}/environ",
    )  # fmt: skip
    rig.container(SUITE, tmp_path / "in", {}, 120).check()
