# SPDX-License-Identifier: Apache-2.0
"""What every part of the package's build stands on: where things are, which Pythons are served, and time.

Owns no file of the package. Bias: a build stops rather than makes a package that lacks something unsaid.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PRIVATE = "/usr/lib/vecward"  # the installed code's folder
VENDOR = f"{PRIVATE}/vendor"
VERSIONS = ("3.11", "3.12", "3.13")  # Debian 12; Ubuntu 24.04 and EL; Debian 13
MACHINE = platform.machine()


class Refused(Exception):
    """The build cannot go on; the message is for the person who started it."""


def say(line: str) -> None:
    print(f"package: {line}", file=sys.stderr, flush=True)


def run(
    *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None, text: str = ""
) -> str:
    """Standard output. Refused, with what it said, when it fails. `text` is its standard input."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=None if env is None else dict(env),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Refused(
            f"{' '.join(words[:6])} ended with {done.returncode}\n{done.stdout}{done.stderr}"[:6000]
        )
    return done.stdout


def version() -> str:
    """Of Vecward: the one place is agent/__init__.py."""
    found = re.search(
        r'^__version__ = "([0-9.]+)"$', (ROOT / "agent" / "__init__.py").read_text(), re.MULTILINE
    )
    if found is None:
        raise Refused("agent/__init__.py has no version")
    return found[1]


def epoch() -> int:
    """Seconds of the newest time stamp in a package: SOURCE_DATE_EPOCH, or the last commit."""
    if said := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(said)
    return int(run("git", "-C", ROOT, "-c", "safe.directory=*", "log", "-1", "--format=%ct").strip())


def cache() -> Path:
    """What was fetched once: the folder of packaging/dev/venv."""
    if said := os.environ.get("VECWARD_DEV"):
        return Path(said)
    if os.geteuid() == 0:
        return Path("/var/cache/vecward-dev")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vecward-dev"


def pythons() -> dict[str, Path]:
    """The interpreter of each served version that this machine has; VECWARD_PYTHON_3_12=PATH names one.

    Debian's own first, then the command path, then pyenv.
    """
    found = {}
    for name in VERSIONS:
        said = os.environ.get(f"VECWARD_PYTHON_{name.replace('.', '_')}")
        pyenv = sorted(
            Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob(f"versions/{name}.*")
        )
        folders = ["/usr/bin", *os.environ.get("PATH", "").split(":"), *(f"{path}/bin" for path in pyenv)]
        candidates: Sequence[Path] = [Path(said)] if said else [Path(f, f"python{name}") for f in folders]
        for path in candidates:
            if path.exists() and _is(path, name):
                found[name] = path
                break
    return found


def _is(path: Path, name: str) -> bool:
    # pyenv's shims exist for versions that are not chosen, and fail
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == name
