# SPDX-License-Identifier: Apache-2.0
"""A side of a relay that speaks TLS: takes the transport over from a plain side, for good.

Owns the meeting of one transport and one `TlsLayer`: towards the transport it is the protocol, towards the
relay it is the transport. A connection without TLS never meets it. Bias: what fails in TLS ends the relay
with its reason; nothing is ever written beside the layer but what the layer made, and a connection that ends
without close_notify is lost, not ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Literal, Protocol

from agent.protocols.session import Secured
from agent.tls_layer import TlsError, TlsLayer

CLIENT_SECONDS = 30.0  # for a client to complete its handshake
SERVER_SECONDS = 10.0  # for the database
MAX_OWED = 4 * 2**20  # bytes of TLS's own that a peer may have us owe it (key updates) before it is cut


class Ends(Protocol):
    """What a secure side needs of ``agent/relay.py``."""

    @property
    def is_open(self) -> bool: ...

    def from_client(self, data: bytes) -> None: ...

    def from_server(self, data: bytes) -> None: ...

    def client_eof(self) -> None: ...

    def server_eof(self) -> None: ...

    def client_full(self, full: bool) -> None: ...

    def server_full(self, full: bool) -> None: ...

    def client_lost(self) -> None: ...

    def server_lost(self) -> None: ...

    def tls_stands(self, secured: Secured) -> None: ...

    def tls_failed(self, side: Literal["client", "server"], error: TlsError, heard: bool) -> None:
        """`heard`: the peer has said something over it. Until then it is the handshake that failed, also
        where that ended well for us: in TLS 1.3 a server refuses our certificate afterwards.
        """
        ...


class SecureSide(asyncio.Transport, asyncio.Protocol):
    """Made by `secure_side`."""

    def __init__(
        self, transport: asyncio.Transport, layer: TlsLayer, relay: Ends, side: Literal["client", "server"]
    ) -> None:
        super().__init__()
        self._transport = transport
        self._layer = layer
        self._relay = relay
        self._side: Literal["client", "server"] = side
        client = side == "client"
        self._give = relay.from_client if client else relay.from_server
        self._tell_full = relay.client_full if client else relay.server_full
        self._pending: list[bytes] = []  # written before the handshake ended
        self._heard = False  # plain bytes came
        self._told_end = self._told_lost = self._told_failure = False
        seconds = CLIENT_SECONDS if side == "client" else SERVER_SECONDS
        loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = loop.call_later(seconds, self._too_late)

    # -- from the transport ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._layer.failed:
            return
        stood = self._layer.stands
        try:
            plain = self._layer.receive(data)
            answer = self._layer.outgoing()
            if answer:
                self._transport.write(answer)
                if not plain and self._transport.get_write_buffer_size() > MAX_OWED:
                    raise TlsError("tls-flood", "the peer asks for TLS answers and does not take them")
            if not stood and self._layer.stands:
                self._establish()
        except TlsError as error:
            self._fail(error)
            return
        if plain:
            self._heard = True
            self._give(plain)
        if self._layer.ended and not self._told_end:
            self._told_end = True
            self._relay.client_eof() if self._side == "client" else self._relay.server_eof()

    def _establish(self) -> None:
        self._stop_timer()
        secured = self._layer.secured()
        pending, self._pending = self._pending, []
        if pending:
            self.writelines(pending)
        self._relay.tls_stands(secured)

    def begin(self, early: bytes) -> None:
        """Take what came of the peer before, or say ClientHello to a server."""
        if self._side == "client":
            if early:
                self.data_received(early)
            return
        try:
            self._layer.begin()
        except TlsError as error:
            self._fail(error)
            return
        self._transport.write(self._layer.outgoing())
        if early:
            self.data_received(early)

    def eof_received(self) -> bool:
        if not self._layer.ended and not self._layer.failed:
            if self._layer.stands:
                self._lose()
                self._transport.abort()
            else:
                self._fail(TlsError("tls-eof", "the connection ended within the TLS handshake"))
        return self._side == "server" or self._relay.is_open

    def pause_writing(self) -> None:
        self._tell_full(True)

    def resume_writing(self) -> None:
        self._tell_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if not self._layer.stands:
            self._fail(TlsError("tls-eof", "the connection was lost within the TLS handshake"))
        self._lose()

    def _lose(self) -> None:
        if not self._told_lost:
            self._told_lost = True
            self._relay.client_lost() if self._side == "client" else self._relay.server_lost()

    def _too_late(self) -> None:
        self._timer = None
        self._fail(TlsError("tls-timeout", "the TLS handshake was not completed in time"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, error: TlsError) -> None:
        self._stop_timer()
        self._layer.failed = True
        alert = self._layer.outgoing()
        if alert and not self._transport.is_closing():
            self._transport.write(alert)
        if not self._told_failure:
            self._told_failure = True
            self._relay.tls_failed(self._side, error, self._heard)

    # -- from the relay ----------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        layer = self._layer
        if layer.failed:
            return  # nothing can be said inside a TLS connection that is broken
        if not layer.stands:
            self._pending.extend(list_of_data)
            return
        try:
            pieces = layer.send(list_of_data)
        except TlsError as error:
            self._fail(error)
            return
        for piece in pieces:
            self._transport.write(piece)

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        self._say_close()
        self._transport.write_eof()

    def close(self) -> None:
        if not self._transport.is_closing():
            self._say_close()
        self._transport.close()

    def _say_close(self) -> None:
        self._layer.close()
        last = self._layer.outgoing()
        if last:
            self._transport.write(last)

    def abort(self) -> None:
        """Without close_notify: what the peer has is not the whole."""
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


def secure_side(
    transport: asyncio.Transport, layer: TlsLayer, relay: Ends, side: Literal["client", "server"]
) -> SecureSide:
    """Put `layer` under `transport`; `begin` starts the handshake."""
    made = SecureSide(transport, layer, relay, side)
    transport.set_protocol(made)
    return made
