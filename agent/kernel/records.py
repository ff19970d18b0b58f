# SPDX-License-Identifier: Apache-2.0
"""What the kernel part writes and reads, as Python values: the mirror of bpf/steer.h.

Owns byte layouts and nothing that opens, loads or decides. tests/kernel/test_layout.py compares every
size and offset here with the C compiler's. Times are nanoseconds of CLOCK_BOOTTIME; addresses are
``IPv4Address`` or ``IPv6Address`` outside and 16 bytes (IPv4 as ::ffff:a.b.c.d) inside.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

MAX_GUARDS = 64
MAX_WORKERS = 64
UP_LANES = 4
BUCKET_OVERFLOW = 0xFFFFFFFF
BUCKET_TOTAL = 0xFFFFFFFE
NONE_ID = 0xFFFFFFFF
ANY_ADDRESS = bytes(16)


class GuardFlag(enum.IntFlag):
    """How the kernel treats one guard. ``ENFORCE`` and ``PASS_ON_FAILURE`` exclude each other."""

    ENFORCE = 1
    PASS_ON_FAILURE = 2
    REMOTE_PASS = 4
    OFF = 8


class IdentityFlag(enum.IntFlag):
    PROXY = 1
    THREAD = 2
    KERNEL_WORKER = 4
    NO_EXE = 8
    EXCHANGED = 16


class MarkKind(enum.IntEnum):
    LISTENER = 1
    TICKETED = 2


class EventKind(enum.IntEnum):
    """A connection that reached the database without the proxy, and why."""

    BYPASS = 1
    UNOBSERVED = 2
    OFF = 3
    REMOTE = 4


STATS = (
    "connect_recorded", "connect_proxy", "connect_refused_cap", "connect_refused_memory",
    "connect_unrecorded",
    "identity_written", "identity_missing", "identity_lost", "identity_closed",
    "ticket_written", "ticket_lost", "ticket_expired",
    "lookup_own_port", "lookup_not_tcp", "lookup_ticket", "lookup_loop", "lookup_off", "lookup_not_up",
    "lookup_remote", "lookup_steered", "lookup_reserve", "lookup_unobserved", "lookup_refused", "slot_failed",
    "established_steered", "established_upstream", "established_unobserved", "established_off",
    "established_remote", "established_bypass",
    "up_added", "up_lost", "up_removed", "event_lost", "process_lost",
)  # fmt: skip

FLOW = struct.Struct("=Q16s16sHHI")
WATCH_KEY = struct.Struct("=Q16sHHI")
GUARD = struct.Struct("=IIII")
UP_KEY = struct.Struct("=Q16sHHI")
UP = struct.Struct("=QII")
PLACE = struct.Struct("=Q16sII")
IDENTITY = struct.Struct("=HHIIIIIIIQQQIIIIQQQIIQQ16sQ")
PROCESS_KEY = struct.Struct("=QII")
PROCESS = struct.Struct("=QQQQQQIIII16s256s")
EVENT = struct.Struct("=QQIIII48s144s")
INFLIGHT = struct.Struct("=II")
SETTINGS = struct.Struct("=II")


def pack_address(address: Address | str) -> bytes:
    """16 bytes in network order; IPv4 as v4-mapped. Raises ValueError for what is no address."""
    value = ip_address(address) if isinstance(address, str) else address
    if isinstance(value, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + value.packed
    return value.packed


def unpack_address(raw: bytes) -> Address:
    value = IPv6Address(raw)
    return value.ipv4_mapped or value


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection as the client sees it: source is the client, destination the database."""

    netns: int
    saddr: Address
    sport: int
    daddr: Address
    dport: int

    def pack(self) -> bytes:
        return FLOW.pack(
            self.netns, pack_address(self.saddr), pack_address(self.daddr), self.sport, self.dport, 0
        )

    @classmethod
    def unpack(cls, raw: bytes) -> Flow:
        netns, saddr, daddr, sport, dport, _ = FLOW.unpack(raw)
        return cls(netns, unpack_address(saddr), sport, unpack_address(daddr), dport)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who called connect(2), as the kernel saw it. ``None`` ids: the kernel has none for this task.

    ``start``: start time of the group leader; field 22 of /proc/PID/stat is ``start // 10**7`` (USER_HZ 100).
    ``accepted``: SO_COOKIE of the proxy's end of this very connection, 0 until its handshake is over.
    ``exe_dev``: as ``os.stat().st_dev`` shows it. ``comm`` is the process's own word, not attested.
    """

    version: int
    flags: IdentityFlag
    tgid: int
    tid: int
    uid: int
    gid: int
    euid: int
    loginuid: int | None
    sessionid: int | None
    start: int
    cgroup: int
    netns: int
    netns_inum: int
    mntns_inum: int
    userns_inum: int
    exe_dev: int
    exe_ino: int
    exe_ctime: int
    parent_start: int
    parent_tgid: int
    bucket: int
    cookie: int
    connected: int
    comm: str
    accepted: int = 0

    @classmethod
    def unpack(cls, raw: bytes) -> Identity:
        fields = list(IDENTITY.unpack(raw))
        fields[1] = IdentityFlag(fields[1])
        for index in (7, 8):
            fields[index] = None if fields[index] == NONE_ID else fields[index]
        fields[15] = user_dev(fields[15])
        fields[23] = text(fields[23])
        return cls(*fields)


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What was kept of a process by its fork, exec and exit. ``executed`` 0: its exec was not seen.

    ``filename`` is what was given to exec, relative to whatever root the caller had: not attested.
    """

    executed: int
    exited: int
    exe_ino: int
    exe_ctime: int
    parent_start: int
    cgroup: int
    parent_tgid: int
    exe_dev: int
    uid: int
    comm: str
    filename: str

    @classmethod
    def unpack(cls, raw: bytes) -> ProcessRecord:
        *numbers, comm, filename = PROCESS.unpack(raw)
        executed, exited, ino, ctime, parent_start, cgroup, parent, dev, uid, _ = numbers
        return cls(executed, exited, ino, ctime, parent_start, cgroup, parent, user_dev(dev), uid,
                   text(comm), text(filename))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """A connection that was established with the database and did not go through the proxy.

    ``who`` is taken out of the table: None if nobody is known. With ``who.netns != flow.netns`` it was
    begun in another namespace, and that it is the same connection is not proven.
    """

    at: int
    cookie: int
    kind: EventKind
    guard: int
    guard_flags: GuardFlag
    flow: Flow
    who: Identity | None

    @classmethod
    def unpack(cls, raw: bytes) -> Event:
        at, cookie, kind, guard, flags, known, flow, who = EVENT.unpack_from(raw)
        identity = Identity.unpack(who) if known else None
        return cls(at, cookie, EventKind(kind), guard, GuardFlag(flags), Flow.unpack(flow), identity)


def user_dev(kernel_dev: int) -> int:
    """dev_t of the kernel (major << 20 | minor) as stat(2) reports it to user space."""
    major, minor = kernel_dev >> 20, kernel_dev & 0xFFFFF
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32


def text(raw: bytes) -> str:
    """A C string of the kernel's; bytes that are not UTF-8 stay visible as surrogate escapes."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
