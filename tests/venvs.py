# SPDX-License-Identifier: Apache-2.0
"""The interpreters of real databases and their clients, each in a venv of its own.

Owns the way from a name to an interpreter: ``python("chroma")`` is that of the lock file
requirements/chroma.txt (`make lock` writes it from tests/servers/requirements-chroma.txt).
packaging/dev/venv makes the venv when it is not there yet; `make test` and `make demo` make all of
them first. Venvs are readable by every user, so a client may run as any.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
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


@functools.cache
def source(name: str, project: str) -> Path:
    """The unpacked source distribution of `project`, as the lock `name` pins it; raises NoVenv.

    For a client's own tests, which no wheel holds. pip asks a source for its metadata by setuptools: that of
    the lock `native`.
    """
    folder = python(name).parent.parent / "source" / project
    if folder.exists():
        return folder
    lock = (ROOT / "requirements" / f"{name}.txt").read_text()
    [pinned] = re.findall(rf"^{re.escape(project)}==.*(?:\n    --hash.*)+", lock, re.MULTILINE)
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        wanted = Path(made) / "wanted.txt"
        wanted.write_text(pinned.rstrip("\\ ") + "\n")
        command = [
            str(python("native")), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
            "--no-build-isolation", "--require-hashes", "--disable-pip-version-check", "-d", made,
            "-r", str(wanted),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode != 0:
            raise NoVenv(f"the source of {project}: {done.stderr.strip()[-300:] or 'no message'}")
        [archive] = Path(made).glob("*.tar.gz")
        subprocess.run(["tar", "--no-same-owner", "-xzf", str(archive), "-C", made], check=True)
        (Path(made) / archive.name.removesuffix(".tar.gz")).rename(folder)
    return folder
