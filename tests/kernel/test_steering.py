# SPDX-License-Identifier: Apache-2.0
"""Where connections go: to a live worker, to the reserve, to the database on purpose, or nowhere."""

from __future__ import annotations

import socket
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from agent.kernel.records import FLOW, EventKind, GuardFlag
from agent.kernel.steering import Steering
from tests.kernel.arena import Arena, wait_until
from tests.kernel.cast import (
    ENFORCE,
    OBSERVE,
    PORT,
    Database,
    Worker,
    connect,
    fill,
    guard,
    hold,
    listen,
    talk,
)


@pytest.fixture
def enforced(arena: Arena, steering: Steering) -> Steering:
    """A database on every address behind an enforcing guard; its proxy's cgroup is exempt."""
    Database(arena, "::")
    steering.exempt(arena.cgroup_id("proxy"))
    guard(arena, steering, ENFORCE)
    return steering


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"])
def test_every_form_of_a_local_address_lands_on_the_worker(
    arena: Arena, enforced: Steering, address: str
) -> None:
    Worker(arena, enforced)
    assert arena.run(lambda: connect(address), user=65534) == "worker 0"
    assert enforced.stats()["established_steered"] == 1


def test_fast_open_lands_on_the_worker(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced)

    def fast() -> str:
        sock = socket.socket()
        begin = lambda: sock.sendto(b"hello", socket.MSG_FASTOPEN, ("127.0.0.1", PORT))  # noqa: E731
        return talk(sock, begin, timeout=None)

    assert [arena.run(fast), arena.run(fast)] == ["worker 0", "worker 0"]
    assert enforced.stats()["identity_written"] == 2


def test_deferred_fast_open_lands_on_the_worker(arena: Arena, enforced: Steering) -> None:
    """TCP_FASTOPEN_CONNECT: the SYN leaves at the first write, long after connect."""
    Worker(arena, enforced)

    def deferred() -> str:
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, 30, 1)

        def begin() -> None:
            sock.connect(("127.0.0.1", PORT))
            sock.sendall(b"hello")

        return talk(sock, begin, timeout=None)

    assert arena.run(deferred) == "worker 0"
    assert enforced.stats()["identity_written"] == 1


def test_mptcp_lands_on_the_worker(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced)

    def multipath() -> str:
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
        except OSError:
            return "not here"
        return talk(sock, lambda: sock.connect(("127.0.0.1", PORT)))

    answer = arena.run(multipath)
    if answer == "not here":
        pytest.skip("the kernel has no MPTCP")
    assert answer == "worker 0"
    assert enforced.stats()["identity_written"] == 1


def test_the_proxy_reaches_the_database_with_a_ticket(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced, relay=True)
    for address in ("127.0.0.1", "::1"):
        assert arena.run(partial(connect, address)) == "via 0: db"
    stats = enforced.stats()
    assert (stats["established_upstream"], stats["established_steered"], stats["established_bypass"]) == (
        2,
        2,
        0,
    )
    assert enforced.entries()["tickets"] == 0


def test_tickets_work_with_syn_cookies(arena: Arena, enforced: Steering) -> None:
    arena.run(lambda: Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("2"))
    Worker(arena, enforced, relay=True)
    assert {arena.run(lambda: connect("127.0.0.1")) for _ in range(5)} == {"via 0: db"}
    assert enforced.entries()["tickets"] == 0


def test_a_stale_ticket_is_refused(arena: Arena, enforced: Steering) -> None:
    worker = Worker(arena, enforced)
    proxy = arena.fork(lambda: hold("127.0.0.1"), group="proxy")
    assert proxy.said() != "ECONNREFUSED"
    wait_until(lambda: not enforced.entries()["tickets"], "spent at once, not only when its socket closes")
    source = ("127.0.0.1", 45001)
    assert arena.run(lambda: connect("127.0.0.1", source=source), group="proxy") == "db"
    assert enforced.entries()["tickets"] == 0
    assert arena.run(lambda: connect("127.0.0.1", source=source)) == "worker 0"
    worker.stop()
    assert arena.run(lambda: connect("127.0.0.1", source=source)) == "ECONNREFUSED"


