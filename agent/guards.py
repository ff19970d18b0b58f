# SPDX-License-Identifier: Apache-2.0
"""The configured guards as the kernel part must hold them, and the connections that wait for a worker.

Owns guard numbers, kernel flags, the reserve listeners and the time a guard is off. Knows no policy.
Bias: a guard in enforce has a reserve only while workers may come back; without workers for 5 s it is
taken away and connects are refused, never passed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from typing import Protocol

from agent.config import Guard
from agent.config_auth import auth_of
from agent.held import Held
from agent.kernel import sockdiag
from agent.kernel.records import Address, GuardFlag
from agent.kernel.steering import Steering
from agent.listener import make_listener
from agent.messages import GuardSettings

RESERVE_SECONDS = 5.0
RESERVE_BACKLOG = 1024
FOREVER = float("inf")


@dataclass(eq=False)
class Watched:
    """One guard in force."""

    index: int
    guard: Guard
    held: Held = field(default_factory=Held)
    off_until: float | None = None  # time.time(), FOREVER without an end
    off_reason: str = ""
    reserve: socket.socket | None = None
    pre_existing: list[sockdiag.Socket] = field(default_factory=list)

    @property
    def off(self) -> bool:
        return self.off_until is not None

    @property
    def flags(self) -> GuardFlag:
        flags = GuardFlag(0)
        if self.off:
            flags |= GuardFlag.OFF
        if self.guard.mode == "enforce":
            return flags | GuardFlag.ENFORCE
        if self.guard.passes_on_failure:
            flags |= GuardFlag.PASS_ON_FAILURE
        if self.guard.remote_rule == "pass":
            flags |= GuardFlag.REMOTE_PASS
        return flags

    def settings(self) -> GuardSettings:
        guard = self.guard
        return GuardSettings(
            guard.name, self.index, guard.engine, guard.ports, guard.address, guard.mode, guard.remote_rule,
            off=self.off, credential=self.held.credential,
            auth=auth_of(guard.engine, guard.auth, guard.credential), tls=self.held.tls,
            peers=tuple((peer.remote, peer.port) for peer in guard.peers),
        )  # fmt: skip


_parsed = lru_cache(maxsize=4096)(ip_address)  # a database has few; asked for at every connection


class Store(Protocol):
    """Where reserve listeners outlive the agent (``agent/notify.py``)."""

    def take(self, name: str) -> socket.socket | None: ...

    def keep(self, name: str, descriptor: int) -> None: ...

    def drop(self, name: str) -> None: ...


class Guards:
    """All guards of one configuration."""

    def __init__(
        self, steering: Steering, adopt: Callable[[str, int], bool], store: Store | None = None
    ) -> None:
        self._store = store
        self._steering = steering
        self._adopt = adopt
        self._by_name: dict[str, Watched] = {}
        self._owners: dict[tuple[Address | None, int], int | None] = {}  # address None: every one

    def __iter__(self) -> Iterator[Watched]:
        return iter(sorted(self._by_name.values(), key=lambda w: w.index))

    def find(self, name: str) -> Watched | None:
        return self._by_name.get(name)

    def at(self, index: int) -> Watched | None:
        return next((w for w in self._by_name.values() if w.index == index), None)

    def name_at(self, port: int) -> str | None:
        """The guard of that port; None where several guard it (by address) or none does any more."""
        names = [w.guard.name for w in self._by_name.values() if port in w.guard.ports]
        return names[0] if len(names) == 1 else None

    def ports(self) -> list[int]:
        return sorted({port for w in self._by_name.values() for port in w.guard.ports})

    def settings(self) -> tuple[GuardSettings, ...]:
        return tuple(w.settings() for w in self)

    def apply(self, guards: Iterable[Guard], held: Mapping[str, Held]) -> None:
        """Make these the guards in force. A guard keeps its number and its `off` while its name stays."""
        wanted = {guard.name: guard for guard in guards}
        for name in [n for n in self._by_name if n not in wanted]:
            self.close_reserve(self._by_name.pop(name))
        for name, guard in wanted.items():
            known = self._by_name.get(name)
            if known is None:
                known = self._by_name[name] = Watched(self._free_index(), guard)
            known.guard = guard
            known.held = held.get(name, Held())
            self.publish(known)
            self._take_kept(known)
        # Last, and by what the kernel holds: a port may have gone from one guard to another, and an agent
        # that died may have left a guard that is in no configuration any more.
        self._steering.keep_guards((port, _address(g)) for g in wanted.values() for port in g.ports)
        self.resync()

    def publish(self, watched: Watched) -> None:
        """Write a guard's flags to the kernel."""
        for port in watched.guard.ports:
            self._steering.set_guard(watched.index, port, _address(watched.guard), watched.flags)

    def resync(self) -> None:
        """What listens and which addresses are ours, as the kernel has it now."""
        self._steering.set_local_addresses(sockdiag.local_addresses())
        ports = self.ports()
        sockdiag.resync_up(self._steering, ports)
        owners: dict[tuple[Address | None, int], int | None] = {}
        for one in sockdiag.listeners(ports):
            place = (None if one.local.is_unspecified else one.local, one.local_port)
            # Two owners of one place: it cannot be told whose connection this will be.
            owners[place] = one.cgroup if owners.get(place, one.cgroup) == one.cgroup else None
        self._owners = owners

    def owner_cgroup(self, server: tuple[str, int]) -> int | None:
        """Id of the cgroup whose process listens on that address and port; None while nothing does.

        Any user may listen on the same port of another address: that makes nobody the database.
        """
        address, port = _parsed(server[0]), server[1]
        place: tuple[Address | None, int] = (address, port)
        return self._owners.get(place if place in self._owners else (None, port))

    def _free_index(self) -> int:
        used = {w.index for w in self._by_name.values()}
        return next(i for i in range(64) if i not in used)

    # -- waiting for a worker ----------------------------------------------------------------------

    def open_reserve(self, watched: Watched) -> None:
        """Where connects queue while no worker lives. Not for a guard that passes on failure."""
        if watched.reserve is not None or watched.guard.passes_on_failure:
            return
        sock = make_listener(RESERVE_BACKLOG)
        self._steering.set_reserve(watched.index, sock.fileno())
        watched.reserve = sock
        if self._store is not None:
            self._store.keep(_kept_name(watched), sock.fileno())

    def _take_kept(self, watched: Watched) -> None:
        """The reserve of the agent before, with whoever waits in it."""
        if watched.reserve is None and self._store is not None:
            watched.reserve = self._store.take(_kept_name(watched))
            if watched.reserve is not None:
                self._steering.set_reserve(watched.index, watched.reserve.fileno())

    def close_reserve(self, watched: Watched) -> None:
        if watched.reserve is not None:
            self._steering.clear_reserve(watched.index)
            self.leave_reserve(watched)
            watched.reserve.close()
            watched.reserve = None
            if self._store is not None:
                self._store.drop(_kept_name(watched))

    def watch_reserve(self, watched: Watched) -> None:
        """While workers live: a handshake that began before they came may end after `hand_over`."""
        if watched.reserve is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(watched.reserve.fileno(), self.hand_over, watched)

    def leave_reserve(self, watched: Watched) -> None:
        """No worker lives: what comes waits in the queue."""
        if watched.reserve is not None:
            asyncio.get_running_loop().remove_reader(watched.reserve.fileno())

    def hand_over(self, watched: Watched) -> int:
        """Give what queued in the reserve to a worker; returns how many."""
        handed = 0
        while watched.reserve is not None:
            try:
                waiting, _ = watched.reserve.accept()
            except OSError:
                break
            with waiting:
                handed += self._adopt(watched.guard.name, waiting.fileno())
        return handed

    # -- before us ---------------------------------------------------------------------------------

    def note_pre_existing(self) -> int:
        """Connections that were there before steering: listed, and cut where the guard enforces."""
        found = 0
        exempt = self._steering.exempted()
        for watched in self._by_name.values():
            watched.pre_existing = []
            for port in watched.guard.ports:
                # Workers serve meanwhile: whose end is missing in the list before is in the one after.
                before = sockdiag.callers(port)
                connections = sockdiag.connections(port)
                callers = [*before, *sockdiag.callers(port)]
                ours = {(c.local, c.local_port) for c in callers if c.cgroup in exempt}
                for one in connections:
                    if one.cgroup in exempt or (one.remote, one.remote_port) in ours:
                        continue  # a worker's, from before this agent was started again
                    if self._covering(one.local, port) is watched:
                        watched.pre_existing.append(one)
            found += len(watched.pre_existing)
            self.cut_pre_existing(watched)
        return found

    def _covering(self, local: Address, port: int) -> Watched | None:
        """The guard of a place, as the kernel part finds it: one that names the address goes first."""
        fit = [w for w in self._by_name.values() if port in w.guard.ports]
        named = next((w for w in fit if w.guard.address == str(local)), None)
        return named or next((w for w in fit if w.guard.address is None), None)

    def cut_pre_existing(self, watched: Watched) -> int:
        """In enforce nobody keeps a connection that was never judged. Returns how many were cut."""
        if watched.guard.mode != "enforce" or watched.off:
            return 0
        cut = 0
        for one in watched.pre_existing:
            with suppress(OSError):
                cut += sockdiag.destroy(one)
        watched.pre_existing = []
        return cut

    def close(self) -> None:
        for watched in self._by_name.values():
            self.close_reserve(watched)


