# SPDX-License-Identifier: Apache-2.0
"""The deb on Debian 12 (systemd 252), in a container on this kernel: its life, and what goes wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.package import builds, legs, rig

SUITE = "bookworm"


@pytest.fixture(autouse=True)
def _can_run() -> None:
    if why := builds.why_none("deb") or rig.why_no_base(SUITE):
        pytest.skip(why)


@pytest.mark.limit(legs.CONTAINER_LIMIT)
def test_the_deb_lives_from_install_to_purge(tmp_path: Path) -> None:
    binds = legs.lay_out(tmp_path / "in", legs.LIFE)
    boot = rig.container(SUITE, tmp_path / "in", binds, legs.CONTAINER_SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == legs.LIFE
    measured = legs.measures(boot)
    assert {"install", "start", "memory"} <= set(measured)
    row = re.search(r"^\| `systemd-analyze security`.*", (rig.ROOT / "docs/packaging.md").read_text(), re.M)
    assert row is not None
    documented = [float(cell) for cell in row[0].split("|")[2:5]]
    names = ("agent", "proxy@", "steer")
    scores = [next(v for n, (v, _) in measured.items() if f"exposure-vecward-{name}" in n) for name in names]
    assert documented == scores


@pytest.mark.limit(legs.CONTAINER_LIMIT)
def test_the_service_comes_back_from_what_goes_wrong_and_from_a_reboot(tmp_path: Path) -> None:
    binds = legs.lay_out(tmp_path / "in", legs.FAILURES, ["after_reboot"])
    boot = rig.container(SUITE, tmp_path / "in", binds, legs.CONTAINER_SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == (*legs.FAILURES, "after_reboot")
