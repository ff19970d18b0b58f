# SPDX-License-Identifier: Apache-2.0
"""TLS on both sides of a guard before the real PostgreSQL with `ssl = on`: what is promised to each holds."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.ca import create, issue
from agent.protocols.postgres_messages import Back
from tests.servers.postgres import OBJECTS, OWNER, SECRET, PostgresStage
from tests.servers.postgres_clients import scenarios, verifiers
from tests.servers.postgres_wire import Wire, errors
from tests.servers.raw import endings, wait_until

SCENARIOS = ("psycopg", "copy", "pipeline", "cancel", "asyncpg")  # the others ask nothing of TLS
# For each connection string: whether the client's TLS and the database's stand, or the error.
CONNECT = """
import json, sys, psycopg
for how in json.loads(sys.argv[1]):
    try:
        with psycopg.connect("host=127.0.0.1 dbname=postgres " + how) as c:
            row = c.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
            said = [c.pgconn.ssl_in_use, row[0]]
    except psycopg.Error as error:
        said = str(error)
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[PostgresStage]:
    with PostgresStage(build="tls") as made:
        made.start_postgres()
        try:
            made.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=OBJECTS)
            create(made.folder / "stranger", "Test CA")
            issue(made.folder / "stranger", "db", ("127.0.0.1",))
            yield made
        finally:
            made.stop()
            made.stop_database()


@pytest.fixture(scope="module")
def directly(stage: PostgresStage) -> dict[str, Any]:
    return scenarios(stage, SCENARIOS, SECRET, **trusting(stage))


@pytest.fixture(scope="module")
def guarded(stage: PostgresStage, directly: dict[str, Any]) -> Iterator[PostgresStage]:
    """It shows the database's own certificate, verifies the database's, and holds the password."""
    with vecward(stage, verify(stage)):
        yield stage


def trusting(stage: PostgresStage) -> dict[str, str]:
    return {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(stage.authority)}


def verify(stage: PostgresStage) -> dict[str, str]:
    return {"server": "verify", "ca": str(stage.authority)}


@contextlib.contextmanager
def vecward(
    stage: PostgresStage, tls: dict[str, str], credential: dict[str, str] | None = None, **guard: Any
) -> Iterator[None]:
    stage.stop()
    held = {"user": OWNER, "password": stage.hold("pg", SECRET)} | (credential or {})
    if guard.get("auth") != "relay":
        guard["credential"] = held
    stage.vecward(tls=stage.certificate | tls, **guard)
    try:
        yield
    finally:
        stage.stop()


def connect(stage: PostgresStage, *how: str, user: str = OWNER) -> list[Any]:
    words = [f"user={user} {one}" for one in how]
    done = stage.client(CONNECT, json.dumps(words), user="nobody")
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(stage: PostgresStage) -> list[str]:
    """SQLSTATEs of what a session that may not start is told, by a client without TLS or password."""

    def run() -> list[str]:
        with Wire() as wire:
            wire.startup()
            return errors(wire.until(Back.ERROR, Back.READY_FOR_QUERY))

    found: list[str] = stage.arena.run(run, user="nobody")
    return found


def test_each_sslmode_means_what_it_says_and_the_database_is_spoken_to_over_tls(
    guarded: PostgresStage,
) -> None:
    own, strange = guarded.authority, guarded.folder / "stranger" / "ca.crt"
    found = connect(
        guarded,
        "sslmode=disable",
        "sslmode=allow",
        "sslmode=prefer",
        "sslmode=require",
        f"sslmode=verify-ca sslrootcert={own}",
        f"sslmode=verify-full sslrootcert={own}",
        f"sslmode=verify-full sslnegotiation=direct sslrootcert={own}",
        f"sslmode=verify-ca sslrootcert={strange}",
        f"sslmode=verify-full sslnegotiation=direct sslrootcert={strange}",
    )
    assert found[:7] == [[False, True]] * 2 + [[True, True]] * 5
    assert all("certificate verify failed" in error for error in found[7:])
    sessions = guarded.json("sessions", "--limit", "100")
    assert [one["tls"] for one in sessions if one["requests"]].count(True) == 5
    wait_until(lambda: endings(guarded)["tls-tlsv1-alert-unknown-ca"] == 2, what="the refused ends")


