# SPDX-License-Identifier: Apache-2.0
"""A guard in observe never breaks a client: whatever it sends, whatever dies, however full the disk is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.evidence.frames import GapFrame
from tests.kernel.arena import say as tell
from tests.servers.raw import Talk, frames, is_dead, opaque_reasons, request, say, wait_until
from tests.servers.stage import Stage

NO_RULES = "version: 1\nrules: []\n"
HEARTBEAT = request("/api/v2/heartbeat")
KEEP = request("/api/v2/heartbeat", headers=())
COLLECTIONS = request("/api/v2/tenants/default_tenant/databases/default_database/collections")


@pytest.fixture(scope="module")
def direct() -> Iterator[Stage]:
    """The same database without Vecward."""
    with Stage("chroma") as made:
        made.start_database()
        yield made


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage("chroma", waits="shipped") as made:
        made.start_database()
        made.vecward(NO_RULES, mode="observe")
        yield made


@contextlib.contextmanager
def nothing_restarts(stage: Stage) -> Iterator[None]:
    """The supervisor stands still, so that what is killed stays dead for a while."""
    stage.running.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        stage.running.send_signal(signal.SIGCONT)


def served(stage: Stage, workers: int = 2) -> bool:
    try:
        return all(guard["workers"] == workers for guard in stage.status["guards"])
    except AssertionError:
        return False  # the agent is starting


def kill(*pids: int) -> None:
    """Returns when the kernel has closed what they had open."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: all(is_dead(pid) for pid in pids), what="they are dead")


def without_date(found: Talk) -> tuple[list[bytes], str]:
    """What does not change from one time to the next."""
    lines = [line for line in found.got.split(b"\r\n") if not line.startswith(b"date:")]
    return lines, found.ended


ODD: dict[str, tuple[list[bytes], dict[str, Any]]] = {
    "a request": ([COLLECTIONS], {}),
    "a request with an end": ([COLLECTIONS], {"half_close": True}),
    "two at once": ([KEEP.replace(b"heartbeat", b"version") + COLLECTIONS], {}),
    "slow bytes": ([COLLECTIONS[i : i + 1] for i in range(len(COLLECTIONS))], {"pause": 0.002}),
    "slow body": (
        [request("/api/v2/tenants", b'{"name": "default_tenant"}')[i : i + 9] for i in range(0, 180, 9)],
        {"pause": 0.01},
    ),
    "HTTP/1.0": ([b"GET /api/v2/version HTTP/1.0\r\n\r\n"], {}),
    "bare line feeds": ([b"GET /api/v2/version HTTP/1.1\nhost: x\nconnection: close\n\n"], {}),
    "two lengths": (
        [b"POST /api/v2/tenants HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"],
        {},
    ),
    "a bad chunk": (
        [b"POST /api/v2/tenants HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"],
        {},
    ),
    "an unknown method": ([b"BREW /api/v2/version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"], {}),
    "dot segments": ([request("/api/v2/../v2//version")], {}),
    "a long target": ([request("/" + "a" * 30_000)], {}),
    "many headers": (
        [request("/api/v2/version", headers=[f"x-{n}: y" for n in range(150)] + ["connection: close"])],
        {},
    ),
    "garbage": ([bytes(range(256))], {"half_close": True}),
    "zeros": ([bytes(4096)], {"half_close": True}),
    "a TLS hello": ([bytes.fromhex("1603010200010001fc0303") + b"\x11" * 300], {"half_close": True}),
    "HTTP/2 and rubbish": ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 40], {"half_close": True}),
    "half of an HTTP/2 preface": ([b"PRI * HTTP/2.0\r\n"], {"half_close": True}),
    "nothing": ([], {"half_close": True}),
    "half a request": ([COLLECTIONS[:30]], {"half_close": True}),
    "half a body": ([request("/api/v2/tenants", b'{"name": "x"}')[:-5]], {"half_close": True}),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_a_client_sends_it_gets_what_it_gets_directly(
    stage: Stage, direct: Stage, name: str
) -> None:
    """Where the database closes on unread bytes, its reset may overtake its answer; ours may be whole.

    Whether it answers a client that is half gone already depends on which of the two it sees first.
    """
    pieces, how = ODD[name]
    through: list[Talk] = []
    directly: list[Talk] = []
    while len(directly) < (30 if "half_close" in how else 1):
        through.append(say(stage, *pieces, **how))
        directly.append(say(direct, *pieces, **how))
        if any(without_date(one) == without_date(other) for one in through for other in directly):
            return
    assert any(
        one.ended == "reset" and other.got.startswith(one.got) for one in directly for other in through
    ), (through[0], directly[0])


