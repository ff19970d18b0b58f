# SPDX-License-Identifier: Apache-2.0
"""TLS on the whole path: clients that verify, identities from certificates, renewal, a database with TLS."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.ca import create, issue, read
from tests.kernel.arena import say as tell
from tests.servers.raw import wait_until
from tests.servers.stage import ALLOW_ALL, Stage

POLICY = """\
version: 1
rules:
  - id: etl
    who: {tls_subject: "CN=etl-1"}
    what: {action: [search, read, count, schema, session]}
    allow: true
  - id: keeper
    who: {user: root}
    allow: true
    what: {action: [search, read, scan, count, write, delete, schema, snapshot, admin, session]}
"""
CHROMA = """
import json, sys, chromadb
from chromadb.config import Settings
ca = sys.argv[1]
client = chromadb.HttpClient(host="127.0.0.1", port=8000, ssl=ca != "", settings=Settings(
    chroma_server_ssl_verify=ca or None, anonymized_telemetry=False))
papers = client.get_or_create_collection("papers", embedding_function=None)
papers.upsert(ids=["a", "b"], embeddings=[[1, 0], [0, 1]], documents=["one", "x" * 300_000])
found = papers.query(query_embeddings=[[1, 0.1]], n_results=2, include=["documents"])
print(json.dumps([found["ids"], [len(d) for d in found["documents"][0]]]))
"""
ASK = """
import http.client, json, ssl, sys
folder, cert = sys.argv[1:3]
context = ssl.create_default_context(cafile=folder + "/ca.crt")
if cert:
    context.load_cert_chain(f"{folder}/{cert}.crt", f"{folder}/{cert}.key")
connection = http.client.HTTPSConnection("127.0.0.1", 8000, context=context)
connection.request("GET", sys.argv[3])
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""
# Asks on one connection that stays and on a new one each time, until it is told to stop by a file.
LOAD = """
import http.client, json, os, ssl, sys
ca, stop = sys.argv[1:3]
def dial():
    context = ssl.create_default_context(cafile=ca)
    return http.client.HTTPSConnection("127.0.0.1", 8000, context=context, timeout=60)
def ask(connection):
    connection.request("GET", "/api/v2/version")
    assert connection.getresponse().read()
    return connection.sock.getpeercert()["serialNumber"]
kept, seen, asked = dial(), [], 0
first = ask(kept)
print("going", flush=True)
while not os.path.exists(stop) or asked < 20:
    fresh = dial()
    serial = ask(fresh)
    fresh.close()
    assert ask(kept) == first
    if serial not in seen:
        seen.append(serial)
        open(stop + ".seen", "a").write(serial + "\\n")
    asked += 1
print(json.dumps(seen))
"""
VERSION = "/api/v2/version"
COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"


def _authority(folder: Path) -> Path:
    create(folder, "Test CA")
    issue(folder, "db", ("127.0.0.1",))
    for name in ("etl-1", "other"):
        issue(folder, name, role="client")
        (folder / f"{name}.key").chmod(0o644)  # its client runs as another user
    return folder


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage("chroma") as made:
        _authority(made.folder / "ca")
        yield made


def _guard_tls(**more: Any) -> dict[str, Any]:
    return {"cert": "ca/db.crt", "key": "ca/db.key", **more}


