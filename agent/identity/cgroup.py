# SPDX-License-Identifier: Apache-2.0
"""Systemd unit, slice and container of a cgroup path. Pure.

Follows systemd's own rules (src/basic/cgroup-util.c: cg_path_get_unit, cg_path_get_user_unit,
cg_path_get_slice, cg_unescape; src/basic/unit-name.c) with one addition: what an unprivileged user
can name is never attested. Users name cgroups below their own ``user@N.service``, and services below
their own delegated cgroup; so a unit is the *first* component after the leading slices, and a
container is looked for only there or in trees that root makes at the top, never in ``user.slice``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_DEPTH = 64
MAX_UNIT = 255  # UNIT_NAME_MAX - 1

_SUFFIXES = "service|socket|target|device|mount|automount|swap|timer|path|slice|scope"
_UNIT = re.compile(rf"^[A-Za-z0-9:_.\\-]+(?:@[A-Za-z0-9:_.\\@-]+)?\.(?:{_SUFFIXES})\Z")
_SLICE = re.compile(r"^(?:-|[A-Za-z0-9:_.\\]+(?:-[A-Za-z0-9:_.\\]+)*)\.slice\Z")
_USER_SLICE = re.compile(r"^user-([0-9]{1,10})\.slice\Z")
_USER_MANAGER = re.compile(r"^user@[0-9]{1,10}\.service\Z")
_SESSION = re.compile(r"^session-[A-Za-z0-9]+\.scope\Z")

_ID = r"[0-9a-f]{64}"
_SCOPE = re.compile(rf"^(docker|libpod|cri-containerd|crio|containerd|nerdctl)-({_ID})\.scope\Z")
_MACHINE = re.compile(r"^machine-([A-Za-z0-9:_.\\-]+)\.scope\Z")
_NSPAWN = re.compile(r"^systemd-nspawn@([A-Za-z0-9:_.\\-]+)\.service\Z")
_PLAIN_ID = re.compile(rf"^(?:(?:crio|libpod|docker|cri-containerd)-)?({_ID})\Z")
_LXC = re.compile(r"^lxc\.payload\.([A-Za-z0-9_.-]+)\Z")
_POD = re.compile(r"^pod[0-9a-f]{8}-?[0-9a-f-]{8,40}\Z")
_LIBPOD = re.compile(rf"^libpod-({_ID})\Z")
_HEX_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Place:
    """What a cgroup path says. `runtime` is docker, podman, containerd, cri-o, lxc or nspawn.

    `user_slice` is N of ``user-N.slice`` where the path lies in it, `session` says that it is a
    login session's scope there (made by logind for that user). `user_unit` is not attested.
    """

    unit: str | None = None
    user_unit: str | None = None
    slice: str | None = None
    container: str | None = None
    runtime: str | None = None
    user_slice: int | None = None
    session: bool = False


def unescape(component: str) -> str:
    """cg_unescape: one leading underscore hides a name that the kernel or systemd reserves."""
    return component[1:] if component.startswith("_") else component


def is_unit(name: str) -> bool:
    """unit_name_is_valid(name, UNIT_NAME_PLAIN | UNIT_NAME_INSTANCE): a template is not a unit."""
    return len(name) <= MAX_UNIT and _UNIT.match(name) is not None


def _unit_of(components: list[str]) -> str | None:
    """The first component when it names a unit that is not a slice (they are all skipped before)."""
    name = unescape(components[0]) if components else ""
    return name if is_unit(name) and not name.endswith(".slice") else None


def _skip_slices(components: list[str]) -> int:
    count = 0
    while count < len(components) and _SLICE.match(unescape(components[count])):
        count += 1
    return count


def _readable(name: str) -> str:
    """A machine name with systemd's ``\\xNN`` escapes undone."""
    return _HEX_ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


_RUNTIMES = {"libpod": "podman", "crio": "cri-o", "cri-containerd": "containerd", "nerdctl": "containerd"}


def _container_unit(unit: str | None) -> tuple[str, str] | None:
    """(runtime, id) of a container whose unit systemd made for its runtime."""
    if unit is None:
        return None
    if scope := _SCOPE.match(unit):
        return _RUNTIMES.get(scope[1], scope[1]), scope[2]
    if machine := _MACHINE.match(unit) or _NSPAWN.match(unit):
        return "nspawn", _readable(machine[1])
    return None


def _container_tree(components: list[str]) -> tuple[str, str] | None:
    """(runtime, id) of a container in a tree that its runtime made itself, at the top of cgroup v2."""
    first, rest = components[0], components[1:]
    if lxc := _LXC.match(first):
        return "lxc", lxc[1]
    if first == "lxc" and rest:
        return "lxc", rest[0]
    if first == "docker" and rest and (match := _PLAIN_ID.match(rest[0])):
        return "docker", match[1]
    if first == "libpod_parent" and rest and (match := _LIBPOD.match(rest[0])):
        return "podman", match[1]
    if first == "kubepods":
        if rest and rest[0] in ("burstable", "besteffort"):
            rest = rest[1:]
        if len(rest) > 1 and _POD.match(rest[0]) and (match := _PLAIN_ID.match(rest[1])):
            return "cri-o" if rest[1].startswith("crio") else "containerd", match[1]
    return None


def _user_unit(rest: list[str]) -> str | None:
    """The unit of a user's own manager; `rest` starts at the system unit ``user@N.service``."""
    if not rest or not _USER_MANAGER.match(unescape(rest[0])):
        return None
    below = rest[1:]
    return _unit_of(below[_skip_slices(below) :])


def place_of(path: str, *, systemd: bool = True) -> Place:
    """What the cgroup at `path` (from the root of its hierarchy, ``/system.slice/x.service``) is.

    `systemd` False reads no unit or slice (the hierarchy is not systemd's), only containers.
    """
    components = [part for part in path.split("/") if part][:MAX_DEPTH]
    if not components or ".." in components:
        return Place()
    count = _skip_slices(components)
    slices = [unescape(part) for part in components[:count]]
    rest = components[count:]
    unit = _unit_of(rest)
    in_user_slice = bool(slices) and slices[0] == "user.slice"
    owner = _USER_SLICE.match(slices[1]) if in_user_slice and len(slices) > 1 else None
    managed = unit is not None and _USER_MANAGER.match(unit) is not None
    found = None
    if not in_user_slice and not managed:
        found = _container_unit(unit) or (_container_tree(rest) if rest and not slices else None)
    runtime, container = found or (None, None)
    return Place(
        unit=unit if systemd else None,
        user_unit=_user_unit(rest) if systemd else None,
        slice=(slices[-1] if slices else "-.slice") if systemd and (slices or unit) else None,
        container=container,
        runtime=runtime,
        user_slice=int(owner[1]) if owner else None,
        session=owner is not None and unit is not None and _SESSION.match(unit) is not None,
    )
