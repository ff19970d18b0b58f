# SPDX-License-Identifier: Apache-2.0
"""Attach and detach the kernel part: the whole work of the root process `steer`.

Owns the pin directory (``maps/`` and ``links/``) as one transaction: everything is pinned in a
temporary directory beside it, which is renamed when the last program is attached; on any error all of
it is taken back. Bias: either the promises that may not be missing all hold, or nothing is attached.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.kernel import syscalls
from agent.kernel.errors import SteeringError
from agent.kernel.libbpf import Library
from agent.kernel.load import OPTIONAL, REQUIRED, Target, link_name, load_program
from agent.kernel.namespaces import netns_cookie
from agent.kernel.records import BUCKET_OVERFLOW, BUCKET_TOTAL, INFLIGHT, SETTINGS

BPFFS = Path("/sys/fs/bpf")
PER_USER, TOTAL = 4096, 31744  # identities in flight; the table holds 32768
_BPF_FS_MAGIC = 0xCAFE4A11


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is attached. ``lost``: program -> what is missing without it, and why."""

    pins: Path
    netns_cookie: int
    programs: tuple[str, ...]
    lost: dict[str, str]


def find_cgroup2_root() -> Path:
    """The mount point of cgroup v2, also on hosts that mount v1 beside it."""
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1].encode().decode("unicode_escape"))
    raise SteeringError("no cgroup v2 is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")


def mount_bpffs(path: Path = BPFFS) -> None:
    """Mount a bpf file system at ``path`` unless one is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    if is_bpffs(path):
        return
    if libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0755"):
        raise SteeringError(f"no bpf file system at {path}", os.strerror(ctypes.get_errno()))


def is_bpffs(path: Path) -> bool:
    block = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), block):
        return False
    return bool(struct.unpack_from("=l" if struct.calcsize("l") == 4 else "=q", block)[0] == _BPF_FS_MAGIC)


def attach(
    pins: Path, cgroup: Path, netns_fd: int, object_file: Path, owner: tuple[int, int] | None = None
) -> Loaded:
    """Load, attach and pin everything. Needs root. SteeringError (and nothing left) if it cannot.

    ``owner``: (uid, gid) that the pins are given to; opening a pin needs write permission on it.
    """
    check_ours(pins)
    if pins.exists():
        raise SteeringError(f"{pins} exists: steering is already attached", "detach it first")
    if not object_file.is_file():
        raise SteeringError(f"no object file {object_file}", "make -C bpf")
    _ensure_bpffs(pins.parent)
    staging = pins.with_name(f"{pins.name}~{os.getpid()}")  # bpffs refuses names with a dot
    check_ours(staging)
    remove_pins(staging)
    try:
        with _directory(cgroup) as cgroup_fd:
            target = Target(cgroup_fd, netns_fd, netns_cookie(netns_fd))
            loaded = _attach_all(staging, pins, object_file, target)
        _give(staging, owner)
        staging.rename(pins)
    except BaseException as error:
        remove_pins(staging)
        if isinstance(error, OSError):
            raise SteeringError(f"steering could not be attached: {error}", "see `vecward doctor`") from error
        raise
    return loaded


def attach_namespace(
    pins: Path, netns_fd: int, object_file: Path, owner: tuple[int, int] | None = None
) -> int:
    """Steer in one more network namespace, with the maps that are there. Returns its cookie."""
    cookie = netns_cookie(netns_fd)
    load_program(Library(), object_file, "steer", pins, Target(-1, netns_fd, cookie))
    if owner is not None:
        os.chown(pins / "links" / link_name("steer", cookie), *owner)
    _put(pins / "maps" / "namespaces", struct.pack("=Q", cookie), struct.pack("=I", 1))
    return cookie


def detach(pins: Path) -> list[str]:
    """Detach and unpin everything, also what a crash left half done. Returns what was removed; idempotent.

    Raises SteeringError where somebody else made the directory."""
    check_ours(pins)
    removed: list[str] = []
    leftovers = sorted(pins.parent.glob(f"{pins.name}~*")) if pins.parent.is_dir() else []
    for tree in (pins, *leftovers):
        if tree == pins or (_is_ours(tree) and not _alive(tree)):
            removed += remove_pins(tree)
    return removed


def _attach_all(staging: Path, pins: Path, object_file: Path, target: Target) -> Loaded:
    (staging / "maps").mkdir(parents=True, mode=0o700)
    (staging / "links").mkdir(mode=0o700)
    library = Library()
    lost: dict[str, str] = {}
    programs: list[str] = []
    for name in (*OPTIONAL, *REQUIRED):  # `steer` last: by then everything it relies on is there
        try:
            if name == "track":
                _seed(library, object_file, staging, target)
            load_program(library, object_file, name, staging, target)
            programs.append(name)
        except SteeringError as error:
            if name in REQUIRED:
                raise
            lost[name] = error.missing
    return Loaded(pins, target.netns_cookie, tuple(programs), lost)


def _seed(library: Library, object_file: Path, staging: Path, target: Target) -> None:
    """What the programs read from their first event on."""
    load_program(library, object_file, "track", staging, None)  # makes the maps
    maps = staging / "maps"
    _put(maps / "settings", struct.pack("=I", 0), SETTINGS.pack(PER_USER, TOTAL))
    _put(maps / "namespaces", struct.pack("=Q", target.netns_cookie), struct.pack("=I", 1))
    for bucket in (BUCKET_OVERFLOW, BUCKET_TOTAL):
        _put(maps / "inflight", struct.pack("=I", bucket), INFLIGHT.pack(0, 0))
        _put(maps / "taken", struct.pack("=I", bucket), struct.pack("=I", 0))


def _put(path: Path, key: bytes, value: bytes) -> None:
    descriptor = syscalls.object_get(path)
    try:
        syscalls.map_update(descriptor, key, value)
    finally:
        os.close(descriptor)


def _ensure_bpffs(parent: Path) -> None:
    if not is_bpffs(parent) and (parent == BPFFS or BPFFS in parent.parents):
        mount_bpffs()
    parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    if not is_bpffs(parent):
        raise SteeringError(f"{parent} is not on a bpf file system", f"use a directory below {BPFFS}")


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SteeringError(f"no cgroup {path}: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _give(tree: Path, owner: tuple[int, int] | None) -> None:
    """The directory itself stays root's: that is how a later start knows that it is ours."""
    os.chmod(tree, 0o711)  # noqa: S103 - to be gone through, by who may open what is below
    for path in tree.rglob("*"):
        os.chmod(path, 0o700 if path.is_dir() else 0o600)
        if owner is not None:
            os.chown(path, *owner)


