# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping, again and again, leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

from agent.kernel.attach import BPFFS, find_cgroup2_root
from tests.conftest import FULL
from tests.servers.stage import Stage

CYCLES = 200 if FULL else 5


def _left(stage: Stage) -> dict[str, object]:
    """Everything of a run that could stay: pins, programs, cgroups, run files, descriptors, processes."""
    return {
        "pins": sorted(p.name for p in BPFFS.glob(f"*{stage.arena.name}*")),
        "programs": _programs(),
        "cgroups": sorted(str(p) for p in stage.arena.cgroup.rglob("vecward-*")),
        "run": sorted(os.listdir(stage.folder / "run")) if (stage.folder / "run").exists() else [],
        "netns": len(list(Path("/var/run/netns").glob("*"))) if Path("/var/run/netns").exists() else 0,
        "processes": sorted(_processes(stage)),
        "cgroup root": len(list(find_cgroup2_root().iterdir())),
    }


def _programs() -> int:
    """BPF links on this machine: our programs live only by theirs."""
    from agent.kernel.syscalls import link_ids

    return len(link_ids())


def _processes(stage: Stage) -> list[int]:
    return [
        int(p)
        for group in stage.arena.cgroup.rglob("cgroup.procs")
        if "vecward-" in str(group)
        for p in group.read_text().split()
    ]


def test_start_and_stop_cycles_leave_nothing_behind() -> None:
    with Stage("qdrant") as stage:
        stage.start_database()
        stage.write_config(workers=1)
        before = _left(stage)
        for cycle in range(CYCLES):
            stage.start()
            assert stage.stop() == 0, f"cycle {cycle}: {stage.tail()}"
            left = _left(stage)
            assert left == before, f"cycle {cycle} left something"
        assert stage.cli("verify", str(stage.folder / "evidence")).returncode == 0


def test_a_killed_run_is_cleaned_up_by_the_next() -> None:
    with Stage("qdrant") as stage:
        stage.start_database()
        stage.write_config(workers=1)
        before = _left(stage)
        stage.start()
        stage.stop(9)
        stage.start()
        assert stage.stop() == 0
        left = _left(stage)
        # The killed run's cgroup is empty; root removes it, the next run does not know its name.
        assert left["pins"] == before["pins"]
        assert left["programs"] == before["programs"]
