# SPDX-License-Identifier: Apache-2.0
"""Who plays in the steering tests: a database, proxy workers, clients. Real sockets, one child each."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import ip_address

from agent.kernel import syscalls
from agent.kernel.records import Address, GuardFlag
from agent.kernel.sockdiag import resync_up
from agent.kernel.steering import Steering
from tests.kernel.arena import Arena, Fork, Namespace, say

PORT = 6333
ENFORCE = GuardFlag.ENFORCE
OBSERVE = GuardFlag.PASS_ON_FAILURE


def listen(address: str, port: int, *, reuse_port: bool = False, v6only: bool | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if v6only is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    sock.bind((address, port))
    sock.listen(256)
    return sock


class Database:
    """Answers ``db`` to whoever connects, and closes."""

    def __init__(
        self, arena: Arena, address: str = "127.0.0.1", port: int = PORT, netns: Namespace | None = None
    ) -> None:
        def serve() -> None:
            sock = listen(address, port)
            say("listening")
            while True:
                with contextlib.suppress(OSError):
                    peer, _ = sock.accept()
                    peer.sendall(b"db")
                    peer.close()

        self.child: Fork = arena.fork(serve, group="database", netns=netns)
        self.child.said()

    def stop(self) -> None:
        self.child.kill()


class Worker:
    """A proxy worker in ``slot``: answers ``worker N`` or, as a relay, ``via N: `` and the database's answer.

    Its listening socket is held by its own process alone, as in production. ``reserve``: the listener is the
    reserve's instead.
    """

    def __init__(
        self,
        arena: Arena,
        steering: Steering,
        slot: int = 0,
        *,
        guard: int = 0,
        relay: bool = False,
        group: str = "proxy",
        reserve: bool = False,
    ) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def work() -> None:
            here.close()
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", 0))
            sock.listen(256)
            socket.send_fds(there, [b"x"], [sock.fileno()])
            there.recv(1)
            say(sock.getsockname()[1])
            while True:
                peer, _ = sock.accept()
                threading.Thread(target=_answer, args=(peer, slot, relay), daemon=True).start()

        self.child = arena.fork(work, group=group)
        there.close()
        _, fds, _, _ = socket.recv_fds(here, 8, 1)
        if reserve:
            steering.set_reserve(guard, fds[0])
        else:
            steering.set_listener(guard, slot, fds[0])
        os.close(fds[0])
        here.send(b"x")
        here.close()
        self.port: int = self.child.said()

    def stop(self) -> None:
        self.child.kill()


def _answer(peer: socket.socket, slot: int, relay: bool) -> None:
    with peer:
        if not relay:
            with contextlib.suppress(OSError):
                peer.sendall(f"worker {slot}".encode())
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):  # closing over unread bytes would reset the answer
                    pass
            return
        address = peer.getsockname()
        upstream = connect(str(plain(address[0])), address[1])
        with contextlib.suppress(OSError):
            peer.sendall(f"via {slot}: ".encode() + upstream.encode())


def plain(address: str) -> Address:
    value = ip_address(address.split("%")[0])
    return getattr(value, "ipv4_mapped", None) or value


def connect(
    address: str, port: int = PORT, source: tuple[str, int] | None = None, timeout: float = 60
) -> str:
    """What the other side says: its bytes, or the name of the error."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    return talk(sock, lambda: sock.connect((address, port)), source, timeout)


def talk(
    sock: socket.socket,
    begin: Callable[[], object],
    source: tuple[str, int] | None = None,
    timeout: float | None = 60,
) -> str:
    """Begin a connection on ``sock``, read to its end, close it by reset (no TIME_WAIT)."""
    with sock:
        sock.settimeout(timeout)
        try:
            if source is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(source)
            begin()
            data = b""
            while chunk := sock.recv(4096):
                data += chunk
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return data.decode()


def hold(address: str, port: int = PORT, source: tuple[str, int] | None = None) -> None:
    """In a child: connect, say (source port, own process id) or the error, and stay until killed."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(60)
    try:
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        sock.connect((address, port))
    except OSError as error:
        say(errno.errorcode[error.errno or 0] if error.errno else "timeout")
        return
    say((sock.getsockname()[1], os.getpid()))
    threading.Event().wait()


def guard(
    arena: Arena,
    steering: Steering,
    flags: GuardFlag,
    port: int = PORT,
    address: str | None = None,
    index: int = 0,
) -> None:
    """Set a guard and learn which databases listen, as the agent does."""
    steering.set_guard(index, port, ip_address(address) if address else None, flags)
    arena.inside(lambda: resync_up(steering, [port]))


def fill(arena: Arena, name: str, key_size: int, value_size: int) -> None:
    """Fill one map to the brim with elements that match nothing."""
    descriptor = syscalls.object_get(arena.pins / "maps" / name)
    try:
        for number in range(syscalls.map_size(descriptor) + 1):
            try:
                key = struct.pack("=Q", number).rjust(key_size, b"\xee")
                syscalls.map_update(descriptor, key, bytes(value_size))
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise
                return
        raise AssertionError(f"{name} never got full")
    finally:
        os.close(descriptor)
