# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL session from its first byte: what is forwarded, said and refused, at every cut."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import pytest

from agent.protocols.postgres import PostgresSession
from agent.protocols.postgres_auth import Custody
from agent.protocols.postgres_messages import (
    Back,
    Framer,
    message,
    parameter_status,
    read_startup,
    server_limits,
)
from agent.protocols.scram import SaltedKeys, ScramClient, ScramServer, make_verifier
from agent.protocols.session import Bounds, Intent, Output, ProtocolError, Result, Secured, TlsTerms
from policy.login import ANY_LOGIN, CANCEL_METHOD, Login, recorded_login
from policy.model import Action, Verdict
from policy.operation import Operation
from tests.unit.protocols.fake_sql import ALLOW, DENY, FakeSqlEngine, SpyJudge

SSL = struct.pack(">II", 8, 80877103)
GSS = struct.pack(">II", 8, 80877104)
CANCEL = struct.pack(">III", 16, 80877102, 77) + b"keys"
OK = message(Back.AUTHENTICATION, bytes(4))
KEY = message(Back.BACKEND_KEY_DATA, b"\0\0\0\7abcd")
READY = message(Back.READY_FOR_QUERY, b"I")
SETTLED = parameter_status("server_version", "18.4") + KEY + READY
VERIFIER = make_verifier(b"lovelace", b"0123456789abcdef", 4096)
DATABASE = make_verifier(b"held", b"fedcba9876543210", 4096)


def nonce(size: int) -> bytes:
    return bytes(range(size))


def startup(**parameters: str) -> bytes:
    body = b"".join(k.encode() + b"\0" + v.encode() + b"\0" for k, v in parameters.items()) + b"\0"
    return struct.pack(">II", len(body) + 8, 3 << 16) + body


def judge(verdict: Verdict) -> Any:
    class _Judge:
        def __call__(self, operation: Operation) -> Verdict:
            return verdict

        def reads_body(self, operation: Operation) -> bool:
            return True

        def begin(self, login: Login) -> None:
            pass

    return _Judge()


def session(
    auth: Any = "relay", verdict: Verdict = ALLOW, terms: TlsTerms | None = None, **custody: Any
) -> PostgresSession:
    held = Custody(auth=auth, decoy=b"decoy", **custody)
    return PostgresSession(FakeSqlEngine(), judge(verdict), "pg", Bounds(), held, nonce, terms)


def join(outputs: list[Output]) -> tuple[bytes, bytes, list[Any], str]:
    """(to the database, to the client, records, close)."""
    server = b"".join(b"".join(o.to_server) for o in outputs)
    client = b"".join(b"".join(o.to_client) for o in outputs)
    closes = [o.close for o in outputs if o.close != "no"]
    return server, client, [r for o in outputs for r in o.records], closes[0] if closes else "no"


def in_pieces(method: Callable[[bytes], Output], data: bytes, size: int) -> list[Output]:
    return [method(data[at : at + size]) for at in range(0, len(data), size)]


def request(code: int, rest: bytes = b"") -> bytes:
    return message(Back.AUTHENTICATION, struct.pack(">I", code) + rest)


def password(data: bytes) -> bytes:
    return message(ord("p"), data)


def sqlstate(client: bytes) -> str:
    found = re.search(rb"\0C([0-9A-Z]{5})\0", client)
    return found[1].decode() if found else ""


ASK = startup(user="ada", database="vectors", application_name="unit")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_relayed_session_begins_the_same_wherever_it_is_cut(size: int) -> None:
    made = session()
    server, client, records, close = join(in_pieces(made.client_data, GSS + SSL + ASK, size))
    assert (server, client, close) == (ASK, b"NN", "no")
    assert [type(r) for r in records] == [Intent]
    assert records[0].operation.actions == {Action.SESSION}
    assert records[0].head == {
        "user": "ada", "database": "vectors", "protocol": "3.0", "auth": "relay", "application_name": "unit",
    }  # fmt: skip
    assert records[0].body is None
    server, client, _, _ = join(in_pieces(made.server_data, request(5, b"salt"), size))
    assert client == request(5, b"salt")
    assert join(in_pieces(made.client_data, password(b"md5x\0"), size))[0] == password(b"md5x\0")
    _, client, records, _ = join(in_pieces(made.server_data, OK + SETTLED, size))
    assert client == OK + SETTLED
    assert [r.outcome for r in records] == ["answered"]


