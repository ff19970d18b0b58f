# SPDX-License-Identifier: Apache-2.0
"""The libraries inside of the package: which, fetched how, unpacked into one folder for all Pythons.

Owns packaging/vendor.lock (SHA-256 and name of every wheel, as `sha256sum -c` reads it) and the rule by which
wheels for several versions of CPython share a folder: binary modules carry the interpreter's version in their
names, and every other file has to be the same in all of them. Nothing is built from source. A wheel whose
hash is not in the lock does not come in.
"""

from __future__ import annotations

import email.parser
import fnmatch
import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ground import MACHINE, ROOT, VERSIONS, Refused, cache, run, say

LOCK = ROOT / "packaging" / "vendor.lock"
PLAN = ROOT / "packaging" / "vendor.in"
SOURCE = ROOT / "requirements" / "run.txt"
MACHINES = ("x86_64", "aarch64")
_GLIBC = (
    "2_34",
    "2_31",
    "2_28",
    "2_27",
    "2_26",
    "2_24",
    "2_17",
)  # not above that of EL 9; Debian 12 has 2.36
_OLD_NAMES = {"x86_64": ("manylinux2014", "manylinux2010", "manylinux1"), "aarch64": ("manylinux2014",)}
_NOT_KEPT = (
    "RECORD",
    "WHEEL",
    "INSTALLER",
    "REQUESTED",
    "direct_url.json",
    "top_level.txt",
    "entry_points.txt",
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """One locked file."""

    sha256: str
    file: str

    @property
    def name(self) -> str:
        return self.file.split("-")[0]

    @property
    def version(self) -> str:
        return self.file.split("-")[1]

    @property
    def python(self) -> str | None:
        """The only version of CPython it is for ("3.12"), or None: all of them."""
        interpreter, abi = self.file.removesuffix(".whl").split("-")[-3:-1]
        return f"3.{interpreter[3:]}" if abi.startswith("cp3") else None

    def fits(self, machine: str) -> bool:
        platform = self.file.removesuffix(".whl").split("-")[-1]
        return platform == "any" or platform.endswith(machine)


@dataclass(frozen=True, slots=True)
class Plan:
    """packaging/vendor.in: libraries and files that are left out."""

    without: frozenset[str]
    dropped: tuple[str, ...]


def read_plan() -> Plan:
    without, dropped = set(), []
    for line in PLAN.read_text().splitlines():
        words = line.partition("#")[0].split()
        match words:
            case []:
                continue
            case ["without", name]:
                without.add(name)
            case ["drop", pattern]:
                dropped.append(pattern)
            case _:
                raise Refused(f"{PLAN.name}: {line!r} is neither `without NAME` nor `drop PATTERN`")
    return Plan(frozenset(without), tuple(dropped))


def read_lock() -> list[Wheel]:
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return [Wheel(*line.split("  ", 1)) for line in lines]


def chosen(machine: str = MACHINE) -> list[Wheel]:
    """What goes into a package for `machine`. Refused where requirements/run.txt names other versions."""
    plan, locked = read_plan(), read_lock()
    pinned = dict(_pinned())
    have = {wheel.name: wheel.version for wheel in locked}
    want = {name: version for name, version in pinned.items() if name not in plan.without}
    if have != want:
        differ = sorted(set(have.items()) ^ set(want.items()))
        raise Refused(f"{LOCK.name} and {SOURCE.name} differ in {differ}: run `make lock`")
    return [wheel for wheel in locked if wheel.fits(machine)]


def fetch(wanted: list[Wheel]) -> Path:
    """The folder that holds them all, each checked against its hash; by pip where one is missing."""
    folder = cache() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [wheel for wheel in wanted if not _matches(folder / wheel.file, wheel.sha256)]
    if missing:
        say(f"fetching by pip: {', '.join(sorted({f'{w.name}=={w.version}' for w in missing}))}")
    for name in VERSIONS:
        batch = [wheel for wheel in missing if (wheel.python or VERSIONS[0]) == name]
        if batch:
            asked = "".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in batch)
            _download(asked, name, MACHINE, folder)
    for wheel in wanted:
        if not _matches(folder / wheel.file, wheel.sha256):
            raise Refused(f"{wheel.file} has another hash than {LOCK.name} says, or was not found")
    return folder


