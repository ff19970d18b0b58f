# SPDX-License-Identifier: Apache-2.0
"""Guards in the kernel's tables, the reserve between two workers, and connections older than the agent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent import guards as guards_module
from agent.config import Guard
from agent.guards import FOREVER, Guards, Reserve, Watched
from agent.kernel import sockdiag
from agent.kernel.records import GuardFlag
from agent.kernel.sockdiag import Socket, State
from tests.unit.agent.turning import pass_time, run, run_still, turns, until

PROXY_CGROUP = 99
_names = iter(range(10**6))


def guard(name: str = "q", *ports: int, **changes: Any) -> Guard:
    return Guard(name=name, engine="qdrant", ports=ports or (6333,), **changes)


def tcp(local: str, port: int, remote: str = "10.0.0.9", rport: int = 4000, **changes: Any) -> Socket:
    values: dict[str, Any] = {
        "family": 2, "state": State.ESTABLISHED, "local": ip_address(local), "local_port": port,
        "remote": ip_address(remote), "remote_port": rport, "cookie": rport, "uid": 0, "inode": 1,
        "cgroup": None, "v6only": False, "handle": b"",
    }  # fmt: skip
    return Socket(**{**values, **changes})


class Kernel:
    """The kernel's maps as the guards set them."""

    def __init__(self) -> None:
        self.watch: dict[tuple[int, str | None], tuple[int, GuardFlag]] = {}
        self.reserves: dict[int, int] = {}

    def set_guard(self, index: int, port: int, address: Any, flags: GuardFlag) -> None:
        self.watch[port, str(address) if address else None] = (index, flags)

    def remove_guard(self, port: int, address: Any) -> None:
        del self.watch[port, str(address) if address else None]

    def keep_guards(self, places: Iterable[tuple[int, Any]]) -> None:
        kept = {(port, str(address) if address else None) for port, address in places}
        self.watch = {place: held for place, held in self.watch.items() if place in kept}

    def set_local_addresses(self, addresses: Any) -> None: ...

    def set_reserve(self, guard: int, fd: int) -> None:
        self.reserves[guard] = fd

    def clear_reserve(self, guard: int) -> None:
        del self.reserves[guard]

    def exempted(self) -> set[int]:
        return {PROXY_CGROUP}


