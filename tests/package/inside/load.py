# SPDX-License-Identifier: Apache-2.0
"""load.py COLLECTION OUT SECRET: clients of both databases that count every answer and every failure.

Three threads: one HTTP connection held for ever, a new HTTP connection for every request, one session of
PostgreSQL held for ever. OUT is written anew several times a second: {"held": {"done", "failed", "last"}}.
None of them ever tries again: a connection that was cut stays cut and is counted. Runs alone, no module.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from typing import Any

PAUSE = 0.02  # seconds between the requests of a thread


def main() -> None:
    collection, out, secret = sys.argv[1:4]
    counts: dict[str, dict[str, Any]] = {}
    threads = {
        "held": lambda count: hold(count, collection),
        "fresh": lambda count: renew(count, collection),
        "sql": lambda count: ask_sql(count, secret),
    }
    for name, work in threads.items():
        counts[name] = {"done": 0, "failed": 0, "last": ""}
        threading.Thread(target=work, args=(counts[name],), daemon=True).start()
    while True:
        with open(out + ".new", "w") as file:
            json.dump(counts, file)
        os.replace(out + ".new", out)
        time.sleep(0.2)


def query(connection: http.client.HTTPConnection, collection: str) -> None:
    path = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{collection}/query"
    body = json.dumps({"query_embeddings": [[1, 2, 3]], "n_results": 1})
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200 or json.loads(text)["ids"] != [["a"]]:
        raise ValueError(f"{answer.status}: {text[:300]!r}")


def hold(count: dict[str, Any], collection: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
    connection.connect()
    connection.auto_open = 0  # a second connection would hide that the first was cut
    while True:
        step(count, lambda: query(connection, collection))


def renew(count: dict[str, Any], collection: str) -> None:
    def once() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        try:
            query(connection, collection)
        finally:
            connection.close()

    while True:
        step(count, once)


def ask_sql(count: dict[str, Any], secret: str) -> None:
    import psycopg

    words = {"host": "127.0.0.1", "user": "postgres", "dbname": "postgres", "password": secret}
    try:
        session = psycopg.connect(**words, connect_timeout=60, autocommit=True)
    except Exception as error:
        count["failed"] += 1
        count["last"] = repr(error)[:500]
        raise

    def once() -> None:
        rows = session.execute(
            "SELECT id FROM documents ORDER BY embedding <-> '[5,5,2]' LIMIT 1", prepare=False
        ).fetchall()
        if rows != [(5,)]:
            raise ValueError(repr(rows))

    while True:
        step(count, once)


def step(count: dict[str, Any], once: Any) -> None:
    try:
        once()
        count["done"] += 1
    except Exception as error:
        count["failed"] += 1
        count["last"] = repr(error)[:500]
    time.sleep(PAUSE)


if __name__ == "__main__":
    main()
