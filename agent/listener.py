# SPDX-License-Identifier: Apache-2.0
"""The listening sockets that the kernel part steers connections to. Owns how one is made, nothing else."""

from __future__ import annotations

import socket
import struct

SO_NETNS_COOKIE = 71


def make_listener(backlog: int) -> socket.socket:
    """A listening socket on a free port, for both families (IPv4 alone where there is no IPv6).

    It is reached by steering only: SYNs to its own port are dropped by the kernel part.
    """
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - see above
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
    # Accepted sockets inherit it. Their local port is the database's: without it, one that stands or is in
    # TIME-WAIT would keep a restarted database from binding its own port for a minute.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.listen(backlog)
    return sock


def netns_cookie(sock: socket.socket) -> int:
    """The cookie of a socket's network namespace (socket(7)); 0, the agent's own, before Linux 5.14.

    The agent took the listener and so knows that it is of the namespace it guards.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    except OSError:
        return 0
    return int(struct.unpack("=Q", raw)[0])
