# SPDX-License-Identifier: Apache-2.0
"""A connection that is relayed unread: observe on what is not understood, and tunnels.

Owns the byte counts and rolling hashes of both directions, nothing else. It parses nothing and
refuses nothing; who may have a session like this is decided before one is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from agent.protocols.session import Opaque, Output


@dataclass(frozen=True, slots=True)
class Tally:
    """What went by unread: bytes and SHA-256 of each direction, from the moment it became opaque."""

    client_bytes: int
    client_sha256: bytes
    server_bytes: int
    server_sha256: bytes


class OpaqueSession:
    """Passes every byte on as it comes. The first output carries the `Opaque` record."""

    def __init__(self, reason: str, protocol: str) -> None:
        self.reason = reason
        self._protocol = protocol
        self._announced = False
        self._client_bytes = 0
        self._server_bytes = 0
        self._client_hash = sha256()
        self._server_hash = sha256()
        self._ended: set[str] = set()

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def tally(self) -> Tally:
        return Tally(
            self._client_bytes,
            self._client_hash.digest(),
            self._server_bytes,
            self._server_hash.digest(),
        )

    def client_data(self, data: bytes) -> Output:
        out = self._output()
        self.pass_client(out, data)
        return out

    def server_data(self, data: bytes) -> Output:
        out = self._output()
        self.pass_server(out, data)
        return out

    def pass_client(self, out: Output, data: bytes) -> None:
        """Count and forward client bytes into an output that another session has begun."""
        self._client_bytes += len(data)
        self._client_hash.update(data)
        out.to_server.append(data)

    def pass_server(self, out: Output, data: bytes) -> None:
        """Count and release server bytes into an output that another session has begun."""
        self._server_bytes += len(data)
        self._server_hash.update(data)
        out.to_client.append(data)

    def announce(self, out: Output) -> None:
        """Put the `Opaque` record into `out`, once."""
        if not self._announced:
            self._announced = True
            out.records.append(Opaque(self.reason, self._protocol))

    # A close passes on: what one side has ended is ended towards the other.

    def client_eof(self) -> Output:
        out = self._output()
        self._ended.add("client")
        out.close = "both" if len(self._ended) == 2 else "server-eof"
        return out

    def server_eof(self) -> Output:
        out = self._output()
        self._ended.add("server")
        out.close = "both" if len(self._ended) == 2 else "client-eof"
        return out

    def abandon(self, reason: str) -> Output:
        return self._output()

    def refuse_all(self, message: str) -> Output:
        """Nothing can be said inside a protocol that is not read: both sides are cut."""
        out = self._output()
        out.close = "reset"
        return out

    def _output(self) -> Output:
        out = Output()
        self.announce(out)
        return out
