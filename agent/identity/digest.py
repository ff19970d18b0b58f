# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of executables: bounded in size and time, cached by everything that changes with the file.

Runs in reader threads only. The key holds ctime, which no user can set: a changed file is hashed
again. A file whose ctime is younger than `RACY_NS` is not cached, because a second write within the
clock's granularity would leave the key as it was.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

MAX_SIZE = 512 << 20
MAX_SECONDS = 5.0
MAX_KEPT = 1024
RACY_NS = 2_000_000_000
_CHUNK = 1 << 20

Key = tuple[int, int, int, int, int]


class Digest(NamedTuple):
    """Lower-case hex, or None with the reason why it was not obtained."""

    sha256: str | None
    reason: str | None = None


def key_of(found: os.stat_result) -> Key:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


class Digests:
    """The cache and the hashing. Bounds are arguments so that tests can reach them."""

    def __init__(self, max_size: int = MAX_SIZE, max_seconds: float = MAX_SECONDS) -> None:
        self._max_size = max_size
        self._max_seconds = max_seconds
        self._kept: OrderedDict[Key, str] = OrderedDict()
        self._lock = threading.Lock()

    def cached(self, found: os.stat_result) -> str | None:
        with self._lock:
            return self._kept.get(key_of(found))

    def digest(self, fd: int) -> Digest:
        """Hash the regular file open for reading at `fd`, from its start. Blocks up to the bound."""
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            return Digest(None, "not a regular file")
        if (kept := self.cached(before)) is not None:
            return Digest(kept)
        if before.st_size > self._max_size:
            return Digest(None, f"larger than {self._max_size} bytes")
        state, buffer = hashlib.sha256(), bytearray(_CHUNK)
        view, offset, deadline = memoryview(buffer), 0, time.monotonic() + self._max_seconds
        while got := os.preadv(fd, [view], offset):
            state.update(view[:got])
            offset += got
            if offset > self._max_size:
                return Digest(None, f"larger than {self._max_size} bytes")
            if time.monotonic() > deadline:
                return Digest(None, f"hashing took longer than {self._max_seconds:g} s")
        after = os.fstat(fd)
        if key_of(after) != key_of(before) or offset != before.st_size:
            return Digest(None, "the file changed while it was hashed")
        if time.time_ns() - before.st_ctime_ns > RACY_NS:
            with self._lock:
                self._kept[key_of(before)] = state.hexdigest()
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
        return Digest(state.hexdigest())