class Reserve:
    """Opens and closes the reserves as workers go and come."""

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._closing: dict[str, asyncio.TimerHandle] = {}  # by guard: since when it has no worker

    def workers_changed(self, listening: Callable[[str], bool], stopping: bool) -> None:
        """Call whenever a worker's listener came or went."""
        known = {watched.guard.name for watched in self._guards}
        for name in [n for n in self._closing if stopping or n not in known or listening(n)]:
            self._closing.pop(name).cancel()
        for watched in self._guards:
            name = watched.guard.name
            if stopping:
                self._guards.close_reserve(watched)
            elif listening(name):
                self._guards.hand_over(watched)
                if watched.guard.passes_on_failure:  # also one that enforced before a reload
                    self._guards.close_reserve(watched)
                    continue
                self._guards.open_reserve(watched)
                self._guards.watch_reserve(watched)
            else:
                self._guards.leave_reserve(watched)
                if name not in self._closing:
                    loop = asyncio.get_running_loop()
                    self._closing[name] = loop.call_later(RESERVE_SECONDS, self._give_up, watched)

    def _give_up(self, watched: Watched) -> None:
        """5 s without a worker: what waits is refused, and so is what comes. (Its timer stays known: until a
        worker comes there is nothing more to do.)"""
        self._guards.close_reserve(watched)


def _kept_name(watched: Watched) -> str:
    return f"reserve-{watched.guard.name}"


def _address(guard: Guard) -> Address | None:
    return ip_address(guard.address) if guard.address else None
