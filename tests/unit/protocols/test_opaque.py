# SPDX-License-Identifier: Apache-2.0
"""Relayed unread: every byte, counted and hashed."""

from __future__ import annotations

from hashlib import sha256

from agent.protocols.opaque import OpaqueSession
from agent.protocols.session import Opaque


def test_every_byte_passes_and_is_counted() -> None:
    session = OpaqueSession("tls", "tls")
    first = session.client_data(b"\x16\x03")
    assert first.records == [Opaque("tls", "tls")]
    assert first.to_server == [b"\x16\x03"]
    assert session.server_data(b"abc").to_client == [b"abc"]
    assert session.client_data(b"\x01").records == []
    tally = session.tally
    assert (tally.client_bytes, tally.server_bytes) == (3, 3)
    assert tally.client_sha256 == sha256(b"\x16\x03\x01").digest()
    assert tally.server_sha256 == sha256(b"abc").digest()


def test_a_close_passes_in_its_direction_and_the_second_ends_both() -> None:
    session = OpaqueSession("tunnel", "unknown")
    assert session.server_eof().close == "client-eof"
    assert session.client_data(b"late").to_server == [b"late"]
    assert session.client_eof().close == "both"