def test_a_ticket_that_was_never_used_ends_with_its_socket(arena: Arena, enforced: Steering) -> None:
    """The database is gone when the proxy dials: the SYN is refused, the ticket must not stay."""
    assert (
        arena.run(lambda: connect("127.0.0.1", port=PORT, source=("127.0.0.1", 45002)), group="proxy") == "db"
    )
    guard(arena, enforced, ENFORCE, port=6999)
    arena.run(lambda: connect("127.0.0.1", port=6999, source=("127.0.0.1", 45003)), group="proxy")
    assert enforced.stats()["ticket_expired"] == 1
    assert enforced.entries()["tickets"] == enforced.entries()["identities"] == 0


def test_only_the_calling_cgroup_makes_a_ticket(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced)
    assert arena.run(lambda: connect("127.0.0.1"), group="proxy") == "db"
    assert arena.run(lambda: connect("127.0.0.1"), group="clients") == "worker 0"
    enforced.unexempt(arena.cgroup_id("proxy"))
    assert arena.run(lambda: connect("127.0.0.1"), group="proxy") == "worker 0"


def test_a_dead_workers_clients_go_to_the_other_worker(arena: Arena, enforced: Steering) -> None:
    workers = [Worker(arena, enforced, slot) for slot in range(3)]
    answers = arena.run(lambda: [connect("127.0.0.1") for _ in range(60)])
    assert set(answers) == {"worker 0", "worker 1", "worker 2"}
    workers[1].stop()
    answers = arena.run(lambda: [connect("127.0.0.1") for _ in range(60)])
    assert set(answers) == {"worker 0", "worker 2"}
    assert min(answers.count("worker 0"), answers.count("worker 2")) > 6


def test_the_reserve_takes_over_only_when_every_worker_is_dead(arena: Arena, enforced: Steering) -> None:
    reserve = Worker(arena, enforced, 9, reserve=True)
    worker = Worker(arena, enforced, 0)
    assert arena.run(lambda: {connect("127.0.0.1") for _ in range(10)}) == {"worker 0"}
    worker.stop()
    assert arena.run(lambda: connect("127.0.0.1")) == "worker 9"
    reserve.stop()
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"
    stats = enforced.stats()
    assert (stats["lookup_reserve"], stats["lookup_refused"], stats["established_bypass"]) == (1, 1, 0)


def test_a_worker_put_into_an_occupied_slot_takes_over(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced, 0)
    new = Worker(arena, enforced, 0, reserve=False)
    assert arena.run(lambda: connect("127.0.0.1")) == "worker 0"
    new.stop()
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"


def test_a_stopped_database_is_refused_as_without_us(arena: Arena, steering: Steering) -> None:
    guard(arena, steering, ENFORCE)
    Worker(arena, steering)
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"
    database = Database(arena)  # its listen is seen
    assert arena.run(lambda: connect("127.0.0.1")) == "worker 0"
    database.stop()
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"
    stats = steering.stats()
    assert (stats["up_added"], stats["up_removed"], stats["lookup_not_up"]) == (1, 1, 2)


def test_a_database_that_listened_before_the_guard_is_known(arena: Arena, steering: Steering) -> None:
    database = Database(arena)
    guard(arena, steering, ENFORCE)
    Worker(arena, steering)
    assert arena.run(lambda: connect("127.0.0.1")) == "worker 0"
    assert [(str(one.address), one.port) for one in steering.up()] == [("127.0.0.1", PORT)]
    database.stop()  # its end was not announced to us when it began to listen
    guard(arena, steering, ENFORCE)
    assert steering.up() == []


def test_two_listeners_of_one_address_are_up_until_both_are_closed(arena: Arena, steering: Steering) -> None:
    guard(arena, steering, ENFORCE)
    Worker(arena, steering)

    def rolling() -> list[str]:
        first, second = (listen("127.0.0.1", PORT, reuse_port=True) for _ in range(2))
        answers = [connect("127.0.0.1")]
        second.close()
        answers.append(connect("127.0.0.1"))
        first.close()
        return [*answers, connect("127.0.0.1")]

    assert arena.run(rolling) == ["worker 0", "worker 0", "ECONNREFUSED"]


