# SPDX-License-Identifier: Apache-2.0
"""A path to the database that can be cut: it listens as the database does and hands on every byte.

``Breaker(stage)`` stands between Vecward and a real PostgreSQL on the next port. `plan` says what the next
connections meet: where they are cut, by an end of file or by a reset, or how slowly bytes pass. What became
of each is in `fates`: whether it was cut, and how Vecward ended its side. Everything is bounded: a connection
by `QUIET`, what is held of it by one read.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tests.kernel.arena import PATIENCE, say
from tests.servers.postgres import PORT, PostgresStage

BEHIND = PORT + 1  # where the database listens
QUIET = 600.0  # seconds without a byte after which a connection is ended
SSL_REQUEST = struct.pack(">II", 8, 80877103)
_RESET = struct.pack("ii", 1, 0)
When = Literal["never", "accept", "tls-asked", "tls-hello", "startup", "auth", "query", "mark", "told"]


@dataclass(frozen=True, slots=True)
class Plan:
    """`when`: what ends it. ``mark``: `mark` was sent and then `sent` bytes more, or `received` came back.

    `piece`: from `mark` on at most so many bytes at once from the database, with `pause` seconds between.
    """

    when: When = "never"
    how: Literal["fin", "reset"] = "fin"
    mark: str = ""
    sent: int = 0
    received: int = 0
    piece: int = 1 << 16
    pause: float = 0.0
    deaf: bool = False  # after `mark` nothing more is read of Vecward until it is told


class Breaker:
    def __init__(self, stage: PostgresStage) -> None:
        """The stage's database must listen at `BEHIND`. Returns when this one accepts."""
        self._folder = stage.folder / "breaker"
        self._folder.mkdir()
        self.plan(Plan())
        folder = self._folder
        self._child = stage.arena.fork(lambda: _serve(folder), group="database")
        assert self._child.said() == "listens"

    def plan(self, plan: Plan) -> None:
        for name in ("told", "met"):
            (self._folder / name).unlink(missing_ok=True)
        (self._folder / "fates").write_text("")
        made = self._folder / "plan.new"
        made.write_text(json.dumps(asdict(plan)))
        made.rename(self._folder / "plan")

    def tell(self) -> None:
        """Now: what `told` waits for, and the end of deafness."""
        (self._folder / "told").touch()

    def fates(self) -> list[dict[str, Any]]:
        """Of connections that ended since `plan`: {"cut": bool, "peer": "eof" | "reset" | None}."""
        return [json.loads(line) for line in (self._folder / "fates").read_text().splitlines()]

    @property
    def met(self) -> Path:
        """Is there once a connection has come since `plan`."""
        return self._folder / "met"

    def stop(self) -> None:
        self._child.kill()


def _serve(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", PORT), backlog=128) as listener:
        say("listens")
        while True:
            sock, _ = listener.accept()
            (folder / "met").touch()
            plan = Plan(**json.loads((folder / "plan").read_text()))
            threading.Thread(target=_run, args=(sock, plan, folder), daemon=True).start()


def _run(sock: socket.socket, plan: Plan, folder: Path) -> None:
    fate = _Connection(sock, plan, folder / "told").run()
    with (folder / "fates").open("a") as file:
        file.write(json.dumps(fate) + "\n")


class _Cut(Exception):
    pass


class _Connection:
    def __init__(self, sock: socket.socket, plan: Plan, told: Path) -> None:
        self.peer, self.plan, self.told = sock, plan, told
        self.seen = b""  # the end of what Vecward sent
        self.marked = False
        self.sent = self.received = 0  # since the mark
        self.asked_tls = False
        self.ended = False  # Vecward ended its direction

    def run(self) -> dict[str, Any]:
        fate: dict[str, Any] = {"cut": False, "peer": None}
        with self.peer:
            try:
                if self.plan.when == "accept":
                    raise _Cut
                with socket.create_connection(("127.0.0.1", BEHIND), PATIENCE) as database:
                    fate["peer"] = self._relay(database)
            except EOFError:  # of the database
                fate["peer"] = self._end()
            except _Cut:
                fate["cut"] = True
                fate["peer"] = self._end()
            except OSError as error:
                fate["peer"] = "reset" if isinstance(error, ConnectionError) else str(error)
        return fate

    def _end(self) -> str | None:
        if self.plan.how == "reset":
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return None
        self.peer.shutdown(socket.SHUT_WR)
        self.peer.settimeout(PATIENCE)
        try:
            while self.peer.recv(1 << 16):
                pass
        except ConnectionError:
            return "reset"
        return "eof"

    def _relay(self, database: socket.socket) -> str | None:
        deadline = time.monotonic() + QUIET
        while time.monotonic() < deadline:
            told = self.told.exists()
            if told and self.plan.when == "told":
                raise _Cut
            deaf = self.ended or (self.plan.deaf and self.marked and not told)
            ready, _, _ = select.select([database] if deaf else [self.peer, database], [], [], 0.02)
            if self.peer in ready:
                try:
                    data = self.peer.recv(1 << 16)
                except ConnectionError:
                    return "reset"
                if not data:
                    self.ended = True
                    database.shutdown(socket.SHUT_WR)
                    continue
                deadline = time.monotonic() + QUIET
                self._note(data)
                if data == SSL_REQUEST and self.plan.when == "tls-hello":
                    self.peer.sendall(b"S")  # for a database that would not
                else:
                    database.sendall(data)
            if database in ready and self._answer(database):
                deadline = time.monotonic() + QUIET
        return "open"

    def _note(self, data: bytes) -> None:
        """What Vecward sends; raises _Cut where the plan says so."""
        plan, first = self.plan, not self.seen
        kinds = {
            "tls-asked": data == SSL_REQUEST,
            "tls-hello": self.asked_tls,
            "startup": first and data != SSL_REQUEST,
            "auth": not first and data[:1] == b"p",
            "query": not first and data[:1] == b"Q",
        }
        if kinds.get(plan.when):
            raise _Cut
        self.asked_tls = self.asked_tls or data == SSL_REQUEST
        self.seen = (self.seen + data)[-4096 - len(data) :]
        if self.marked:
            self.sent += len(data)
        elif plan.mark and plan.mark.encode() in self.seen:
            self.marked = True
        if self.marked and plan.when == "mark" and not plan.received and self.sent >= plan.sent:
            raise _Cut

    def _answer(self, database: socket.socket) -> bool:
        data = database.recv(self.plan.piece if self.marked else 1 << 16)
        if not data:
            raise EOFError
        if self.marked and self.plan.pause:
            time.sleep(self.plan.pause)
        self.peer.sendall(data)
        self.received += len(data) if self.marked else 0
        if self.plan.when == "mark" and self.plan.received and self.received >= self.plan.received:
            raise _Cut
        return True