def _sessions(stage: Stage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stage.json("sessions", "--limit", "1000")
    return found


def _ask(stage: Stage, cert: str, path: str, user: str = "nobody") -> tuple[int, str]:
    said = stage.client(ASK, str(stage.folder / "ca"), cert, path, user=user).stdout
    status, body = json.loads(said)
    return int(status), str(body)


def _chroma(stage: Stage, ca: str) -> Any:
    return json.loads(stage.client(CHROMA, ca).stdout.splitlines()[-1])


def test_chromas_own_client_verifies_and_gets_what_it_gets_without_tls(stage: Stage) -> None:
    stage.start_database()
    stage.vecward(ALLOW_ALL, tls=_guard_tls())
    ca = str(stage.folder / "ca" / "ca.crt")
    assert _chroma(stage, ca) == _chroma(stage, "") == [[["a", "b"]], [3, 300_000]]
    create(stage.folder / "stranger", "Test CA")
    with pytest.raises(AssertionError, match="CERTIFICATE_VERIFY_FAILED"):
        _chroma(stage, str(stage.folder / "stranger" / "ca.crt"))
    wait_until(lambda: any(s["tls"] and s["requests"] for s in _sessions(stage)), what="the TLS session")
    found = _sessions(stage)
    assert {s["tls"] for s in found if s["requests"]} == {True, False} or {
        s["tls"] for s in found if s["requests"]
    } == {True, None}
    assert all(s["protocol"] == "http1" for s in found if s["requests"] and s["ended"])
    # The key is in no place where others could find it.
    for pid in stage.children()["proxy"]:
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
        assert not [link for link in links if "vecward-tls" in link]
    secret = (stage.folder / "ca" / "db.key").read_text().splitlines()[1].encode()
    for file in (stage.folder / "evidence").rglob("*"):
        assert not file.is_file() or secret not in file.read_bytes()
    assert secret not in stage.log.read_bytes()
    assert stage.cli("verify").returncode == 0


def test_a_client_certificate_is_an_identity_that_rules_name(stage: Stage) -> None:
    stage.start_database()
    stage.vecward(POLICY, tls=_guard_tls(client_cert="request", client_ca="ca/ca.crt"))
    assert _ask(stage, "etl-1", COLLECTIONS)[0] == 200
    for cert in ("other", ""):
        status, body = _ask(stage, cert, COLLECTIONS)
        assert status == 403
        assert "no rule allows it" in body
    wait_until(
        lambda: {s["tls_subject"] for s in _sessions(stage)} >= {"CN=etl-1", "CN=other", None},
        what="three identities",
    )
    allowed = next(s for s in _sessions(stage) if s["tls_subject"] == "CN=etl-1")
    assert (allowed["tls"], allowed["user"], allowed["allowed"]) == (True, "nobody", 1)
    assert "CN=etl-1" in stage.cli("show", allowed["session"]).stdout


def test_a_certificate_that_is_required_is_required_of_everybody(stage: Stage) -> None:
    stage.start_database()
    stage.vecward(POLICY, tls=_guard_tls(client_cert="require", client_ca="ca/ca.crt"))
    assert _ask(stage, "etl-1", COLLECTIONS)[0] == 200
    with pytest.raises(AssertionError, match=r"certificate required|alert|reset|closed|EOF"):
        _ask(stage, "", VERSION)
    with pytest.raises(AssertionError, match=r"403|TLS"):
        _chroma(stage, "")
    wait_until(
        lambda: (
            {"protocol_client_tls-peer-did-not-return-a-certificate", "protocol_client_tls-required"}
            <= set(stage.status["proxy"])
        ),
        what="both counters",
    )


def test_a_renewed_certificate_is_shown_to_new_connections_and_cuts_none(stage: Stage) -> None:
    stage.start_database()
    stage.vecward(ALLOW_ALL, tls=_guard_tls())
    ca = stage.folder / "ca"
    script, stop = stage.folder / "load.py", stage.folder / "shared" / "stop"
    stop.parent.mkdir()
    stop.parent.chmod(0o777)
    script.write_text(LOAD)
    load = stage.start_client(script, str(ca / "ca.crt"), str(stop), user="nobody")
    try:
        assert load.stdout is not None
        assert load.stdout.readline() == b"going\n"
        serials = [read(ca / "db.crt").serial]
        seen = stop.with_name("stop.seen")
        for _ in range(3):
            for name in ("db.crt", "db.key"):
                (ca / name).unlink()
            serials.append(issue(ca, "db", ("127.0.0.1",)).serial)
            stage.cli("reload")
            wait_until(
                lambda: seen.exists() and _number(serials[-1]) in map(_number, seen.read_text().split()),
                what="the new certificate is shown",
            )
        # A key that does not fit changes nothing.
        shutil.copyfile(ca / "other.key", ca / "db.key")
        refused = stage.cli("reload", check=False)
        assert refused.returncode == 1
        assert "is not the key of" in refused.stderr
        stop.touch()
        out, err = load.communicate(timeout=240)
    finally:
        load.kill()
        with load:  # closes its pipes
            pass
    assert load.returncode == 0, err.decode()
    assert list(map(_number, json.loads(out.splitlines()[-1]))) == list(map(_number, serials))


def _number(serial: str) -> int:
    return int(serial, 16)


def _behind_tls(stage: Stage, certificate: str = "db", *, mutual: bool = False) -> None:
    """Chroma on a port of its own, and TLS in front of it where clients dial; `mutual`: of both."""
    stage.port = 8001
    stage.start_database()
    stage.port = 8000
    folder = stage.folder / "ca"
    stage.arena.fork(lambda: _terminate(folder, certificate, mutual), group="database").said()


def _terminate(folder: Path, certificate: str, mutual: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.crt")

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", 8001)
        await asyncio.gather(copy(reader, back_writer), copy(back_reader, writer))

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 8000, ssl=context)
        tell("up")
        await server.serve_forever()

    asyncio.run(run())


@pytest.mark.parametrize("client", ["plain", "tls"])
def test_a_database_behind_tls_is_verified_and_served(stage: Stage, client: str) -> None:
    _behind_tls(stage)
    stage.vecward(ALLOW_ALL, tls=_guard_tls(server="verify", ca="ca/ca.crt"))
    ca = str(stage.folder / "ca" / "ca.crt") if client == "tls" else ""
    assert _chroma(stage, ca) == [[["a", "b"]], [3, 300_000]]
    wait_until(lambda: stage.status["proxy"].get("tls_server", 0) > 0, what="counted")


@pytest.fixture
def presenting(stage: Stage) -> dict[str, Any]:
    """`tls:` of a guard whose database asks for a client certificate."""
    _behind_tls(stage, mutual=True)
    issue(stage.folder / "ca", "guard", role="client")
    shown = {"present_cert": "ca/guard.crt", "present_key": "ca/guard.key"}
    return _guard_tls(server="verify", ca="ca/ca.crt", **shown)


def test_a_database_that_asks_for_a_certificate_is_shown_the_guards(
    stage: Stage, presenting: dict[str, Any]
) -> None:
    stage.vecward(ALLOW_ALL, tls=presenting)
    assert _chroma(stage, "") == [[["a", "b"]], [3, 300_000]]
    assert _ask(stage, "", VERSION)[0] == 200
    stage.stop()
    stage.vecward(ALLOW_ALL, tls=_guard_tls(server="verify", ca="ca/ca.crt"))
    with pytest.raises(AssertionError, match=r"RemoteDisconnected|reset"):  # asyncio sends no alert
        _ask(stage, "", VERSION)


def test_in_observe_the_guards_certificate_lets_in_nobody_who_has_shown_none(
    stage: Stage, presenting: dict[str, Any]
) -> None:
    presenting |= {"client_cert": "request", "client_ca": "ca/ca.crt"}
    stage.vecward(ALLOW_ALL, mode="observe", tls=presenting)
    assert _ask(stage, "etl-1", VERSION)[0] == 200
    with pytest.raises(AssertionError, match=r"RemoteDisconnected|EOF|reset"):
        _ask(stage, "", VERSION)


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_database_that_cannot_be_verified_is_not_spoken_to(stage: Stage, mode: str) -> None:
    _behind_tls(stage)
    create(stage.folder / "stranger", "Test CA")
    stage.vecward(ALLOW_ALL, mode=mode, tls=_guard_tls(server="verify", ca="stranger/ca.crt"))
    if mode == "enforce":
        status, body = _ask(stage, "", VERSION)
        assert status == 403
        assert "certificate was not accepted" in body
    else:
        with pytest.raises(AssertionError, match=r"RemoteDisconnected|EOF|reset"):
            _ask(stage, "", VERSION)
    wait_until(
        lambda: stage.status["proxy"].get("protocol_server_tls-certificate", 0) > 0,
        what="the reason is counted",
    )
    database = (stage.folder / "database.log").read_text()
    assert "/api/v2/version" not in database


def test_in_observe_a_client_that_speaks_tls_to_the_database_is_relayed_as_before(stage: Stage) -> None:
    _behind_tls(stage)
    stage.vecward(ALLOW_ALL, mode="observe")
    assert _ask(stage, "", VERSION)[0] == 200
    stage.config.write_text(
        json.dumps(json.loads(stage.config.read_text()) | {"guards": [{
            "name": "docs", "engine": "chroma", "ports": [8000],
            "tls": _guard_tls(server="verify", ca="ca/ca.crt"),
        }]})
    )  # fmt: skip
    stage.cli("reload")
    assert _ask(stage, "", VERSION)[0] == 200
    wait_until(
        lambda: {"tls", "http1"} <= {s["protocol"] for s in _sessions(stage) if s["ended"]},
        what="both sessions",
    )
