# SPDX-License-Identifier: Apache-2.0
"""Who a connection is said to come from, and that nobody can write, take or crowd out another's name."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent.kernel.namespaces import socket_cookie
from agent.kernel.records import FLOW, IDENTITY, Identity, IdentityFlag
from agent.kernel.steering import Steering
from tests.kernel.arena import PATIENCE, Arena, Fork, say, wait_until
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
    plain,
)

NOBODY = 65534
PYTHON = "/usr/bin/python3"  # which every user may execute, wherever the checkout lies


@pytest.fixture
def enforced(arena: Arena, steering: Steering) -> Steering:
    Database(arena, "::")
    guard(arena, steering, ENFORCE)
    Worker(arena, steering)
    return steering


def named(steering: Steering, netns: int, sport: int, address: str = "127.0.0.1") -> Identity | None:
    return steering.identity(netns, ip_address(address), sport, ip_address(address), PORT)


def start_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"])
def test_the_record_is_the_callers_and_one_in_every_form(
    arena: Arena, enforced: Steering, address: str
) -> None:
    client = arena.fork(lambda: hold(address), user=NOBODY)
    sport, pid = client.said()
    who = named(enforced, arena.netns.cookie, sport, "::1" if address in ("::1", "::") else "127.0.0.1")
    assert who is not None
    stat = Path(f"/proc/{pid}/exe").stat()
    assert (who.tgid, who.tid, who.uid, who.gid, who.euid) == (pid, pid, NOBODY, NOBODY, NOBODY)
    assert (who.exe_ino, who.exe_dev, who.exe_ctime) == (stat.st_ino, stat.st_dev, stat.st_ctime_ns)
    assert who.start // 10**7 == start_ticks(pid)
    assert (who.parent_tgid, who.parent_start // 10**7) == (os.getpid(), start_ticks(os.getpid()))
    assert who.cgroup == arena.cgroup_id("clients")
    assert (who.netns, who.netns_inum) == (arena.netns.cookie, Path(f"/proc/{pid}/ns/net").stat().st_ino)
    assert who.mntns_inum == Path("/proc/self/ns/mnt").stat().st_ino
    assert who.userns_inum == Path("/proc/self/ns/user").stat().st_ino
    assert who.comm == Path(f"/proc/{pid}/comm").read_text().strip()
    assert who.flags == IdentityFlag(0)
    assert 0 <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) - who.connected < 60 * 10**9


def test_a_thread_is_its_process(arena: Arena, enforced: Steering) -> None:
    def threaded() -> None:
        time.sleep(0.05)  # so that the thread's start differs from the process's
        threading.Thread(target=hold, args=("127.0.0.1",)).start()
        threading.Event().wait()

    sport, pid = arena.fork(threaded, user=NOBODY).said()
    who = named(enforced, arena.netns.cookie, sport)
    assert who is not None
    assert who.tgid == pid
    assert who.tid != pid
    assert who.start // 10**7 == start_ticks(pid)
    assert who.flags == IdentityFlag.THREAD


def test_taking_an_identity_removes_it_and_frees_its_place(arena: Arena, enforced: Steering) -> None:
    sport, pid = arena.fork(lambda: hold("127.0.0.1"), user=NOBODY).said()
    assert (enforced.in_flight(NOBODY), enforced.in_flight()) == (1, 1)
    flow: tuple[Any, ...] = (
        arena.netns.cookie,
        ip_address("127.0.0.1"),
        sport,
        ip_address("127.0.0.1"),
        PORT,
    )
    taken = enforced.take_identity(*flow)
    assert taken is not None
    assert taken.tgid == pid
    assert enforced.take_identity(*flow) is None
    assert (enforced.in_flight(NOBODY), enforced.in_flight()) == (0, 0)


def test_an_identity_outlives_its_client_until_it_is_taken(arena: Arena, enforced: Steering) -> None:
    """Short-lived clients are attributed as surely as daemons, whenever they are accepted."""
    answers = arena.run(lambda: [connect("127.0.0.1") for _ in range(20)], user=NOBODY)
    assert answers == ["worker 0"] * 20
    left = enforced.pending()
    assert len(left) == enforced.in_flight(NOBODY) == enforced.in_flight() == 20
    assert {who.uid for _, who in left} == {NOBODY}
    assert enforced.sweep_identities(older_than=60) == []
    assert len(enforced.sweep_identities(older_than=0)) == 20
    assert (enforced.pending(), enforced.in_flight(NOBODY), enforced.in_flight()) == ([], 0, 0)


def test_an_identity_of_a_refused_connect_ends_with_its_socket(arena: Arena, steering: Steering) -> None:
    guard(arena, steering, ENFORCE)
    assert set(arena.run(lambda: [connect("127.0.0.1") for _ in range(20)], user=NOBODY)) == {"ECONNREFUSED"}
    assert (steering.entries()["identities"], steering.in_flight(NOBODY), steering.in_flight()) == (0, 0, 0)
    assert steering.stats()["identity_closed"] == 20


def test_a_name_is_given_only_to_its_own_connection(arena: Arena, steering: Steering) -> None:
    """Reset before it is accepted, its ports used by another user: the first is not the second."""
    Database(arena)
    guard(arena, steering, ENFORCE)
    source = ("127.0.0.1", 45030)

    def proxy() -> list[int | None]:
        with listen("::", 0) as listener, Steering(arena.pins) as mine:
            mine.set_listener(0, 0, listener.fileno())
            say("ready")
            while len(mine.pending()) < 1 or mine.pending()[0][1].uid != NOBODY:
                time.sleep(0.01)
            answers: list[int | None] = []
            for _ in range(2):
                peer, address = listener.accept()
                flow = (plain(address[0]), address[1], ip_address("127.0.0.1"), PORT)
                who = mine.take_identity(mine.netns, *flow, accepted=socket_cookie(peer))
                answers.append(who.uid if who else None)
                peer.close()
            return answers

    def attack() -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.bind(source)
        sock.connect(("127.0.0.1", PORT))
        sock.sendall(b"GET /secret HTTP/1.1\r\n\r\n")
        sock.close()

    asked = arena.fork(proxy, group="proxy")
    assert asked.said() == "ready"
    arena.run(attack, user=1)
    victim = arena.fork(lambda: hold("127.0.0.1", source=source), user=NOBODY)
    assert victim.said()[0] == source[1]
    assert asked.result() == [None, NOBODY]


def test_a_connection_without_a_name_does_not_get_an_older_ones(arena: Arena, steering: Steering) -> None:
    Database(arena)
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    source = ("127.0.0.1", 45020)
    assert arena.run(lambda: connect("127.0.0.1", source=source), user=1) == "worker 0"
    [(_, who)] = steering.pending()
    assert who.uid == 1
    steering.set_limits(per_user=0, total=0)
    assert arena.run(lambda: connect("127.0.0.1", source=source), user=NOBODY) == "worker 0"
    assert steering.pending() == []
    assert steering.in_flight(1) == 0


def test_the_same_tuple_in_an_unprivileged_users_own_namespace_changes_nothing(
    arena: Arena, enforced: Steering
) -> None:
    """nobody in `unshare -Urn` with the addresses and ports of root's connection, before and after it."""
    source = ("127.0.0.1", 45010)

    def replay() -> None:
        with listen("127.0.0.1", PORT):
            hold("127.0.0.1", source=source)

    def play() -> int:
        forged = arena.fork(replay, user=NOBODY, unshare=True)
        assert forged.said()[0] == 45010
        return forged.pid

    play()
    honest = arena.fork(lambda: hold("127.0.0.1", source=source))
    assert honest.said() == (45010, honest.pid)
    play()
    who = named(enforced, arena.netns.cookie, 45010)
    assert who is not None
    assert (who.uid, who.tgid) == (0, honest.pid)
    others = enforced.candidates(ip_address("127.0.0.1"), 45010, ip_address("127.0.0.1"), PORT)
    assert {one.uid for one in others} == {NOBODY}
    assert len(others) == 2
    assert arena.netns.cookie not in {one.netns for one in others}


