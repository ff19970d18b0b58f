# SPDX-License-Identifier: Apache-2.0
"""The deb's life on Linux 6.1, Debian 12's, in a machine of its own (QEMU, interpreted).

No namespace hides anything here: process IDs are the host's, cgroup controllers are whole, a reboot is one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.package import legs


@pytest.mark.limit(legs.MACHINE_LIMIT)
def test_the_deb_lives_on_linux_6_1(tmp_path: Path) -> None:
    legs.live_in_a_machine(tmp_path, "bookworm", legs.LIFE)
