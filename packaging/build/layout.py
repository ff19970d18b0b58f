# SPDX-License-Identifier: Apache-2.0
"""Lays out all that a package installs, below a folder; every kind of package is made from this tree.

Owns what comes from where: packaging/files.txt, the code, the libraries (wheels.py), byte-code (bytecode.py),
the compiled form (native.py), the BPF object. Modes are set, times and owners are left to the format. Manual
pages are not compressed yet.
"""

from __future__ import annotations

import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bytecode
import native
import wheels
from ground import PRIVATE, ROOT, VENDOR, Refused, run, say, version

LIST = ROOT / "packaging" / "files.txt"
CODE = ("agent", "policy")
OBJECT = ROOT / "bpf" / "steer.bpf.o"
FOLDERS = ("/etc/vecward", "/etc/vecward/policy.d", "/etc/vecward/vecward.d")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of files.txt."""

    kinds: frozenset[str]
    optional: bool
    mode: int
    target: str
    source: str


def read_list() -> Iterator[Line]:
    for text in LIST.read_text().splitlines():
        words = text.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 4:
            raise Refused(f"{LIST.name}: {text!r} has not four columns")
        kind, mode, target, source = words
        name = kind.rstrip("?")
        kinds = {"both": {"deb", "rpm"}, "deb": {"deb"}, "rpm": {"rpm"}}[name]
        yield Line(frozenset(kinds), kind.endswith("?"), int(mode, 8), target, source)


def lay_out(kind: str, folder: Path) -> list[wheels.Wheel]:
    """All of it below `folder`, which is made anew; returns the libraries that are in it."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "usr").is_dir():
        raise Refused(f"{folder} is not a tree of an earlier build: it is not touched")
    shutil.rmtree(folder, ignore_errors=True)
    for name in FOLDERS:
        (folder / name.lstrip("/")).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as made:
        run(sys.executable, "-B", ROOT / "packaging" / "man" / "manual.py", made, cwd=ROOT)
        _install_files(kind, folder, Path(made))
    _link_workers(folder)
    private = folder / PRIVATE.lstrip("/")
    for name in CODE:
        shutil.copytree(ROOT / name, private / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    if not OBJECT.exists():
        raise Refused("bpf/steer.bpf.o is not built: run `make bpf`")
    (private / "bpf").mkdir()
    shutil.copyfile(OBJECT, private / "bpf" / OBJECT.name)
    inside = wheels.unpack(folder / VENDOR.lstrip("/"))
    native.compile_into(private)
    _strip(private)
    bytecode.compile_below(private)
    _set_modes(kind, folder)
    return inside


def _install_files(kind: str, folder: Path, made: Path) -> None:
    for line in read_list():
        if kind not in line.kinds:
            continue
        base = made if line.source.startswith("made/") else ROOT
        found = sorted(base.glob(line.source.removeprefix("made/")))
        if not found and not line.optional:
            raise Refused(f"{LIST.name}: {line.source} matches nothing")
        for path in found:
            name = line.target + path.name if line.target.endswith("/") else line.target
            target = folder / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _link_workers(folder: Path) -> None:
    """The generation of workers that starts with the target bears the version's name."""
    units = folder / "usr/lib/systemd/system"
    (units / "vecward.target.wants").mkdir()
    link = units / "vecward.target.wants" / f"vecward-proxy@{version()}.service"
    link.symlink_to("../vecward-proxy@.service")


def _strip(private: Path) -> None:
    """Debug information of binary modules: nine tenths of some. What the loader needs stays."""
    objects = sorted(path for path in private.rglob("*.so*") if path.is_file())
    before = sum(path.stat().st_size for path in objects)
    for path in objects:
        run("strip", "--strip-unneeded", "--remove-section=.comment", "--remove-section=.note", path)
    after = sum(path.stat().st_size for path in objects)
    say(f"{len(objects)} binary modules, {before / 1e6:.1f} MB, stripped {after / 1e6:.1f} MB")


def _set_modes(kind: str, folder: Path) -> None:
    """Of all, whatever the umask was: what files.txt says, 0644 and 0755 for the rest."""
    wanted = {line.target: line.mode for line in read_list() if kind in line.kinds}
    for path in [folder, *sorted(folder.rglob("*"))]:
        name = "/" + str(path.relative_to(folder))
        if path.is_symlink():
            continue
        if stat.S_ISDIR(path.stat().st_mode):
            path.chmod(0o755)
        else:
            path.chmod(wanted.get(name, wanted.get(name.rpartition("/")[0] + "/", 0o644)))
