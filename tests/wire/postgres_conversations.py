# SPDX-License-Identifier: Apache-2.0
"""Recorded PostgreSQL conversations, and a recorder for new ones.

A conversation is a file of JSON lines ``[side, text]``, a read each, from the first ReadyForQuery on; the
text is the bytes as latin-1. The server's side was recorded behind a `QueryPhase`, so that what it asks of
its own is answered in it: ``python -m tests.wire.postgres_conversations PORT FILE`` listens on PORT + 1 and
hands what passes to the database on PORT, which must trust the client.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from agent.protocols.postgres_messages import Back, Framer, server_limits
from agent.protocols.postgres_query import QueryPhase
from agent.protocols.session import Bounds, Output
from policy.model import Verdict
from tests.unit.protocols.fake_sql import ALLOW, WHERE, FakeConversation, FakeSqlEngine, SpyJudge
from tests.wire.conversations import Step

DATA = Path(__file__).parent.parent / "data" / "postgres"


def names() -> list[str]:
    return sorted(path.stem for path in DATA.glob("*.jsonl"))


def load(name: str) -> list[Step]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="ascii").splitlines()
    return [(side, text.encode("latin-1")) for side, text in map(json.loads, lines)]


def save(path: Path, steps: list[tuple[str, bytes]]) -> None:
    path.write_text("".join(json.dumps([s, d.decode("latin-1")]) + "\n" for s, d in steps), encoding="ascii")


def phase(
    verdict: Verdict = ALLOW,
    *,
    asks: bool = False,
    bounds: Bounds | None = None,
    judge: SpyJudge | None = None,
) -> tuple[QueryPhase, FakeConversation, SpyJudge]:
    """A session, what it asks about meaning, and its judge."""
    engine = FakeSqlEngine()
    engine.conversation = FakeConversation(asks=asks)
    judge = judge if judge is not None else SpyJudge(verdict)
    session = QueryPhase(engine, engine.conversation, judge, "g", WHERE, bounds or Bounds(), 1)
    return session, engine.conversation, judge


def _start(client: socket.socket, server: socket.socket) -> bytes:
    """Pass startup on as it is, up to the first ReadyForQuery; returns what the server said behind it."""
    framer = Framer("server", server_limits(1 << 20))
    while True:
        ready, _, _ = select.select([client, server], [], [])
        if client in ready:
            data = client.recv(65536)
            if data[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):
                client.sendall(b"N")
                continue
            server.sendall(data)
        if server in ready:
            data = server.recv(65536)
            client.sendall(data)
            framer.feed(data)
            while (taken := framer.take()) is not None:
                if taken.kind == Back.READY_FOR_QUERY:
                    return framer.rest()


def record(client: socket.socket, server: socket.socket, session: QueryPhase) -> list[tuple[str, bytes]]:
    """Relay until the client ends; returns the steps."""
    steps: list[tuple[str, bytes]] = []
    _start(client, server)
    while True:
        ready, _, _ = select.select([client, server], [], [])
        for side, end, feed in (
            ("server", server, session.server_data),
            ("client", client, session.client_data),
        ):
            if end not in ready:
                continue
            data = end.recv(65536)
            if not data:
                return steps
            steps.append((side, data))
            _write(feed, data, client, server)


def _write(
    feed: Callable[[bytes], Output], data: bytes, client: socket.socket, server: socket.socket
) -> None:
    out = feed(data)
    if out.to_server:
        server.sendall(b"".join(out.to_server))
    if out.to_client:
        client.sendall(b"".join(out.to_client))


def main() -> None:
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    with socket.create_server(("127.0.0.1", port + 1)) as listener:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            session, _, _ = phase()
            steps = record(client, server, session)
    save(path, steps)


if __name__ == "__main__":
    main()
