# SPDX-License-Identifier: Apache-2.0
"""pgvector-python's own test-suite: each test ends through Vecward as it ends directly, plain and over TLS.

The suite is taken from the package's source as the lock pins it. It opens sessions by psycopg, psycopg2,
asyncpg, pg8000, SQLAlchemy, SQLModel, Django and Peewee, and makes the extension, tables and indexes itself.
What fails directly (four of SQLAlchemy over asyncpg, with the versions of the lock) has to fail alike.
"""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from typing import Literal

import pytest

from tests import venvs
from tests.conftest import FULL
from tests.kernel.arena import PATIENCE
from tests.servers.postgres import OWNER, PORT, RUNS_AS, SECRET, PostgresStage

FILES = ("*",) if FULL else ("psycopg", "asyncpg", "pg8000", "django")
PASSED = 500 if FULL else 50  # tests, at the least
DATABASE = "pgvector_python_test"  # as the suite names it
# What its source leaves out: tests say `from .conftest import numpy`, which is None where there is none.
CONFTEST = "import numpy\n"


def _lay_out(stage: PostgresStage) -> None:
    source = venvs.source("pgvector", "pgvector")
    folder = stage.folder / "suite"
    (folder / "tests").mkdir(parents=True)
    for name in FILES:
        for file in (source / "tests").glob(f"test_{name}.py"):
            shutil.copy(file, folder / "tests")
    (folder / "tests" / "conftest.py").write_text(CONFTEST)
    (folder / "tests" / "__init__.py").touch()
    shutil.copy(source / "pyproject.toml", folder)
    shutil.chown(folder, RUNS_AS)


def _outcomes(stage: PostgresStage, name: str, **environment: str) -> dict[str, str]:
    """What became of each test of the suite: passed, skipped, failure or error."""
    report = stage.folder / "suite" / f"{name}.xml"
    words = {"PGHOST": "localhost", "PGPORT": str(PORT), "PGUSER": OWNER, "LOGNAME": OWNER, **environment}
    process = stage.arena.popen(
        [
            str(venvs.python("pgvector")), "-m", "pytest", "-q", "--continue-on-collection-errors",
            "-p", "no:cacheprovider", f"--junitxml={report}", "tests",
        ], user=RUNS_AS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=report.parent,
        env=stage.environment(PYTHONDONTWRITEBYTECODE="1", **words),
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=4 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    print(f"{name}: {said.decode().strip().splitlines()[-1]}")
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314  # pytest of ours wrote it
        became = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}.{case.get('name')}"] = " ".join(became) or "passed"
    return found


@pytest.mark.parametrize("build", ["plain", "tls"] if FULL else ["tls"])
def test_each_of_its_tests_ends_as_directly(build: Literal["plain", "tls"]) -> None:
    """Directly the database trusts whoever comes; behind the guard it wants the password that is held."""
    with PostgresStage(build=build) as stage:
        environment, tls = {}, {}
        if build == "tls":
            environment = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(stage.authority)}
            tls = {**stage.certificate, "server": "verify", "ca": str(stage.authority)}
        _lay_out(stage)
        stage.start_postgres(auth="trust")
        try:
            stage.psql(f"CREATE DATABASE {DATABASE}")
            directly = _outcomes(stage, "directly", **environment)
            hba = stage.data / "pg_hba.conf"
            hba.write_text(hba.read_text().replace("trust", "scram-sha-256"))
            stage.psql("SELECT pg_reload_conf()")
            stage.psql(f"DROP DATABASE {DATABASE}")
            stage.psql(f"CREATE DATABASE {DATABASE}")
            stage.vecward(credential={"user": OWNER, "password": stage.hold("pg", SECRET)}, tls=tls)
            through = _outcomes(stage, "through", **environment)
            sessions = [one for one in stage.json("sessions", "--limit", "1000") if one["requests"]]
        finally:
            stage.stop()
            stage.stop_database()
    assert through == directly
    assert sum(outcome == "passed" for outcome in directly.values()) >= PASSED, directly
    assert sessions
    assert all(bool(session["tls"]) is (build == "tls") for session in sessions)