def test_a_user_who_fills_his_share_is_refused_and_others_are_not(arena: Arena, enforced: Steering) -> None:
    enforced.set_limits(per_user=3, total=1000)

    def many() -> list[str]:
        held = []
        for _ in range(5):
            sock = socket.socket()
            try:
                sock.connect(("127.0.0.1", PORT))
                held.append("connected")
            except PermissionError:
                held.append("EPERM")
            globals().setdefault("_kept", []).append(sock)
        say(held)
        threading.Event().wait()
        return held

    greedy = arena.fork(many, user=NOBODY)
    assert greedy.said() == ["connected"] * 3 + ["EPERM"] * 2
    assert arena.run(lambda: connect("127.0.0.1"), user=1) == "worker 0"
    assert enforced.stats()["connect_refused_cap"] == 2
    flow = next(flow for flow, who in enforced.pending() if who.uid == NOBODY)
    assert enforced.take_identity(flow.netns, flow.saddr, flow.sport, flow.daddr, flow.dport)
    assert (
        arena.run(lambda: connect("127.0.0.1"), user=NOBODY) == "worker 0"
    )  # the one that was taken made room
    greedy.kill()
    enforced.sweep_identities(older_than=0)
    assert arena.run(lambda: connect("127.0.0.1"), user=NOBODY) == "worker 0"