def test_a_v6only_database_is_not_up_for_ipv4(arena: Arena, steering: Steering) -> None:
    guard(arena, steering, ENFORCE)
    Worker(arena, steering)

    def both() -> list[str]:
        with listen("::", PORT, v6only=True):
            return [connect("127.0.0.1"), connect("::1")]

    assert arena.run(both) == ["ECONNREFUSED", "worker 0"]


def test_a_loopback_only_database_cannot_be_reached_from_another_namespace(
    arena: Arena, steering: Steering
) -> None:
    outside = arena.namespace()
    arena.veth(arena.netns, outside)
    Database(arena, "127.0.0.1")
    steering.exempt(arena.cgroup_id("proxy"))
    guard(arena, steering, ENFORCE)
    Worker(arena, steering, relay=True)
    for address in ("10.88.0.1", "fd88::1"):
        assert arena.run(partial(connect, address), netns=outside) == "ECONNREFUSED"
    assert steering.stats()["lookup_not_up"] == 2
    assert arena.run(lambda: connect("127.0.0.1")) == "via 0: db"


def test_a_listeners_own_port_is_closed(arena: Arena, enforced: Steering) -> None:
    worker = Worker(arena, enforced)
    for address in ("127.0.0.1", "::1"):
        assert arena.run(partial(connect, address, worker.port)) == "ECONNREFUSED"
    assert enforced.stats()["lookup_own_port"] == 2
    worker.stop()
    assert enforced.entries()["own_ports"] == 0

    def reborn() -> str:
        with listen("127.0.0.1", worker.port):
            return talk(
                sock := socket.socket(), lambda: sock.connect(("127.0.0.1", worker.port)), timeout=0.2
            )

    assert arena.run(reborn) == "timeout"  # connected; nobody speaks


def test_the_proxy_without_a_ticket_is_not_steered_to_itself(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced, relay=True)
    fill(arena, "tickets", FLOW.size, 16)
    assert arena.run(lambda: connect("127.0.0.1")) == "via 0: ECONNREFUSED"
    stats = enforced.stats()
    assert (stats["ticket_lost"], stats["lookup_loop"], stats["established_steered"]) == (1, 1, 1)


def test_a_foreign_port_is_none_of_our_business(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced)
    Database(arena, "127.0.0.1", 7000)
    assert arena.run(lambda: connect("127.0.0.1", 7000)) == "db"


def test_two_guards_share_a_port_on_different_addresses(arena: Arena, steering: Steering) -> None:
    Database(arena, "127.0.0.1")
    Database(arena, "127.0.0.2")
    Database(arena, "127.0.0.3")
    guard(arena, steering, ENFORCE, address="127.0.0.1", index=0)
    guard(arena, steering, ENFORCE, address="127.0.0.2", index=1)
    Worker(arena, steering, 0, guard=0)
    Worker(arena, steering, 5, guard=1)
    answers = arena.run(lambda: [connect(f"127.0.0.{last}") for last in (1, 2, 3)])
    assert answers == ["worker 0", "worker 5", "db"]
    assert steering.stats()["established_bypass"] == 0


def test_a_removed_guard_opens_the_port(arena: Arena, enforced: Steering) -> None:
    Worker(arena, enforced)
    assert arena.run(lambda: connect("127.0.0.1")) == "worker 0"
    enforced.remove_guard(PORT, None)
    assert arena.run(lambda: connect("127.0.0.1")) == "db"
    assert enforced.up() == []


def test_observe_passes_to_the_database_when_nobody_listens(arena: Arena, steering: Steering) -> None:
    Database(arena)
    guard(arena, steering, OBSERVE)
    assert arena.run(lambda: connect("127.0.0.1"), user=65534) == "db"
    [event] = steering.read_events()
    assert (event.kind, event.guard, event.guard_flags) == (EventKind.UNOBSERVED, 0, OBSERVE)
    assert event.who is not None
    assert (event.who.uid, event.who.netns, steering.in_flight()) == (65534, event.flow.netns, 0)
    stats = steering.stats()
    assert (stats["lookup_unobserved"], stats["established_unobserved"], stats["established_bypass"]) == (
        1,
        1,
        0,
    )


