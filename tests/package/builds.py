# SPDX-License-Identifier: Apache-2.0
"""The packages under test: what `make deb` and `make rpm` built, and one with the next version number.

Owns finding and making them. The second is another build in the full size: the code of an earlier commit,
compiled by itself, so that what changes over is not one program under two numbers. In the small size it is
the first with another number, which costs seconds. Bias: a missing build is said as a reason, never a pass;
a build that is older than a source is made again.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ground

from tests.conftest import FULL
from tests.package.rig import ROOT

BUILD_SECONDS = 1800  # for all that a package holds, where nothing is built yet
PATTERNS = {"deb": "vecward_*.deb", "rpm": "vecward-[0-9]*.rpm"}
SOURCES = ("agent", "policy", "bpf", "systemd", "packaging", "docs", "*.md")
NO_SOURCES = ("rig", "__pycache__")  # below them: what no package is made of
NO_PYTHON = "/nonexistent"


@functools.cache
def first(kind: str) -> tuple[Path, ...]:
    """The newest build, made when there is none of these sources; VECWARD_PACKAGES names another folder."""
    if named := os.environ.get("VECWARD_PACKAGES"):
        return _newest(Path(named), kind)
    built = ROOT / "build" / "package"
    found = _newest(built, kind)
    if not found or found[0].stat().st_mtime < max(path.stat().st_mtime for path in _sources()):
        _make([ROOT / "packaging" / "dev" / "setup", kind])
        _make([sys.executable, "-B", ROOT / "packaging" / "build", kind, built])
    return _newest(built, kind)


def _newest(folder: Path, kind: str) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob(PATTERNS[kind]), key=lambda path: path.stat().st_mtime)[-1:])


def _sources() -> Iterator[Path]:
    for top in (found for name in SOURCES for found in ROOT.glob(name)):
        for path in (top, *top.rglob("*")):
            if path.is_file() and not set(NO_SOURCES) & set(path.relative_to(ROOT).parts):
                yield path


def _make(command: list[str | Path], **environment: str) -> None:
    faulthandler.cancel_dump_traceback_later()  # minutes in here are no hang; the build has its own limit
    subprocess.run(command, cwd=ROOT, check=True, timeout=BUILD_SECONDS, env=os.environ | environment)


def why_none(kind: str) -> str | None:
    return None if first(kind) else f"no package is built (make {kind})"


def pair(kind: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """The build, and one with a later version; made in `folder` where it is the same with another number."""
    (build,) = first(kind)
    if FULL and (revision := _earlier()):
        return [build], [_built_from(revision, kind)]
    return [build], [{"deb": _next_deb, "rpm": _next_rpm}[kind](build, folder)]


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _earlier() -> str:
    """The commit of VECWARD_EARLIER, else of the newest released version, else the one before; "": none."""
    named = os.environ.get("VECWARD_EARLIER")
    released = _git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD~1")
    found = _git("rev-parse", "--verify", f"{named or released or 'HEAD~1'}^{{commit}}")
    if named and not found:
        raise AssertionError(f"VECWARD_EARLIER={named} is no commit")
    return found


@functools.cache
def _built_from(revision: str, kind: str) -> Path:
    """The package of that commit's code, with the number after this version's, for the legs' Pythons."""
    tree = ROOT / "build" / "earlier" / revision[:12]
    built = tree / "build" / "package"
    if not (tree / ".complete").exists():
        shutil.rmtree(tree.parent, ignore_errors=True)
        _check_out(revision, tree)
        _make(["make", "-s", "-C", tree / "bpf"])
        (tree / ".complete").touch()
    if not _newest(built, kind):
        print(f"building {kind} of {revision[:12]} as the version after this one", flush=True)
        moment = _git("log", "-1", "--format=%ct", revision)
        _make(
            [sys.executable, "-B", tree / "packaging" / "build", kind, built],
            SOURCE_DATE_EPOCH=moment, VECWARD_PYTHON_3_12=NO_PYTHON,
        )  # fmt: skip
    return _newest(built, kind)[0]


def _check_out(revision: str, tree: Path) -> None:
    """The files of a commit, with the number after this version's."""
    tree.mkdir(parents=True)
    command = ["git", "-c", "safe.directory=*", "archive", revision]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", tree], stdin=archive.stdout, check=True)
    init = tree / "agent" / "__init__.py"
    was = init.read_text().partition('__version__ = "')[2].partition('"')[0]
    for path in (init, tree / "CHANGELOG.md", tree / "packaging" / "debian" / "NEWS"):
        text = path.read_text()
        if was not in text:
            raise AssertionError(f"{path.name} of {revision} has no version {was!r}")
        path.write_text(text.replace(was, _after(ground.version()), 1))
    (tree / ".cache").mkdir()
    (tree / ".cache" / "tool").symlink_to((ROOT / ".cache" / "tool").resolve())


def _after(version: str) -> str:
    """The version with its last number one higher."""
    head, _, tail = version.rpartition(".")
    return f"{head}.{int(tail) + 1}"


def _next_rpm(build: Path, folder: Path) -> Path:
    """What is in `build`, with its version's last number one higher, as another package."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    shutil.copy(build, folder / "build.rpm")
    subprocess.run(["rpm2archive", "-n", "build.rpm"], cwd=folder, check=True, capture_output=True)
    subprocess.run(["tar", "-xf", folder / "build.rpm.tar", "-C", tree], check=True)
    asked = ["rpm", "-qp", "--nosignature", "--qf", "%{VERSION}", str(build)]
    old = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    new = _after(old)
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
    new = _after(upstream)
    control.write_text(text.replace(f"Version: {old}", f"Version: {new}{dash}{revision}"))
    for script in (tree / "DEBIAN").iterdir():  # where they name the generation that this version starts
        if script.name in ("preinst", "postinst", "prerm", "postrm"):
            script.write_text(script.read_text().replace(upstream, new))
    _number(tree, upstream, new)
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
