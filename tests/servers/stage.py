# SPDX-License-Identifier: Apache-2.0
"""A real database, Vecward in front of it, and clients as any user: all in an arena of their own.

For the rings that need the whole path (servers, soak, bench). Owns starting and stopping; knows nothing of
what is tested. A stage that is left checks that ``vecward run`` ended with exit 0 and took everything down.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tests import venvs
from tests.kernel.arena import PATIENCE, ROOT, Arena

CHROMA_PORT = 8000
QDRANT_PORT = 6333
READY = PATIENCE
ALLOW_ALL = """\
version: 1
rules:
  - id: everyone
    what: {action: [search, read, scan, count, write, delete, schema, snapshot, admin, session]}
    allow: true
"""


class Stage:
    """``with Stage("chroma") as stage: stage.vecward(policy); stage.client(script, user="nobody")``.

    `folder` is a world-readable place for scripts; `database` the running server's process.
    """

    def __init__(
        self, engine: Literal["chroma", "qdrant"] = "chroma", waits: Literal["patient", "shipped"] = "patient"
    ) -> None:
        """`waits`: how long a client waits for its identity (tests/servers/patient.py)."""
        self._waits = waits
        self.engine = engine
        self.port = CHROMA_PORT if engine == "chroma" else QDRANT_PORT
        self.guard = "docs"
        self._stack = contextlib.ExitStack()
        self._run: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Stage:
        self.arena = self._stack.enter_context(Arena())
        self.folder = Path(tempfile.mkdtemp(prefix="vwtest-stage-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o755)
        self.log = self.folder / "vecward.log"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._run is not None:
                code = self.stop()
                if kind is None and code != 0:
                    raise AssertionError(f"vecward run ended with {code}:\n{self.log.read_text()}")
        finally:
            self._stack.close()

    # -- the database ------------------------------------------------------------------------------

    def start_database(self, host: str = "127.0.0.1", *options: str) -> subprocess.Popen[bytes]:
        """The real Chroma, or the Qdrant stub; returns when it accepts."""
        if self.engine == "chroma":
            binary = venvs.python("chroma").parent / "chroma"
            command = [
                str(binary),
                "run",
                "--host",
                host,
                "--port",
                str(self.port),
                "--path",
                str(self.folder / "data"),
            ]
        else:
            stub = ROOT / "tests" / "servers" / "qdrant_stub.py"
            command = [str(venvs.python("qdrant")), str(stub), "--host", host, "--port", str(self.port)]
        log = self.folder / "database.log"
        with log.open("ab") as out:
            # Outside of "clients": its cgroup is the database's own.
            self.database = self.arena.popen(
                [*command, *options], group="database", stdout=out, stderr=out, cwd=self.folder
            )
        self._wait(lambda: self.arena.inside(lambda: _listens(self.port)), READY, f"the database: {log}")
        return self.database

    def stop_database(self) -> None:
        self.database.terminate()
        self.database.wait(PATIENCE)

    # -- vecward -----------------------------------------------------------------------------------

    def write_config(
        self, policy: str = ALLOW_ALL, mode: str = "enforce", workers: int = 2, **guard: Any
    ) -> Path:
        """vecward.yaml and policy.yaml in the stage's folder. `guard` adds keys to the guard."""
        config = {
            "guards": [
                {"name": self.guard, "engine": self.engine, "ports": [self.port], "mode": mode, **guard}
            ],
            "policy": ["policy.yaml"],
            "evidence": {"dir": str(self.folder / "evidence"), "reserve": "1MiB"},
            "proxy": {"workers": workers},
            "steer": {"cgroup": str(self.arena.cgroup), "pins": str(self.arena.pins)},
            "control": {"socket": str(self.folder / "run" / "control.sock")},
            "metrics": {"listen": f"unix:{self.folder / 'run' / 'metrics.sock'}"},
        }
        self.config = self.folder / "vecward.yaml"
        self.config.write_text(json.dumps(config))  # JSON is YAML
        (self.folder / "policy.yaml").write_text(policy)
        return self.config

    def vecward(self, policy: str = ALLOW_ALL, mode: str = "enforce", workers: int = 2, **guard: Any) -> None:
        """Write the configuration, start ``vecward run``, return when it is ready."""
        self.write_config(policy, mode, workers, **guard)
        self.start()

    def start(self) -> None:
        """``vecward run`` with the configuration that stands. Raises AssertionError with its log."""
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self._run = self.arena.popen(
                [sys.executable, "-m", "tests.servers.patient", self._waits, "run", "-c", str(self.config)],
                group=None, cwd=ROOT, stdout=out, stderr=out,
            )  # fmt: skip
        run = self._run
        self._wait(
            lambda: b"vecward: ready" in self.log.read_bytes()[before:] or run.poll() is not None,
            READY,
            "vecward",
        )
        if run.poll() is not None:
            self._run = None
            raise AssertionError(f"vecward run ended with {run.returncode}:\n{self.log.read_text()}")

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End ``vecward run``; returns its exit code."""
        run, self._run = self._run, None
        if run is None:
            return 0
        run.send_signal(how)
        return run.wait(PATIENCE)

    @property
    def running(self) -> subprocess.Popen[bytes]:
        if self._run is None:
            raise AssertionError("vecward does not run")
        return self._run

    def children(self) -> dict[str, list[int]]:
        """Pids by cgroup name: {"agent": [..], "proxy": [..]}."""
        base = self.arena.cgroup / f"vecward-{self.running.pid}"
        return {
            name: [int(p) for p in (base / name / "cgroup.procs").read_text().split()]
            for name in ("agent", "proxy")
        }

    # -- asking ------------------------------------------------------------------------------------

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``vecward ARGUMENTS`` with the stage's configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "agent", "-c", str(self.config), *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(
                f"vecward {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json").stdout)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json("status")
        return found

    def client(
        self,
        script: str,
        *arguments: str,
        user: str | int | None = None,
        timeout: float = 2 * PATIENCE,
        python: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a script with the engine's official client library, as any user; raises on a non-zero exit."""
        file = self.folder / f"client-{abs(hash(script))}.py"
        if not file.exists():
            file.write_text(script)
            file.chmod(0o644)
        process = self.start_client(file, *arguments, user=user, python=python)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        if process.returncode != 0:
            raise AssertionError(
                f"client exit {process.returncode}\n{out.decode()}\n{err.decode()[-4000:]}\n{self.tail()}"
            )
        return subprocess.CompletedProcess(process.args, 0, out, err)

    def start_client(
        self, file: Path, *arguments: str, user: str | int | None = None, python: Path | None = None
    ) -> subprocess.Popen[bytes]:
        interpreter = python or venvs.python(self.engine)
        home = str(self.folder)
        environment = {"PATH": os.environ["PATH"], "HOME": home, "ANONYMIZED_TELEMETRY": "False"}
        return self.arena.popen(
            [str(interpreter), str(file), *arguments], user=user, cwd=self.folder, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip

    def tail(self) -> str:
        """The end of vecward's log, for messages."""
        return self.log.read_text()[-2000:] if self.log.exists() else ""

    def _wait(self, holds: Any, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not there after {seconds} s\n{self.tail()}")
            time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(10)
        return probe.connect_ex(("127.0.0.1", port)) == 0


__all__: Sequence[str] = ("ALLOW_ALL", "Stage")