def test_clients_get_over_tls_what_they_get_directly_over_tls(
    directly: dict[str, Any], guarded: PostgresStage
) -> None:
    assert scenarios(guarded, SCENARIOS, None, **trusting(guarded)) == directly


BINDING = "sslmode=require channel_binding=require"


def test_channel_binding_is_not_offered_and_who_insists_on_it_is_not_let_in(guarded: PostgresStage) -> None:
    [required, preferred] = connect(guarded, BINDING, "sslmode=require channel_binding=prefer")
    assert "channel binding required" in required
    assert preferred == [True, True]


def test_nor_to_clients_that_prove_a_password_of_their_own(stage: PostgresStage) -> None:
    """The database offers SCRAM-SHA-256-PLUS on these connections: directly, who insists is let in."""
    stage.stop()
    assert connect(stage, f"password={SECRET} {BINDING}") == [[True, True]]
    with vecward(stage, verify(stage), {"verifiers": verifiers(stage, ada="lovelace")}, auth="password"):
        own = [f"password=lovelace {BINDING}", "password=lovelace sslmode=require"]
        [required, preferred] = connect(stage, *own, user="ada")
    assert "channel binding is required" in required
    assert preferred == [True, True]


def test_relayed_authentication_with_tls_on_both_sides_needs_a_client_that_does_not_bind(
    stage: PostgresStage,
) -> None:
    """libpq says that it could have bound, and the database that it offered to: a downgrade, to both."""
    with vecward(stage, verify(stage), auth="relay"):
        [default, off, wrong, require] = connect(
            stage,
            f"password={SECRET} sslmode=require",
            f"password={SECRET} sslmode=require channel_binding=disable",
            "password=wrong sslmode=require channel_binding=disable",
            f"password={SECRET} sslmode=require channel_binding=require",
        )
        assert scenarios(stage, ["asyncpg"], SECRET, PGSSLMODE="require")
    assert "SCRAM channel binding negotiation error" in default
    assert off == [True, True]
    assert "password authentication failed" in wrong
    assert "channel binding is required" in require
    with vecward(stage, {}, auth="relay"):  # and without TLS towards a database on the same host
        assert connect(stage, f"password={SECRET} sslmode=require") == [[True, False]]


def test_a_database_that_is_not_who_it_should_be_is_not_spoken_to(stage: PostgresStage) -> None:
    strange = str(stage.folder / "stranger" / "ca.crt")
    for tls, reason in (
        ({"server": "verify", "ca": strange}, "tls-certificate"),
        (verify(stage) | {"server_name": "db.example.org"}, "tls-certificate"),
        ({"server": "require"}, None),
    ):
        with vecward(stage, tls):
            before = endings(stage)
            [found] = connect(stage, "sslmode=require")
            state = refusal(stage) if reason else []
        if reason is None:
            assert found == [True, True]
        else:
            assert "the database" in found
            assert state == ["08006"]
            assert reason in endings(stage) - before


@contextlib.contextmanager
def _no_tls(stage: PostgresStage) -> Iterator[None]:
    def turn(ssl: str) -> None:
        stage.psql(f"ALTER SYSTEM SET ssl = {ssl}")
        stage.psql("SELECT pg_reload_conf()")
        wait_until(lambda: stage.psql("SHOW ssl") == f"{ssl}\n", what=f"ssl = {ssl}")

    turn("off")
    try:
        yield
    finally:
        turn("on")


def test_a_database_without_tls_is_not_spoken_to_in_the_clear(stage: PostgresStage) -> None:
    with _no_tls(stage), vecward(stage, verify(stage)):
        [found] = connect(stage, "sslmode=require")
    assert "the database does not speak TLS" in found


# -- a certificate of the guard's own ----------------------------------------------------------------------

SHOWN = "SELECT session_user, client_dn, client_serial FROM pg_stat_ssl WHERE pid = pg_backend_pid()"