# RFC 9113 3.3 and 8.3.1 by hand: preface, SETTINGS, one HEADERS frame of static fields.
HTTP2 = r"""
import socket
def literal(index, value): return bytes([index, len(value)]) + value
def frame(kind, flags, stream, body):
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
fields = b"\x82\x86" + literal(4, b"/api/v2/version") + literal(1, b"localhost")
s = socket.create_connection(("127.0.0.1", 8000), 60)
s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 5, 1, fields))
seen, body = b"", b""
while True:
    while len(seen) < 9 or len(seen) < 9 + int.from_bytes(seen[:3], "big"):
        seen += s.recv(4096)
    size, kind, flags = int.from_bytes(seen[:3], "big"), seen[3], seen[4]
    payload, seen = seen[9 : 9 + size], seen[9 + size :]
    if kind == 0:
        body += payload
        if flags & 1:
            break
print(body.decode())
"""


def test_http2_with_prior_knowledge_passes_and_is_recorded_as_opaque(stage: Stage) -> None:
    said = stage.client(HTTP2, user="nobody", python=Path("/usr/bin/python3")).stdout
    assert said == b'"1.0.0"\n'
    assert stage.json("sessions", "--limit", "1")[0]["protocol"] == "http2"


def test_what_is_passed_unread_is_recorded_with_its_reason(stage: Stage) -> None:
    say(stage, *ODD["a TLS hello"][0], half_close=True)
    say(stage, *ODD["garbage"][0], half_close=True)
    say(stage, *ODD["HTTP/2 and rubbish"][0], half_close=True)
    say(stage, HEARTBEAT)
    reasons = opaque_reasons(stage)
    assert reasons["tls"] == {"tls is not read"}
    assert reasons["http2"] == {"http2 is not read"}
    assert "unknown is not read" in reasons["unknown"]
    found = {session["protocol"] for session in stage.json("sessions", "--limit", "1000")}
    assert {"http1", "tls", "http2", "unknown"} <= found