@pytest.mark.parametrize(
    ("custody", "asked", "login"),
    [
        ({}, {"user": "ada", "database": "vectors"}, Login("ada", "vectors")),
        ({}, {"user": "ada"}, Login("ada", "ada")),
        ({}, {"user": "ada", "database": ""}, Login("ada", "ada")),
        ({"auth": "identity", "user": "held", "password": b"x"}, {"user": "ada"}, Login("ada", "ada")),
    ],
)
def test_the_judge_is_told_whom_the_client_named_before_it_judges_the_session(
    custody: dict[str, Any], asked: dict[str, str], login: Login
) -> None:
    held = Custody(**{"auth": "relay", "decoy": b"", **custody})
    spy = SpyJudge()
    made = PostgresSession(FakeSqlEngine(), spy, "pg", Bounds(), held, nonce)
    out = made.client_data(startup(**asked))
    assert (spy.logins, len(spy.asked)) == ([login], 1)
    (intent,) = out.records
    assert isinstance(intent, Intent)
    assert recorded_login("pgvector", intent.head) == login
    assert intent.head.get("upstream-user") == custody.get("user")


def test_a_cancel_names_nobody() -> None:
    spy = SpyJudge()
    made = PostgresSession(FakeSqlEngine(), spy, "pg", Bounds(), Custody(auth="relay", decoy=b""), nonce)
    made.client_data(CANCEL)
    assert spy.logins == [ANY_LOGIN]
    assert [operation.method for operation in spy.asked] == [CANCEL_METHOD]


@pytest.mark.parametrize(
    ("parameters", "admin"),
    [
        ({"role": "owner"}, True),
        ({"Role": "owner"}, True),
        ({"session_authorization": "owner"}, True),
        ({"options": "-c role=owner"}, True),
        ({"options": "-crole=owner"}, True),
        ({"options": "-c search_path=a --role=owner"}, True),
        ({"options": "--session-authorization=owner"}, True),
        ({"options": "-c \\r\\ole=owner"}, True),
        ({"options": "-E -c ROLE=owner"}, True),
        ({"options": "-c search_path=roles -c app.role=x", "application_name": "role=owner"}, False),
    ],
)
def test_to_begin_with_the_rights_of_another_role_is_an_administrators(
    parameters: dict[str, str], admin: bool
) -> None:
    spy = SpyJudge()
    made = PostgresSession(FakeSqlEngine(), spy, "pg", Bounds(), Custody(auth="relay", decoy=b""), nonce)
    made.client_data(startup(user="ada", **parameters))
    assert [Action.ADMIN in operation.actions for operation in spy.asked] == [admin]


def test_identity_alone_lets_a_client_in_and_scram_is_the_guards() -> None:
    made = session("identity", user="app", password=b"held", keys=SaltedKeys())
    server, client, _, _ = join([made.client_data(ASK)])
    packet = read_startup(server)
    assert packet is not None
    assert dict(packet[0].parameters) == {  # type: ignore[union-attr]
        b"user": b"app", b"database": b"vectors", b"application_name": b"unit",
    }  # fmt: skip
    database = ScramServer(DATABASE, b"of the database 123", b"")
    server, client, _, _ = join([made.server_data(request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))])
    assert client == b""
    first = server.partition(b"SCRAM-SHA-256\0")[2][4:]
    server, client, _, _ = join([made.server_data(request(11, database.first(first)))])
    proof = server[5:]
    assert client == b""
    _, client, records, _ = join([made.server_data(request(12, database.final(proof)) + OK + SETTLED)])
    assert client == OK + SETTLED
    assert records[-1].head == {"upstream-auth": "scram-sha-256"}
    assert b"held" not in server


def test_a_database_that_skips_its_proof_is_not_believed() -> None:
    made = session("identity", password=b"held")
    made.client_data(ASK)
    made.server_data(request(10, b"SCRAM-SHA-256\0\0"))
    with pytest.raises(ProtocolError) as error:
        made.server_data(OK)
    assert error.value.reason == "auth-unproven"


@pytest.mark.parametrize(("code", "answer"), [(3, b"held\0"), (5, None)])
def test_older_methods_are_answered_with_what_is_held(code: int, answer: bytes | None) -> None:
    made = session("identity", password=b"held")
    made.client_data(ASK)
    server, client, _, _ = join([made.server_data(request(code, b"salt" if code == 5 else b""))])
    assert client == b""
    assert server.startswith(b"p")
    if answer is not None:
        assert server == password(answer)
    else:
        assert server[5:8] == b"md5"
        assert len(server) == 5 + 36


