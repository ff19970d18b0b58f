# SPDX-License-Identifier: Apache-2.0
"""From Python to packaging/rig: boot something with steps, and read how it went.

Owns nothing of what is tested. Bias: what did not say that it ended well has failed; the exit status of the
rig decides, the lines only explain.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RIG = ROOT / "packaging" / "rig"
_STEP = re.compile(r"^rig: step (?P<name>\S+) (?P<how>ok|failed\(\d+\)) (?P<seconds>[\d.]+)s$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Boot:
    """How one run of the rig ended. `steps`: name to seconds, of the good ones; `name`: of what it made."""

    code: int
    output: str
    steps: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    def check(self) -> Boot:
        """This, or AssertionError with the end of what was printed."""
        if self.code != 0:
            raise AssertionError(f"the rig ended with {self.code}:\n{self.output[-12000:]}")
        return self


@functools.cache
def why_no_base(suite: str) -> str | None:
    """Why no system of `suite` can be booted in a container here, or None; makes it when it is missing."""
    if os.geteuid() != 0:
        return "needs root: namespaces and cgroups"
    if not any(line.split()[2] == "cgroup2" for line in Path("/proc/mounts").read_text().splitlines()):
        return "needs cgroup v2, which is not mounted"
    if shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        return "needs debootstrap (packaging/dev/setup package)"
    made = subprocess.run([str(RIG / "base"), suite], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no root file system of {suite}: {(made.stderr.strip().splitlines() or ['no message'])[-1]}"
    return None


@functools.cache
def why_no_machine(kernel: str, suite: str) -> str | None:
    """Why `suite` cannot be booted under the kernel of `kernel` in QEMU here, or None."""
    if why := why_no_base(suite):
        return why
    for command in ("qemu-system-x86_64", "busybox", "cpio"):
        if shutil.which(command) is None:
            return f"needs {command} (packaging/dev/setup machines)"
    made = subprocess.run([str(RIG / "kernel"), kernel], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no kernel of {kernel}: {(made.stderr.strip().splitlines() or ['no message'])[-1]}"
    return None


def container(
    suite: str, folder: Path, binds: Mapping[Path, str], seconds: int, keep: Path | None = None
) -> Boot:
    """Boot `folder` in a container; `binds`: host folder to folder there, read-only."""
    environment = {"RIG_SECONDS": str(seconds)} | ({"RIG_KEEP": str(keep)} if keep else {})
    return _run([str(RIG / "container"), suite, str(folder), *_pairs(binds)], seconds, environment)


def machine(kernel: str, suite: str, folder: Path, binds: Mapping[Path, str], seconds: int) -> Boot:
    """Boot `folder` in QEMU under another kernel; `binds` are copied in."""
    environment = {"RIG_SECONDS": str(seconds)}
    return _run([str(RIG / "machine"), kernel, suite, str(folder), *_pairs(binds)], seconds, environment)


def write_steps(folder: Path, *, boot: int = 1, **scripts: str) -> None:
    """Shell scripts as the steps of a boot, in the order given."""
    steps = folder / ("steps" if boot == 1 else f"steps-{boot}")
    steps.mkdir(parents=True, exist_ok=True)
    before = len(list(steps.iterdir()))
    for number, (name, text) in enumerate(scripts.items(), start=before + 10):
        file = steps / f"{number:02d}-{name}"
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)


def _pairs(binds: Mapping[Path, str]) -> Sequence[str]:
    return [f"{source}:{target}" for source, target in binds.items()]


def _run(command: Sequence[str], seconds: int, environment: Mapping[str, str]) -> Boot:
    faulthandler.cancel_dump_traceback_later()  # minutes in here are no hang; the rig has its own limit
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds + 300)  # it bounds itself; this is for its end
        except BaseException:
            process.terminate()
            process.communicate(timeout=60)
            raise
    steps = {
        found["name"].partition("-")[2]: float(found["seconds"])
        for found in _STEP.finditer(output)
        if found["how"] == "ok"
    }
    return Boot(process.returncode, output, steps, f"vecward-rig-{process.pid}")
