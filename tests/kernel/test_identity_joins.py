# SPDX-License-Identifier: Apache-2.0
"""Callers in other network namespaces: proven by the veth that leads to them, or not believed."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2 import IPRoute

from agent.identity.convert import sources
from agent.identity.host import read_host
from agent.identity.identifier import Identifier
from agent.kernel.steering import Steering
from policy.model import Attribution, Subject
from tests.kernel.arena import Arena, Namespace, say, wait_until
from tests.kernel.cast import OBSERVE, PORT, Database, Worker, guard, hold

NOBODY = 65534


@pytest.fixture
def joined(arena: Arena, steering: Steering) -> Namespace:
    """A database that listens on 10.88.0.1, and a namespace that has 10.88.0.2 on the other end of a veth."""
    other = arena.namespace()
    arena.veth(arena.netns, other)
    Database(arena, "0.0.0.0")
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    return other


def identify(arena: Arena, steering: Steering, client: tuple[str, int], server: str = "10.88.0.1") -> Subject:
    """As the agent of the arena's namespace would."""

    async def ask() -> Subject:
        identifier = Identifier(sources(steering), read_host())
        try:
            return await identifier.identify(arena.netns.cookie, *client, server, PORT)
        finally:
            identifier.close()

    subject: Subject = arena.run(lambda: asyncio.run(ask()), group=None)
    return subject


def pretend(address: str, port: int, near: str) -> Callable[[], None]:
    """In a namespace of its own: have both ends' addresses, and hold a connection between them."""

    def act() -> None:
        with IPRoute() as netlink:  # not by a program: exec takes the namespace's capabilities away
            for one in (address, near):
                netlink.addr("add", index=1, address=one, prefixlen=32)
        listener = socket.create_server((near, PORT))
        hold(near, source=(address, port))
        listener.close()

    return act


def test_a_caller_behind_a_veth_is_known(arena: Arena, steering: Steering, joined: Namespace) -> None:
    caller = arena.fork(lambda: hold("10.88.0.1"), netns=joined, user=NOBODY)
    port, pid = caller.said()
    subject = identify(arena, steering, ("10.88.0.2", port))
    assert (subject.attribution, subject.pid, subject.uid) == (Attribution.KERNEL, pid, NOBODY)
    assert subject.remote is None
    assert identify(arena, steering, ("10.88.0.2", port)).attribution is Attribution.REMOTE, "it answers once"


def test_a_caller_behind_a_veth_is_known_by_its_ipv6_address(
    arena: Arena, steering: Steering, joined: Namespace
) -> None:
    Database(arena, "fd88::1", port=PORT + 1)
    guard(arena, steering, OBSERVE, port=PORT + 1)
    caller = arena.fork(lambda: hold("fd88::1", PORT + 1), netns=joined, user=NOBODY)
    port, pid = caller.said()

    async def ask() -> Subject:
        identifier = Identifier(sources(steering), read_host())
        try:
            return await identifier.identify(arena.netns.cookie, "fd88::2", port, "fd88::1", PORT + 1)
        finally:
            identifier.close()

    assert arena.run(lambda: asyncio.run(ask()), group=None).pid == pid


def test_the_same_tuple_in_a_namespace_of_ones_own_is_not_believed(
    arena: Arena, steering: Steering, joined: Namespace
) -> None:
    forger = arena.fork(pretend("10.88.0.2", 45678, "10.88.0.1"), user=NOBODY, unshare=True)
    forger.said()
    caller = arena.fork(lambda: hold("10.88.0.1", source=("10.88.0.2", 45678)), netns=joined)
    _, pid = caller.said()
    subject = identify(arena, steering, ("10.88.0.2", 45678))
    assert (subject.attribution, subject.pid) == (Attribution.KERNEL, pid)


def test_without_a_veth_the_caller_is_an_address_on_another_host(
    arena: Arena, steering: Steering, joined: Namespace
) -> None:
    forger = arena.fork(pretend("10.88.0.2", 45678, "10.88.0.1"), user=NOBODY, unshare=True)
    forger.said()
    subject = identify(arena, steering, ("10.88.0.2", 45678))
    assert (subject.attribution, subject.remote, subject.pid) == (Attribution.REMOTE, "10.88.0.2", None)


def test_a_host_tuple_made_in_another_namespace_is_not_believed(
    arena: Arena, steering: Steering, joined: Namespace
) -> None:
    def forge() -> None:
        listener = socket.create_server(("127.0.0.1", PORT))
        hold("127.0.0.1", source=("127.0.0.1", 45678))
        listener.close()

    arena.fork(forge, user=NOBODY, unshare=True).said()
    subject = identify(arena, steering, ("127.0.0.1", 45678), "127.0.0.1")
    assert subject.attribution is Attribution.UNATTRIBUTED
    assert {"pid", "user", "exe", "unit"} <= subject.unobtained
    own = identify(arena, steering, ("10.88.0.1", 45678))
    assert own.attribution is Attribution.UNATTRIBUTED, "an address of this namespace is no remote caller"


