# SPDX-License-Identifier: Apache-2.0
"""The agent's hold on the kernel part: guards, listeners, exempt cgroups, identities, counters.

Opens the pinned maps and talks to them with bpf(2); needs no root, but CAP_BPF and CAP_NET_ADMIN and pins
of its own. Knows nothing of policy and keeps no state but what the maps hold, so a restarted agent opens
the same pins and goes on. One agent at a time writes. Bias: an element that cannot be written is an error.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType

from agent.kernel import syscalls
from agent.kernel.errors import SteeringError
from agent.kernel.events import EventReader
from agent.kernel.namespaces import netns_cookie_of, socket_cookie
from agent.kernel.records import (
    ANY_ADDRESS,
    BUCKET_TOTAL,
    FLOW,
    GUARD,
    IDENTITY,
    INFLIGHT,
    MAX_GUARDS,
    MAX_WORKERS,
    PLACE,
    PROCESS,
    PROCESS_KEY,
    SETTINGS,
    STATS,
    UP,
    UP_KEY,
    UP_LANES,
    WATCH_KEY,
    Address,
    Event,
    Flow,
    GuardFlag,
    Identity,
    IdentityFlag,
    MarkKind,
    ProcessRecord,
    pack_address,
    unpack_address,
)

_MAPS = (
    "namespaces", "ports", "watch", "exempt", "settings", "local_addresses", "own_ports", "slots",
    "reserve", "marks", "identities", "inflight", "taken", "spaces", "tickets", "up", "processes",
    "stats", "events",
)  # fmt: skip
_PROXY = int(IdentityFlag.PROXY)
_ANY_V4 = pack_address(IPv4Address(0))
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket of a database that listens: what `Steering.seed_up` is given."""

    address: Address
    port: int
    cookie: int
    v6only: bool = False


