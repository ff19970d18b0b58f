# SPDX-License-Identifier: Apache-2.0
"""Network namespaces by descriptor: run something inside one, and the cookie the kernel knows it by."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from agent.kernel import syscalls
from agent.kernel.cookie import learn_netns_cookie
from agent.kernel.errors import SteeringError

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71  # since Linux 5.14
_SIOCGSKNS = 0x894C
_LINK_NETNS = 5  # enum bpf_link_type
_Result = TypeVar("_Result")


def socket_cookie(sock: socket.socket) -> int:
    """The kernel's number of a socket, as the programs in bpf/ see it."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def netns_cookie_of(sock: socket.socket, pins: Path | None = None) -> int:
    """The cookie of the namespace a socket belongs to. SteeringError where the kernel does not say.

    Before Linux 5.14 only what is steered in the namespace knows it: the links below ``pins``. That needs
    CAP_NET_ADMIN over the namespace, and pins that may be opened.
    """
    try:
        return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
    except OSError as error:
        found = _steered_here(sock, pins) if pins is not None else None
        if found is None:
            raise SteeringError("the socket's network namespace is not steered") from error
        return found


def _steered_here(sock: socket.socket, pins: Path) -> int | None:
    """The cookie that a link of the socket's namespace is named by (`load.link_name`)."""
    try:
        namespace = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
        try:
            inode = os.fstat(namespace).st_ino
        finally:
            os.close(namespace)
        for path in sorted((pins / "links").iterdir()):
            name, _, cookie = path.name.partition("-")
            if name == "steer" and _netns_inode(path) == inode:
                return int(cookie)
    except OSError as error:
        raise SteeringError(f"a socket's network namespace: {error.strerror}", "CAP_NET_ADMIN") from error
    return None


def _netns_inode(pin: Path) -> int | None:
    """Inode number of the namespace a pinned link is attached to (struct bpf_link_info, `netns`)."""
    descriptor = syscalls.object_get(pin)
    try:
        kind, _, _, _, inode = struct.unpack_from("=IIIII", syscalls.link_info(descriptor))
    finally:
        os.close(descriptor)
    return int(inode) if kind == _LINK_NETNS else None


def in_namespace(netns_fd: int, function: Callable[[], _Result]) -> _Result:
    """Run ``function`` with its thread in the namespace; needs CAP_SYS_ADMIN unless it is ours already."""
    here = os.stat("/proc/thread-self/ns/net")
    there = os.fstat(netns_fd)
    if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
        return function()
    results: list[_Result] = []
    failures: list[BaseException] = []

    def inside() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(netns_fd, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "entering a network namespace")
            results.append(function())
        except BaseException as error:  # handed to the caller's thread below
            failures.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def netns_cookie(netns_fd: int) -> int:
    """The cookie of any namespace, by its descriptor. Needs root. SteeringError before Linux 5.8."""

    def read() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                return netns_cookie_of(probe)
            except SteeringError:
                return learn_netns_cookie(probe)

    return in_namespace(netns_fd, read)