def test_observe_lets_the_kernel_refuse_for_a_stopped_database(arena: Arena, steering: Steering) -> None:
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"
    assert steering.stats()["lookup_not_up"] == 1


def test_off_passes_unjudged_and_says_so(arena: Arena, steering: Steering) -> None:
    Database(arena)
    guard(arena, steering, ENFORCE | GuardFlag.OFF)
    Worker(arena, steering)
    assert arena.run(lambda: connect("127.0.0.1")) == "db"
    guard(arena, steering, ENFORCE)
    assert arena.run(lambda: connect("127.0.0.1")) == "worker 0"
    assert [event.kind for event in steering.read_events()] == [EventKind.OFF]


def test_remote_callers_are_passed_in_observe_and_judged_in_enforce(arena: Arena, steering: Steering) -> None:
    """The peer is outside the cgroup that is attached, as another machine is."""
    remote = arena.namespace()
    arena.veth(arena.netns, remote)
    Database(arena, "::")
    guard(arena, steering, OBSERVE | GuardFlag.REMOTE_PASS)
    Worker(arena, steering)
    for address in ("10.88.0.1", "fd88::1"):
        assert arena.run(partial(connect, address), netns=remote, group=None) == "db"
    assert [event.kind for event in steering.read_events()] == [EventKind.REMOTE] * 2
    assert arena.run(lambda: connect("10.88.0.1")) == "worker 0"
    guard(arena, steering, ENFORCE)
    assert arena.run(lambda: connect("10.88.0.1"), netns=remote, group=None) == "worker 0"


def test_a_container_of_this_host_is_not_remote(arena: Arena, steering: Steering) -> None:
    container = arena.namespace()
    arena.veth(arena.netns, container)
    Database(arena, "0.0.0.0")
    guard(arena, steering, OBSERVE | GuardFlag.REMOTE_PASS)
    Worker(arena, steering)
    assert arena.run(lambda: connect("10.88.0.1"), netns=container, user=65534) == "worker 0"


def test_a_local_address_without_identity_is_not_remote(arena: Arena, steering: Steering) -> None:
    """A caller outside the attached cgroup, in the guarded namespace: steered, and unattributed."""
    other = arena.namespace()
    arena.veth(arena.netns, other)
    Database(arena, "0.0.0.0")
    guard(arena, steering, OBSERVE | GuardFlag.REMOTE_PASS)
    Worker(arena, steering)
    assert arena.run(lambda: connect("127.0.0.1"), group=None) == "worker 0"
    assert arena.run(lambda: connect("10.88.0.1"), group=None) == "db"
    steering.set_local_addresses([ip_address("10.88.0.1")])
    assert arena.run(lambda: connect("10.88.0.1"), group=None) == "worker 0"


def test_a_connection_that_reaches_the_database_unticketed_is_reported(
    arena: Arena, steering: Steering
) -> None:
    """sk_lookup is taken away behind the agent's back: sockops still sees it."""
    Database(arena)
    guard(arena, steering, ENFORCE)
    [link] = (arena.pins / "links").glob("steer-*")
    link.unlink()
    assert arena.run(lambda: connect("127.0.0.1", source=("127.0.0.1", 45009)), user=65534) == "db"
    [event] = steering.read_events()
    assert (event.kind, event.flow.netns, event.flow.sport, event.flow.dport) == (
        EventKind.BYPASS, arena.netns.cookie, 45009, PORT,
    )  # fmt: skip
    assert steering.stats()["established_bypass"] == 1


def test_udp_to_an_enforced_port_is_dropped_and_to_an_observed_one_is_not(
    arena: Arena, steering: Steering
) -> None:
    def ask(patience: float) -> str:
        with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
            server.bind(("127.0.0.1", PORT))
            server.settimeout(patience)
            client.sendto(b"x", ("127.0.0.1", PORT))
            try:
                return server.recv(10).decode()
            except TimeoutError:
                return "nothing"

    guard(arena, steering, OBSERVE)
    assert arena.run(lambda: ask(60)) == "x"
    guard(arena, steering, ENFORCE)
    assert arena.run(lambda: ask(0.3)) == "nothing"
    wait_until(lambda: steering.stats()["lookup_not_tcp"] == 1, "it was looked at and dropped")
