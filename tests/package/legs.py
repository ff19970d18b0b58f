# SPDX-License-Identifier: Apache-2.0
"""One leg: a system, two packages, and the steps of tests/package/inside that it takes.

Owns laying out /rig: the packages (tests/package/builds.py), the steps as scripts, the venvs of the real
databases.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests import venvs
from tests.conftest import FULL
from tests.package import builds, rig

INSIDE = rig.ROOT / "tests" / "package" / "inside"
VENVS_OF = "bookworm"  # whose Python they are made with: another suite runs them in a root of it
CACHE = Path("/var/cache/vecward-dev")
CONTAINER_SECONDS, CONTAINER_LIMIT = 900, 1200  # a boot, and the test of it: minutes where nothing else runs
MACHINE_SECONDS, MACHINE_LIMIT = 3000, 3500
_MEASURE = re.compile(r"^measure: (?P<name>\S+) (?P<value>[\d.]+) (?P<unit>\S+)$", re.MULTILINE)

BEGIN = ("look_before", "install", "doctor")
LIFE = (
    *(*BEGIN, "first_hour", "guard", "use", "scores", "rest"),
    *("upgrade", "downgrade", "restart", "remove", "purge"),
)
FAILURES = (
    *(*BEGIN, "guard", "use"),
    *("kill_agent", "kill_workers", "suspend_agent", "hang_agent", "fill_disk", "before_reboot"),
)


def lay_out(
    folder: Path,
    steps: Sequence[str],
    later: Sequence[str] = (),
    *,
    kind: str = "deb",
    suite: str = "bookworm",
    patience: int = 90,
) -> dict[Path, str]:
    """Make `folder` into what becomes /rig; `later`: steps after a reboot. Returns what is to be bound."""
    both = "upgrade" in steps
    versions = builds.pair(kind, folder.with_name("next")) if both else [builds.first(kind)]
    for number, packages in enumerate(versions, start=1):
        target = folder / "packages" / str(number)
        target.mkdir(parents=True)
        for package in packages:
            shutil.copy(package, target)
    module = folder / "tests" / "package" / "inside"
    shutil.copytree(INSIDE, module, ignore=shutil.ignore_patterns("__pycache__"))
    for parent in (folder / "tests", folder / "tests" / "package"):
        (parent / "__init__.py").touch()
    chroma, pgvector = (venvs.python(name).parent.parent for name in ("chroma", "pgvector"))
    environment = f"export RIG_CHROMA={chroma} RIG_PGVECTOR={pgvector} RIG_PATIENCE={patience}"
    for boot, names in ((1, steps), (2, later)):
        scripts = {
            name: f"{environment}\ncd /rig && exec python3 -B -m tests.package.inside {name}"
            for name in names
        }
        if scripts:
            rig.write_steps(folder, boot=boot, **scripts)
    if suite == VENVS_OF:
        return {chroma: str(chroma), pgvector: str(pgvector)}
    base = subprocess.run([str(rig.RIG / "base"), VENVS_OF], capture_output=True, text=True, check=True)
    return {Path(base.stdout.strip()): "/srv/bookworm", CACHE: f"/srv/bookworm{CACHE}"}


def live_in_a_machine(
    folder: Path, kernel: str, steps: Sequence[str], later: Sequence[str] = (), suite: str = "bookworm"
) -> None:
    """The deb under the kernel of Debian `kernel` in QEMU. Skips where that cannot be."""
    if not FULL:
        pytest.skip("in `make soak` and `make test-package` only")
    if why := builds.why_none("deb") or rig.why_no_machine(kernel, suite):
        pytest.skip(why)
    binds = lay_out(folder / "in", steps, later, suite=suite, patience=600)
    boot = rig.machine(kernel, suite, folder / "in", binds, MACHINE_SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == (*steps, *later)


def measures(boot: rig.Boot) -> dict[str, tuple[float, str]]:
    """Name to value and unit of what the steps measured."""
    return {found["name"]: (float(found["value"]), found["unit"]) for found in _MEASURE.finditer(boot.output)}
