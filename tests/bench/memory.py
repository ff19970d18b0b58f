# SPDX-License-Identifier: Apache-2.0
"""Memory as a host has it that has been up for a while: all in use, most of it as page cache.

A virtual machine's host may give a page only when it is first written to, and take back what is free:
measured, 5 us for each 4 KiB instead of 0.3, paid by whoever comes first. A proxy that records comes to fresh
pages all the time, and would be measured with its machine's age. Owns no measurement.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.arena import ROOT

LEFT = 5 << 30  # bytes for the programs that are measured, and for the page cache that they share
PROGRAMS = 3 << 29  # of these: not filled with page cache
PIECE = 16 << 20
DISK = "/var/tmp"  # never in memory (file-hierarchy(7)), as the evidence of the bench


@contextlib.contextmanager
def used_memory() -> Iterator[None]:
    """While this stands, memory is taken from page cache that the machine has. Nothing on a small machine."""
    held = _available() - LEFT
    room = shutil.disk_usage(DISK).free
    if held < PIECE or room < 4 * LEFT:
        yield
        return
    work = f"from tests.bench.memory import hold; hold({held})"
    with (
        tempfile.TemporaryFile(dir=DISK) as file,
        subprocess.Popen(
            [sys.executable, "-c", work], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder,
    ):
        if holder.stdout is None or not holder.stdout.readline():
            raise RuntimeError("memory could not be held: the process that should hold it ended")
        piece = os.urandom(PIECE)
        for _ in range((LEFT - PROGRAMS) // PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        yield  # at the end the holder's input is closed, and so it ends


def hold(size: int) -> None:
    """In this process: write to `size` bytes, say so, and keep them until the input ends."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # the first to go where it was too much
    piece = bytes(PIECE)
    with mmap.mmap(-1, size) as memory:
        for at in range(0, size - len(piece), len(piece)):
            memory[at : at + len(piece)] = piece
        print("held", flush=True)
        sys.stdin.read()


def _available() -> int:
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024
