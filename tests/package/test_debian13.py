# SPDX-License-Identifier: Apache-2.0
"""The same deb on Debian 13 (systemd 257, Python 3.13), in a container on this kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.package import builds, legs, rig

SUITE = "trixie"


@pytest.fixture(autouse=True)
def _can_run() -> None:
    if not FULL:
        pytest.skip("in `make soak` and `make test-package` only")
    if why := builds.why_none("deb") or rig.why_no_base(SUITE) or rig.why_no_base(legs.VENVS_OF):
        pytest.skip(why)


@pytest.mark.limit(legs.CONTAINER_LIMIT)
@pytest.mark.parametrize(("steps", "later"), [(legs.LIFE, ()), (legs.FAILURES, ("after_reboot",))])
def test_the_deb_lives_on_debian_13(tmp_path: Path, steps: tuple[str, ...], later: tuple[str, ...]) -> None:
    binds = legs.lay_out(tmp_path / "in", steps, later, suite=SUITE)
    boot = rig.container(SUITE, tmp_path / "in", binds, legs.CONTAINER_SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == (*steps, *later)