def unpack(folder: Path) -> list[Wheel]:
    """All of them into `folder`; what they are is returned. Refused where two disagree on a file."""
    plan, wanted = read_plan(), chosen()
    source = fetch(wanted)
    for wheel in wanted:
        with zipfile.ZipFile(source / wheel.file) as archive:
            for member in sorted(archive.namelist()):
                if not member.endswith("/") and not _is_dropped(member, plan):
                    _put(folder / member, archive.read(member), wheel)
    return wanted


def write_lock() -> None:
    """Of what requirements/run.txt names, for all Pythons and machines, without what vendor.in leaves out."""
    plan = read_plan()
    found: set[Wheel] = set()
    with tempfile.TemporaryDirectory() as temporary:
        for machine in MACHINES:
            for name in VERSIONS:
                folder = Path(temporary, machine, name)
                _download(SOURCE.read_text(), name, machine, folder)
                found |= {Wheel(_sha256(path), path.name) for path in folder.iterdir()}
    kept = sorted(
        (wheel for wheel in found if _normal(wheel.name) not in plan.without), key=lambda w: w.file.lower()
    )
    head = "\n".join(
        ("# SPDX-License-Identifier: Apache-2.0",
         f"# Every wheel in the packages, for CPython {', '.join(VERSIONS)} on {' and '.join(MACHINES)}.",
         "# Written by `make lock`, of run.txt and vendor.in; `sha256sum -c` reads it.")
    )  # fmt: skip
    LOCK.write_text(head + "\n" + "".join(f"{wheel.sha256}  {wheel.file}\n" for wheel in kept))
    say(f"{LOCK.name}: {len(kept)} wheels")


def metadata(folder: Path, name: str) -> dict[str, str]:
    """The headers of a library's METADATA in the unpacked `folder`; of repeated ones the last."""
    (path,) = folder.glob(f"{name}-*.dist-info/METADATA")
    return dict(email.parser.HeaderParser().parsestr(path.read_text()).items())


def _download(requirements: str, python: str, machine: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"manylinux_{glibc}_{machine}" for glibc in _GLIBC]
    names += [f"{old}_{machine}" for old in _OLD_NAMES[machine]]
    abis = (f"cp{python.replace('.', '')}", "abi3", "none")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        run(
            sys.executable, "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check",
            "--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp",
            f"--python-version={python}", *(f"--abi={abi}" for abi in abis),
            *(f"--platform={name}" for name in names), "-d", folder, "-r", file.name,
        )  # fmt: skip


def _pinned() -> Iterator[tuple[str, str]]:
    for line in SOURCE.read_text().splitlines():
        name, equal, version = line.partition("==")
        if equal and not line.startswith((" ", "#")):
            yield _normal(name), version.split()[0].rstrip("\\")


def _normal(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def _is_dropped(member: str, plan: Plan) -> bool:
    folder, _, name = member.rpartition("/")
    if ".dist-info" in folder and name in _NOT_KEPT:
        return True
    return any(fnmatch.fnmatchcase(member, pattern) for pattern in plan.dropped)


def _put(path: Path, data: bytes, wheel: Wheel) -> None:
    if ".data" in path.parent.parts[-1] or any(part.endswith(".data") for part in path.parts):
        raise Refused(f"{wheel.file} installs {path.name} outside of its folder: vendor.in has to drop it")
    if path.exists():
        if path.read_bytes() != data:
            raise Refused(f"{wheel.file}: {path.name} differs from that of another wheel")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _matches(path: Path, sha256: str) -> bool:
    return path.exists() and _sha256(path) == sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
