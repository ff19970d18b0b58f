# SPDX-License-Identifier: Apache-2.0
"""What the kernel part tells about a caller, and the facts of one connection, as plain values.

Owns the shapes only: nothing here reads a file or a map. Every number is as the host's initial
namespaces see it (init user namespace ids, the host's pid namespace).
"""

from __future__ import annotations

from dataclasses import dataclass

UNSET_ID = 0xFFFFFFFF
"""The kernel's (uid_t)-1: no login uid, no audit session."""

NS_PER_S = 1_000_000_000


def same_ctime(kernel_ns: int, stat_ns: int) -> bool:
    """Whether a ctime read from a kernel inode is the one that stat(2) shows.

    Since Linux 6.13 bit 31 of `i_ctime_nsec` says that the time was queried (multigrain timestamps,
    I_CTIME_QUERIED): a record that kept it is 2**31 ns ahead.
    """
    return kernel_ns in (stat_ns, stat_ns + (1 << 31))


@dataclass(frozen=True, slots=True)
class FileId:
    """An executable as the kernel holds it: `i_sb->s_dev`, `i_ino`, ctime in ns (None: not known).

    `dev` is packed as stat(2) packs it. Filesystems that answer stat(2) with a device of their own
    making (btrfs, overlayfs over several layers) show another number there; the two then differ,
    they never collide, because the kernel takes both from one allocator.
    """

    dev: int
    ino: int
    ctime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """The identity that cgroup/connect wrote for one connection.

    Times are ns since boot (CLOCK_BOOTTIME); `start_ns` is of the thread group leader.
    `login_uid` and `audit_session` are `UNSET_ID` where no login stands behind the process.
    `mnt_ns`, `user_ns`, `net_ns`, `pid_ns` are namespace inode numbers, None where not recorded.
    """

    tgid: int
    start_ns: int
    uid: int
    gid: int
    euid: int
    login_uid: int
    audit_session: int
    cgroup_id: int
    netns_cookie: int
    comm: str
    exe: FileId | None
    parent_tgid: int
    parent_start_ns: int
    connect_ns: int
    mnt_ns: int | None = None
    user_ns: int | None = None
    net_ns: int | None = None
    pid_ns: int | None = None
    exchanged: bool = False  # `exe` is not the file it had executed (prctl PR_SET_MM_MAP)


@dataclass(frozen=True, slots=True)
class ExecRecord:
    """The last execve of a process, by (tgid, start): what stays when the process is gone.

    `filename` is what execve was given: it may be relative, a symbolic link, or a script.
    """

    tgid: int
    start_ns: int
    filename: str
    exe: FileId | None
    exec_ns: int | None = None  # when, ns since boot; None = not recorded
    parent_tgid: int | None = None
    parent_start_ns: int | None = None


@dataclass(frozen=True, slots=True)
class FourTuple:
    """Addresses in normal form (no v4-mapped) as text, ports as numbers; client first."""

    client_addr: str
    client_port: int
    server_addr: str
    server_port: int
    accepted: int | None = None  # SO_COOKIE of the accepted socket: the name must be of this very connection


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is known of the connection itself, apart from the process.

    `source_local`: the source address belongs to the listener's own namespace.
    `ambiguous`: the entries of two namespaces could both be meant.
    """

    source: str
    source_local: bool
    owner_cgroup: int | None = None  # cgroup id of the process that owns the database's listener
    ambiguous: bool = False


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host's own namespaces and places, read once at start (`host.read_host`)."""

    proc: str
    root: str  # "" = the agent's own root directory
    user_ns: int
    mnt_ns: int
    pid_ns: int
    cgroup_mount: str | None
    root_cgroup: int | None
    systemd_v1: bool  # systemd keeps its units in the v1 hierarchy name=systemd, not in v2
    ticks: int  # USER_HZ, the unit of field 22 in /proc/PID/stat
