# SPDX-License-Identifier: Apache-2.0
"""The deb's life on Linux 5.10, older than EL 9's 5.14, in a machine of its own (QEMU, interpreted).

No namespace hides anything here: process IDs are the host's, cgroup controllers are whole, a reboot is one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.package import legs


@pytest.mark.limit(legs.MACHINE_LIMIT)
def test_the_deb_lives_on_linux_5_10(tmp_path: Path) -> None:
    legs.live_in_a_machine(tmp_path, "bullseye", legs.LIFE)
