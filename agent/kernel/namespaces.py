# SPDX-License-Identifier: Apache-2.0
"""Network namespaces by descriptor: run something inside one, and the cookie the kernel knows it by."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from agent.kernel.errors import SteeringError

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
_Result = TypeVar("_Result")


def socket_cookie(sock: socket.socket) -> int:
    """The kernel's number of a socket, as the programs in bpf/ see it."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def netns_cookie_of(sock: socket.socket) -> int:
    """The cookie of the namespace a socket belongs to. SteeringError before Linux 5.14."""
    try:
        return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
    except OSError as error:
        raise SteeringError("network namespace cookies (SO_NETNS_COOKIE)", "Linux 5.14 or newer") from error


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
    def read() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return netns_cookie_of(probe)

    return in_namespace(netns_fd, read)
