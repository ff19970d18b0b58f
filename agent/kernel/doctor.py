# SPDX-License-Identifier: Apache-2.0
"""Says what this host can do for steering, before and while it is attached.

Every check tries the thing itself: versions and feature lists lie (back-ports, bpftool's probe). Owns no
state; a check never raises, it fails with what is lost and a hint. Loading programs needs root.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.kernel import syscalls
from agent.kernel.attach import BPFFS, find_cgroup2_root, is_bpffs, remove_pins
from agent.kernel.errors import SteeringError
from agent.kernel.libbpf import Library
from agent.kernel.load import LOST, OPTIONAL, REQUIRED, load_program

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_LINK_NETNS, _SK_LOOKUP = 5, 36  # enum bpf_link_type, bpf_attach_type


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``lost``: the promise that does not hold; ``hint``: what to do. Both None when ok."""

    name: str
    ok: bool
    lost: str | None = None
    hint: str | None = None


def checks(object_file: Path, pins: Path) -> list[Check]:
    """All checks, in the order a person would fix them."""
    found = [
        Check(f"kernel {platform.release()}", True),
        _tried("BTF", _btf, "nothing can be loaded"),
        _tried("cgroup v2", find_cgroup2_root, "callers cannot be identified"),
        _tried("bpf file system", _bpffs, "steering cannot outlive its loader"),
        _tried("capabilities", _capabilities, "programs cannot be loaded"),
        _tried("libbpf", Library, "programs cannot be loaded"),
    ]
    if all(check.ok for check in found):
        found += _loadable(object_file)
        found.append(
            _tried("foreign sk_lookup programs", lambda: _foreign(pins), "another program may steer first")
        )
    return found


def _tried(name: str, check: Callable[[], object], lost: str) -> Check:
    try:
        check()
    except SteeringError as error:
        return Check(name, False, f"{lost}: {error.missing}", error.hint or None)
    except OSError as error:
        return Check(name, False, f"{lost}: {error}", None)
    return Check(name, True)


def _btf() -> None:
    if not Path("/sys/kernel/btf/vmlinux").is_file():
        raise SteeringError("no /sys/kernel/btf/vmlinux", "a kernel with CONFIG_DEBUG_INFO_BTF=y")


def _bpffs() -> None:
    if not is_bpffs(BPFFS):
        raise SteeringError(f"none at {BPFFS}", "`vecward steer` mounts it; mount -t bpf bpf /sys/fs/bpf")


def _capabilities() -> None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
            if missing:
                raise SteeringError(" ".join(missing), "run it as root")


def _loadable(object_file: Path) -> list[Check]:
    """Load every program, attach none."""
    if not object_file.is_file():
        return [Check("object file", False, "steering", f"{object_file} is missing: make -C bpf")]
    trial = BPFFS / f"vecward-doctor~{os.getpid()}"
    try:
        (trial / "maps").mkdir(parents=True, mode=0o700)
        return [
            _tried(f"program {name}", lambda name=name: _load(object_file, name, trial), LOST[name])  # type: ignore[misc]
            for name in (*REQUIRED, *OPTIONAL)
        ]
    except OSError as error:
        return [Check("programs", False, f"cannot be tried: {error}", "run it as root")]
    finally:
        remove_pins(trial)


def _load(object_file: Path, name: str, trial: Path) -> None:
    load_program(Library(), object_file, name, trial, None)


def _foreign(pins: Path) -> None:
    ours = {number for number, _ in _sk_lookup_links(_pinned(pins))}
    others = [number for number, _ in _sk_lookup_links(_all_links()) if number not in ours]
    if others:
        numbers = " ".join(map(str, others))
        raise SteeringError(
            f"links {numbers}", "see `bpftool link`; another agent steers in some namespace too"
        )


def _pinned(pins: Path) -> Iterator[int]:
    for path in (pins / "links").glob("steer-*") if (pins / "links").is_dir() else ():
        yield syscalls.object_get(path)


def _all_links() -> Iterator[int]:
    for number in syscalls.link_ids():
        try:
            yield syscalls.link_open(number)
        except FileNotFoundError:
            continue


def _sk_lookup_links(descriptors: Iterator[int]) -> Iterator[tuple[int, int]]:
    """(link id, inode number of its namespace); closes what it is given."""
    for descriptor in descriptors:
        try:
            info = syscalls.link_info(descriptor)
        finally:
            os.close(descriptor)
        kind, number, _, _, inode, attach_type = struct.unpack_from("=IIIIII", info)
        if kind == _LINK_NETNS and attach_type == _SK_LOOKUP:
            yield number, inode
