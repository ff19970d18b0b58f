# SPDX-License-Identifier: Apache-2.0
"""The first bytes decide which session a connection gets, and how it is refused."""

from __future__ import annotations

import pytest

from agent.protocols.choose import Mode, Sniffing, open_session
from agent.protocols.detect import HTTP2_PREFACE
from agent.protocols.session import Opaque, Output, ProtocolError
from tests.unit.protocols.fake_engine import FakeEngine, FakeJudge

HELLO = b"\x16\x03\x01\x00\x05hello"


def opened(mode: Mode) -> Sniffing:
    return open_session(FakeEngine(), FakeJudge(), "g", mode)


@pytest.mark.parametrize(
    ("data", "reason", "answer"),
    [
        (HELLO, "tls-without-key", b"\x15\x03\x01\x00\x02\x02\x28"),
        (HTTP2_PREFACE, "http2", b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
        (b"\x00\x01\x02", "unknown-protocol", b"HTTP/1.1 403 "),
    ],
)
def test_enforce_refuses_in_the_protocol_that_was_spoken(data: bytes, reason: str, answer: bytes) -> None:
    session = opened("enforce")
    with pytest.raises(ProtocolError) as raised:
        session.client_data(data)
    assert raised.value.reason == reason
    out = session.refuse_all(raised.value.message)
    assert b"".join(out.to_client).startswith(answer)
    assert out.to_server == []
    assert out.close == "both"


def test_an_http2_client_is_told_why() -> None:
    session = opened("enforce")
    with pytest.raises(ProtocolError):
        session.client_data(HTTP2_PREFACE)
    sent = b"".join(session.refuse_all("use HTTP/1.1").to_client)
    goaway = sent[9:]
    assert goaway[3] == 7
    assert goaway[9:] == b"\x00\x00\x00\x00\x00\x00\x00\x0duse HTTP/1.1"
    assert int.from_bytes(goaway[:3], "big") == len(goaway) - 9


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_request_is_under_way_from_its_first_byte_also_before_its_protocol_is_known(mode: Mode) -> None:
    session = opened(mode)
    assert not session.is_reading
    for byte in b"GET /c/kb HTTP/1.1\r\nHost: db\r\n\r\n":
        session.client_data(bytes([byte]))
        assert session.is_reading
    session.server_data(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert not session.is_reading


@pytest.mark.parametrize("data", [HELLO, HTTP2_PREFACE, b"\x00\x01\x02", b"PING\r\n"])
def test_observe_relays_what_it_does_not_speak(data: bytes) -> None:
    session = opened("observe")
    sent = b""
    records = []
    for at in range(len(data)):
        out = session.client_data(data[at : at + 1])
        sent += b"".join(out.to_server)
        records += out.records
    assert sent == data
    assert [type(record) for record in records] == [Opaque]
    assert session.server_data(b"x").to_client == [b"x"]
    assert session.tally is not None
    assert session.tally.client_bytes == len(data)


def test_a_database_that_speaks_first_is_relayed_in_observe_only() -> None:
    session = opened("observe")
    session.client_data(b"G")
    out = session.server_data(b"220 hello")
    assert (out.to_server, out.to_client) == ([b"G"], [b"220 hello"])
    with pytest.raises(ProtocolError):
        opened("enforce").server_data(b"220 hello")


def test_a_client_that_closes_without_a_word_is_no_error() -> None:
    assert opened("enforce").client_eof() == Output(close="both")
    out = opened("observe").client_eof()
    assert out.close == "server-eof"


def test_a_connection_without_identity_gets_the_engines_error() -> None:
    out = opened("enforce").refuse_all("no identity")
    assert b"no identity" in b"".join(out.to_client)
    assert out.close == "both"