def test_tls_to_the_database_passes_whole(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["-keyout", str(key), "-out", str(cert), "-days", "1", "-subj", "/CN=db"]
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(["openssl", "req", "-x509", *new_key, *made], check=True, capture_output=True)
    script = """
import warnings; warnings.simplefilter("ignore")
from qdrant_client import QdrantClient, models
q = QdrantClient(host="127.0.0.1", port=6333, https=True, verify=False)
q.create_collection("c", vectors_config=models.VectorParams(size=2, distance="Dot"))
q.upsert("c", points=[models.PointStruct(id=1, vector=[1, 2], payload={"a": "x" * 100000})])
print(len(q.retrieve("c", ids=[1])[0].payload["a"]))
"""
    with Stage("qdrant") as stage:
        stage.start_database("127.0.0.1", "--cert", str(cert), "--cert-key", str(key))
        stage.vecward(NO_RULES, mode="observe", workers=1)
        assert stage.client(script, user="nobody").stdout == b"100000\n"
        sessions = stage.json("sessions")
        # The kernel's word does not need what is inside: who it was is known.
        assert {(s["protocol"], s["tls"], s["user"], s["requests"]) for s in sessions} == {
            ("tls", True, "nobody", 0)
        }
        assert sum(session["bytes_in"] for session in sessions) > 100_000


def test_a_killed_worker_is_not_noticed_by_who_connects_after_it(stage: Stage) -> None:
    kill(stage.children()["proxy"][0])
    for _ in range(40):
        assert say(stage, HEARTBEAT).status == 200
    wait_until(lambda: served(stage), what="the worker is back")


def test_without_any_worker_clients_reach_the_database_and_are_counted(stage: Stage) -> None:
    before = stage.status["coverage"]["unobserved"]
    with nothing_restarts(stage):
        kill(*stage.children()["proxy"])
        found = [say(stage, HEARTBEAT) for _ in range(20)]
    assert [one.status for one in found] == [200] * 20
    wait_until(lambda: served(stage), what="the workers are back")
    coverage = stage.status["coverage"]
    assert coverage["unobserved"] == before + 20
    assert coverage["bypass"] == 0
    assert say(stage, HEARTBEAT).status == 200
    assert stage.status["coverage"]["steered"] == coverage["steered"] + 1


def test_a_killed_agent_is_not_noticed_by_new_connections(stage: Stage) -> None:
    kill(*stage.children()["agent"])
    found = [say(stage, HEARTBEAT) for _ in range(5)]
    assert [one.status for one in found] == [200] * 5
    wait_until(lambda: served(stage), what="the agent is back")
    assert say(stage, HEARTBEAT).status == 200


def test_a_connection_outlives_the_agent(stage: Stage) -> None:
    def client() -> int:
        answers = 0
        with socket.create_connection(("127.0.0.1", 8000), timeout=60) as sock:
            for number in range(60):
                sock.sendall(KEEP)
                got = b""
                while b"heartbeat" not in got or not got.rstrip().endswith(b"}"):
                    data = sock.recv(65536)
                    if not data:
                        return answers
                    got += data
                answers += 1
                if number == 5:
                    tell("under way")
                time.sleep(0.02)
        return answers

    child = stage.arena.fork(client, user="nobody")
    assert child.said() == "under way"
    kill(*stage.children()["agent"])
    assert child.result() == 60
    wait_until(lambda: served(stage), what="the agent is back")


def test_with_no_agent_for_long_new_connections_still_pass(stage: Stage) -> None:
    with nothing_restarts(stage):
        kill(*stage.children()["agent"])
        found = say(stage, HEARTBEAT)
    assert found.status == 200
    wait_until(lambda: served(stage), what="the agent is back")
    session = stage.json("sessions", "--limit", "1")[0]
    assert session["attribution"] == "unattributed"
    assert "agent" in session["null_reason"]["pid"]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return ballast


def test_a_full_disk_is_not_noticed_and_what_is_missing_is_on_record() -> None:
    with Stage("chroma") as stage, small_disk(stage.folder / "evidence", "24m"):
        stage.start_database()
        stage.vecward(NO_RULES, mode="observe")
        assert say(stage, HEARTBEAT).status == 200
        ballast = fill(stage.folder / "evidence")
        big = json.dumps({"name": "no-such", "x": "y" * 200_000}).encode()
        for number in range(40):
            found = say(stage, request("/api/v2/tenants", big) if number % 2 else HEARTBEAT)
            assert found.ended == "eof"
            assert found.status in (200, 422, 409, 400)
        time.sleep(1.5)  # so that workers and agent look at the disk again
        assert say(stage, HEARTBEAT).status == 200
        assert stage.status["guards"][0]["mode"] == "observe"
        ballast.unlink()
        wait_until(
            lambda: any(isinstance(frame, GapFrame) for frame in frames(stage)), what="a gap on record"
        )
        assert say(stage, HEARTBEAT).status == 200
        assert stage.stop() == 0, stage.tail()
        report = json.loads(stage.cli("verify", str(stage.folder / "evidence"), "--json", check=False).stdout)
        kinds = {finding["kind"] for finding in report["findings"]}
        assert "gap" in kinds
        assert kinds <= {"gap", "torn", "recovered", "unproven"}, report["findings"][:5]
