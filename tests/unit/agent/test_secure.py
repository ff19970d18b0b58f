# SPDX-License-Identifier: Apache-2.0
"""A relay whose sides speak TLS: what is known before anything is judged, and how each side ends."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from agent.protocols.choose import open_session
from agent.protocols.session import Output, TlsTerms
from agent.relay import Relay
from agent.secure import CLIENT_SECONDS, MAX_OWED, SERVER_SECONDS
from tests.unit.agent.certs import Peer, client_context, contexts, make_authority, server_context
from tests.unit.agent.side import Host, Script, intent
from tests.unit.agent.turning import pass_time, run_still, turns
from tests.unit.protocols.fake_engine import FakeEngine, FakeJudge

ASK = b"POST /c/kb/search HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("ca"))


def secured_host(folder: Path, session: Any, **tls: Any) -> Host:
    host = Host(session)
    made = contexts(folder, **tls)
    host.layers["client"] = made.layer("client", "127.0.0.1")
    if tls.get("server"):
        host.layers["server"] = made.layer("server", "127.0.0.1")
    return host


def side(transport: Any) -> Any:
    """What uvloop calls from now on: the protocol that was set last."""
    return transport.protocol


def taken(transport: Any) -> bytes:
    data, transport.sent = transport.sent, b""
    return bytes(data)


def shake_client(relay: Relay, host: Host, peer: Peer) -> None:
    relay.from_client(peer.take())
    while answer := taken(host.client):
        side(host.client).data_received(peer.take(answer))


def shake_server(host: Host, peer: Peer) -> None:
    while said := taken(host.server):
        side(host.server).data_received(peer.take(said))


def script(**outputs: Any) -> Script:
    """A session whose first bytes are a ClientHello."""

    class Starting(Script):
        def client_data(self, data: bytes) -> Output:
            if not self.early:
                self.early = data
            return super().client_data(data)

    given = outputs.pop("client_data", [])
    return Starting(client_data=[Output(secure="client"), *given], **outputs)


def test_a_clients_certificate_is_known_and_recorded_before_anything_is_judged(folder: Path) -> None:
    async def story() -> None:
        session = script(client_data=[Output(to_server=[b"ask"], records=[intent()])])
        host = secured_host(folder, session, client_cert="request", client_ca="ca.crt")
        relay = await host.stand()
        peer = Peer(client_context(folder, "etl-1"))
        shake_client(relay, host, peer)
        assert peer.stands
        side(host.client).data_received(peer.say(b"plain"))
        assert session.calls[0][0] == "client_data"
        assert session.calls[1:] == [
            ("begin_tls", "client"), ("secured", "client"), ("client_data", b"plain"),
        ]  # fmt: skip
        kinds = [event[0] for event in host.events if event[0] in ("card", "secured", "amended", "put")]
        assert kinds == ["card", "secured", "amended", "put"]
        assert ("secured", "client", "CN=etl-1") in host.events
        assert host.journal.cards[relay.id]["tls"] is True
        assert host.server.sent == b"", "its record is not written yet"
        relay.end("test")

    run_still(story)


def test_answers_are_encrypted_and_a_flush_close_says_that_they_are_whole(folder: Path) -> None:
    async def story() -> None:
        host = secured_host(folder, script(server_data=[Output(to_client=[b"ans", b"wer"], close="both")]))
        relay = await host.stand()
        peer = Peer(client_context(folder))
        shake_client(relay, host, peer)
        relay.from_server(b"answer")
        sent = taken(host.client)
        assert b"answer" not in sent
        peer.take(sent)
        assert (peer.got, peer.ended) == (b"answer", True)
        assert host.client.state == "eof"

    run_still(story)


def test_an_answer_that_is_cut_does_not_look_whole(folder: Path) -> None:
    async def story() -> None:
        session = script(client_data=[Output(records=[intent()])], server_data=[Output(to_client=[b"half"])])
        host = secured_host(folder, session)
        relay = await host.stand()
        peer = Peer(client_context(folder))
        shake_client(relay, host, peer)
        side(host.client).data_received(peer.say(b"ask"))
        host.journal.answer_all()
        relay.from_server(b"half")
        relay.server_lost()
        peer.take(taken(host.client))
        assert (peer.got, peer.ended) == (b"half", False)
        assert host.client.state == "aborted"

    run_still(story)


def test_a_client_that_vanishes_without_close_notify_is_lost_and_one_that_ends_is_heard(folder: Path) -> None:
    async def story() -> None:
        for polite in (True, False):
            session = script(client_eof=[Output(close="server-eof")])
            host = secured_host(folder, session)
            relay = await host.stand()
            peer = Peer(client_context(folder))
            shake_client(relay, host, peer)
            if polite:
                side(host.client).data_received(peer.close())
                assert ("client_eof",) in session.calls
                assert host.server.state == "eof"
                relay.end("test")
            else:
                side(host.client).eof_received()
                assert ("client_eof",) not in session.calls
                assert host.journal.summaries[relay.id]["reason"] == "client-gone"
                side(host.client).connection_lost(None)
                assert host.forgotten == 1

    run_still(story)


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x00\x40" + b"\xff" * 64, b"\x16\x03\x03\xff\xff" + b"x" * 64]
)
def test_a_handshake_that_fails_ends_the_relay_with_its_reason_and_an_alert(
    folder: Path, said: bytes
) -> None:
    async def story() -> None:
        host = secured_host(folder, script())
        relay = await host.stand()
        relay.from_client(said)
        reason = host.journal.summaries[relay.id]["reason"]
        assert reason.startswith("tls-")
        assert host.counts == {f"protocol_client_{reason}": 1}
        assert host.client.sent.startswith(b"\x15\x03")
        assert host.bugs == []
        assert host.server.sent == b""

    run_still(story)


def test_a_client_that_does_not_complete_its_handshake_is_not_waited_for_for_ever(folder: Path) -> None:
    async def story() -> None:
        host = secured_host(folder, script())
        relay = await host.stand("observe")
        relay.from_client(Peer(client_context(folder)).take()[:50])
        await pass_time(CLIENT_SECONDS + 1)
        assert host.journal.summaries[relay.id]["reason"] == "tls-timeout"

    run_still(story)


def test_a_peer_that_makes_us_answer_and_takes_nothing_is_cut(folder: Path) -> None:
    async def story() -> None:
        host = secured_host(folder, script())
        relay = await host.stand()
        peer = Peer(client_context(folder, maximum_version=771))
        relay.from_client(peer.take())
        host.client.waiting = MAX_OWED + 1
        answer = taken(host.client)
        side(host.client).data_received(peer.take(answer))
        assert host.journal.summaries[relay.id]["reason"] == "tls-flood"

    run_still(story)


def upstream(mode: Any = "enforce") -> Any:
    return open_session(FakeEngine(), FakeJudge(), "g", mode, terms=TlsTerms("offered", server=True))


@pytest.fixture
def asked(folder: Path) -> Host:
    return secured_host(folder, upstream(), server="verify", ca="ca.crt")


def test_nothing_goes_to_the_database_before_its_certificate_was_verified(folder: Path, asked: Host) -> None:
    async def story() -> None:
        relay = await asked.stand()
        relay.from_client(ASK)
        assert asked.client.paused is True, "what more it says waits in its socket"
        relay.from_client(b"POST /y")
        assert b"POST" not in asked.server.sent
        peer = Peer(server_context(folder), server_side=True)
        shake_server(asked, peer)
        asked.journal.answer_all()
        peer.take(taken(asked.server))
        assert peer.got.startswith(b"POST /c/kb/search ")
        assert [asked.client.paused] == [False]
        side(asked.server).data_received(peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
        asked.journal.answer_all()
        assert asked.client.sent.startswith(b"HTTP/1.1 200 ")
        relay.end("test")

    run_still(story)


def test_a_database_that_cannot_be_verified_gets_nothing_and_the_client_is_told(
    folder: Path, asked: Host, tmp_path: Path
) -> None:
    async def story() -> None:
        relay = await asked.stand()
        relay.from_client(ASK)
        make_authority(tmp_path)
        peer = Peer(server_context(tmp_path), server_side=True)
        side(asked.server).data_received(peer.take(taken(asked.server)))
        assert asked.journal.summaries[relay.id]["reason"] == "tls-certificate"
        assert asked.counts == {"protocol_server_tls-certificate": 1}
        assert asked.client.sent.startswith(b"HTTP/1.1 403 ")
        assert b"certificate" in asked.client.sent
        assert peer.got == b""

    run_still(story)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_is_told_that_the_database_refuses_our_certificate_also_after_the_handshake(
    folder: Path, asked: Host, version: ssl.TLSVersion
) -> None:
    async def story() -> None:
        relay = await asked.stand()
        relay.from_client(ASK)
        context = server_context(folder)
        context.maximum_version = version
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.crt")
        peer = Peer(context, server_side=True)
        said = taken(asked.server)
        alert = b""
        while not alert:
            try:
                side(asked.server).data_received(peer.take(said))
                said = taken(asked.server)
            except ssl.SSLError:
                alert = peer.said()
        asked.journal.answer_all()
        side(asked.server).data_received(alert)
        asked.journal.answer_all()
        reason = asked.journal.summaries[relay.id]["reason"]
        assert reason.startswith("tls-")
        assert asked.client.sent.startswith(b"HTTP/1.1 403 ")
        assert b"towards the database" in asked.client.sent
        assert asked.bugs == []

    run_still(story)


def test_a_client_that_waits_to_be_let_in_is_told_of_a_reset_that_overtook_the_databases_alert(
    folder: Path,
) -> None:
    class Opening(Script):
        is_opening = True

    async def story() -> None:
        session = Opening(client_data=[Output(secure="server")], server_eof=[Output(to_client=[b"lost"])])
        host = secured_host(folder, session, server="verify", ca="ca.crt")
        relay = await host.stand()
        relay.from_client(b"ask")
        shake_server(host, Peer(server_context(folder), server_side=True))
        side(host.server).connection_lost(ConnectionResetError())
        assert (host.client.sent, host.client.state) == (b"lost", "eof")
        assert host.journal.summaries[relay.id]["reason"] == "database-gone"
        assert host.bugs == []

    run_still(story)


def test_a_database_that_answers_plainly_or_not_at_all_is_refused(folder: Path) -> None:
    async def story() -> None:
        for silent in (True, False):
            host = secured_host(folder, upstream(), server="verify", ca="ca.crt")
            relay = await host.stand()
            relay.from_client(ASK)
            if silent:
                await pass_time(SERVER_SECONDS + 1)
            else:
                side(host.server).data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert host.journal.summaries[relay.id]["reason"].startswith("tls-")
            assert b"POST" not in host.server.sent
            assert host.client.sent.startswith(b"HTTP/1.1 403 ")

    run_still(story)


def test_a_client_that_ends_while_the_database_is_secured_gets_its_answer(folder: Path) -> None:
    async def story() -> None:
        host = secured_host(folder, upstream("observe"), server="verify", ca="ca.crt")
        relay = await host.stand("observe")
        relay.from_client(ASK)
        relay.client_eof()
        peer = Peer(server_context(folder), server_side=True)
        shake_server(host, peer)
        host.journal.answer_all()
        peer.take(taken(host.server))
        assert (peer.got, peer.ended) == (ASK, True)
        relay.end("test")

    run_still(story)


def test_without_tls_no_side_is_ever_replaced(folder: Path) -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"a"])]))
        relay = await host.stand()
        relay.from_client(b"a")
        await turns()
        assert not hasattr(host.client, "protocol")
        assert not hasattr(host.server, "protocol")
        relay.end("test")

    run_still(story)