class Steering:
    """A context manager. What the kernel refuses is OSError, what is not set up SteeringError."""

    def __init__(self, pins: Path, netns: int | None = None) -> None:
        """``netns``: cookie of the guarded namespace, by default that of the calling thread."""
        self._maps: dict[str, int] = {}
        self._pins = pins
        try:
            for name in _MAPS:
                self._maps[name] = syscalls.object_get(pins / "maps" / name)
            self.events = EventReader(self._maps["events"])
        except OSError as error:
            self._close_maps()
            raise SteeringError(
                f"the kernel part at {pins}: {error.strerror}",
                "run `vecward steer`; the agent must own the pins and have CAP_BPF and CAP_NET_ADMIN",
            ) from error
        self.netns = netns if netns is not None else _own_netns(pins)
        self._identities = syscalls.Elements(self._maps["identities"], FLOW.size, IDENTITY.size)
        self._taken = syscalls.Elements(self._maps["taken"], 4, 4)
        self._marks = syscalls.Elements(self._maps["processes"], PROCESS_KEY.size, PROCESS.size)

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the maps; what is in them goes on working."""
        self.events.close()
        self._close_maps()

    def _close_maps(self) -> None:
        while self._maps:
            os.close(self._maps.popitem()[1])

    # ---- guards ----

    def set_guard(self, index: int, port: int, address: Address | None, flags: GuardFlag) -> None:
        """Guard ``port`` (on ``address``, or on every one) as number ``index``; again to change the flags.

        A guard with several ports or addresses is several calls with one index; all share its workers.
        Call `seed_up` afterwards: databases that listen already are not known yet.
        """
        if not 0 <= index < MAX_GUARDS:
            raise SteeringError(f"guard number {index}", f"at most {MAX_GUARDS} guards")
        if GuardFlag.ENFORCE in flags and flags & (GuardFlag.PASS_ON_FAILURE | GuardFlag.REMOTE_PASS):
            raise SteeringError("a guard that enforces passes nothing unjudged", "drop the pass flags")
        place = self._watch_key(port, address)
        self._publish_port(port, flags)  # first, so that nobody is steered whose identity was not recorded
        self._put("watch", place, GUARD.pack(index, flags, self._workers(index), 0))
        self._publish_port(port)

    def remove_guard(self, port: int, address: Address | None) -> None:
        """Stop guarding; connections that stand are not touched. Nothing happens if it was not guarded."""
        syscalls.map_delete(self._maps["watch"], self._watch_key(port, address))
        self._publish_port(port)
        if self._get("ports", _U16.pack(port), 4) is None:
            for key in self._keys("up", UP_KEY.size):
                if UP_KEY.unpack(key)[2] == port:
                    syscalls.map_delete(self._maps["up"], key)

    def keep_guards(self, places: Iterable[tuple[int, Address | None]]) -> None:
        """Stop guarding every other port and address of this namespace, whoever guarded it."""
        wanted = {self._watch_key(port, address) for port, address in places}
        for key, _, _, _ in self._guards():
            netns, raw, port, _, _ = WATCH_KEY.unpack(key)
            if key not in wanted and netns == self.netns:
                self.remove_guard(port, None if raw == ANY_ADDRESS else unpack_address(raw))

    def _watch_key(self, port: int, address: Address | None) -> bytes:
        packed = ANY_ADDRESS if address is None else pack_address(address)
        return WATCH_KEY.pack(self.netns, ANY_ADDRESS if packed == _ANY_V4 else packed, port, 0, 0)

    def _guards(self) -> list[tuple[bytes, int, GuardFlag, int]]:
        """(key, index, flags, workers) of every guarded place."""
        found = []
        for key in self._keys("watch", WATCH_KEY.size):
            value = self._get("watch", key, GUARD.size)
            if value is not None:
                index, flags, workers, _ = GUARD.unpack(value)
                found.append((key, index, GuardFlag(flags), workers))
        return found

    def _publish_port(self, port: int, coming: GuardFlag | None = None) -> None:
        flags, guarded = coming or GuardFlag(0), coming is not None
        for key, _, own, _ in self._guards():
            if WATCH_KEY.unpack(key)[2] == port:  # a guard that is off refuses nobody
                flags, guarded = flags | (own & ~GuardFlag.ENFORCE if GuardFlag.OFF in own else own), True
        if guarded:
            self._put("ports", _U16.pack(port), _U32.pack(flags))
        else:
            syscalls.map_delete(self._maps["ports"], _U16.pack(port))

    # ---- listeners ----

    def mark_listener(self, fd: int) -> None:
        """Mark a listening socket as ours; what it accepts inherits the mark."""
        self._put("marks", struct.pack("=i", fd), _U32.pack(MarkKind.LISTENER))

    def set_listener(self, guard: int, slot: int, fd: int) -> None:
        """Put a worker's listening socket in a slot, in place of whichever was there. Marks it too.

        The caller then closes its descriptor: a slot empties itself only when the last one is closed.
        """
        if not 0 <= slot < MAX_WORKERS:
            raise SteeringError(f"worker slot {slot}", f"at most {MAX_WORKERS} workers a guard")
        self._own(fd)
        self._put("slots", _U32.pack(guard * MAX_WORKERS + slot), _U64.pack(fd))
        self._set_workers(guard, self._workers(guard))

    def clear_listener(self, guard: int, slot: int) -> None:
        _delete_quietly(self._maps["slots"], _U32.pack(guard * MAX_WORKERS + slot))
        self._set_workers(guard, self._workers(guard))

    def listeners(self, guard: int) -> dict[int, int]:
        """Occupied slots -> cookie of the listening socket."""
        found = {}
        for slot in range(MAX_WORKERS):
            value = self._get("slots", _U32.pack(guard * MAX_WORKERS + slot), 8)
            if value is not None:
                found[slot] = _U64.unpack(value)[0]
        return found

    def set_reserve(self, guard: int, fd: int) -> None:
        """The listener used only while every slot is empty; the agent keeps ``fd`` open."""
        self._own(fd)
        self._put("reserve", _U32.pack(guard), _U64.pack(fd))

    def clear_reserve(self, guard: int) -> None:
        _delete_quietly(self._maps["reserve"], _U32.pack(guard))

    def _own(self, fd: int) -> None:
        duplicate = socket.socket(fileno=os.dup(fd))
        try:
            self._check_listener(duplicate)
            place = PLACE.pack(self.netns, ANY_ADDRESS, duplicate.getsockname()[1], 0)
            self._put("own_ports", place, _U64.pack(socket_cookie(duplicate)))
        finally:
            duplicate.close()
        self.mark_listener(fd)

    def _check_listener(self, sock: socket.socket) -> None:
        """SYNs to its port will be dropped, whatever their address: it must be nobody else's port. A worker
        that lies could otherwise shut any port of the host, with a socket of a namespace of its own or one
        that leaves the other family free."""
        if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise SteeringError("a listener that is no TCP socket")
        wildcard = sock.getsockname()[0] in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
        both = sock.family == socket.AF_INET or not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or not wildcard or not both:
            raise SteeringError("a listener that does not listen on every address")
        if netns_cookie_of(sock, self._pins) != self.netns:
            raise SteeringError("a listener of another network namespace")

    def _workers(self, guard: int) -> int:
        return max(self.listeners(guard), default=-1) + 1

    def _set_workers(self, guard: int, workers: int) -> None:
        for key, index, flags, known in self._guards():
            if index == guard and known != workers:
                self._put("watch", key, GUARD.pack(index, flags, workers, 0))

    # ---- proxies, limits, addresses ----

    def exempt(self, cgroup_id: int) -> None:
        """Connections begun in this cgroup (inode number of its directory) get tickets."""
        self._put("exempt", _U64.pack(cgroup_id), _U32.pack(1))

    def unexempt(self, cgroup_id: int) -> None:
        syscalls.map_delete(self._maps["exempt"], _U64.pack(cgroup_id))

    def exempted(self) -> set[int]:
        return {_U64.unpack(key)[0] for key in self._keys("exempt", 8)}

    def set_limits(self, per_user: int, total: int) -> None:
        """Identities in flight: beyond them connects are refused (enforce) or unattributed (observe)."""
        self._put("settings", _U32.pack(0), SETTINGS.pack(per_user, total))

    def set_local_addresses(self, addresses: Iterable[Address]) -> None:
        """The addresses of the guarded namespace: what comes from them is not remote."""
        wanted = {PLACE.pack(self.netns, pack_address(address), 0, 0) for address in addresses}
        for key in wanted:
            self._put("local_addresses", key, _U32.pack(1))
        for key in self._keys("local_addresses", PLACE.size):
            if key not in wanted and PLACE.unpack(key)[0] == self.netns:
                syscalls.map_delete(self._maps["local_addresses"], key)

    # ---- what the database listens on ----

    def seed_up(self, listening: Iterable[Listening]) -> None:
        """Add listeners that were there before the guard. Forgets nothing: see `drop_up`."""
        for one in listening:
            keys = self._lanes(one.address, one.port)
            known = [self._get("up", key, UP.size) for key in keys]
            if any(value is not None and UP.unpack(value)[0] == one.cookie for value in known):
                continue
            for key, value in zip(keys, known, strict=True):
                if value is None and self._put_new("up", key, UP.pack(one.cookie, one.v6only, 0)):
                    break

    def drop_up(self, gone: Iterable[Listening]) -> None:
        """Forget listeners that are known to be closed (their close was not seen)."""
        cookies = {one.cookie for one in gone}
        for key in self._keys("up", UP_KEY.size):
            value = self._get("up", key, UP.size)
            if value is not None and UP.unpack(value)[0] in cookies:
                syscalls.map_delete(self._maps["up"], key)

    def up(self) -> list[Listening]:
        """Every database listener the kernel part knows of in this namespace."""
        found = []
        for key in self._keys("up", UP_KEY.size):
            value = self._get("up", key, UP.size)
            netns, address, port, _, _ = UP_KEY.unpack(key)
            if value is not None and netns == self.netns:
                cookie, v6only, _ = UP.unpack(value)
                found.append(Listening(unpack_address(address), port, cookie, bool(v6only)))
        return found

    def _lanes(self, address: Address, port: int) -> list[bytes]:
        return [UP_KEY.pack(self.netns, pack_address(address), port, lane, 0) for lane in range(UP_LANES)]

    # ---- identities ----

    def identity(
        self, netns_cookie: int, saddr: Address, sport: int, daddr: Address, dport: int
    ) -> Identity | None:
        """Who began this connection in that namespace, as long as nobody took it."""
        raw = self._get("identities", Flow(netns_cookie, saddr, sport, daddr, dport).pack(), IDENTITY.size)
        return Identity.unpack(raw) if raw is not None else None

    def take_identity(
        self,
        netns_cookie: int,
        saddr: Address,
        sport: int,
        daddr: Address,
        dport: int,
        accepted: int | None = None,
    ) -> Identity | None:
        """`identity`, and delete it: the caller keeps the answer. On one thread only, as `process_mark`.

        ``accepted``: SO_COOKIE of the accepted socket. A client may reset its connection and another use the
        same ports before the first is accepted: with it, the name is only given to the connection it is of.
        It is there from before the SYN leaves until it is taken, also when the client is gone. Everything
        that is accepted has to be taken, or it counts against its user until `sweep_identities`.
        """
        key = Flow(netns_cookie, saddr, sport, daddr, dport).pack()
        if accepted is None:
            return self._take(key)
        raw = self._identities.lookup(key)
        if raw is None:
            return None
        identity = Identity.unpack(raw)
        if identity.accepted != accepted:
            return None
        taken = self._identities.take(key)
        if taken is not None:  # whosever it is by now, it leaves: at worst somebody else is unattributed
            self._discharge(identity if taken == raw else Identity.unpack(taken))
        return identity

    def sweep_identities(self, older_than: int) -> list[tuple[Flow, Identity]]:
        """Take and return what nobody asked for in ``older_than`` seconds (a worker died, a caller went."""
        limit = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - older_than * 10**9
        old = [flow for flow, identity in self.pending() if identity.connected <= limit]
        taken = ((flow, self._take(flow.pack())) for flow in old)
        return [(flow, identity) for flow, identity in taken if identity is not None]

    def _take(self, key: bytes) -> Identity | None:
        raw = self._identities.take(key)
        if raw is None:
            return None
        identity = Identity.unpack(raw)
        self._discharge(identity)
        return identity

    def _discharge(self, identity: Identity) -> None:
        if int(identity.flags) & _PROXY:
            return
        for bucket in (identity.bucket, BUCKET_TOTAL):
            packed = _U32.pack(bucket)
            counted = self._taken.lookup(packed)
            value = (_U32.unpack(counted)[0] if counted else 0) + 1
            self._taken.update(packed, _U32.pack(value & 0xFFFFFFFF))

    def pending(self) -> list[tuple[Flow, Identity]]:
        """Every identity that nobody took yet. Walks the table: for `status` and sweeps."""
        found = []
        for key in self._keys("identities", FLOW.size):
            raw = self._get("identities", key, IDENTITY.size)
            if raw is not None:
                found.append((Flow.unpack(key), Identity.unpack(raw)))
        return found

    def candidates(self, saddr: Address, sport: int, daddr: Address, dport: int) -> list[Identity]:
        """Whoever began such a connection in any *other* namespace. Proof of a join is the caller's work."""
        found = []
        for cookie in self.spaces():
            if cookie != self.netns:
                identity = self.identity(cookie, saddr, sport, daddr, dport)
                if identity is not None:
                    found.append(identity)
        return found

    def spaces(self) -> dict[int, int]:
        """Namespaces that callers of guarded ports were seen in: cookie -> inode number of ns/net."""
        found = {}
        for key in self._keys("spaces", 8):
            value = self._get("spaces", key, 4)
            if value is not None:
                found[_U64.unpack(key)[0]] = _U32.unpack(value)[0]
        return found

    def process(self, tgid: int, start: int) -> ProcessRecord | None:
        """What the fork, exec and exit of a process left; None before attach or after eviction."""
        raw = self._get("processes", PROCESS_KEY.pack(start, tgid, 0), PROCESS.size)
        return ProcessRecord.unpack(raw) if raw is not None else None

    def process_mark(self, tgid: int, start: int) -> bytes | None:
        """What `process` would be made of: another value after each exec of it, and after its exit."""
        return self._marks.lookup(PROCESS_KEY.pack(start, tgid, 0))

    # ---- numbers ----

    def stats(self) -> dict[str, int]:
        """Counters since attach, summed over the CPUs."""
        cpus = _possible_cpus()
        totals = {}
        for index, name in enumerate(STATS):
            raw = syscalls.map_lookup(self._maps["stats"], _U32.pack(index), 8 * cpus) or bytes(8 * cpus)
            totals[name] = sum(struct.unpack(f"={cpus}Q", raw))
        return totals

    def in_flight(self, bucket: int = BUCKET_TOTAL) -> int:
        """Identities written and neither taken nor closed, of one user or of all."""
        kernel = self._get("inflight", _U32.pack(bucket), INFLIGHT.size)
        user = self._get("taken", _U32.pack(bucket), 4)
        started, closed = INFLIGHT.unpack(kernel) if kernel else (0, 0)
        return int(started - closed - (_U32.unpack(user)[0] if user else 0)) & 0xFFFFFFFF

    def entries(self) -> dict[str, int]:
        """How full the tables are that empty themselves: for `doctor`, metrics and tests."""
        sizes = {"identities": FLOW.size, "tickets": FLOW.size, "up": UP_KEY.size, "own_ports": PLACE.size}
        return {name: len(self._keys(name, size)) for name, size in sizes.items()}

    def read_events(self, limit: int = 1024) -> list[Event]:
        return self.events.read(limit)

    # ---- elements ----

    def _get(self, name: str, key: bytes, size: int) -> bytes | None:
        return syscalls.map_lookup(self._maps[name], key, size)

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        syscalls.map_update(self._maps[name], key, value)

    def _put_new(self, name: str, key: bytes, value: bytes) -> bool:
        try:
            syscalls.map_update(self._maps[name], key, value, syscalls.NOEXIST)
        except FileExistsError:
            return False
        return True

    def _keys(self, name: str, size: int) -> list[bytes]:
        return syscalls.map_keys(self._maps[name], size)


def _own_netns(pins: Path) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return netns_cookie_of(probe, pins)


def _possible_cpus() -> int:
    """CPUs a per-CPU value has, from a list like 0-3,8."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def _delete_quietly(descriptor: int, key: bytes) -> None:
    """A sockmap slot that is empty answers EINVAL."""
    try:
        syscalls.map_delete(descriptor, key)
    except OSError as error:
        if error.errno != 22:
            raise