class Yard:
    """Guards over fakes of the kernel and of the host's sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        kernel: Any = Kernel()
        self.kernel = kernel
        self.adopted: list[str] = []
        self.takes = True
        self.listening: list[Socket] = []
        self.connected: list[Socket] = []
        self.calling: list[Socket] = []
        self.destroyed: list[Socket] = []
        self.served: set[str] = set()
        self.guards = Guards(self.kernel, self._adopt)
        self.reserve = Reserve(self.guards)
        self.folder = folder
        diag = sockdiag
        monkeypatch.setattr(guards_module, "make_listener", self._listener)
        monkeypatch.setattr(diag, "local_addresses", set)
        monkeypatch.setattr(diag, "resync_up", lambda steering, ports: None)
        monkeypatch.setattr(diag, "listeners", lambda ports: self.listening)
        monkeypatch.setattr(
            diag, "connections", lambda port: [c for c in self.connected if c.local_port == port]
        )
        monkeypatch.setattr(diag, "callers", lambda port: [c for c in self.calling if c.remote_port == port])
        monkeypatch.setattr(diag, "destroy", self._destroy)

    def _listener(self, backlog: int) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.bind(os.fspath(self.folder / f"reserve-{next(_names)}"))
        made.listen(backlog)
        return made

    def _adopt(self, name: str, fd: int) -> bool:
        if self.takes:
            self.adopted.append(name)
        return self.takes

    def _destroy(self, one: Socket) -> bool:
        if one.remote_port == 1:
            raise OSError("not permitted")
        self.destroyed.append(one)
        return True

    def apply(self, *guards: Guard) -> None:
        self.guards.apply(guards, {})

    def changed(self, *served: str, stopping: bool = False) -> None:
        self.served = set(served)
        self.reserve.workers_changed(self.served.__contains__, stopping)

    def find(self, name: str = "q") -> Watched:
        found = self.guards.find(name)
        assert found is not None
        return found

    def connect(self, name: str = "q") -> socket.socket:
        """A connection that waits in the reserve of a guard."""
        reserve = self.find(name).reserve
        assert reserve is not None
        client = socket.socket(socket.AF_UNIX)
        client.connect(reserve.getsockname())
        return client


@pytest.fixture
def yard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Yard:
    return Yard(monkeypatch, tmp_path)


# -- the kernel's tables --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "off", "flags"),
    [
        ({}, False, GuardFlag.PASS_ON_FAILURE | GuardFlag.REMOTE_PASS),
        ({"on_failure": "refuse"}, False, GuardFlag.REMOTE_PASS),
        ({"remote": "judge"}, False, GuardFlag.PASS_ON_FAILURE),
        ({"mode": "enforce"}, False, GuardFlag.ENFORCE),
        ({"mode": "enforce"}, True, GuardFlag.ENFORCE | GuardFlag.OFF),
        ({}, True, GuardFlag.PASS_ON_FAILURE | GuardFlag.REMOTE_PASS | GuardFlag.OFF),
    ],
)
def test_the_kernel_is_told_the_mode_of_a_guard_and_whether_it_is_off(
    yard: Yard, settings: Any, off: bool, flags: GuardFlag
) -> None:
    yard.apply(guard(**settings))
    yard.find().off_until = FOREVER if off else None
    yard.guards.publish(yard.find())
    assert yard.kernel.watch == {(6333, None): (0, flags)}
    assert yard.guards.settings()[0].off is off


def test_a_reload_keeps_numbers_takes_away_what_is_gone_and_leaves_no_port_behind(yard: Yard) -> None:
    yard.apply(guard("a", 1, 2), guard("b", 3, address="10.0.0.1"))
    yard.find("b").off_until = FOREVER
    yard.apply(guard("b", 4), guard("c", 1))
    assert set(yard.kernel.watch) == {(4, None), (1, None)}
    assert (yard.find("b").index, yard.find("c").index) == (1, 0)
    assert yard.find("b").off, "a guard that was turned off stays off over a reload"
    assert yard.guards.find("a") is None
    assert yard.guards.ports() == [1, 4]
    at = yard.guards.at(1)
    assert at is not None
    assert at.guard.name == "b"


def test_a_port_may_go_from_one_guard_to_another(yard: Yard) -> None:
    yard.apply(guard("a", 1), guard("b", 2))
    yard.apply(guard("a", 2), guard("b", 1))
    assert {port: held[0] for (port, _), held in yard.kernel.watch.items()} == {1: 1, 2: 0}


def test_the_owner_of_a_port_is_who_listens_on_the_address_that_was_dialled(yard: Yard) -> None:
    """Anybody may listen on 127.0.0.2:6333; that does not make him the database on 127.0.0.1."""
    yard.listening = [tcp("127.0.0.1", 6333, cgroup=10), tcp("127.0.0.2", 6333, cgroup=666)]
    yard.apply(guard())
    assert yard.guards.owner_cgroup(("127.0.0.1", 6333)) == 10
    assert yard.guards.owner_cgroup(("127.0.0.2", 6333)) == 666
    assert yard.guards.owner_cgroup(("127.0.0.3", 6333)) is None
    yard.listening = [
        tcp("0.0.0.0", 6333, cgroup=10),
        tcp("::", 6333, cgroup=10),
        tcp("127.0.0.2", 6333, cgroup=6),
    ]
    yard.guards.resync()
    assert yard.guards.owner_cgroup(("10.1.1.1", 6333)) == 10
    yard.listening = [tcp("0.0.0.0", 6333, cgroup=10), tcp("::", 6333, cgroup=11)]
    yard.guards.resync()
    assert yard.guards.owner_cgroup(("10.1.1.1", 6333)) is None, "two owners are none"


# -- the reserve ----------------------------------------------------------------------------------


def test_a_guard_that_enforces_has_a_reserve_while_workers_live_and_for_5_s_after(yard: Yard) -> None:
    async def story() -> None:
        yard.apply(guard("q", mode="enforce"), guard("o", 2))
        yard.changed()
        assert yard.kernel.reserves == {}, "before a worker was there, none is known to come"
        yard.changed("q", "o")
        assert list(yard.kernel.reserves) == [0], "a guard that passes on failure needs none"
        yard.changed("o")
        await pass_time(4.9)
        assert list(yard.kernel.reserves) == [0]
        await pass_time(0.2)
        assert yard.kernel.reserves == {}
        assert yard.find().reserve is None
        yard.changed("q", "o")
        assert list(yard.kernel.reserves) == [0]
        yard.guards.close()

    run_still(story)


def test_what_waited_is_handed_to_the_first_worker_that_comes_in_time(yard: Yard) -> None:
    async def story() -> None:
        yard.apply(guard(mode="enforce"))
        yard.changed("q")
        yard.changed()
        clients = [yard.connect() for _ in range(3)]
        await turns()
        assert yard.adopted == []
        yard.changed("q")
        assert yard.adopted == ["q"] * 3
        await pass_time(60)
        assert list(yard.kernel.reserves) == [0], "the timer was for the time without workers"
        clients.append(yard.connect())  # a handshake that ended late
        await until(lambda: len(yard.adopted) == 4)
        yard.guards.close()
        for client in clients:
            client.close()

    run_still(story)


def test_what_no_worker_takes_is_closed_and_not_kept(yard: Yard) -> None:
    async def story() -> None:
        yard.apply(guard(mode="enforce"))
        yard.changed("q")
        yard.takes = False
        with yard.connect() as client:
            assert yard.guards.hand_over(yard.find()) == 0
            assert client.recv(1) == b""
        yard.guards.close()

    run(story)


def test_one_guard_without_workers_takes_no_reserve_from_another(yard: Yard) -> None:
    async def story() -> None:
        yard.apply(guard("a", 1, mode="enforce"), guard("b", 2, mode="enforce"))
        yard.changed("a", "b")
        yard.changed("b")
        await pass_time(60)
        assert list(yard.kernel.reserves) == [1]
        yard.guards.close()

    run_still(story)


def test_a_guard_that_observes_again_has_no_reserve_that_would_hold_clients_up(yard: Yard) -> None:
    async def story() -> None:
        yard.apply(guard(mode="enforce"))
        yard.changed("q")
        yard.apply(guard())
        yard.changed("q")
        assert yard.kernel.reserves == {}
        yard.guards.close()

    run(story)


def test_a_stop_takes_every_reserve_away_at_once(yard: Yard) -> None:
    async def story() -> None:
        yard.apply(guard(mode="enforce"))
        yard.changed("q")
        yard.changed("q", stopping=True)
        assert (yard.kernel.reserves, yard.find().reserve) == ({}, None)

    run(story)


# -- connections older than the agent -------------------------------------------------------------


def test_older_connections_are_listed_in_observe_and_cut_in_enforce_alone(yard: Yard) -> None:
    yard.connected = [tcp("127.0.0.1", 6333, rport=5), tcp("127.0.0.1", 8000, rport=6)]
    yard.apply(guard("o", 6333), guard("e", 8000, mode="enforce"))
    assert yard.guards.note_pre_existing() == 2
    assert [one.remote_port for one in yard.find("o").pre_existing] == [5]
    assert [one.remote_port for one in yard.destroyed] == [6]
    assert yard.find("e").pre_existing == []


def test_a_guard_that_goes_to_enforce_cuts_what_it_had_listed(yard: Yard) -> None:
    yard.connected = [tcp("127.0.0.1", 6333, rport=5), tcp("127.0.0.1", 6333, rport=1)]
    yard.apply(guard())
    yard.guards.note_pre_existing()
    yard.apply(guard(mode="enforce"))
    assert yard.guards.cut_pre_existing(yard.find()) == 1, "one could not be cut; the other still is"
    yard.find().off_until = FOREVER
    yard.find().pre_existing = yard.connected
    assert yard.guards.cut_pre_existing(yard.find()) == 0


def test_the_workers_own_connections_are_nobodys_older_ones(yard: Yard) -> None:
    yard.connected = [
        tcp("127.0.0.1", 6333, "127.0.0.1", 5),  # of a worker: its end is made in an exempt cgroup
        tcp("127.0.0.1", 6333, rport=6, cgroup=PROXY_CGROUP),  # a worker's accepted socket
        tcp("127.0.0.1", 6333, "127.0.0.1", 7),
    ]
    yard.calling = [tcp("127.0.0.1", 5, "127.0.0.1", 6333, cgroup=PROXY_CGROUP)]
    yard.apply(guard(mode="enforce"))
    yard.guards.note_pre_existing()
    assert [one.remote_port for one in yard.destroyed] == [7]


@pytest.mark.parametrize("opened", [True, False], ids=["opened", "ended"])
def test_what_a_worker_opens_or_ends_while_the_lists_are_made_is_nobodys_older_one(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    yard.connected = [tcp("127.0.0.1", 6333, "127.0.0.1", 5)]
    mine = [tcp("127.0.0.1", 5, "127.0.0.1", 6333, cgroup=PROXY_CGROUP)]
    lists = iter([[], mine] if opened else [mine, []])
    monkeypatch.setattr(sockdiag, "callers", lambda port: next(lists))
    yard.apply(guard(mode="enforce"))
    yard.guards.note_pre_existing()
    assert yard.destroyed == []


def test_each_guard_of_a_shared_port_takes_its_own_address_alone(yard: Yard) -> None:
    yard.connected = [tcp("10.0.0.1", 6333, rport=5), tcp("10.0.0.2", 6333, rport=6)]
    yard.apply(guard("one", address="10.0.0.1"), guard("rest", mode="enforce"))
    yard.guards.note_pre_existing()
    assert [one.remote_port for one in yard.find("one").pre_existing] == [5]
    assert [one.remote_port for one in yard.destroyed] == [6], "the first one only observes"
