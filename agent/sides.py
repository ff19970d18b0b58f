# SPDX-License-Identifier: Apache-2.0
"""The two sockets of a relay as asyncio protocols, and what is done to a transport.

Passes every event on to its relay; decides nothing and keeps nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, Protocol

SO_COOKIE: Final = 57  # asm-generic/socket.h
JOINED: Final = 16 * 1024  # bytes up to which a copy costs less than a list of pieces
STALL: Final = 30  # times a closing client may be found to have taken nothing of what it is still owed
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class Ends(Protocol):
    """What the two sides need of ``agent/relay.py``."""

    @property
    def is_open(self) -> bool: ...

    def attach_server(self, transport: asyncio.Transport) -> None: ...

    def from_client(self, data: bytes) -> None: ...

    def from_server(self, data: bytes) -> None: ...

    def client_eof(self) -> None: ...

    def server_eof(self) -> None: ...

    def client_full(self, full: bool) -> None: ...

    def server_full(self, full: bool) -> None: ...

    def client_lost(self) -> None: ...

    def server_lost(self, reset: bool = False) -> None: ...


class ClientSide(asyncio.Protocol):
    """The accepted socket."""

    __slots__ = ("_accept", "_relay")

    def __init__(self, accept: Callable[[asyncio.Transport], Ends | None]) -> None:
        self._accept = accept
        self._relay: Ends | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's are not subclasses
        self._relay = self._accept(stream)
        if self._relay is None:
            send_reset(stream)

    def data_received(self, data: bytes) -> None:
        if self._relay is not None:
            self._relay.from_client(data)

    def eof_received(self) -> bool:
        if self._relay is None:
            return False
        self._relay.client_eof()
        return self._relay.is_open

    def pause_writing(self) -> None:
        if self._relay is not None:
            self._relay.client_full(True)

    def resume_writing(self) -> None:
        if self._relay is not None:
            self._relay.client_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._relay is not None:
            self._relay.client_lost()


class ServerSide(asyncio.Protocol):
    """The connection to the database."""

    __slots__ = ("_relay",)

    def __init__(self, relay: Ends) -> None:
        self._relay = relay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._relay.attach_server(transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._relay.from_server(data)

    def eof_received(self) -> bool:
        self._relay.server_eof()
        return True

    def pause_writing(self) -> None:
        self._relay.server_full(True)

    def resume_writing(self) -> None:
        self._relay.server_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.server_lost(reset=isinstance(exc, ConnectionError))


def address_of(name: tuple[Any, ...]) -> tuple[str, int]:
    """A socket name as (address, port), v4-mapped addresses as IPv4."""
    host = str(name[0])
    return (host[7:] if host.startswith("::ffff:") and "." in host else host), int(name[1])


def send(transport: asyncio.Transport, pieces: list[bytes]) -> int:
    """Write pieces in order; returns how many bytes they are. A transport takes one faster than several."""
    if len(pieces) == 1:
        transport.write(pieces[0])
        return len(pieces[0])
    size = 0
    for piece in pieces:
        size += len(piece)
    if size <= JOINED:
        transport.write(b"".join(pieces))
    else:
        transport.writelines(pieces)
    return size


def pause(transport: asyncio.Transport | None, full: bool) -> None:
    if transport is None or transport.is_closing():
        return
    if full:
        transport.pause_reading()
    else:
        transport.resume_reading()


def send_eof(transport: asyncio.Transport | None) -> None:
    if transport is not None and transport.can_write_eof() and not transport.is_closing():
        transport.write_eof()


def send_reset(transport: asyncio.Transport | None) -> None:
    """Close with a RST: the peer must not take what it has for the whole."""
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):  # already closed: there is nothing to reset
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    transport.abort()


def close_gently(transport: asyncio.Transport, seconds: float) -> None:
    """End our direction; close for good once what is owed was taken and `seconds` more have passed.

    A close at once would reset the connection where input is unread, and the peer would lose the last bytes.
    """
    if transport.is_closing() or not transport.can_write_eof():
        transport.close()
        return
    transport.write_eof()
    _linger(transport, seconds, transport.get_write_buffer_size(), STALL)


def _linger(transport: asyncio.Transport, seconds: float, owed: int, patience: int) -> None:
    def look() -> None:
        left = transport.get_write_buffer_size()
        if owed == 0 or transport.is_closing() or (left == owed and patience == 0):
            transport.abort()
        else:
            _linger(transport, seconds, left, patience - 1 if left == owed else STALL)

    asyncio.get_running_loop().call_later(seconds, look)


def socket_cookie(transport: asyncio.Transport) -> int | None:
    """SO_COOKIE of the connection: the kernel wrote the caller's name beside it."""
    sock = transport.get_extra_info("socket")
    try:
        return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])
    except (OSError, AttributeError):
        return None
