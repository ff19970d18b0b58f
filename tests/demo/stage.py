# SPDX-License-Identifier: Apache-2.0
"""The demo's programs: the database, ``vecward run``, clients as users, and Vecward's commands.

Every command that is shown is run as it is shown, in the demo's folder, with the checkout's bin/ and the
database's own venv on the path. Owns no sentence of the story.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import venvs
from tests.demo.ground import PORT, Cannot, Ground
from tests.demo.screen import Differs, Screen, plain
from tests.kernel.arena import remove_cgroup

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "vecward.yaml"
READY, COMMAND, STOP = 90.0, 90.0, 60.0  # seconds


class Stage:
    """One demo's programs on one ground."""

    def __init__(self, ground: Ground, screen: Screen, database_user: str) -> None:
        self.ground, self.screen, self._database_user = ground, screen, database_user
        self.folder = ground.folder
        self._venv = venvs.python("chroma").parent
        self._run: subprocess.Popen[bytes] | None = None
        self.log = self.folder / "vecward.log"
        ground.stack.callback(self._end_run)

    # -- programs that stay ------------------------------------------------------------------------

    def start_database(self) -> None:
        """Chroma as its own user; returns when it accepts."""
        data = self.folder / "data"
        data.mkdir()
        entry = pwd.getpwnam(self._database_user)
        os.chown(data, entry.pw_uid, entry.pw_gid)
        line = f"chroma run --host 127.0.0.1 --port {PORT} --path data"
        self.screen.command(f"{self._database_user}$", f"{line} &")
        log = self.folder / "database.log"
        with log.open("wb") as out:
            self.database = self.ground.popen(
                [str(self._venv / "chroma"), *line.split()[1:]], user=self._database_user, group="database",
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._environment(),
            )  # fmt: skip
        self._wait(lambda: PORT in self.listening(), "Chroma", self.database, log)

    def start_vecward(self) -> int:
        """``vecward run``; returns its pid when it says it is ready."""
        self.screen.command("#", f"vecward run -c {CONFIG} &")
        with self.log.open("wb") as out:
            self._run = self.ground.popen(
                [str(ROOT / "bin" / "vecward"), "run", "-c", CONFIG],
                group=None,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._wait(lambda: b"vecward: ready" in self.log.read_bytes(), "vecward run", self._run, self.log)
        self.screen.output(self.log.read_text())
        return self._run.pid

    @property
    def run(self) -> subprocess.Popen[bytes]:
        if self._run is None:
            raise Differs("vecward run does not run")
        return self._run

    def workers(self) -> list[int]:
        procs = self.ground.cgroup / f"vecward-{self.run.pid}" / "proxy" / "cgroup.procs"
        return [int(p) for p in procs.read_text().split()]

    def stop_vecward(self) -> int:
        """SIGTERM; its exit code."""
        run = self.run
        run.send_signal(signal.SIGTERM)
        code = run.wait(STOP)
        self._run = None
        return code

    def _end_run(self) -> None:
        """On every way out: it takes itself down where it can, and is killed where it cannot."""
        run, self._run = self._run, None
        if run is None or run.poll() is not None:
            return
        run.send_signal(signal.SIGCONT)
        run.send_signal(signal.SIGTERM)
        try:
            run.wait(STOP)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            remove_cgroup(self.ground.cgroup / f"vecward-{run.pid}")  # its children with it

    # -- programs that end -------------------------------------------------------------------------

    def client(self, user: str, line: str) -> str:
        """``USER$ python LINE``: shown, run as that user on the ground, its output shown and given back."""
        self.screen.command(f"{user}$", f"python {line}")
        code, text = self._python(user, line)
        self.screen.output(text)
        if code != 0:
            raise Differs(f"{line} ended with exit code {code}")
        return text

    def attempt(self, user: str, line: str) -> tuple[int, str, float]:
        """A client that may fail: exit code, the last line it printed (shown), seconds it took."""
        self.screen.command(f"{user}$", f"python {line} 2>&1 | tail -n 1")
        began = time.monotonic()
        code, text = self._python(user, line)
        last = (text.strip().splitlines() or [""])[-1]
        self.screen.output(last)
        return code, last, time.monotonic() - began

    def _python(self, user: str, line: str) -> tuple[int, str]:
        process = self.ground.popen(
            [str(self._venv / "python"), *shlex.split(line)],
            user=user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment(),
        )
        out, _ = process.communicate(timeout=COMMAND)
        return process.returncode, out.decode(errors="replace")

    def vecward(self, *arguments: str, expect: int = 0) -> str:
        """``# vecward -c vecward.yaml ARGUMENTS``: shown, run; its output shown, and given back plain."""
        line = ["-c", CONFIG, *arguments]
        self.screen.command("#", f"vecward {shlex.join(line)}")
        done = self._command(line, self.screen.environment)
        self.screen.output(done.stdout)
        if done.returncode != expect or not expect:
            self.screen.output(done.stderr)
        if done.returncode != expect:
            raise Differs(f"vecward {shlex.join(arguments)}: exit code {done.returncode}, not {expect}")
        return plain(done.stdout)

    def shell(self, line: str) -> None:
        """A line of shell as root, in the demo's folder: shown, run, its output shown."""
        self.screen.command("#", line)
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=COMMAND, check=False,
        )  # fmt: skip
        self.screen.output(done.stdout)
        if done.returncode != 0:
            raise Differs(f"{line}: exit code {done.returncode}")

    def json(self, *arguments: str) -> Any:
        """What a command says to programs, for checks; not shown."""
        done = self._command(["-c", CONFIG, *arguments, "--json"], {})
        if done.returncode != 0:
            raise Differs(
                f"vecward {shlex.join(arguments)} --json: exit code {done.returncode}: {done.stderr.strip()}"
            )
        return json.loads(done.stdout)

    def _command(self, line: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "bin" / "vecward"), *line], cwd=self.folder, env=os.environ | environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND, check=False,
        )  # fmt: skip

    # -- looking -----------------------------------------------------------------------------------

    def listening(self) -> set[int]:
        """Local ports in LISTEN, of the database's network."""
        pid = self.database.pid
        found = set()
        for name in ("tcp", "tcp6"):
            for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A":
                    found.add(int(fields[1].rpartition(":")[2], 16))
        return found

    def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self._venv}:/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8",
            "ANONYMIZED_TELEMETRY": "False", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def _wait(
        self, holds: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path
    ) -> None:
        if self.until(lambda: process.poll() is not None or holds(), READY) and process.poll() is None:
            return
        said = log.read_text(errors="replace").strip()[-1500:]
        raise Cannot(f"{what} does not start:\n{said}")
