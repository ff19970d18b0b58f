# SPDX-License-Identifier: Apache-2.0
"""Network namespaces have the same numbers where the kernel does not tell sockets (before Linux 5.14)."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from agent.kernel import attach as kernel
from agent.kernel import namespaces, syscalls
from agent.kernel.cookie import learn_netns_cookie
from agent.kernel.errors import SteeringError
from agent.kernel.namespaces import in_namespace, netns_cookie_of
from agent.kernel.steering import Steering
from agent.listener import make_listener
from agent.listener import netns_cookie as told_by_a_worker
from tests.kernel.arena import OBJECT, Arena
from tests.kernel.cast import ENFORCE, Database, Worker, connect, guard

_NO_OPTION = 0x7FFF  # ENOPROTOOPT, as SO_NETNS_COOKIE is on an old kernel


def probe() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def forget_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, and what it forks from now on, on a kernel that does not know SO_NETNS_COOKIE."""
    monkeypatch.setattr(namespaces, "_SO_NETNS_COOKIE", _NO_OPTION)
    monkeypatch.setattr("agent.listener.SO_NETNS_COOKIE", _NO_OPTION)


def attach(arena: Arena) -> int:
    """From within the arena: its cgroup is what may be asked there."""
    return arena.run(lambda: kernel.attach(arena.pins, arena.cgroup, arena.netns.fd, OBJECT).netns_cookie)


def test_a_program_learns_what_the_socket_would_say(arena: Arena) -> None:
    def both() -> tuple[int, int]:
        with probe() as asked:
            return learn_netns_cookie(asked), netns_cookie_of(asked)

    learnt, said = arena.run(both)
    assert learnt == said == arena.netns.cookie


def test_a_program_learns_of_the_sockets_namespace_and_not_of_the_threads(arena: Arena) -> None:
    other = arena.namespace()

    def elsewhere() -> int:
        with in_namespace(other.fd, probe) as asked:
            return learn_netns_cookie(asked)

    learnt = arena.run(elsewhere)
    assert learnt == other.cookie
    assert learnt != arena.netns.cookie


def test_nothing_stays_attached_after_it(arena: Arena) -> None:
    def attached() -> int:
        with probe() as asked:
            learn_netns_cookie(asked)
        place = arena.subgroup("clients").stat().st_ino
        return sum(_cgroup_of(number) == place for number in syscalls.link_ids())

    assert arena.run(attached) == 0


def test_a_cgroup_of_others_answers_nothing(arena: Arena) -> None:
    away = arena.subgroup("away")

    def ask() -> str:
        with probe() as asked, pytest.raises(SteeringError) as refused:
            learn_netns_cookie(asked, away)
        return refused.value.missing

    assert "outside of its cgroup" in arena.run(ask)


def test_an_old_kernel_is_steered_and_the_agent_knows_where(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_the_option(monkeypatch)
    assert attach(arena) == arena.netns.cookie

    def opened() -> int:
        with Steering(arena.pins) as steering:
            return steering.netns

    assert arena.run(opened) == arena.netns.cookie


def test_an_old_kernel_takes_no_listener_of_another_namespace(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = arena.namespace()
    forget_the_option(monkeypatch)
    attach(arena)
    with Steering(arena.pins, arena.netns.cookie) as steering:
        with in_namespace(other.fd, lambda: make_listener(8)) as foreign, pytest.raises(SteeringError):
            steering.set_reserve(0, foreign.fileno())
        with arena.inside(lambda: make_listener(8)) as own:
            assert told_by_a_worker(own) == 0
            steering.set_reserve(0, own.fileno())


def test_a_namespace_that_is_not_steered_has_no_number_on_an_old_kernel(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = arena.namespace()
    forget_the_option(monkeypatch)
    attach(arena)
    with in_namespace(other.fd, probe) as asked, pytest.raises(SteeringError, match="not steered"):
        netns_cookie_of(asked, arena.pins)


def test_connections_reach_the_worker_on_an_old_kernel(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_option(monkeypatch)
    attach(arena)
    with Steering(arena.pins, arena.netns.cookie) as steering:
        Database(arena)
        guard(arena, steering, ENFORCE)
        Worker(arena, steering)
        assert arena.run(lambda: connect("127.0.0.1")) == "worker 0"


def _cgroup_of(link: int) -> int | None:
    try:
        descriptor = syscalls.link_open(link)
    except OSError:
        return None
    try:
        info = syscalls.link_info(descriptor)
    finally:
        os.close(descriptor)
    return int(struct.unpack_from("=Q", info, 16)[0]) if struct.unpack_from("=I", info)[0] == 3 else None
