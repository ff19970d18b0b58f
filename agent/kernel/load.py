# SPDX-License-Identifier: Apache-2.0
"""Loads one program of bpf/steer.bpf.o at a time and pins what it needs.

Owns the order open, set read-only data, share maps by pin, load, attach, pin the link. One object is
opened for each program, so that a kernel that refuses one loses that feature and no other. Features are
found by trying, never by version. Needs root; leaves nothing in this process.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from agent.kernel.errors import SteeringError
from agent.kernel.libbpf import Library

REQUIRED = ("track", "connect4", "connect6", "steer")
OPTIONAL = ("process_exec", "process_fork", "process_exit")
LOST = {
    "track": "connections cannot be matched to their callers, nor the proxy told from its clients",
    "connect4": "IPv4 callers have no identity",
    "connect6": "IPv6 callers have no identity",
    "steer": "connections cannot be steered to the proxy",
    "process_exec": "a client that is gone before it is accepted has no program name",
    "process_fork": "a forked client that is gone before it is accepted has no parent chain",
    "process_exit": "the time a client exited is not known",
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where programs are attached: a cgroup v2 directory and a network namespace, as open descriptors."""

    cgroup_fd: int
    netns_fd: int
    netns_cookie: int


def link_name(program: str, netns_cookie: int) -> str:
    return f"steer-{netns_cookie}" if program == "steer" else program


def load_program(
    library: Library, object_file: Path, program: str, pins: Path, target: Target | None, cookie: int = 0
) -> None:
    """Load ``program``; with a target also attach it and pin its link under ``pins/links``.

    Maps are pinned under, or reused from, ``pins/maps``. Raises SteeringError with the verifier's last line.
    """
    library.log.clear()
    handle: int | None = None
    try:
        handle = library.pointer("bpf_object__open_file", str(object_file).encode(), None)
        chosen = _prepare(library, handle, program, pins, target.netns_cookie if target else cookie)
        library.call("bpf_object__load", handle)
        if target is not None:
            _attach(library, chosen, program, pins, target)
    except OSError as error:
        raise SteeringError(f"{program}: {LOST[program]}: {error.strerror}{_last_words(library)}") from error
    finally:
        if handle is not None:
            library.close(handle)


def _prepare(library: Library, handle: int, program: str, pins: Path, cookie: int) -> int:
    chosen = 0
    for candidate in library.children("bpf_object__next_program", handle):
        wanted = library.name("bpf_program__name", candidate) == program
        library.call("bpf_program__set_autoload", candidate, wanted)
        chosen = candidate if wanted else chosen
    if not chosen:
        raise SteeringError(f"the object has no program {program}", "build bpf/ again")
    for bpf_map in library.children("bpf_object__next_map", handle):
        name = library.name("bpf_map__name", bpf_map)
        if not library.is_internal(bpf_map):
            library.call("bpf_map__set_pin_path", bpf_map, str(pins / "maps" / name).encode())
        elif name.endswith(".rodata"):
            library.write_rodata(bpf_map, struct.pack("=Q", cookie))
    return chosen


def _attach(library: Library, chosen: int, program: str, pins: Path, target: Target) -> None:
    if program == "steer":
        link = library.pointer("bpf_program__attach_netns", chosen, target.netns_fd)
    elif program.startswith("process_"):
        link = library.pointer("bpf_program__attach", chosen)
    else:
        link = library.pointer("bpf_program__attach_cgroup", chosen, target.cgroup_fd)
    try:
        path = pins / "links" / link_name(program, target.netns_cookie)
        library.call("bpf_link__pin", link, str(path).encode())
    finally:
        library.drop_link(link)


def _last_words(library: Library) -> str:
    lines = [line for text in library.log for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("libbpf:", "processed", "--"))]
    return f": {(telling or lines)[-1][:300]}" if lines else ""
