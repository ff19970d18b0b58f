# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping, again and again, leaves nothing behind."""

from __future__ import annotations

import os
import struct

from agent.kernel.attach import BPFFS
from agent.kernel.syscalls import link_ids, link_info, link_open
from tests.conftest import FULL
from tests.servers.stage import Stage

_CGROUP, _NETNS = 3, 5  # enum bpf_link_type
CYCLES = 200 if FULL else 5


def _left(stage: Stage) -> dict[str, object]:
    """Everything of a run that could stay: pins, programs, cgroups, run files, descriptors, processes."""
    return {
        "pins": sorted(p.name for p in BPFFS.glob(f"*{stage.arena.name}*")),
        "links": _links(stage),
        "cgroups": sorted(str(p) for p in stage.arena.cgroup.rglob("vecward-*")),
        "run": sorted(os.listdir(stage.folder / "run")) if (stage.folder / "run").exists() else [],
        "processes": sorted(_processes(stage)),
    }


def _links(stage: Stage) -> int:
    """BPF links attached to this stage's cgroup or namespace (struct bpf_link_info, linux/bpf.h)."""
    cgroup = stage.arena.cgroup.stat().st_ino
    netns = os.fstat(stage.arena.netns.fd).st_ino
    found = 0
    for number in link_ids():
        try:
            fd = link_open(number)
        except OSError:
            continue  # it went away meanwhile
        try:
            info = link_info(fd)
        finally:
            os.close(fd)
        kind, target = struct.unpack_from("=I", info)[0], struct.unpack_from("=Q", info, 16)[0]
        found += (kind, target) == (_CGROUP, cgroup) or (kind, target & 0xFFFFFFFF) == (_NETNS, netns)
    return found


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
        assert _left(stage) == before
