# SPDX-License-Identifier: Apache-2.0
"""``vecward discover`` on real databases: what it tells is true, and they do not mind being asked."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.discover_probe import probe
from tests.kernel.arena import ROOT
from tests.servers.postgres import PostgresStage
from tests.servers.stage import Stage


def discovered(stage: Stage, *, inside: bool = True) -> dict[int, dict[str, Any]]:
    """By port, of this stage's namespace; asked from inside of it or from the host's."""
    config = stage.folder / "empty.yaml"
    config.touch()
    command = [sys.executable, "-m", "agent", "-c", str(config), "discover", "--json"]
    if inside:
        process = stage.arena.popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=120)
    else:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
        out, err = done.stdout, done.stderr
    assert out, err
    netns = Path(f"/proc/{stage.arena.netns.pid}/ns/net").stat().st_ino
    return {one["port"]: one for one in json.loads(out) if one["net_ns"] == netns}


@pytest.mark.parametrize("engine", ["chroma", "qdrant"])
def test_a_database_is_found_with_its_process_also_from_another_namespace(engine: Any) -> None:
    with Stage(engine) as stage:
        stage.start_database()
        found = discovered(stage)[stage.port]
        assert (found["engine"], found["auth"], found["tls"], found["here"]) == (engine, "none", False, True)
        assert found["version"]
        assert found["addresses"] == ["127.0.0.1"]
        assert found["pid"] == stage.database.pid
        assert f"ports: [{stage.port}]" in found["draft"]
        away = discovered(stage, inside=False)[stage.port]
        assert (away["engine"], away["here"], away["draft"]) == (engine, False, None)


def test_a_postgres_tells_how_it_authenticates_and_answers_as_before() -> None:
    with PostgresStage() as stage:
        stage.start_postgres()
        before = (stage.folder / "database.log").stat().st_size
        found = discovered(stage)[stage.port]
        assert (found["engine"], found["auth"], found["tls"]) == ("pgvector", "scram", False)
        assert found["pid"] == stage.database.pid
        said = (stage.folder / "database.log").read_text()[before:]
        assert len(said.splitlines()) <= 2, said


Serve = Callable[..., int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Makes listeners that say `answer` to everybody, byte by byte where there is a pause; gives the port."""
    with contextlib.ExitStack() as stack:

        def start(answer: bytes, pause: float = 0.0) -> int:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            thread = threading.Thread(target=_speak, args=(listening, answer, pause))
            thread.start()
            stack.callback(thread.join)
            stack.callback(listening.shutdown, socket.SHUT_RDWR)
            return int(listening.getsockname()[1])

        yield start


def _speak(listening: socket.socket, answer: bytes, pause: float) -> None:
    step = 1 if pause else max(1, len(answer))
    while True:
        try:
            peer, _ = listening.accept()
        except OSError:
            return
        with peer, contextlib.suppress(OSError):
            for at in range(0, len(answer), step):
                peer.sendall(answer[at : at + step])
                time.sleep(pause)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\0" * 100, b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 999999999999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000,
        b'HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{"title": "qdr", "a": 1}', b"SSH-2.0-x\r\n", b"E" * 9,
    ],
)  # fmt: skip
def test_what_is_no_database_is_none_whatever_it_says(answer: bytes, serve: Serve) -> None:
    assert probe("127.0.0.1", serve(answer)) is None


def test_a_version_that_is_no_version_is_not_believed(serve: Serve) -> None:
    body = json.dumps(
        {"title": "qdrant - vector search engine", "version": "1\x1b[2J\n- name: evil"}
    ).encode()
    found = probe("127.0.0.1", serve(b"HTTP/1.1 200 OK\r\n\r\n" + body), "http")
    assert found is not None
    assert (found.engine, found.version) == ("qdrant", None)


def test_a_port_that_drips_forever_is_given_up(serve: Serve) -> None:
    assert probe("127.0.0.1", serve(b"HTTP/1.1 200 OK\r\n" + b"x" * 1_000_000, 0.05), "http") is None


def test_nobody_there_is_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert probe("127.0.0.1", port) is None
