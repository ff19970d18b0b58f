# SPDX-License-Identifier: Apache-2.0
"""The configured guards as the kernel part must hold them, and the connections that wait for a worker.

Owns guard numbers, kernel flags, the reserve listeners and the time a guard is off. Knows no policy.
Bias: a guard in enforce has a reserve only while workers may come back; without workers for 5 s it is
taken away and connects are refused, never passed.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from agent.config import Guard
from agent.kernel import sockdiag
from agent.kernel.records import GuardFlag
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
    credential: tuple[tuple[str, str], ...] = ()
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
            off=self.off, credential=self.credential,
        )  # fmt: skip


class Guards:
    """All guards of one configuration."""

    def __init__(self, steering: Steering, adopt: Callable[[str, int], bool]) -> None:
        self._steering = steering
        self._adopt = adopt
        self._by_name: dict[str, Watched] = {}
        self._owners: dict[int, int | None] = {}

    def __iter__(self) -> Iterator[Watched]:
        return iter(sorted(self._by_name.values(), key=lambda w: w.index))

    def find(self, name: str) -> Watched | None:
        return self._by_name.get(name)

    def at(self, index: int) -> Watched | None:
        return next((w for w in self._by_name.values() if w.index == index), None)

    def ports(self) -> list[int]:
        return sorted({port for w in self._by_name.values() for port in w.guard.ports})

    def settings(self) -> tuple[GuardSettings, ...]:
        return tuple(w.settings() for w in self)

    def apply(self, guards: Iterable[Guard], credentials: dict[str, tuple[tuple[str, str], ...]]) -> None:
        """Make these the guards in force. A guard keeps its number and its `off` while its name stays."""
        wanted = {guard.name: guard for guard in guards}
        for name in [n for n in self._by_name if n not in wanted]:
            self._remove(self._by_name.pop(name))
        for name, guard in wanted.items():
            known = self._by_name.get(name)
            if known is None:
                known = self._by_name[name] = Watched(self._free_index(), guard)
            else:
                self._unwatch(known, keep=guard)
            known.guard = guard
            known.credential = credentials.get(name, ())
            self.publish(known)
        self.resync()

    def publish(self, watched: Watched) -> None:
        """Write a guard's flags to the kernel."""
        address = ip_address(watched.guard.address) if watched.guard.address else None
        for port in watched.guard.ports:
            self._steering.set_guard(watched.index, port, address, watched.flags)

    def resync(self) -> None:
        """What listens and which addresses are ours, as the kernel has it now."""
        self._steering.set_local_addresses(sockdiag.local_addresses())
        ports = self.ports()
        sockdiag.resync_up(self._steering, ports)
        self._owners = {one.local_port: one.cgroup for one in sockdiag.listeners(ports)}

    def owner_cgroup(self, server: tuple[str, int]) -> int | None:
        """Id of the cgroup whose process listens on that port; None while nothing does."""
        return self._owners.get(server[1])

    def _free_index(self) -> int:
        used = {w.index for w in self._by_name.values()}
        return next(i for i in range(64) if i not in used)

    def _unwatch(self, watched: Watched, keep: Guard | None) -> None:
        old = watched.guard
        address = ip_address(old.address) if old.address else None
        for port in old.ports:
            if keep is None or port not in keep.ports or old.address != keep.address:
                self._steering.remove_guard(port, address)

    def _remove(self, watched: Watched) -> None:
        self._unwatch(watched, keep=None)
        self.close_reserve(watched)

    # -- waiting for a worker ----------------------------------------------------------------------

    def open_reserve(self, watched: Watched) -> None:
        """Where connects queue while no worker lives. Not for a guard that passes on failure."""
        if watched.reserve is not None or watched.guard.passes_on_failure:
            return
        sock = make_listener(RESERVE_BACKLOG)
        self._steering.set_reserve(watched.index, sock.fileno())
        watched.reserve = sock

    def close_reserve(self, watched: Watched) -> None:
        if watched.reserve is not None:
            self._steering.clear_reserve(watched.index)
            watched.reserve.close()
            watched.reserve = None

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
                ours = {(c.local, c.local_port) for c in sockdiag.callers(port) if c.cgroup in exempt}
                for one in sockdiag.connections(port):
                    if one.cgroup in exempt or (one.remote, one.remote_port) in ours:
                        continue  # a worker's, from before this agent was started again
                    if not watched.guard.address or str(one.local) == watched.guard.address:
                        watched.pre_existing.append(one)
            found += len(watched.pre_existing)
            self.cut_pre_existing(watched)
        return found

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
        self._closing: asyncio.TimerHandle | None = None
        self.since: float | None = None  # time.monotonic() since when there is no worker

    def workers_changed(self, listening: Callable[[str], bool], stopping: bool) -> None:
        """Call whenever a worker's listener came or went."""
        loop = asyncio.get_running_loop()
        missing = [w for w in self._guards if not listening(w.guard.name)]
        for watched in self._guards:
            if stopping:
                self._guards.close_reserve(watched)
            elif watched not in missing:
                self._guards.hand_over(watched)
                self._guards.open_reserve(watched)
        if missing and self._closing is None and not stopping:
            self.since = time.monotonic()
            self._closing = loop.call_later(RESERVE_SECONDS, self._give_up)
        elif not missing and self._closing is not None:
            self._closing.cancel()
            self._closing, self.since = None, None

    def _give_up(self) -> None:
        """5 s without a worker: what waits is refused, and so is what comes."""
        for watched in self._guards:
            self._guards.close_reserve(watched)
        self._closing = None