def _is_ours(tree: Path) -> bool:
    """Whether we made it, or nobody did. The kernel mounts a bpf file system that everyone may write: there a
    stranger's directory, or a link in it, would have root detach what other programs pinned."""
    try:
        found = tree.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def check_ours(tree: Path) -> None:
    """Raises SteeringError where somebody else made it."""
    if not _is_ours(tree):
        raise SteeringError(
            f"{tree} was made by somebody else", f"look at it, remove it, and chmod 0755 {tree.parent}"
        )


def _alive(staging: Path) -> bool:
    """Whether the process that makes this staging directory is still there (and is not us)."""
    number = staging.name.rsplit("~", 1)[-1]
    return number.isdigit() and int(number) != os.getpid() and Path("/proc", number).exists()


def remove_pins(tree: Path) -> list[str]:
    """Detach and unpin what one directory holds; nothing happens if it is not there."""
    removed: list[str] = []
    if not tree.exists():
        return removed
    links = tree / "links"
    for path in sorted(links.iterdir(), key=_detach_order) if links.is_dir() else []:
        _detach_link(path)
        path.unlink()
        removed.append(f"link {path.name}")
    maps = tree / "maps"
    for path in sorted(maps.iterdir()) if maps.is_dir() else []:
        path.unlink()
        removed.append(f"map {path.name}")
    for directory in (links, maps, tree):
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()
    return removed


def _detach_order(link: Path) -> tuple[bool, str]:
    """Steering first: without its tickets and identities it would only refuse."""
    return not link.name.startswith("steer"), link.name


def _detach_link(path: Path) -> None:
    """At once, not when the last descriptor is closed; kinds that cannot (tracepoints) go with the pin."""
    try:
        descriptor = syscalls.object_get(path)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            syscalls.link_detach(descriptor)
    finally:
        os.close(descriptor)