def test_what_the_guard_does_not_hold_is_not_asked_of_the_client() -> None:
    made = session("identity")
    made.client_data(ASK)
    server, client, records, close = join([made.server_data(request(3))])
    assert (server, sqlstate(client), close) == (b"", "28000", "both")
    assert records[-1].outcome == "refused"


def prove(made: PostgresSession, secret: bytes) -> tuple[bytes, bytes, list[Any], str]:
    _, client, _, _ = join([made.server_data(OK + SETTLED)])
    assert client == request(10, b"SCRAM-SHA-256\0\0")
    mine = ScramClient(secret, b"of the client 12345", SaltedKeys())
    first = mine.first()
    initial = b"SCRAM-SHA-256\0" + struct.pack(">I", len(first)) + first
    _, client, _, _ = join([made.client_data(password(initial))])
    return join([made.client_data(password(mine.final(client[9:])))])


def test_a_client_is_in_only_when_its_own_password_is_proven() -> None:
    made = session("password", verifiers={"ada": VERIFIER})
    made.client_data(ASK)
    _, client, _, close = prove(made, b"lovelace")
    framer = Framer("server", server_limits(1 << 20))
    framer.feed(client)
    kinds = []
    while (found := framer.take()) is not None:
        kinds.append(chr(found.kind))
    assert kinds == ["R", "R", "S", "K", "Z"]
    assert close == "no"


@pytest.mark.parametrize(("user", "secret"), [("ada", b"wrong"), ("mallory", b"lovelace")])
def test_a_wrong_password_and_an_unknown_user_end_alike(user: str, secret: bytes) -> None:
    made = session("password", verifiers={"ada": VERIFIER})
    made.client_data(startup(user=user))
    server, client, records, close = prove(made, secret)
    assert (server, sqlstate(client), close) == (b"", "28P01", "both")
    assert OK not in client
    assert records[-1].outcome == "refused"


def test_nothing_is_forwarded_that_the_judge_denies() -> None:
    for packet in (ASK, CANCEL):
        made = session(verdict=DENY)
        server, client, records, close = join([made.client_data(packet)])
        assert (server, close) == (b"", "both")
        assert [type(r) for r in records] == [Intent, Result]
        assert sqlstate(client) == ("42501" if packet is ASK else "")


def test_a_cancel_is_forwarded_as_it_came_and_ends_with_the_database() -> None:
    made = session()
    server, client, records, _ = join(in_pieces(made.client_data, CANCEL, 1))
    assert (server, client) == (CANCEL, b"")
    assert b"keys" not in repr(records).encode()
    assert made.client_eof().close == "no"  # the database still has to read it
    out = made.server_eof()
    assert out.close == "both"
    assert [r.outcome for r in out.records if isinstance(r, Result)] == ["answered"]


@pytest.mark.parametrize("said", [b"", OK, OK + SETTLED[:-1]])
def test_a_client_is_told_of_a_database_that_is_lost_before_the_session_begins(said: bytes) -> None:
    made = session()
    told = [made.is_opening]  # nobody asked for anything
    made.client_data(ASK)
    if said:
        made.server_data(said)
    told.append(made.is_opening)
    _, client, records, close = join([made.server_eof()])
    assert (sqlstate(client), close) == ("08006", "both")
    assert [r.outcome for r in records if isinstance(r, Result)] == ["refused"]
    assert [*told, made.is_opening] == [False, True, False]
    assert join([made.server_eof(), made.client_data(b"more")])[1] == b""


@pytest.mark.parametrize(
    ("packet", "state"),
    [
        (startup(user="ada", replication="true"), "42501"),
        (startup(user="ada", replication="database"), "42501"),
        (startup(user="ada", replication="on"), "42501"),
        (startup(database="vectors"), "28000"),
        (startup(user="x" * 64), "08P01"),
        (startup(user="ada", database="y" * 64), "08P01"),
        (startup(user="ada", Search_Path="a", search_path="b"), "08P01"),
    ],
)
def test_a_startup_that_would_be_another_ones_is_refused_before_the_judge(packet: bytes, state: str) -> None:
    server, client, _, close = join([session().client_data(packet)])
    assert (server, sqlstate(client), close) == (b"", state, "both")


def test_replication_that_is_said_to_be_off_is_no_replication() -> None:
    packet = startup(user="ada", replication="off")
    assert join([session().client_data(packet)])[0] == packet


def test_what_the_database_says_of_the_held_credential_stays_here() -> None:
    made = session("identity", user="app", password=b"held")
    made.client_data(ASK)
    fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "app"\0\0'
    _, client, records, close = join([made.server_data(message(Back.ERROR, fields))])
    assert (sqlstate(client), close) == ("28000", "both")
    assert b"app" not in client
    assert records[-1].outcome == "failed"