def test_the_limit_of_all_users_refuses_before_the_table_is_full(arena: Arena, enforced: Steering) -> None:
    enforced.set_limits(per_user=10, total=0)
    assert arena.run(lambda: [connect("127.0.0.1"), connect("::1")], user=NOBODY) == ["EPERM", "EPERM"]
    assert arena.run(lambda: connect("127.0.0.1", 7777), user=NOBODY) == "ECONNREFUSED"  # not guarded


def test_over_the_limit_an_observed_guard_lets_through_without_a_name(
    arena: Arena, steering: Steering
) -> None:
    Database(arena)
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    steering.set_limits(per_user=0, total=0)
    assert arena.run(lambda: connect("127.0.0.1"), user=NOBODY) == "worker 0"
    stats = steering.stats()
    assert (stats["connect_unrecorded"], stats["identity_missing"], stats["identity_written"]) == (1, 1, 0)


def test_a_full_table_is_counted_and_never_opens_the_database(arena: Arena, enforced: Steering) -> None:
    fill(arena, "identities", FLOW.size, IDENTITY.size)
    client = arena.fork(lambda: hold("127.0.0.1"), user=NOBODY)
    sport, _ = client.said()
    wait_until(lambda: enforced.stats()["established_steered"] == 1, "the worker's end stands")
    assert named(enforced, arena.netns.cookie, sport) is None  # the proxy refuses it as unattributed
    stats = enforced.stats()
    assert (stats["identity_lost"], stats["established_steered"], stats["established_bypass"]) == (1, 1, 0)
    assert enforced.in_flight(NOBODY) == 0


def test_a_socket_that_cannot_hold_the_record_is_refused(arena: Arena, enforced: Steering) -> None:
    """Socket storage is charged to the socket's option memory: filled by the caller himself."""

    def crowded() -> str:
        sock = socket.socket()
        try:
            Path("/proc/sys/net/core/optmem_max").write_text("64")
        except OSError:
            return "not here"
        try:
            sock.connect(("127.0.0.1", PORT))
        except PermissionError:
            return "EPERM"
        return "connected"

    answer = arena.run(crowded)
    if answer == "not here":
        pytest.skip("option memory cannot be set for a namespace here")
    assert answer == "EPERM"
    assert enforced.stats()["connect_refused_memory"] == 1


