# SPDX-License-Identifier: Apache-2.0
"""The first bytes decide which session a connection gets, and how it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from agent.protocols.choose import Mode, Sniffing, open_session
from agent.protocols.detect import HTTP2_PREFACE
from agent.protocols.session import Bounds, Opaque, Output, ProtocolError, Secured, TlsTerms
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


# -- TLS -------------------------------------------------------------------------------------------

ASK = b"POST /c/kb/search HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n\r\n{}"


def offering(mode: Mode, client: Any = "offered", *, server: bool = False) -> Sniffing:
    return open_session(FakeEngine(), FakeJudge(), "g", mode, terms=TlsTerms(client, server))


def stands(side: Any) -> Secured:
    return Secured(side, "TLSv1.3", "x", "http/1.1", None, b"")


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_client_hello_is_given_back_whole_and_what_is_inside_is_read(mode: Mode) -> None:
    session = offering(mode)
    assert session.client_data(HELLO[:1]) == Output()
    assert session.client_data(HELLO[1:]) == Output(secure="client")
    assert session.client_data(b"more of it") == Output()
    assert session.begin_tls("client") == HELLO + b"more of it"
    assert session.secured(stands("client")) == Output()
    assert b"".join(session.client_data(ASK).to_server).startswith(b"POST /c/kb/search")
    assert session.protocol == "http1"


def test_tls_inside_tls_is_refused_in_the_protocol_that_stands() -> None:
    session = offering("enforce")
    session.client_data(HELLO)
    session.begin_tls("client")
    session.secured(stands("client"))
    with pytest.raises(ProtocolError) as raised:
        session.client_data(HELLO)
    assert b"".join(session.refuse_all(raised.value.message).to_client).startswith(b"HTTP/1.1 403 ")


def test_where_tls_is_required_plain_bytes_are_refused_with_the_reason() -> None:
    session = offering("enforce", "required", server=True)
    with pytest.raises(ProtocolError) as raised:
        session.client_data(ASK)
    assert raised.value.reason == "tls-required"
    assert b"".join(session.refuse_all(raised.value.message).to_client).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_nothing_is_forwarded_before_the_databases_tls_stands(mode: Mode) -> None:
    session = offering(mode, server=True)
    assert session.client_data(ASK[:40]) == Output(secure="server")
    assert session.begin_tls("server") == b""
    assert session.client_data(ASK[40:]) == Output()
    out = session.secured(stands("server"))
    assert b"".join(out.to_server).startswith(b"POST /c/kb/search")


def test_what_waits_for_the_databases_tls_is_bounded() -> None:
    session = offering("observe", server=True)
    session.client_data(ASK)
    with pytest.raises(ProtocolError) as raised:
        session.client_data(b"x" * (Bounds().pipelined + 1))
    assert raised.value.reason == "too-much-before-tls"


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_database_that_speaks_before_its_tls_stands_is_not_believed(mode: Mode) -> None:
    session = offering(mode, server=True)
    session.client_data(ASK)
    with pytest.raises(ProtocolError) as raised:
        session.server_data(b"HTTP/1.1 200 OK\r\n\r\n")
    assert (raised.value.reason, raised.value.side) == ("server-first", "server")


def test_in_observe_the_clients_own_tls_goes_to_the_database_as_it_is() -> None:
    session = offering("observe", "no", server=True)
    out = session.client_data(HELLO)
    assert (out.to_server, out.secure) == ([HELLO], "no")


def test_in_observe_what_is_not_http_is_relayed_unread_over_the_databases_tls() -> None:
    session = offering("observe", server=True)
    assert session.client_data(b"\0\0\0\x08unknown") == Output(secure="server")
    out = session.secured(stands("server"))
    assert out.to_server == [b"\0\0\0\x08unknown"]
    assert [type(record) for record in out.records] == [Opaque]
