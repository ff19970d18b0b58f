# SPDX-License-Identifier: Apache-2.0
"""What a worker may offer as its listener: nothing that would shut somebody else's port."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from agent.kernel.errors import SteeringError
from agent.listener import make_listener
from tests.kernel.arena import Arena

PORT = 4242


def _v6only() -> socket.socket:
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::", PORT))
    sock.listen()
    return sock


def _one_address() -> socket.socket:
    return socket.create_server(("127.0.0.9", PORT))


def _not_listening() -> socket.socket:
    sock = socket.socket(socket.AF_INET6)
    sock.bind(("::", PORT))
    return sock


def _udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", PORT))
    return sock


@pytest.mark.parametrize("make", [_v6only, _one_address, _not_listening, _udp])
def test_a_socket_that_leaves_its_port_to_others_is_no_listener(
    arena: Arena, make: Callable[[], socket.socket]
) -> None:
    steering = arena.attach()
    offered = arena.inside(make)
    with offered, pytest.raises(SteeringError, match="a listener that"):
        steering.set_listener(0, 0, offered.fileno())
    assert steering.entries()["own_ports"] == 0
    assert steering.listeners(0) == {}


def test_a_listener_of_another_namespace_is_none(arena: Arena) -> None:
    """There a worker may bind any port: with it, it could shut port 22 of the host."""
    from agent.kernel.namespaces import in_namespace

    steering = arena.attach()
    offered = in_namespace(arena.namespace().fd, lambda: make_listener(8))
    with offered, pytest.raises(SteeringError, match="another network namespace"):
        steering.set_listener(0, 0, offered.fileno())
    assert steering.entries()["own_ports"] == 0


def test_what_a_worker_makes_is_a_listener(arena: Arena) -> None:
    steering = arena.attach()
    with arena.inside(lambda: make_listener(8)) as offered:
        steering.set_listener(0, 0, offered.fileno())
        assert list(steering.listeners(0)) == [0]
