# SPDX-License-Identifier: Apache-2.0
"""TLS over bytes: handshakes in pieces, what a peer may not do, and how an end is told from a cut."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ca import create, issue
from agent.tls_layer import MAX_HANDSHAKE, SLICE, TlsError, TlsLayer
from tests.unit.agent.certs import Peer, client_context, contexts, make_authority, server_context

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("ca"))


def towards_client(folder: Path, **tls: Any) -> TlsLayer:
    return contexts(folder, **tls).layer("client", "127.0.0.1")


def shake(layer: TlsLayer, peer: Peer) -> bytes:
    """Let both talk until nobody has anything to say; returns the plain text that came with it."""
    plain = b""
    said = peer.take()
    while said:
        plain += layer.receive(said)
        said = peer.take(layer.outgoing())
    return plain


@pytest.mark.parametrize("version", VERSIONS)
def test_a_handshake_and_what_follows_pass_byte_by_byte(folder: Path, version: ssl.TLSVersion) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder, maximum_version=version))
    said = peer.take()
    while said:
        answer = b""
        for byte in said:
            assert layer.receive(bytes([byte])) == b""
            answer += layer.outgoing()
        said = b"".join(peer.take(bytes([byte])) for byte in answer)
    assert layer.stands
    assert peer.stands
    plain = b"".join(layer.receive(bytes([byte])) for byte in peer.say(b"question"))
    assert plain == b"question"
    for byte in b"".join(layer.send([b"an", b"swer"])):
        peer.take(bytes([byte]))
    assert peer.got == b"answer"
    secured = layer.secured()
    assert (secured.side, secured.version, secured.subject) == ("client", peer.tls.version(), None)


def test_a_client_that_verifies_by_the_letter_takes_our_authoritys_certificates(folder: Path) -> None:
    context = client_context(folder)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default since Python 3.13
    layer, peer = towards_client(folder), Peer(context)
    shake(layer, peer)
    assert peer.stands


def test_what_follows_the_handshake_in_the_same_piece_is_not_lost(folder: Path) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder))
    layer.receive(peer.take())
    last = peer.take(layer.outgoing()) + peer.say(b"at once")
    assert layer.receive(last) == b"at once"


@pytest.mark.parametrize("size", [0, 1, 16384, SLICE, 3 * SLICE + 7])
def test_bytes_of_any_size_arrive_whole(folder: Path, size: int) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder))
    shake(layer, peer)
    data = os.urandom(size)
    for piece in layer.send([data[:100], data[100:]]):
        peer.take(piece)
    assert peer.got == data
    assert layer.receive(peer.say(data) if data else b"") == data


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x40" + b"\xff" * 64, b"\0" * 64]
)
def test_garbage_is_refused_with_a_reason(folder: Path, garbage: bytes) -> None:
    layer = towards_client(folder)
    with pytest.raises(TlsError) as raised:
        layer.receive(garbage)
    assert raised.value.reason.startswith("tls-")
    assert layer.failed
    assert not layer.stands


def test_a_handshake_may_not_be_large(folder: Path) -> None:
    layer = towards_client(folder)
    record = (
        b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff" + b"\0" * (16384 - 4)
    )  # a ClientHello without an end

    def flood() -> None:
        for _ in range(MAX_HANDSHAKE // len(record) + 2):
            layer.receive(record)

    with pytest.raises(TlsError):
        flood()
    assert not layer.stands


def test_crumbs_of_a_handshake_are_bounded_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.tls_layer.MAX_HANDSHAKE", 100)
    layer, peer = towards_client(folder), Peer(client_context(folder))
    with pytest.raises(TlsError) as raised:
        layer.receive(peer.take()[:150])
    assert raised.value.reason == "tls-handshake-too-large"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_on_the_way_nothing_but_a_tls_error_comes_of_it(
    folder: Path, data: st.DataObject
) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder))
    flight, said, plain, asked = 0, peer.take(), b"", False
    struck = data.draw(st.integers(0, 2))
    try:
        while said and flight < 6:
            piece = bytearray(said)
            if flight == struck:
                place = data.draw(st.integers(0, len(piece) - 1))
                piece[place] ^= data.draw(st.integers(1, 255))
            plain += layer.receive(bytes(piece))
            said = peer.take(layer.outgoing())
            if not said and layer.stands and peer.stands and not asked:
                asked, said = True, peer.say(b"the question")
            flight += 1
    except TlsError:
        assert layer.failed
    except ssl.SSLError:
        pass  # the peer found it first
    assert plain in (b"", b"the question")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that they are old is the point
def test_old_versions_are_refused(folder: Path, version: ssl.TLSVersion) -> None:
    context = client_context(folder)
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    layer, peer = towards_client(folder), Peer(context)
    with pytest.raises(TlsError, match="unsupported protocol"):
        layer.receive(peer.take())
    with pytest.raises(ssl.SSLError):
        peer.take(layer.outgoing())  # the alert says so


@pytest.mark.parametrize("version", VERSIONS)
def test_neither_renegotiation_nor_compression_is_there(folder: Path, version: ssl.TLSVersion) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder, maximum_version=version))
    shake(layer, peer)
    assert peer.tls.compression() is None
    made_of = contexts(folder)
    for context in (made_of._client,):
        assert context is not None
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("version", VERSIONS)
def test_a_changed_record_ends_the_connection_and_gives_nothing(
    folder: Path, version: ssl.TLSVersion
) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder, maximum_version=version))
    shake(layer, peer)
    record = bytearray(peer.say(b"DELETE everything"))
    record[-1] ^= 1
    with pytest.raises(TlsError) as raised:
        layer.receive(bytes(record))
    assert raised.value.reason in ("tls-decryption-failed-or-bad-record-mac", "tls-bad-record-mac")
    assert layer.failed
    assert layer.outgoing() != b""  # an alert


def test_only_close_notify_is_an_end(folder: Path) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder))
    shake(layer, peer)
    assert layer.receive(peer.say(b"whole") + peer.close()) == b"whole"
    assert layer.ended
    cut, other = towards_client(folder), Peer(client_context(folder))
    shake(cut, other)
    assert cut.receive(other.say(b"never whole")[:-1]) == b""
    assert not cut.ended


@pytest.mark.parametrize("version", VERSIONS)
def test_after_our_own_end_the_peer_may_still_answer(folder: Path, version: ssl.TLSVersion) -> None:
    layer, peer = towards_client(folder), Peer(client_context(folder, maximum_version=version))
    shake(layer, peer)
    answer = peer.say(b"still to come")
    assert layer.receive(answer[:7]) == b""  # in the middle of a record
    layer.close()
    layer.close()
    peer.take(layer.outgoing())
    assert peer.ended
    assert layer.receive(answer[7:]) == b"still to come"
    assert layer.receive(peer.close()) == b""
    assert layer.ended


def test_a_client_certificate_gives_its_subject(folder: Path) -> None:
    layer = towards_client(folder, client_cert="require", client_ca="ca.crt")
    peer = Peer(client_context(folder, "etl-1"))
    shake(layer, peer)
    secured = layer.secured()
    assert secured.subject == "CN=etl-1"
    assert secured.certificate == ssl.PEM_cert_to_DER_cert((folder / "etl-1.crt").read_text())


def test_a_required_certificate_that_is_not_shown_is_a_reason(folder: Path) -> None:
    layer = towards_client(folder, client_cert="require", client_ca="ca.crt")
    with pytest.raises(TlsError) as raised:
        shake(layer, Peer(client_context(folder)))
    assert raised.value.reason == "tls-peer-did-not-return-a-certificate"
    assert not layer.stands


def test_a_requested_certificate_may_be_missing_but_not_a_strangers(folder: Path, tmp_path: Path) -> None:
    asking = {"client_cert": "request", "client_ca": "ca.crt"}
    layer = towards_client(folder, **asking)
    shake(layer, Peer(client_context(folder)))
    assert layer.secured().subject is None
    create(tmp_path, "Test CA")  # the same name, another key
    issue(tmp_path, "etl-1", role="client")
    context = client_context(folder)
    context.load_cert_chain(tmp_path / "etl-1.crt", tmp_path / "etl-1.key")
    layer = towards_client(folder, **asking)
    with pytest.raises(TlsError) as raised:
        shake(layer, Peer(context))
    assert raised.value.reason == "tls-certificate"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_resumed_session_has_the_subject_of_the_first(folder: Path, version: ssl.TLSVersion) -> None:
    made = contexts(folder, client_cert="require", client_ca="ca.crt")
    context = client_context(folder, "etl-1", maximum_version=version)
    first, peer = made.layer("client", "127.0.0.1"), Peer(context)
    shake(first, peer)
    for piece in first.send([b"x"]):  # the tickets of TLS 1.3 come with the first bytes at the latest
        peer.take(piece)
    layer, again = made.layer("client", "127.0.0.1"), Peer(context)
    again.tls.session = peer.tls.session
    shake(layer, again)
    assert again.tls.session_reused
    assert layer.secured().subject == "CN=etl-1"
    changed = contexts(folder, client_cert="require", client_ca="ca.crt")  # as after a reload
    layer, again = changed.layer("client", "127.0.0.1"), Peer(context)
    again.tls.session = peer.tls.session
    shake(layer, again)
    assert not again.tls.session_reused


def test_a_servers_certificate_is_no_clients(folder: Path) -> None:
    layer = towards_client(folder, client_cert="request", client_ca="ca.crt")
    with pytest.raises(TlsError) as raised:
        shake(layer, Peer(client_context(folder, "db")))
    assert raised.value.reason == "tls-certificate"


@pytest.mark.parametrize("subject", [ValueError("no form"), "CN=" + "x" * 5000])
def test_a_subject_that_cannot_be_told_ends_the_connection(folder: Path, subject: object) -> None:
    def name_of(certificate: bytes) -> str:
        if isinstance(subject, Exception):
            raise subject
        return str(subject)

    made = contexts(folder, client_cert="require", client_ca="ca.crt")
    made._name_of = name_of
    layer = made.layer("client", "127.0.0.1")
    shake(layer, Peer(client_context(folder, "etl-1")))
    with pytest.raises(TlsError) as raised:
        layer.secured()
    assert raised.value.reason == "tls-subject"
    assert layer.failed


def towards_server(
    folder: Path, address: str = "127.0.0.1", mode: str = "enforce", known: bool = False, **tls: Any
) -> TlsLayer:
    wanted: dict[str, Any] = {"server": "verify", "ca": "ca.crt", **tls}
    return contexts(folder, mode, **wanted).layer("server", address, known)


def meet(layer: TlsLayer, peer: Peer) -> None:
    layer.begin()
    said = layer.outgoing()
    while said:
        layer.receive(peer.take(said))
        said = layer.outgoing()


@pytest.mark.parametrize(
    "tls", [{}, {"server_name": "db"}, {"ca": "db.crt"}, {"server": "require", "ca": None}]
)
def test_a_database_that_shows_the_right_certificate_is_believed(folder: Path, tls: dict[str, Any]) -> None:
    layer, peer = towards_server(folder, **tls), Peer(server_context(folder), server_side=True)
    meet(layer, peer)
    assert layer.stands
    peer.take(b"".join(layer.send([b"GET /"])))
    assert peer.got == b"GET /"


@pytest.mark.parametrize(
    ("address", "tls"), [("127.0.0.2", {}), ("127.0.0.1", {"server_name": "other"})], ids=["address", "name"]
)
def test_a_certificate_for_another_name_is_refused(folder: Path, address: str, tls: dict[str, Any]) -> None:
    layer, peer = towards_server(folder, address, **tls), Peer(server_context(folder), server_side=True)
    with pytest.raises(TlsError) as raised:
        meet(layer, peer)
    assert raised.value.reason == "tls-certificate"
    with pytest.raises(TlsError):
        layer.send([b"secret"])
    assert peer.got == b""


def test_a_certificate_of_another_authority_is_refused(folder: Path, tmp_path: Path) -> None:
    make_authority(tmp_path)
    layer, peer = towards_server(folder), Peer(server_context(tmp_path), server_side=True)
    with pytest.raises(TlsError) as raised:
        meet(layer, peer)
    assert raised.value.reason == "tls-certificate"
    assert not layer.stands


@pytest.mark.parametrize(
    ("mode", "known", "subject"),
    [
        ("enforce", False, "etl-1"),
        ("enforce", True, "etl-1"),
        ("observe", False, None),  # nothing judges the client, who has proven nothing
        ("observe", True, "etl-1"),
    ],
)
def test_the_database_is_shown_our_certificate_when_it_asks(
    folder: Path, mode: str, known: bool, subject: str | None
) -> None:
    context = server_context(folder)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(folder / "ca.crt")
    layer = towards_server(folder, mode=mode, known=known, present_cert="etl-1.crt", present_key="etl-1.key")
    peer = Peer(context, server_side=True)
    meet(layer, peer)
    shown = peer.tls.getpeercert()
    assert (shown or {}).get("subject") == (subject and ((("commonName", subject),),))


@pytest.mark.parametrize(("engine", "offered"), [("chroma", "http/1.1"), ("pgvector", "postgresql")])
def test_the_engines_protocol_alone_is_offered(folder: Path, engine: str, offered: str) -> None:
    from agent.tls_contexts import TlsContexts
    from tests.unit.agent.certs import settings as read_settings

    layer = TlsContexts(read_settings(folder), engine, "enforce").layer("client", "::1")
    context = client_context(folder)
    context.set_alpn_protocols(["h2", offered])
    peer = Peer(context)
    shake(layer, peer)
    assert (peer.tls.selected_alpn_protocol(), layer.secured().alpn) == (offered, offered)