def test_a_caller_on_its_own_address_is_known_without_a_join(
    arena: Arena, steering: Steering, joined: Namespace
) -> None:
    port, pid = arena.fork(lambda: hold("10.88.0.1"), user=NOBODY).said()
    subject = identify(arena, steering, ("::ffff:10.88.0.1", port), "::ffff:10.88.0.1")
    assert (subject.attribution, subject.pid) == (Attribution.KERNEL, pid)
    again = identify(arena, steering, ("10.88.0.1", port))
    assert again.attribution is Attribution.UNATTRIBUTED, "a record answers once"


def test_a_local_caller_on_a_link_local_address_is_not_remote(
    arena: Arena, steering: Steering, joined: Namespace
) -> None:
    inside = ["nsenter", f"--net=/proc/{arena.netns.pid}/ns/net", "ip", "-j", "-6", "addr", "show"]
    found: list[tuple[str, str]] = []

    def look() -> bool:
        links = json.loads(subprocess.run(inside, check=True, capture_output=True).stdout)
        found[:] = [
            (link["ifname"], one["local"])
            for link in links
            for one in link["addr_info"]
            if one.get("scope") == "link" and not one.get("tentative")
        ]
        return bool(found)

    wait_until(look, "duplicate address detection is done")
    name, address = found[0]
    Database(arena, "::", port=PORT + 1)
    guard(arena, steering, OBSERVE, port=PORT + 1)

    def client() -> None:
        sock = socket.socket(socket.AF_INET6)
        sock.connect((address, PORT + 1, 0, socket.if_nametoindex(name)))
        say(sock.getsockname()[1])
        time.sleep(60)

    caller = arena.fork(client, user=NOBODY)
    port = caller.said()

    async def ask() -> Subject:
        identifier = Identifier(sources(steering), read_host())
        try:
            scoped = f"{address}%{name}"
            return await identifier.identify(arena.netns.cookie, scoped, port, scoped, PORT + 1)
        finally:
            identifier.close()

    subject = arena.run(lambda: asyncio.run(ask()), group=None)
    assert (subject.attribution, subject.pid) == (Attribution.KERNEL, caller.pid)


def test_a_caller_through_a_bridge_is_known(arena: Arena, steering: Steering) -> None:
    other = arena.namespace()
    inside = ["nsenter", f"--net=/proc/{arena.netns.pid}/ns/net", "ip"]
    far = ["nsenter", f"--net=/proc/{other.pid}/ns/net", "ip"]
    for command in (
        [*inside, "link", "add", "vwbr", "type", "bridge"],
        [*inside, "link", "add", "vwp0", "type", "veth", "peer", "vwp1", "netns", str(other.pid)],
        [*inside, "link", "set", "vwp0", "master", "vwbr", "up"],
        [*inside, "addr", "add", "10.88.0.1/24", "dev", "vwbr"],
        [*inside, "link", "set", "vwbr", "up"],
        [*far, "addr", "add", "10.88.0.2/24", "dev", "vwp1"],
        [*far, "link", "set", "vwp1", "up"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    Database(arena, "0.0.0.0")
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    port, pid = arena.fork(lambda: hold("10.88.0.1"), netns=other, user=NOBODY).said()
    assert identify(arena, steering, ("10.88.0.2", port)).pid == pid


def test_a_caller_whose_process_left_its_namespace_is_found_by_no_other(
    arena: Arena, steering: Steering, joined: Namespace
) -> None:
    """The record's namespace counts: a process that joined another one afterwards proves nothing."""

    def wander() -> None:
        sock = socket.create_connection(("10.88.0.1", PORT))
        assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET
        say(sock.getsockname()[1])
        time.sleep(60)

    caller = arena.fork(wander, netns=joined)
    port = caller.said()
    subject = identify(arena, steering, ("10.88.0.2", port))
    assert subject.attribution is Attribution.REMOTE


def test_every_one_of_many_short_lived_callers_is_right(
    arena: Arena, steering: Steering, sized: Callable[[int, int], int]
) -> None:
    Database(arena)
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    for user in range(65001, 65001 + sized(5, 50)):
        callers: list[Any] = [arena.fork(lambda: hold("127.0.0.1"), user=user) for _ in range(4)]
        for caller in callers:
            port, pid = caller.said()
            caller_subject = identify(arena, steering, ("127.0.0.1", port), "127.0.0.1")
            assert (caller_subject.pid, caller_subject.uid) == (pid, user)
            caller.kill()
