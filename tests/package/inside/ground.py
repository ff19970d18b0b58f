# SPDX-License-Identifier: Apache-2.0
"""The machine as a step sees it: commands, units, processes, and waiting for what should become so.

Owns no knowledge of what is tested. Every wait is for a condition and has a bound far above what it needs:
the machine may be interpreted by QEMU.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE = float(os.environ.get("RIG_PATIENCE", "90"))  # seconds for what takes milliseconds
STATE = Path("/rig/state")


class Differs(AssertionError):
    """Something is not as it should be; the message says what was seen."""


def run(*command: str, code: int | None = 0, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end; Differs with its output when it did not exit with `code` (None: any)."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        input=text,
        timeout=10 * PATIENCE,
        check=False,
    )
    if code is not None and done.returncode != code:
        said = done.stdout[-4000:] + done.stderr[-4000:]
        raise Differs(f"{' '.join(command)}: exit {done.returncode}\n{said}")
    return done


def holds(condition: bool, what: str) -> None:
    """Differs with `what` unless the condition holds."""
    if not condition:
        raise Differs(what)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `condition` returned when it first was true; errors in it count as not yet."""
    until = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            if found := condition():
                return found
        except (OSError, Differs, ValueError, KeyError, subprocess.TimeoutExpired) as error:
            last = error
        if time.monotonic() > until:
            raise Differs(f"not so after {seconds:.0f} s: {what} ({last})")
        time.sleep(0.05)


def vecward(*arguments: str, code: int | None = 0) -> str:
    """Standard output of ``vecward ARGUMENTS``."""
    return run("vecward", *arguments, code=code).stdout


def vecward_json(*arguments: str) -> Any:
    return json.loads(vecward(*arguments, "--json"))


def shown(unit: str, name: str) -> str:
    """One property of a unit."""
    return run("systemctl", "show", "-P", name, unit).stdout.strip()


def measure(name: str, value: float, unit: str) -> None:
    """A line that the test reads."""
    print(f"measure: {name} {value:.3f} {unit}", flush=True)


def remember(name: str, value: Any) -> None:
    STATE.mkdir(exist_ok=True)
    (STATE / f"{name}.json").write_text(json.dumps(value))


def recalled(name: str) -> Any:
    return json.loads((STATE / f"{name}.json").read_text())


def own_processes() -> Iterator[int]:
    """Process IDs in any cgroup of Vecward."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                group = (folder / "cgroup").read_text()
            except OSError:
                continue
            if "vecward" in group:
                yield int(folder.name)


def pss(pid: int) -> int:
    """Bytes of memory that are this process's, shared pages divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise Differs(f"no Pss of {pid}")


def start_unit(name: str, command: Sequence[str], *properties: str, kind: str = "exec") -> None:
    """A transient service that is no part of Vecward."""
    options = [f"--property={text}" for text in (f"Type={kind}", "CollectMode=inactive", *properties)]
    run("systemd-run", "--quiet", f"--unit={name}", *options, "--", *command)


def explain() -> None:
    """What a person would look at first, for the log of a failed run."""
    for command in (
        ("systemctl", "--no-pager", "--full", "status", "vecward*"),
        ("systemctl", "--no-pager", "list-units", "--all", "vecward*"),
        ("journalctl", "--no-pager", "-n", "120", "-o", "short-monotonic", "-u", "vecward*"),
        ("sh", "-c", "journalctl --no-pager -o short-monotonic -p 5 | grep -v chroma | tail -30"),
        (
            "sh",
            "-c",
            "journalctl --no-pager -o cat -u 'database-*' -u load | grep -v -e rust/ | tail -20",
        ),
        ("sh", "-c", "vecward status; vecward sessions"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        print(f"--- {' '.join(command)}\n{done.stdout[-5000:]}{done.stderr[-2000:]}", flush=True)
