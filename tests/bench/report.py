# SPDX-License-Identifier: Apache-2.0
"""docs/performance.md: prose that people write, and between markers the sections that a bench measured.

A full run writes its section in place; a small one only prints it, because its numbers say nothing.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
FULL = os.environ.get("VECWARD_TEST_SIZE") == "full"


def write_section(name: str, text: str) -> None:
    """Replace the section `name`. Raises ValueError when the page has none."""
    print(f"\n{text}\n")
    if not FULL:
        return
    page = PAGE.read_text()
    start, end = f"<!-- measured: {name} -->\n", f"<!-- end: {name} -->"
    if start not in page or end not in page:
        raise ValueError(f"{PAGE.relative_to(ROOT)} has no section {name!r}")
    head, _, rest = page.partition(start)
    PAGE.write_text(f"{head}{start}\n{text.strip()}\n\n{end}{rest.partition(end)[2]}")


def machine() -> str:
    """What it ran on, without a name that only this machine has."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    memory = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) / 2**20  # type: ignore[index]
    kernel = ".".join(platform.release().split(".")[:2])
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    maker = model[1].strip() if model else platform.machine()
    python = platform.python_version()
    said = f"{os.cpu_count()} vCPU {maker}, {memory:.0f} GiB, kernel {kernel}, Python {python}"
    return f"{said}; commit {commit}" if commit else said


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and the least and greatest where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else middle
