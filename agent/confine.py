# SPDX-License-Identifier: Apache-2.0
"""Giving up privilege: users, capabilities, dumpability, system calls, cgroups.

Owns what a process of ours does to itself right after it is forked by ``agent/run.py`` (under systemd
the units do the same). Every step that fails raises: a process that could not be confined must not
start. Sources: capabilities(7), prctl(2), seccomp(2), Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import grp
import os
import platform
import pwd
import resource
import signal
import struct
from collections.abc import Container
from pathlib import Path

CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19
CAP_BPF = 39
AGENT_CAPABILITIES = frozenset({CAP_BPF, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH})
# systemd's range for dynamic users (UIDS-GIDS.md of systemd): ids of nobody on a sane host.
DYNAMIC_IDS = range(61184, 65520)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAP = 63

_libc = ctypes.CDLL(None, use_errno=True)


class ConfineError(Exception):
    """A privilege could not be given up, or a needed one is not there."""


def _prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(ctypes.c_int(option), *padded) != 0:
        error = ctypes.get_errno()
        raise ConfineError(f"prctl({option}): {os.strerror(error)}")


def effective_capabilities() -> frozenset[int]:
    """The capabilities this process may use now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(bit for bit in range(_LAST_CAP + 1) if mask >> bit & 1)
    raise ConfineError("/proc/self/status has no CapEff line")


def _set_capabilities(wanted: frozenset[int]) -> None:
    mask = sum(1 << cap for cap in wanted)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)  # effective, permitted, inheritable
    if _libc.capset(header, data) != 0:
        raise ConfineError(f"capset: {os.strerror(ctypes.get_errno())}")


def _drop_bounding(kept: frozenset[int]) -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for cap in range(last + 1):
        if cap not in kept:
            _prctl(_PR_CAPBSET_DROP, cap)


def become(
    uid: int, gid: int, capabilities: frozenset[int], groups: tuple[int, ...] = (), umask: int = 0o077
) -> None:
    """Turn into uid:gid for good, with exactly these capabilities and no way to gain others.

    Not dumpable: /proc/PID/mem and ptrace are closed to the same user. Dies with its parent.
    """
    _drop_bounding(capabilities)
    _prctl(_PR_SET_KEEPCAPS, 1 if capabilities else 0)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _set_capabilities(capabilities)
    _prctl(_PR_SET_KEEPCAPS, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(umask)
    if effective_capabilities() != capabilities:
        raise ConfineError("the capabilities left are not the ones wanted")


def settle(capabilities: frozenset[int], umask: int) -> None:
    """What a unit cannot say of a process that systemd has made another user of with these capabilities.

    Raises ConfineError where it has others, or is root.
    """
    if 0 in os.getresuid() or 0 in os.getresgid():
        raise ConfineError("this is started by its unit, as a user of its own")
    if effective_capabilities() != capabilities:
        raise ConfineError(
            "the capabilities are not the ones wanted; a drop-in of the unit may have changed them"
        )
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    os.umask(umask)


def die_with_parent() -> None:
    """For a fork: it ends when the process that forked it does."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# struct seccomp_data: nr at 0, arch at 4. Instructions are struct sock_filter (code, jt, jf, k).
_LOAD = 0x20
_JUMP_EQUAL = 0x15
_JUMP_ABOVE = 0x35
_X32 = 0x40000000
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_EPERM = 0x00050000 | 1
_FORBIDDEN = {  # ptrace, process_vm_readv, process_vm_writev, pidfd_getfd
    "x86_64": (0xC000003E, (101, 310, 311, 438)),
    "aarch64": (0xC00000B7, (117, 270, 271, 438)),
}


def forbid_spying() -> None:
    """Deny ptrace, process_vm_* and pidfd_getfd: CAP_SYS_PTRACE is there to read /proc alone.

    A foreign architecture's call numbers are denied whole, so that the 32-bit table is no way round.
    """
    machine = platform.machine()
    if machine not in _FORBIDDEN:
        raise ConfineError(f"no system call table for {machine}; known: {', '.join(_FORBIDDEN)}")
    arch, numbers = _FORBIDDEN[machine]
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, 0),
        (_JUMP_ABOVE, len(numbers) + 1, 0, _X32),  # another table under the same arch value
        *((_JUMP_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _EPERM),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(fprog, len(fprog))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(holder))


def raise_open_files() -> int:
    """As many descriptors as the hard limit allows; returns that number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1_048_576 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def user_ids(name: str, taken: Container[int] = ()) -> tuple[int, int, bool]:
    """(uid, gid, exists) of a system user; an unused id, none of `taken`, where it does not exist."""
    try:
        entry = pwd.getpwnam(name)
        return entry.pw_uid, entry.pw_gid, True
    except KeyError:
        pass
    for uid in DYNAMIC_IDS:
        if uid in taken:
            continue
        try:
            pwd.getpwuid(uid)
        except KeyError:
            try:
                grp.getgrgid(uid)
            except KeyError:
                return uid, uid, False
    raise ConfineError(f"there is no user {name!r}, and no unused id for it")


def two_users(agent: str, proxy: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """(uid, gid) of the agent's and of the proxies' user.

    Raises ConfineError where they are one or root: the proxies must not open what the agent holds.
    """
    agent_uid, agent_gid, _ = user_ids(agent)
    proxy_uid, proxy_gid, _ = user_ids(proxy, (agent_uid, agent_gid))
    if 0 in (agent_uid, proxy_uid):
        raise ConfineError("`users:` must not name root: nothing that meets strangers may be it")
    if agent_uid == proxy_uid or agent_gid == proxy_gid:
        raise ConfineError(f"the users {agent!r} and {proxy!r} must differ, and their groups too")
    return (agent_uid, agent_gid), (proxy_uid, proxy_gid)


def group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
