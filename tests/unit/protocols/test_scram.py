# SPDX-License-Identifier: Apache-2.0
"""SCRAM-SHA-256 in both roles: the RFC's own example, and what must fail."""

from __future__ import annotations

from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocols import scram
from agent.protocols.scram import (
    MAX_ITERATIONS,
    MAX_KEYS,
    SaltedKeys,
    ScramClient,
    ScramError,
    ScramServer,
    Verifier,
    make_verifier,
    parse_verifier,
    prepare,
)

SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
NONCE = bytes(range(18))
DECOY = bytes(16)
KEY = "A" * 43 + "="
VERIFIER = make_verifier(b"pencil", SALT, 4096)


def exchange(password: bytes, verifier: Verifier | None = VERIFIER) -> None:
    client = ScramClient(password, NONCE, SaltedKeys())
    server = ScramServer(verifier, bytes(reversed(NONCE)), DECOY)
    client.verify(server.final(client.final(server.first(client.first()))))


def test_the_right_password_passes_and_both_sides_are_proven() -> None:
    exchange(b"pencil")


def test_the_example_of_rfc_7677_is_reproduced() -> None:
    verifier = parse_verifier(
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert verifier == VERIFIER
    server = ScramServer(verifier, NONCE, DECOY)
    server.first(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    # The RFC's nonce is not base64 of anything: it is put in where the server keeps its own.
    nonce = b"rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    server._nonce = nonce
    server._first = b"r=" + nonce + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    final = b"c=biws,r=" + nonce + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    assert server.final(final) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize("password", [b"", b"Pencil", b"pencil ", b"\xff\xfe"])
def test_another_password_is_refused_by_its_proof(password: bytes) -> None:
    with pytest.raises(ScramError) as error:
        exchange(password)
    assert error.value.reason == "proof"
    assert "pencil" not in str(error.value)


def test_an_unknown_user_looks_like_a_wrong_password() -> None:
    server = ScramServer(None, NONCE, b"0123456789abcdef")
    again = ScramServer(None, NONCE, b"0123456789abcdef")
    first = ScramClient(b"pencil", NONCE, SaltedKeys()).first()
    assert server.first(first) == again.first(first)
    for password in (b"", b"pencil"):
        with pytest.raises(ScramError) as error:
            exchange(password, None)
        assert error.value.reason == "proof"


def test_a_server_that_does_not_know_the_password_is_found_out() -> None:
    client = ScramClient(b"pencil", NONCE, SaltedKeys())
    server = ScramServer(VERIFIER, NONCE, DECOY)
    server.final(client.final(server.first(client.first())))
    for last in (b"v=" + b"A" * 43 + b"=", b"e=other-error", b"", b"v="):
        with pytest.raises(ScramError):
            client.verify(last)


def test_a_signature_before_any_proof_is_none() -> None:
    client = ScramClient(b"pencil", NONCE, SaltedKeys())
    with pytest.raises(ScramError):
        client.verify(b"v=")


@pytest.mark.parametrize(
    "server_first",
    [
        b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"r={},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",  # adds nothing to our nonce
        b"r={}x,s=,i=4096",
        b"r={}x,s=!!!,i=4096",
        b"r={}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0",
        b"r={}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-1",
        b"r={}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=%d" % (MAX_ITERATIONS + 1),
        b"r={}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=" + b"9" * 2000,
        b"r={}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,m=ext",
        b"m=ext,r={}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"e=unknown-user",
        b"",
        b"r={}" + b"x" * 5000 + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
    ],
)
def test_a_servers_first_message_that_cannot_be_fails_before_any_work(
    server_first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scram, "_salt", lambda *a: pytest.fail("PBKDF2 was run"))
    client = ScramClient(b"pencil", NONCE, SaltedKeys())
    nonce = client.first().partition(b"r=")[2]
    with pytest.raises(ScramError):
        client.final(server_first.replace(b"{}", nonce))


@pytest.mark.parametrize(
    "client_first",
    [
        b"p=tls-server-end-point,,n=,r=abc",
        b"n,a=root,n=,r=abc",
        b"x,,n=,r=abc",
        b"n,,r=abc",
        b"n,,n=,r=",
        b"n,,m=ext,n=,r=abc",
        b"n,,n=,r=" + b"a" * 300,
        b"",
    ],
)
def test_a_clients_first_message_that_asks_for_more_is_refused(client_first: bytes) -> None:
    with pytest.raises(ScramError):
        ScramServer(VERIFIER, NONCE, DECOY).first(client_first)


def test_a_proof_is_good_for_one_exchange_only() -> None:
    client = ScramClient(b"pencil", NONCE, SaltedKeys())
    server = ScramServer(VERIFIER, b"first nonce 123456", DECOY)
    final = client.final(server.first(client.first()))
    server.final(final)
    other = ScramServer(VERIFIER, b"other nonce 123456", DECOY)
    other.first(client.first())
    with pytest.raises(ScramError):
        other.final(final)


def test_a_last_message_must_be_bound_as_the_first_said() -> None:
    client = ScramClient(b"pencil", NONCE, SaltedKeys())
    server = ScramServer(VERIFIER, NONCE, DECOY)
    final = client.final(server.first(client.first().replace(b"n,,", b"y,,", 1)))
    with pytest.raises(ScramError):
        server.final(final)


def test_the_last_message_before_the_first_is_refused() -> None:
    client = ScramClient(b"pencil", NONCE, SaltedKeys())
    server = ScramServer(VERIFIER, NONCE, DECOY)
    final = client.final(server.first(client.first()))
    with pytest.raises(ScramError):
        ScramServer(VERIFIER, NONCE, DECOY).final(final)


@given(st.binary(max_size=120), st.binary(max_size=120))
def test_any_bytes_end_in_a_scram_error(first: bytes, final: bytes) -> None:
    server = ScramServer(VERIFIER, NONCE, DECOY)
    with pytest.raises(ScramError):
        server.first(first)
    with pytest.raises(ScramError):
        server.final(final)
    client = ScramClient(b"pencil", NONCE, SaltedKeys())
    with pytest.raises(ScramError):
        client.final(first)


def test_pbkdf2_is_run_once_for_many_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = scram._salt

    def counted(password: bytes, salt: bytes, iterations: int) -> bytes:
        runs.append(iterations)
        return real(password, salt, iterations)

    monkeypatch.setattr(scram, "_salt", counted)
    keys = SaltedKeys()
    for _ in range(5):
        client = ScramClient(b"pencil", NONCE, keys)
        server = ScramServer(VERIFIER, NONCE, DECOY)
        client.verify(server.final(client.final(server.first(client.first()))))
    assert len(runs) == 1
    for number in range(MAX_KEYS + 5):
        keys.get(b"pencil", bytes([number + 1]), 1)
    assert len(keys._known) == MAX_KEYS


@pytest.mark.parametrize(
    "text",
    [
        "", "pencil", "md5" + "0" * 32, "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA",
        "SCRAM-SHA-1$4096:AAAA$AA==:AA==",
        f"SCRAM-SHA-256$0:W22Z${KEY}:{KEY}",
        f"SCRAM-SHA-256$9999999:W22Z${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096:${KEY}:{KEY}",
        f"SCRAM-SHA-256$4096:W22Z${KEY}",
    ],
)  # fmt: skip
def test_a_verifier_of_another_form_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_verifier(text)
    assert not text or text not in str(error.value)


def test_a_verifier_shows_no_key() -> None:
    assert VERIFIER.stored_key.hex() not in repr(VERIFIER)
    assert repr(VERIFIER.stored_key) not in repr(VERIFIER)


@pytest.mark.parametrize(
    ("given_password", "prepared"),
    [
        (b"pencil", b"pencil"),
        ("I\u00adX".encode(), b"IX"),  # RFC 4013 section 3, example 1
        ("\u00aa".encode(), b"a"),  # example 4
        ("\u2168".encode(), b"IX"),  # example 5
        (b"\x07", b"\x07"),  # forbidden: as it is
        ("\u0627\u0031".encode(), "\u0627\u0031".encode()),  # directions are mixed: as it is
        (b"\xff", b"\xff"),
    ],
)
def test_passwords_are_prepared_as_postgresql_does(given_password: bytes, prepared: bytes) -> None:
    assert prepare(given_password) == prepared
