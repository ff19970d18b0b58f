# SPDX-License-Identifier: Apache-2.0
"""Sockets and addresses of the caller's own network namespace, by netlink.

Owns sock_diag dumps filtered by port in the kernel, SOCK_DESTROY, and the address list. Written on
the raw messages (linux/inet_diag.h, linux/rtnetlink.h): three fixed requests, synchronous, with the
cookie, cgroup and v6only that steering needs. Dumping needs no capability, destroying CAP_NET_ADMIN.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from agent.kernel.errors import SteeringError
from agent.kernel.records import Address, unpack_address
from agent.kernel.steering import Listening, Steering

_NETLINK_ROUTE, _NETLINK_SOCK_DIAG = 0, 4
_BY_FAMILY, _DESTROY, _RTM_GETADDR = 20, 21, 22
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_SKV6ONLY, _CGROUP_ID, _IFA_ADDRESS, _IFA_LOCAL = 11, 21, 1, 2
_HEADER = struct.Struct("=IHHII")
_REQUEST_V2 = struct.Struct("=BBBBI48s")
_MESSAGE = struct.Struct("=BBBB48sIIIII")
_ID = struct.Struct("!HH16s16s")


class State(enum.IntEnum):
    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


@dataclass(frozen=True, slots=True)
class Socket:
    """One TCP socket. ``cgroup``: id of the cgroup it was made in, None where the kernel does not say."""

    family: int
    state: State
    local: Address
    local_port: int
    remote: Address
    remote_port: int
    cookie: int
    uid: int
    inode: int
    cgroup: int | None
    v6only: bool
    handle: bytes  # inet_diag_sockid, for `destroy`

    def listening(self) -> Listening:
        return Listening(self.local, self.local_port, self.cookie, self.v6only)


def listeners(ports: Iterable[int]) -> list[Socket]:
    """TCP sockets that listen on one of the ports."""
    return [found for port in ports for found in _dump(1 << State.LISTEN, sport=port)]


def connections(port: int) -> list[Socket]:
    """The database's end of every connection to its ``port`` that is established or being closed."""
    states = [State.ESTABLISHED, State.FIN_WAIT1, State.FIN_WAIT2, State.CLOSE_WAIT, State.LAST_ACK]
    return list(_dump(sum(1 << state for state in states), sport=port))


def callers(port: int) -> list[Socket]:
    """The client's end, in this namespace, of every connection to ``port`` that can still be answered."""
    states = [State.ESTABLISHED, State.SYN_SENT, State.FIN_WAIT1, State.FIN_WAIT2, State.CLOSE_WAIT]
    return list(_dump(sum(1 << state for state in states), dport=port))


def find(local: Address, local_port: int, remote: Address, remote_port: int) -> Socket | None:
    """The socket with exactly this tuple (weak attribution: its uid and inode)."""
    for one in _dump((1 << State.ESTABLISHED) | (1 << State.CLOSE_WAIT), sport=local_port, dport=remote_port):
        if (one.local, one.remote) == (local, remote):
            return one
    return None


def destroy(one: Socket) -> bool:
    """End a connection at once: both sides get a reset. False if it was gone. OSError EPERM, EOPNOTSUPP."""
    request = _REQUEST_V2.pack(one.family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF, one.handle)
    with _netlink(_NETLINK_SOCK_DIAG) as link:
        link.send(_HEADER.pack(_HEADER.size + len(request), _DESTROY, _REQUEST | _ACK, 1, 0) + request)
        answer = link.recv(65536)
    code = -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
    if code and code != 2:
        raise OSError(code, os.strerror(code))
    return code == 0


def local_addresses() -> set[Address]:
    """Every address of every interface of this namespace."""
    found: set[Address] = set()
    for kind, body in _talk(_NETLINK_ROUTE, _RTM_GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, 0)):
        if kind == 20:
            attributes = _attributes(body[8:])
            for name in (_IFA_LOCAL, _IFA_ADDRESS):
                if name in attributes:
                    found.add(ip_address(attributes[name]))
                    break
    return found


def resync_up(steering: Steering, ports: Iterable[int]) -> None:
    """Make the kernel's table of database listeners true again; to be called in the guarded namespace.

    After `Steering.set_guard`, and now and then: a listener may have closed while it was added here, failed
    after its listen was seen, or found all lanes of its address taken.
    """
    wanted = list(ports)
    steering.seed_up(one.listening() for one in listeners(wanted))
    known = [one for one in steering.up() if one.port in wanted]
    for _ in range(
        2
    ):  # the kernel tells of a listen shortly before it can be found: only twice missing is gone
        living = {one.cookie for one in listeners(wanted)}
        known = [one for one in known if one.cookie not in living]
    steering.drop_up(known)


def _dump(states: int, sport: int = 0, dport: int = 0) -> Iterator[Socket]:
    for family in (socket.AF_INET, socket.AF_INET6):
        wanted = struct.pack("!HH", sport, dport) + bytes(36) + b"\xff" * 8
        request = _REQUEST_V2.pack(family, socket.IPPROTO_TCP, 0, 0, states, wanted)
        for kind, body in _talk(_NETLINK_SOCK_DIAG, _BY_FAMILY, request):
            if kind == _BY_FAMILY:
                yield _socket(body)


def _socket(body: bytes) -> Socket:
    family, state, _, _, handle, _, _, _, uid, inode = _MESSAGE.unpack_from(body)
    sport, dport, source, destination = _ID.unpack_from(handle)
    attributes = _attributes(body[_MESSAGE.size :])
    low, high = struct.unpack_from("=II", handle, 40)
    cgroup = attributes.get(_CGROUP_ID)
    return Socket(
        family, State(state), _address(family, source), sport, _address(family, destination), dport,
        high << 32 | low, uid, inode, struct.unpack("=Q", cgroup)[0] if cgroup else None,
        attributes.get(_SKV6ONLY, b"\0") != b"\0", handle,
    )  # fmt: skip


def _address(family: int, raw: bytes) -> Address:
    return ip_address(raw[:4]) if family == socket.AF_INET else unpack_address(raw)


def _attributes(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(raw) >= 4:
        length, kind = struct.unpack_from("=HH", raw)
        if length < 4:
            break
        found[kind & 0x3FFF] = raw[4:length]
        raw = raw[(length + 3) & ~3 :]
    return found


def _talk(protocol: int, kind: int, request: bytes) -> Iterator[tuple[int, bytes]]:
    """One dump: (message type, body) until the kernel says done."""
    with _netlink(protocol) as link:
        link.send(_HEADER.pack(_HEADER.size + len(request), kind, _REQUEST | _DUMP, 1, 0) + request)
        while True:
            data = link.recv(1 << 18)
            while len(data) >= _HEADER.size:
                length, got, _, _, _ = _HEADER.unpack_from(data)
                body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if got == _DONE:
                    return
                if got == _ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise OSError(code, os.strerror(code))
                yield got, body


@contextlib.contextmanager
def _netlink(protocol: int) -> Iterator[socket.socket]:
    try:
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise SteeringError(f"netlink: {error.strerror}", "the kernel needs CONFIG_INET_DIAG") from error
    with link:
        link.bind((0, 0))
        yield link
