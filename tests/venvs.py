# SPDX-License-Identifier: Apache-2.0
"""The interpreters of real databases and their clients, each in a venv of its own.

Owns the way from a name to an interpreter: ``python("chroma")`` is that of the lock file
requirements/chroma.txt (`make lock` writes it from tests/servers/requirements-chroma.txt).
packaging/dev/venv makes the venv when it is not there yet; `make test` and `make demo` make all of
them first. Venvs are readable by every user, so a client may run as any.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600  # to download and install one, the largest being a few hundred MB


class NoVenv(Exception):
    """The venv could not be made; the message is what pip or the script said last."""


@functools.cache
def python(name: str, *options: str) -> Path:
    """The interpreter of the venv `name`, made with `options` of packaging/dev/venv; raises NoVenv."""
    lock = ROOT / "requirements" / f"{name}.txt"
    if not lock.exists():
        raise NoVenv(f"there is no {lock.relative_to(ROOT)}")
    command = [str(ROOT / "packaging" / "dev" / "venv"), *options, name, str(lock)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoVenv(f"{name}: not installed within {SECONDS} s") from None
    if made.returncode != 0:
        raise NoVenv(f"{name}: {(made.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Path(made.stdout.strip()) / "bin" / "python"