@contextlib.contextmanager
def _asking(stage: PostgresStage, method: str) -> Iterator[Path]:
    """The database asks whoever comes for a certificate of its authority; gives the folder of its files."""
    rules = stage.data / "pg_hba.conf"
    before = rules.read_text()
    ca = stage.authority.parent
    stage.stop()
    stage.psql(f"ALTER SYSTEM SET ssl_ca_file = '{stage.authority}'")
    stage.psql("DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")

    def turn(text: str, asked: bool) -> None:
        def holds() -> bool:
            done = stage.program("psql", "-X", "-c", "SELECT 1", check=False)
            return ("requires a valid client certificate" in done.stderr) is asked

        rules.write_text(text)
        stage.database.send_signal(signal.SIGHUP)
        wait_until(holds, what="the new pg_hba.conf")

    for name in ("app", "other", OWNER):
        if not (ca / f"{name}.crt").exists():
            issue(ca, name, role="client")
    turn(f"hostssl all all 127.0.0.1/32 {method} clientcert=verify-full\n", asked=True)
    try:
        yield ca
    finally:
        stage.stop()
        turn(before, asked=False)


def _presenting(stage: PostgresStage, folder: Path, name: str) -> dict[str, str]:
    shown = {"present_cert": str(folder / f"{name}.crt"), "present_key": str(folder / f"{name}.key")}
    return verify(stage) | shown


def _shown(stage: PostgresStage) -> list[str]:
    """User, subject and serial number that the database knows of a client without password or certificate."""
    return stage.psql(SHOWN, user="nobody", password=None).strip().split("|")


def test_the_guards_certificate_is_enough_where_the_database_asks_for_nothing_else(
    stage: PostgresStage,
) -> None:
    with _asking(stage, "cert") as ca:
        stage.vecward(
            auth="identity", credential={"user": "app"}, tls=stage.certificate | _presenting(stage, ca, "app")
        )
        user, subject, serial = _shown(stage)
        assert (user, subject) == ("app", "/CN=app")
        for name in ("app.crt", "app.key"):
            (ca / name).unlink()
        issue(ca, "app", role="client")
        stage.cli("reload")
        wait_until(lambda: _shown(stage)[2] != serial, what="the renewed certificate is shown")
        _is_nowhere_to_be_found(stage, ca / "app.key")
        (ca / "app.key").chmod(0o644)
        refused = stage.cli("reload", check=False)
        (ca / "app.key").chmod(0o600)
        assert "app.key: others may read or write it; chmod 0600" in refused.stderr
        assert _shown(stage)[1] == "/CN=app"


def _is_nowhere_to_be_found(stage: PostgresStage, key: Path) -> None:
    secret = key.read_bytes().splitlines()[1]
    places = [file for file in (stage.folder / "evidence").rglob("*") if file.is_file()] + [stage.log]
    for pids in stage.children().values():
        places += [Path(f"/proc/{pid}/{what}") for pid in pids for what in ("cmdline", "environ")]
    assert not [place for place in places if secret in place.read_bytes()]


def test_a_certificate_that_the_database_does_not_take_lets_nobody_in(stage: PostgresStage) -> None:
    with _asking(stage, "cert") as ca:
        strange = stage.folder / "stranger"
        issue(strange, "app", role="client")
        for folder, name, state in ((ca, "other", "28000"), (strange, "app", "08006")):
            stage.stop()
            tls = stage.certificate | _presenting(stage, folder, name)
            stage.vecward(auth="identity", credential={"user": "app"}, tls=tls)
            assert refusal(stage) == [state]
        stage.stop()
        stage.vecward(auth="identity", credential={"user": "app"}, tls=stage.certificate | verify(stage))
        assert refusal(stage) == ["28000"]  # it shows none


def test_the_guards_certificate_does_not_stand_for_a_client_that_should_prove_itself(
    stage: PostgresStage,
) -> None:
    """Whoever dials would be the certificate's user."""
    with _asking(stage, "cert") as ca, vecward(stage, _presenting(stage, ca, OWNER), auth="relay"):
        assert refusal(stage) == ["28000"]


def test_beside_the_clients_password_the_certificate_keeps_others_off_the_database(
    stage: PostgresStage,
) -> None:
    plain = {"PGSSLMODE": "disable"}
    asked = ("psql", "-X", "-At", "-c", "SELECT 1")
    with (
        _asking(stage, "scram-sha-256") as ca,
        vecward(stage, _presenting(stage, ca, OWNER), auth="relay"),
    ):
        right = stage.program(*asked, user="nobody", environment=plain)
        wrong = stage.program(*asked, user="nobody", environment=plain, password="wrong", check=False)
    assert right.stdout == "1\n"
    assert "password authentication failed" in wrong.stderr
