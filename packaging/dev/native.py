# SPDX-License-Identifier: Apache-2.0
"""Makes a copy of the tree and compiles the modules of packaging/native.txt in it with mypyc.

    python packaging/dev/native.py FOLDER

Needs a C compiler and Python's headers. Compiled files carry the interpreter's version in their names; an
interpreter without one of its own reads the source beside it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIST = ROOT / "packaging" / "native.txt"
COPIED = ("agent", "policy", "bpf", "bin", "docs", "packaging", "tests", "requirements")
STAMP = ".compiled"


def modules() -> list[str]:
    """The paths in the list, patterns resolved; exits where one names nothing."""
    found: list[str] = []
    for line in LIST.read_text().splitlines():
        pattern = line.partition("#")[0].strip()
        if not pattern:
            continue
        paths = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))
        if not paths:
            sys.exit(f"native: {LIST.name} names {pattern}, which is not there")
        found += [path for path in paths if path not in found]
    return found


def fingerprint(paths: list[str]) -> str:
    """Of everything that the compiled files depend on: types come from the whole tree."""
    from mypy.version import __version__ as compiler

    flags = [os.environ.get(name, "") for name in ("CC", "CFLAGS", "LDSHARED", "LDFLAGS")]
    digest = hashlib.sha256(f"{sys.version} {compiler} {flags} {' '.join(paths)}".encode())
    for folder in ("agent", "policy"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def copy_tree(target: Path) -> None:
    """The tree as it is, but for compiled files that stand already."""
    for name in COPIED:
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(
            ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target / path.name)


def compile_tree(target: Path, paths: list[str]) -> None:
    """In a process of its own: the compiler reads the tree that it stands in."""
    code = (
        "import sys\n"
        "from setuptools import Distribution\n"
        "from mypyc.build import mypycify\n"
        "made = mypycify(['--config-file', 'pyproject.toml', '--no-error-summary', *sys.argv[1:]],"
        " opt_level='2', debug_level='0', group_name='vecward')\n"
        "distribution = Distribution({'name': 'vecward', 'packages': [], 'ext_modules': made})\n"
        "command = distribution.get_command_obj('build_ext')\n"
        "command.inplace = True\n"
        "command.ensure_finalized()\n"
        "distribution.run_command('build_ext')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=target, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, env=os.environ | {"MYPY_CACHE_DIR": str(target / ".mypy")},
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"native: {done.stdout[-4000:]}")
    shutil.rmtree(target / "build")
    shutil.rmtree(target / ".mypy", ignore_errors=True)


def main() -> int:
    target = Path(sys.argv[1]).resolve()
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        sys.exit("native: Python's headers are missing; install python3-dev (Debian) and try again")
    paths = modules()
    wanted = fingerprint(paths)
    stamp = target / STAMP
    if stamp.exists() and stamp.read_text() == wanted:
        copy_over(target)
        return 0
    began = time.monotonic()
    print(f"native: compiling {len(paths)} modules into {target.name} (a minute or two)", file=sys.stderr)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    copy_tree(target)
    compile_tree(target, paths)
    stamp.write_text(wanted)
    size = sum(path.stat().st_size for path in target.rglob("*.so"))
    print(f"native: {size / 1e6:.1f} MB in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


def copy_over(target: Path) -> None:
    """What is not compiled may have changed: tests, documents, the BPF object."""
    for name in COPIED:
        shutil.copytree(
            ROOT / name, target / name, symlinks=True, dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.so"),
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