def test_a_client_gone_before_accept_keeps_its_name(arena: Arena, enforced: Steering) -> None:
    code = f"import socket; s = socket.create_connection(('127.0.0.1', {PORT})); print(s.getsockname()[1])"
    shell = arena.popen(["sh", "-c", f'{PYTHON} -c "{code}"; exit 0'], user=NOBODY, stdout=subprocess.PIPE)
    assert shell.wait(PATIENCE) == 0
    assert shell.stdout is not None
    shell.stdout.close()
    [(_, who)] = enforced.pending()
    record = enforced.process(who.tgid, who.start)
    assert record is not None
    assert (record.filename, record.exe_ino) == (PYTHON, who.exe_ino)
    assert record.exited > record.executed > 0
    assert (record.parent_tgid, record.parent_start) == (who.parent_tgid, who.parent_start)
    above = enforced.process(record.parent_tgid, record.parent_start)
    assert above is not None
    assert Path(above.filename).name == "sh"
    assert above.parent_tgid == os.getpid()


def test_a_fork_keeps_the_name_of_what_it_runs(arena: Arena, enforced: Steering) -> None:
    code = f"""
import os, socket, time
if os.fork() == 0:
    s = socket.create_connection(('127.0.0.1', {PORT}))
    print(os.getpid(), s.getsockname()[1], flush=True)
    time.sleep(60)
os.wait()
"""
    parent = arena.popen([PYTHON, "-c", code], user=NOBODY, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid, sport = map(int, parent.stdout.readline().split())
    parent.stdout.close()
    who = named(enforced, arena.netns.cookie, sport)
    assert who is not None
    assert (who.tgid, who.parent_tgid) == (pid, parent.pid)
    record = enforced.process(who.tgid, who.start)
    assert record is not None
    assert (record.filename, record.exited, record.parent_tgid) == (PYTHON, 0, parent.pid)


def test_many_short_lived_clients_of_several_users_are_all_told_apart(
    arena: Arena, steering: Steering, sized: Callable[[int, int], int]
) -> None:
    """64 processes of five users at a time, gone when they are asked about: none wrong, none missing."""
    Database(arena)
    guard(arena, steering, ENFORCE)
    steering.set_limits(per_user=20000, total=30000)
    processes, each, parallel = sized(40, 200), sized(20, 50), 64

    def proxy() -> list[tuple[int, int, int]]:
        answers = []
        with listen("::", 0) as listener, Steering(arena.pins) as mine:
            mine.set_listener(0, 0, listener.fileno())
            say("ready")
            for _ in range(processes * each):
                peer, address = listener.accept()
                flow = (plain(address[0]), address[1], plain(peer.getsockname()[0]), PORT)
                who = mine.take_identity(mine.netns, *flow)
                answers.append((address[1], who.tgid, who.uid) if who else (address[1], 0, 0))
                peer.close()
        return answers

    def client() -> list[int]:
        ports = []
        for _ in range(each):
            with socket.create_connection(("127.0.0.1", PORT)) as sock:
                ports.append(sock.getsockname()[1])
        return ports

    asked = arena.fork(proxy, group="proxy")
    assert asked.said() == "ready"
    wanted: list[tuple[int, int, int]] = []
    running: list[tuple[Fork, int]] = []
    for number in range(processes + parallel):
        if number < processes:
            running.append((arena.fork(client, user=1 + number % 5), 1 + number % 5))
        if running and number >= min(parallel, processes) - 1:
            child, uid = running.pop(0)
            wanted += [(port, child.pid, uid) for port in child.result()]
    assert sorted(asked.result()) == sorted(wanted)
    assert len(wanted) == processes * each
    stats = steering.stats()
    assert stats["identity_written"] == stats["established_steered"] == processes * each
    assert (stats["identity_lost"], stats["identity_missing"], steering.in_flight()) == (0, 0, 0)
