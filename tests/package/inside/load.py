# SPDX-License-Identifier: Apache-2.0
"""load.py COLLECTION OUT SECRET AUTHORITY SECONDS: clients of both databases that count every answer.

A thread for each of CLIENTS: HTTP and PostgreSQL, with TLS and without, over one connection that is held for
ever and over a new one for every request. OUT is written anew several times a second: {"http": {"done",
"failed", "last"}}. None of them ever tries again: a connection that was cut stays cut and is counted. TLS is
verified against AUTHORITY, and the databases have none: whoever answers it is the guard. SECONDS: how long an
answer may take. Runs alone, no module.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

CLIENTS = ("http", "http-new", "https", "https-new", "sql", "sql-tls", "sql-tls-new")
PAUSE, REST = 0.02, 3  # seconds between requests, and at least so many times what the answer took
PATH = "/api/v2/tenants/default_tenant/databases/default_database/collections/{}/query"
SQL = "SELECT id FROM documents ORDER BY embedding <-> '[5,5,2]' LIMIT 1"


@dataclass
class Client:
    """One thread: how it gets a connection, what it asks over it, what came of that."""

    connect: Callable[[], Any]
    ask: Callable[[Any], None]
    held: bool
    count: dict[str, Any] = field(default_factory=lambda: {"done": 0, "failed": 0, "last": ""})

    def run(self) -> None:
        if not self.held:
            while True:
                self.step(self.anew)
        try:
            connection = self.connect()
        except Exception as error:
            self.note(error)
            return
        while True:
            self.step(lambda: self.ask(connection))

    def anew(self) -> None:
        with closing(self.connect()) as connection:
            self.ask(connection)

    def step(self, once: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            once()
            self.count["done"] += 1
        except Exception as error:
            self.note(error)
        time.sleep(max(PAUSE, REST * (time.monotonic() - began)))

    def note(self, error: Exception) -> None:
        self.count["failed"] += 1
        self.count["last"] = repr(error)[:500]


def http_client(collection: str, held: bool, seconds: float, trust: ssl.SSLContext | None) -> Client:
    body = json.dumps({"query_embeddings": [[1, 2, 3]], "n_results": 1})

    def connect() -> http.client.HTTPConnection:
        if trust is None:
            connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=seconds)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", 8000, timeout=seconds, context=trust)
        connection.connect()
        connection.auto_open = 0  # a second connection would hide that the first was cut
        return connection

    def ask(connection: http.client.HTTPConnection) -> None:
        connection.request("POST", PATH.format(collection), body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200 or json.loads(text)["ids"] != [["a"]]:
            raise ValueError(f"{answer.status}: {text[:300]!r}")

    return Client(connect, ask, held)


def sql_client(secret: str, held: bool, seconds: float, authority: str | None) -> Client:
    import psycopg

    words: dict[str, Any] = {"host": "127.0.0.1", "user": "postgres", "dbname": "postgres"}
    words |= {"password": secret, "connect_timeout": int(seconds)}
    words |= {"sslmode": "verify-full", "sslrootcert": authority} if authority else {"sslmode": "disable"}

    def connect() -> Any:
        return psycopg.connect(**words, autocommit=True)

    def ask(session: Any) -> None:
        if (rows := session.execute(SQL, prepare=False).fetchall()) != [(5,)]:
            raise ValueError(repr(rows))

    return Client(connect, ask, held)


def main() -> None:
    collection, out, secret, authority = sys.argv[1:5]
    seconds = float(sys.argv[5])
    trust = ssl.create_default_context(cafile=authority)
    clients: dict[str, Client] = {}
    for name in CLIENTS:
        held = not name.endswith("-new")
        if name.startswith("sql"):
            clients[name] = sql_client(secret, held, seconds, authority if "tls" in name else None)
        else:
            clients[name] = http_client(collection, held, seconds, trust if "https" in name else None)
    for client in clients.values():
        threading.Thread(target=client.run, daemon=True).start()
    while True:
        with open(out + ".new", "w") as file:
            json.dump({name: client.count for name, client in clients.items()}, file)
        os.replace(out + ".new", out)
        time.sleep(0.2)


if __name__ == "__main__":
    main()
