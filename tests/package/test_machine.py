# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on Debian 12 in a machine of its own (QEMU, interpreted): clock and memory too.

No namespace hides anything here: process IDs are the host's, cgroup controllers are whole, a reboot is one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.package import legs


@pytest.mark.limit(legs.MACHINE_LIMIT)
def test_the_service_comes_back_in_a_machine_of_its_own(tmp_path: Path) -> None:
    steps = (*legs.FAILURES[:-1], "jump_clock", "starve_agent", legs.FAILURES[-1])
    legs.live_in_a_machine(tmp_path, "bookworm", steps, ("after_reboot",))
