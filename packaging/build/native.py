# SPDX-License-Identifier: Apache-2.0
"""The compiled form of what every request passes through (packaging/native.txt), for each Python.

Owns where it is made (build/native-VERSION, by packaging/dev/native.py in a venv of that Python), with which
flags, and that it is of the same sources as the package. Its modules stand beside their sources and bear the
version of Python in their names: a Python that has none reads the source. Where the building machine lacks a
Python or its headers, that is said.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ground import ROOT, VERSIONS, Refused, pythons, run, say

DEV = ROOT / "packaging" / "dev"
REQUIREMENTS = ("requirements/run.txt", "requirements/native.txt")
# Not what the Python at hand was linked with: that may name folders of this machine for the loader to search.
_FLAGS = {
    "CC": "gcc",
    "CFLAGS": "-fwrapv -fstack-protector-strong -Wformat -Werror=format-security -D_FORTIFY_SOURCE=2",
    "LDSHARED": "gcc -shared -pthread -Wl,-z,relro,-z,now",
    "LDFLAGS": "",
}
_AT_ONCE = 2  # each takes a core for two minutes, and a gigabyte
_HEADERS = "import sysconfig, os; print(os.path.exists(sysconfig.get_paths()['include'] + '/Python.h'))"


def compile_into(private: Path) -> None:
    """Put the compiled modules of every version into `private`, which has the sources already."""
    for tree in compile_trees(VERSIONS):
        _copy(tree, private)


def compile_trees(versions: Sequence[str]) -> list[Path]:
    """The tree of each of these Pythons that is here; quick when nothing was changed. Raises Refused."""
    found = pythons()
    able = []
    for version in versions:
        if version not in found or run(found[version], "-I", "-c", _HEADERS).strip() != "True":
            say(f"no compiled form for Python {version}: it, or its headers, are not on this machine")
        else:
            able.append(version)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda version: _compile(version, found[version]), able))


def _compile(version: str, python: Path) -> Path:
    venv = run(DEV / "venv", "--python", python, f"native-{version}", *REQUIREMENTS, cwd=ROOT).strip()
    tree = ROOT / "build" / f"native-{version}"
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    # Assertions name their source files: the compiler's runtime in the venv, Python's own headers.
    prefix = run(python, "-I", "-c", "import sys; print(sys.base_prefix)").strip()
    places = " ".join(f"-ffile-prefix-map={place}=." for place in (venv, prefix))
    flags = _FLAGS | {"CFLAGS": f"{_FLAGS['CFLAGS']} {places}"}
    run(f"{venv}/bin/python", "-B", DEV / "native.py", tree, cwd=ROOT, env=environment | flags)
    return tree


def _copy(tree: Path, private: Path) -> None:
    for name in ("agent", "policy"):
        for path in sorted((tree / name).rglob("*.py")):
            installed = private / path.relative_to(tree)
            if not installed.exists() or installed.read_bytes() != path.read_bytes():
                raise Refused(
                    f"{path.relative_to(tree)} was changed while the package was built: build again"
                )
    for path in sorted([*tree.glob("*.so"), *tree.glob("agent/**/*.so"), *tree.glob("policy/**/*.so")]):
        target = private / path.relative_to(tree)
        shutil.copyfile(path, target)
