# SPDX-License-Identifier: Apache-2.0
"""The packages under test: what `make deb` and `make rpm` built, and a second one with the next version.

Owns finding them. Bias: a missing build is said as a reason, never a pass.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.package.rig import ROOT

BUILD_SECONDS = 1800  # for all that a package holds, where nothing is built yet


@functools.cache
def first(kind: str) -> tuple[Path, ...]:
    """The packages of the newest build, made when there is none; VECWARD_PACKAGES names another folder."""
    folder = os.environ.get("VECWARD_PACKAGES")
    if folder is None and not _newest(ROOT / "build", kind) and _can_build(kind):
        faulthandler.cancel_dump_traceback_later()  # minutes in here are no hang; the build has its own limit
        subprocess.run(["make", "-s", "-C", str(ROOT), kind], check=True, timeout=BUILD_SECONDS)
    return _newest(Path(folder or ROOT / "build"), kind)


def _newest(folder: Path, kind: str) -> tuple[Path, ...]:
    pattern = {"deb": "vecward_*.deb", "rpm": "vecward-[0-9]*.rpm"}[kind]
    # Not what `make repo` made of it: copies, the rpm with a signature.
    found = [path for path in folder.rglob(pattern) if "repo" not in path.relative_to(folder).parts]
    return tuple(sorted(found, key=lambda path: path.stat().st_mtime)[-1:])


def _can_build(kind: str) -> bool:
    return any(line.startswith(f"{kind}:") for line in (ROOT / "Makefile").read_text().splitlines())


def why_none(kind: str) -> str | None:
    return None if first(kind) else f"no package is built (make {kind})"


def pair(kind: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """The build, and a later version of it, which is made in `folder`."""
    (build,) = first(kind)
    return [build], [{"deb": _next_deb, "rpm": _next_rpm}[kind](build, folder)]


def _next_rpm(build: Path, folder: Path) -> Path:
    """What is in `build`, with its version's last number one higher, as another package."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    shutil.copy(build, folder / "build.rpm")
    subprocess.run(["rpm2archive", "-n", "build.rpm"], cwd=folder, check=True, capture_output=True)
    subprocess.run(["tar", "-xf", folder / "build.rpm.tar", "-C", tree], check=True)
    asked = ["rpm", "-qp", "--nosignature", "--qf", "%{VERSION}", str(build)]
    old = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    head, _, tail = old.rpartition(".")
    new = f"{head}.{int(tail) + 1}"
    _number(tree, old, new)
    maker = [sys.executable, "-B", str(ROOT / "packaging" / "build"), "rpm-of", str(tree), new, str(folder)]
    subprocess.run(maker, check=True, timeout=BUILD_SECONDS)
    shutil.rmtree(tree)
    return next(folder.glob("vecward-[0-9]*.rpm"))


def _number(tree: Path, old: str, new: str) -> None:
    """Make the version that the program says another, and the generation that it starts."""
    changed = 0
    for file in tree.glob("usr/**/agent/__init__.py"):
        text = file.read_text()
        file.write_text(text.replace(f'"{old}"', f'"{new}"'))
        changed += f'"{old}"' in text
    if not changed:
        raise AssertionError("the package has no version to change")
    for link in list(tree.rglob(f"*@{old}.*")):
        link.rename(link.with_name(link.name.replace(old, new)))


def _next_deb(build: Path, folder: Path) -> Path:
    """`build` with its version's last number one higher, in the control data and in `vecward --version`."""
    tree = folder / "tree"
    folder.mkdir()
    subprocess.run(["dpkg-deb", "-R", str(build), str(tree)], check=True)
    control = tree / "DEBIAN" / "control"
    text = control.read_text()
    old = next(line.split()[1] for line in text.splitlines() if line.startswith("Version:"))
    upstream, dash, revision = old.partition("-")
    head, _, tail = upstream.rpartition(".")
    new = f"{head}.{int(tail) + 1}"
    control.write_text(text.replace(f"Version: {old}", f"Version: {new}{dash}{revision}"))
    changed = 0
    for file in tree.glob("usr/**/agent/__init__.py"):
        text = file.read_text()
        file.write_text(text.replace(f'"{upstream}"', f'"{new}"'))
        changed += f'"{upstream}"' in text
    if not changed:
        raise AssertionError("the package has no version to change")
    for script in (tree / "DEBIAN").iterdir():  # where they name the generation that this version starts
        if script.name in ("preinst", "postinst", "prerm", "postrm"):
            script.write_text(script.read_text().replace(upstream, new))
    for link in list(tree.rglob(f"*@{upstream}.*")):
        link.rename(link.with_name(link.name.replace(upstream, new)))
    target = folder / f"vecward_{new}_{build.name.rpartition('_')[2]}"
    _sum(tree)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", str(tree), str(target)], check=True
    )
    shutil.rmtree(tree)
    return target


def _sum(tree: Path) -> None:
    sums = tree / "DEBIAN" / "md5sums"
    if sums.exists():
        names = [line.split(None, 1)[1] for line in sums.read_text().splitlines()]
        done = subprocess.run(["md5sum", *names], cwd=tree, check=True, capture_output=True, text=True)
        sums.write_text(done.stdout)