def test_the_clients_answer_is_passed_only_when_it_was_asked_for() -> None:
    made = session()
    made.client_data(ASK)
    with pytest.raises(ProtocolError):
        made.client_data(password(b"early\0"))
    made = session()
    made.client_data(ASK)
    made.server_data(request(3))
    made.client_data(password(b"once\0"))
    with pytest.raises(ProtocolError):
        made.client_data(password(b"twice\0"))


def test_channel_binding_is_taken_out_of_what_is_offered() -> None:
    made = session()
    made.client_data(ASK)
    _, client, _, _ = join([made.server_data(request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"))])
    assert client == request(10, b"SCRAM-SHA-256\0\0")
    made = session()
    made.client_data(ASK)
    with pytest.raises(ProtocolError):
        made.server_data(request(10, b"SCRAM-SHA-256-PLUS\0\0"))


# -- TLS -------------------------------------------------------------------------------------------------


def stands(side: Any, alpn: str | None = None) -> Secured:
    return Secured(side, "TLSv1.3", "TLS_AES_256_GCM_SHA384", alpn, None, b"")


def test_tls_is_agreed_on_and_the_session_begins_inside() -> None:
    made = session(terms=TlsTerms("offered"))
    out = made.client_data(SSL)
    assert (out.to_client, out.secure) == ([b"S"], "client")
    assert made.begin_tls("client") == b""
    assert made.secured(stands("client")).to_server == []
    assert join([made.client_data(ASK)])[0] == ASK


def test_plain_bytes_behind_an_ssl_request_are_never_taken_for_encrypted_ones() -> None:
    made = session(terms=TlsTerms("offered"))
    assert made.client_data(SSL + ASK).secure == "client"
    with pytest.raises(ProtocolError) as error:
        made.begin_tls("client")
    assert error.value.reason == "plain-before-tls"


def test_direct_tls_needs_its_application_protocol() -> None:
    hello = b"\x16\x03\x01\x00\x05hello"
    for alpn, fine in (("postgresql", True), ("http/1.1", False), (None, False)):
        made = session(terms=TlsTerms("offered"))
        assert made.client_data(hello).secure == "client"
        assert made.begin_tls("client") == hello
        if fine:
            made.secured(stands("client", alpn))
            assert join([made.client_data(ASK)])[0] == ASK
        else:
            with pytest.raises(ProtocolError):
                made.secured(stands("client", alpn))


def test_where_tls_is_required_a_plain_startup_is_refused_and_a_cancel_is_not() -> None:
    made = session(terms=TlsTerms("required"))
    assert sqlstate(join([made.client_data(ASK)])[1]) == "28000"
    assert join([session(terms=TlsTerms("required")).client_data(CANCEL)])[0] == CANCEL


def test_tls_towards_the_database_comes_before_the_startup() -> None:
    made = session(terms=TlsTerms(server=True))
    assert join([made.client_data(ASK)])[0] == SSL
    assert made.server_data(b"S").secure == "server"
    assert made.begin_tls("server") == b""
    assert join([made.secured(stands("server"))])[0] == ASK


@pytest.mark.parametrize("answer", [b"SR", b"E", b"X"])
def test_a_database_that_stuffs_its_answer_is_not_believed(answer: bytes) -> None:
    made = session(terms=TlsTerms(server=True))
    made.client_data(ASK)
    with pytest.raises(ProtocolError):
        made.server_data(answer)


def test_a_database_without_tls_is_not_spoken_to_in_the_clear() -> None:
    made = session(terms=TlsTerms(server=True))
    made.client_data(ASK)
    server, client, _, close = join([made.server_data(b"N")])
    assert (server, sqlstate(client), close) == (b"", "08006", "both")


def test_tls_that_fails_before_the_database_has_spoken_is_a_connection_that_failed() -> None:
    made = [session(terms=TlsTerms(server=True)) for _ in range(3)]
    for one in made:
        one.client_data(ASK)
        one.server_data(b"S")
    for one in made[1:]:
        one.secured(stands("server"))
    made[2].server_data(request(5, b"salt"))
    found = [one.refuse_all("TLS failed") for one in made]
    assert [sqlstate(join([out])[1]) for out in found] == ["08006", "08006", "08P01"]
    assert [out.records[0].head["sqlstate"] for out in found] == [  # type: ignore[union-attr]
        "08006", "08006", "08P01",
    ]  # fmt: skip


def secured_session(**how: Any) -> PostgresSession:
    made = session(terms=TlsTerms(server=True, presents=True), **how)
    made.client_data(ASK)
    made.server_data(b"S")
    made.secured(stands("server"))
    return made


def test_a_certificate_alone_is_a_held_credential() -> None:
    _, client, records, _ = join([secured_session(auth="identity", user="app").server_data(OK + SETTLED)])
    assert client == OK + SETTLED
    assert [r.outcome for r in records] == ["answered"]


def test_the_guards_certificate_lets_in_no_client_that_should_prove_itself() -> None:
    _, client, records, close = join([secured_session(auth="relay").server_data(OK + SETTLED)])
    assert (sqlstate(client), close) == ("28000", "both")
    assert OK not in client
    assert [(r.outcome, r.head["reason"]) for r in records] == [("refused", "upstream-credential")]
    asked = secured_session(auth="relay")
    asked.server_data(request(5, b"salt"))
    asked.client_data(password(b"md5x\0"))
    assert join([asked.server_data(OK + SETTLED)])[1] == OK + SETTLED


def test_the_database_may_not_speak_before_it_was_asked() -> None:
    with pytest.raises(ProtocolError):
        session().server_data(READY)


def test_a_session_that_is_cut_leaves_its_abort() -> None:
    made = session()
    made.client_data(ASK)
    assert [r.reason for r in made.abandon("killed").records] == ["killed"]  # type: ignore[union-attr]
    assert made.abandon("again").records == []


# -- what is recorded and held -----------------------------------------------------------------------------


def test_a_startup_that_is_refused_before_its_rules_is_on_record_too() -> None:
    for made, packet, reason in (
        (session(), startup(user="ada", replication="on"), "replication"),
        (session(terms=TlsTerms("required")), ASK, "tls-required"),
    ):
        server, _, records, close = join([made.client_data(packet)])
        assert (server, close) == (b"", "both")
        assert [type(r) for r in records] == [Intent, Result]
        assert records[0].verdict.outcome == "deny"
        assert (records[1].outcome, records[1].head["reason"]) == ("refused", reason)


def test_an_answer_that_is_lost_with_an_error_leaves_no_exchange_open() -> None:
    """What waits behind the startup is no message: nobody sees the output that said how the startup ended."""
    made = session("identity", user="app")
    made.client_data(ASK + message(ord("p"), b"never asked for\0"))
    made.server_data(OK + parameter_status("server_version", "18.4"))
    with pytest.raises(ProtocolError):
        made.server_data(READY)
    ended: list[Any] = made.refuse_all("over").records + made.abandon("over").records
    ends = [r.n for r in ended]
    assert ends == [1]


EXTENSION = startup(**{"user": "ada", "_pq_.future": "on"})


def test_an_extension_of_the_protocol_never_reaches_the_database() -> None:
    made = session()
    server, _, _, _ = join([made.client_data(EXTENSION)])
    assert server == startup(user="ada", database="ada")
    own = b"\0\3\0\0" + struct.pack(">I", 1) + b"_pq_.future\0"
    assert join([made.server_data(OK)])[1] == message(Back.NEGOTIATE_VERSION, own) + OK


def test_a_database_that_talks_down_itself_does_it_in_one_message() -> None:
    made = session()
    late = bytearray(EXTENSION)
    late[6:8] = (2).to_bytes(2, "big")
    made.client_data(bytes(late))
    _, client, _, _ = join([made.server_data(message(Back.NEGOTIATE_VERSION, b"\0\3\0\0" + bytes(4)) + OK)])
    own = b"\0\3\0\0" + struct.pack(">I", 1) + b"_pq_.future\0"
    assert client == message(Back.NEGOTIATE_VERSION, own) + OK
    made = session()
    made.client_data(ASK)
    with pytest.raises(ProtocolError):
        made.server_data(message(Back.NEGOTIATE_VERSION, b"\0\3\0\0"))


def test_a_drain_waits_for_a_startup_and_not_for_a_connection_that_says_nothing() -> None:
    made: Any = session()
    assert not made.is_reading
    made.client_data(ASK[:5])
    assert made.is_reading
    made.client_data(ASK[5:])
    assert made.is_reading


def test_a_client_that_runs_ahead_of_its_startup_is_not_read_on() -> None:
    made = session("identity", user="app")
    made.client_data(ASK)
    assert not made.waits
    made.client_data(message(ord("Q"), b"x" * 200_000 + b"\0"))
    assert made.waits
