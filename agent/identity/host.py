# SPDX-License-Identifier: Apache-2.0
"""Reads, once, the facts about the host that every identification is compared with.

The host is what process 1 lives in; where /proc/1/ns cannot be read the agent's own namespaces
stand for it, which is right when the agent runs on the host as it is meant to.
"""

from __future__ import annotations

import os

from agent.identity.record import HostFacts

MAX_FILE = 1 << 20  # of /proc/mounts; the rest is not looked at


def _namespace(proc: str, name: str) -> int:
    try:
        return os.stat(f"{proc}/1/ns/{name}").st_ino
    except OSError:
        return os.stat(f"{proc}/self/ns/{name}").st_ino


def find_cgroup2(proc: str = "/proc") -> str | None:
    """The first mount of cgroup v2 in this mount namespace, or None."""
    with open(f"{proc}/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts.read(MAX_FILE).splitlines():
            fields = line.split(" ")
            if len(fields) > 2 and fields[2] == "cgroup2":
                return fields[1].replace("\\040", " ")
    return None


def _systemd_on_v1(proc: str) -> bool:
    """Whether process 1 is systemd with its units in ``name=systemd`` (hybrid and legacy hosts)."""
    try:
        with open(f"{proc}/1/cgroup", encoding="utf-8", errors="replace") as cgroup:
            lines = cgroup.read(MAX_FILE).splitlines()
    except OSError:
        return False
    v1 = any(line.split(":", 2)[1:] == ["name=systemd", "/init.scope"] for line in lines)
    return v1 and "0::/init.scope" not in lines


def read_host(proc: str = "/proc", root: str = "") -> HostFacts:
    """Read the host's facts. `root` is a prefix for every host path ("" = the agent's own root).

    :raises OSError: /proc is not mounted or not readable.
    """
    mount = find_cgroup2(proc)
    return HostFacts(
        proc=proc,
        root=root.rstrip("/"),
        user_ns=_namespace(proc, "user"),
        mnt_ns=_namespace(proc, "mnt"),
        pid_ns=_namespace(proc, "pid"),
        cgroup_mount=mount,
        root_cgroup=os.stat(mount).st_ino if mount is not None else None,
        systemd_v1=_systemd_on_v1(proc),
        ticks=os.sysconf("SC_CLK_TCK"),
    )
