# SPDX-License-Identifier: Apache-2.0
"""What is on a machine, to be compared before an install and after a purge: files, users, cgroups, kernel.

Owns the list of what may stay, each with its reason. Looks at everything but what is no file system of the
machine, and never for a name: what was not there before and is there now was left.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.package.inside.ground import Differs, run

# Not of the package: the rig's own, the kernel's views, and what runs of other services change.
_ELSEWHERE = frozenset(
    [
        "/proc",
        "/sys",
        "/dev",
        "/rig",
        "/srv/bookworm",
        "/var/cache/vecward-dev",
        "/var/tmp",
        "/tmp",
        "/root",
        "/lost+found",
        "/var/log/journal",
        "/run/log",
        "/run/systemd/units",
        "/run/systemd/transient",
        "/run/systemd/propagate",
        "/run/systemd/inaccessible",
        "/run/systemd/incoming",
        "/run/systemd/resolve",
        "/run/credentials",
        "/run/udev",
        "/run/user",
        "/run/dbus",
        "/lib/modules",
        "/usr/lib/modules",
    ]
)
# May stay after a purge.
_STAYS = {
    "/etc/.pwd.lock": "systemd-sysusers' lock",
    "/etc/passwd-": "backup of what made the users",
    "/etc/group-": "backup of what made the users",
    "/etc/shadow-": "backup of what made the users",
    "/etc/gshadow-": "backup of what made the users",
    "/var/lib/dpkg": "dpkg's own book-keeping; `dpkg -l` is asked instead",
    "/var/lib/rpm": "rpm's own book-keeping; `rpm -q` is asked instead",
    "/usr/lib/sysimage/rpm": "the same",
    "/var/log/dpkg.log": "dpkg's log",
    "/var/log/alternatives.log": "dpkg's log",
    "/var/cache/man": "the index of all manual pages",
    "/var/lib/systemd": "systemd's own: random seed, timers, catalog of messages",
    "/run/systemd/generator": "systemd's own",
    "/run/systemd/show-status": "systemd's own",
    "/var/cache/ldconfig": "the linker's own",
    "/etc/ld.so.cache": "the linker's own",
}
_USERS = {"vecward", "vecward-proxy", "vecward-audit", "vecward-approve"}


def look() -> dict[str, Any]:
    """The machine as it is, as JSON."""
    return {
        "files": sorted(_files()),
        "users": sorted(line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()),
        "groups": sorted(line.split(":")[0] for line in Path("/etc/group").read_text().splitlines()),
        "nft": run("nft", "list", "ruleset", code=None).stdout,
        "rules": run("ip", "-all", "rule").stdout,
        "routes": run("ip", "route", "show", "table", "all").stdout,
        "links": run("ip", "-o", "link").stdout.count("\n"),
        "bpf": _bpf(),
        "units": _units(),
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").rglob("*vecward*") if path.is_dir()),
        "mounts": sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()),
    }


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Differs with all that is there now and was not, and may not stay."""
    left = []
    for path in sorted(set(after["files"]) - set(before["files"])):
        if not any(path == stays or path.startswith(f"{stays}/") for stays in _STAYS):
            left.append(f"file {path}")
    for path in sorted(set(before["files"]) - set(after["files"])):
        if path.startswith(("/etc", "/usr")):
            left.append(f"file {path} is gone")
    for kind in ("users", "groups"):
        for name in sorted(set(after[kind]) - set(before[kind]) - _USERS):
            left.append(f"{kind}: {name}")
    for kind in ("nft", "rules", "routes", "links", "bpf"):
        if before[kind] != after[kind]:
            left.append(f"{kind}: {before[kind]!r} became {after[kind]!r}")
    for kind in ("units", "cgroups", "mounts"):
        for name in sorted(set(after[kind]) - set(before[kind])):
            if "vecward" in name or kind == "mounts":
                left.append(f"{kind}: {name}")
    if left:
        raise Differs("left behind:\n  " + "\n  ".join(left))


def _files() -> set[str]:
    found: set[str] = set()
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in _ELSEWHERE]
        found.update(os.path.join(folder, name) for name in (*folders, *files))
    # What Python compiles for itself when root runs it: the system's, not ours.
    return {path for path in found if "/__pycache__" not in path or "vecward" in path}


def _units() -> list[str]:
    names: set[str] = set()
    for command in ("list-units", "list-unit-files"):
        done = run("systemctl", command, "--all", "--no-legend", "--plain")
        names.update(line.split()[0] for line in done.stdout.splitlines() if line.split())
    return sorted(names)


def _bpf() -> dict[str, Any]:
    """What is attached to its cgroups and network, and pinned; in a machine of its own: all tracing too."""
    netns = os.stat("/proc/self/ns/net").st_ino
    links = json.loads(run("bpftool", "-j", "link", "show").stdout or "[]")
    tree = subprocess.run(
        ["bpftool", "-j", "cgroup", "tree", "/sys/fs/cgroup"], capture_output=True, text=True, check=False
    )
    attached = [] if tree.returncode or not tree.stdout.strip() else json.loads(tree.stdout)
    ours = [
        f"{group['cgroup']}: {program.get('name') or program.get('attach_type')}"
        for group in (attached if isinstance(attached, list) else [])
        for program in group["programs"]
        if not str(program.get("name", "")).startswith("sd_")  # systemd's own: devices, firewall
    ]
    found: dict[str, Any] = {
        "network": sum(1 for link in links if link.get("netns_ino") == netns),
        "cgroups": sorted(ours),
        "pins": sorted(p for p in os.listdir("/sys/fs/bpf") if not p.endswith(".debug")),
    }
    if run("systemd-detect-virt", "--container", code=None).stdout.strip() == "none":
        programs = json.loads(run("bpftool", "-j", "prog", "show").stdout or "[]")
        found["tracing"] = sum(1 for program in programs if program.get("type") == "tracing")
    return found
