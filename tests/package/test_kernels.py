# SPDX-License-Identifier: Apache-2.0
"""The deb's life on other kernels, in machines of their own: 5.10, 6.1 and 6.12 (QEMU, interpreted).

No namespace hides anything here: process IDs are the host's, cgroup controllers are whole, a reboot is one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.package import builds, legs, rig

SUITE = "bookworm"
SECONDS = 3000


@pytest.mark.limit(SECONDS + 400)
@pytest.mark.parametrize("kernel", ["bullseye", "bookworm", "trixie"])
def test_the_deb_lives_on_other_kernels(tmp_path: Path, kernel: str) -> None:
    if not FULL:
        pytest.skip("in `make soak` and `make test-package` only")
    if why := builds.why_none("deb") or rig.why_no_machine(kernel, SUITE):
        pytest.skip(why)
    binds = legs.lay_out(tmp_path / "in", legs.LIFE, patience=600)
    boot = rig.machine(kernel, SUITE, tmp_path / "in", binds, SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == legs.LIFE


@pytest.mark.limit(SECONDS + 400)
def test_the_service_comes_back_in_a_machine_of_its_own(tmp_path: Path) -> None:
    if not FULL:
        pytest.skip("in `make soak` and `make test-package` only")
    if why := builds.why_none("deb") or rig.why_no_machine("bookworm", SUITE):
        pytest.skip(why)
    steps = (*legs.FAILURES[:-1], "jump_clock", "starve_agent", legs.FAILURES[-1])
    binds = legs.lay_out(tmp_path / "in", steps, ["after_reboot"], patience=600)
    boot = rig.machine("bookworm", SUITE, tmp_path / "in", binds, SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == (*steps, "after_reboot")
