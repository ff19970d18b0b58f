# SPDX-License-Identifier: Apache-2.0
"""The compiled form of what every request passes through (packaging/native.txt), for each Python."""

from __future__ import annotations

from pathlib import Path


def compile_into(private: Path) -> None:
    """Not yet."""
