# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's own clients through Vecward: the same results as directly, and a password they do not have."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.evidence.blocks import read_frames
from tests.servers.postgres import ALLOW_ALL, OBJECTS, OWNER, SECRET, PostgresStage
from tests.servers.postgres_clients import scenarios, verifiers
from tests.servers.postgres_scenarios_names import NAMES


@pytest.fixture(scope="module")
def stage() -> Iterator[PostgresStage]:
    """A database with documents; what the scenarios give directly; then Vecward before it, holding SECRET."""
    with PostgresStage() as made:
        made.start_postgres()
        try:
            made.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS)
            yield made
        finally:
            made.stop()
            made.stop_database()


@pytest.fixture(scope="module")
def directly(stage: PostgresStage) -> dict[str, Any]:
    found = scenarios(stage, NAMES, SECRET)
    found["\\d"] = stage.psql("\\d+ documents")
    found["dump"] = dump(stage, SECRET)
    return found


@pytest.fixture(scope="module")
def guarded(stage: PostgresStage, directly: dict[str, Any]) -> Iterator[PostgresStage]:
    stage.vecward(credential={"user": OWNER, "password": stage.hold("pg", SECRET)})
    yield stage
    stage.stop()


def dump(stage: PostgresStage, password: str | None) -> str:
    text = stage.program("pg_dump", "--no-owner", password=password).stdout
    return "".join(
        line for line in text.splitlines(True) if not line.startswith(("\\restrict", "\\unrestrict"))
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_client_without_a_password_gets_what_it_gets_directly_with_one(
    name: str, directly: dict[str, Any], guarded: PostgresStage
) -> None:
    assert scenarios(guarded, [name], None)[name] == directly[name]


def test_psql_describes_and_pg_dump_dumps_the_same(directly: dict[str, Any], guarded: PostgresStage) -> None:
    assert guarded.psql("\\d+ documents", password=None) == directly["\\d"]
    assert dump(guarded, None) == directly["dump"]


def test_pgbench_runs_without_an_error(guarded: PostgresStage) -> None:
    guarded.program("pgbench", "-i", "-q", "-s", "1", password=None)
    for protocol in ("simple", "extended", "prepared"):
        done = guarded.program("pgbench", "-c", "4", "-T", "3", "-M", protocol, password=None)
        assert "number of failed transactions: 0" in done.stdout, done.stdout


def test_the_password_stands_in_no_evidence_log_or_process(guarded: PostgresStage) -> None:
    said = "what the client sends"
    guarded.psql("SELECT 'recorded in words'", password=said)
    assert SECRET not in guarded.log.read_text()
    for pids in guarded.children().values():
        for pid in pids:
            for name in ("cmdline", "environ"):
                assert SECRET.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    frames = b""  # segments are compressed: what stands in them is searched as it was before
    for file in (guarded.folder / "evidence").rglob("*.seg"):
        with file.open("rb") as segment:
            frames += repr([located.frame for located in read_frames(segment)]).encode()
    assert b"recorded in words" in frames
    assert SECRET.encode() not in frames
    assert said.encode() not in frames


def startup(**parameters: str) -> bytes:
    body = b"".join(k.encode() + b"\0" + v.encode() + b"\0" for k, v in parameters.items()) + b"\0"
    return struct.pack(">II", len(body) + 8, 3 << 16) + body


TALK = """
import socket, sys
parts, until = [bytes.fromhex(p) for p in sys.argv[2:]], bytes.fromhex(sys.argv[1])
with socket.create_connection(("127.0.0.1", 5432), 90) as sock:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found = b""
    try:
        for part in parts:
            sock.sendall(part)
        while (not until or until not in found) and (more := sock.recv(65536)):
            found += more
    except (ConnectionResetError, BrokenPipeError):
        pass
print(found.hex())
"""
READY = b"Z\0\0\0\5I"


def talk(stage: PostgresStage, *parts: bytes, until: bytes = b"") -> bytes:
    """What comes back for these bytes, up to `until` or the end of the connection."""
    done = stage.client(TALK, until.hex(), *(part.hex() for part in parts), user="nobody")
    return bytes.fromhex(done.stdout.decode())


def sqlstate(answer: bytes) -> str:
    found = re.search(rb"\0C([0-9A-Z]{5})\0", answer)
    return found[1].decode() if found else ""


def test_a_session_is_opened_byte_by_byte(guarded: PostgresStage) -> None:
    packet = struct.pack(">II", 8, 80877104) + struct.pack(">II", 8, 80877103) + startup(user=OWNER)
    answer = talk(guarded, *(bytes([b]) for b in packet), until=READY)
    assert answer.startswith(b"NN" + b"R\0\0\0\x08\0\0\0\0")
    assert b"server_version" in answer


AHEAD = """
import socket, struct, sys
def query(text):
    return b"Q" + struct.pack(">I", 5 + len(text)) + text + b"\\0"
with socket.create_connection(("127.0.0.1", 5432), 90) as sock:
    sock.sendall(bytes.fromhex(sys.argv[1]))
    one = query(b"SET application_name = '" + b"x" * 4000 + b"'")
    sock.sendall(one * 1000 + query(b"SELECT 'the last'") + b"X\\0\\0\\0\\4")
    found = b""
    while more := sock.recv(65536):
        found += more
print(found.count(b"Z\\0\\0\\0\\5I"), b"the last" in found, b"FATAL" in found)
"""


def test_a_client_far_ahead_of_what_must_be_waited_for_is_answered_in_the_end(guarded: PostgresStage) -> None:
    """4 MB behind statements after which nothing may be judged before they were answered."""
    done = guarded.client(AHEAD, startup(user=OWNER).hex(), user="nobody")
    assert done.stdout.split() == [b"1002", b"True", b"False"]


def test_what_cannot_be_a_session_is_refused_with_its_reason(guarded: PostgresStage) -> None:
    assert sqlstate(talk(guarded, startup(user=OWNER, replication="database"))) == "42501"
    assert sqlstate(talk(guarded, startup(database="postgres"))) == "28000"
    assert sqlstate(talk(guarded, startup(user="x" * 64))) == "08P01"
    assert sqlstate(talk(guarded, startup(user=OWNER, database="missing"))) == "3D000"
    assert sqlstate(talk(guarded, struct.pack(">II", 9, 2 << 16) + b"\0")) == "08P01"


def test_a_client_cannot_choose_whose_session_the_held_credential_opens(guarded: PostgresStage) -> None:
    asked = guarded.psql("SELECT session_user", password=None, environment={"PGUSER": "nobody_there"})
    assert asked == f"{OWNER}\n"


def test_a_later_protocol_is_talked_down_and_its_cancel_key_works(guarded: PostgresStage) -> None:
    late = bytearray(startup(user=OWNER))
    late[6:8] = (9).to_bytes(2, "big")
    answer = talk(guarded, bytes(late), until=READY)
    assert answer.startswith(b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0R")
    key = answer[answer.index(b"K\0\0\0") :]
    (length,) = struct.unpack_from(">I", key, 1)
    assert length > 12  # longer than protocol 3.0 has them


def test_a_foreign_cancel_key_cancels_nothing_and_is_recorded(guarded: PostgresStage) -> None:
    assert talk(guarded, struct.pack(">III", 16, 80877102, 1) + b"none") == b""
    assert guarded.psql("SELECT 1", password=None) == "1\n"


def test_the_database_may_go_in_any_phase(guarded: PostgresStage) -> None:
    """The backend is ended while the client runs a statement; the client hears of it and can come again."""
    text = "SELECT pg_terminate_backend(pg_backend_pid())"
    done = guarded.program("psql", "-X", "-c", text, password=None, check=False)
    assert done.returncode == 2
    assert guarded.psql("SELECT 1", password=None) == "1\n"


# -- who the client is ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def vecward(stage: PostgresStage, **guard: object) -> Iterator[None]:
    stage.stop()
    stage.vecward(**guard)  # type: ignore[arg-type]
    try:
        yield
    finally:
        stage.stop()


def test_a_client_proves_its_own_password_and_works_as_the_guards_user(stage: PostgresStage) -> None:
    held = {
        "user": OWNER, "password": stage.hold("pg", SECRET), "verifiers": verifiers(stage, ada="lovelace"),
    }  # fmt: skip
    with vecward(stage, credential=held, auth="password"):
        ada = {"PGUSER": "ada"}
        asked = stage.psql("SELECT current_user, current_database()", password="lovelace", environment=ada)
        assert asked == f"{OWNER}|postgres\n"
        for user, password in (("ada", "wrong"), ("ada", SECRET), ("mallory", "lovelace"), (OWNER, SECRET)):
            done = stage.program(
                "psql", "-X", "-c", "SELECT 1", password=password, environment={"PGUSER": user}, check=False
            )
            assert done.returncode == 2, (user, password)
            assert f'password authentication failed for user "{user}"' in done.stderr


def test_what_the_database_says_of_the_held_credential_is_not_told(stage: PostgresStage) -> None:
    with vecward(stage, credential={"user": OWNER, "password": stage.hold("old", "changed meanwhile")}):
        answer = talk(stage, startup(user="ada", database="postgres"))
        assert sqlstate(answer) == "28000"
        assert b"the credential that the guard holds" in answer
        assert OWNER.encode() not in answer


def test_without_a_held_credential_clients_authenticate_themselves(stage: PostgresStage) -> None:
    with vecward(stage):
        assert stage.psql("SELECT current_user") == f"{OWNER}\n"
        done = stage.program("psql", "-X", "-c", "SELECT 1", password="wrong", check=False)
        assert done.returncode == 2
        assert "password authentication failed" in done.stderr


def test_who_has_no_rule_cannot_open_a_session_or_cancel_one(stage: PostgresStage) -> None:
    policy = ALLOW_ALL.replace("what:", "who: {user: root}\n    what:")
    with vecward(stage, policy=policy, credential={"user": OWNER, "password": stage.hold("pg", SECRET)}):
        assert stage.psql("SELECT count(*) FROM documents WHERE id < 5", password=None) == "4\n"
        done = stage.program("psql", "-X", "-c", "SELECT 1", user="nobody", password=None, check=False)
        assert done.returncode == 2
        assert "no rule" in done.stderr or "allow" in done.stderr


def test_observe_changes_nothing_and_sees_who_asked_what(stage: PostgresStage) -> None:
    with vecward(stage, mode="observe"):
        assert stage.psql("SELECT count(*) FROM documents") == "500\n"
        assert scenarios(stage, ["psycopg"], SECRET)["psycopg"]
