# SPDX-License-Identifier: Apache-2.0
"""Segment files: their names, their making, and one append that is whole or says where it tore.

The agent makes files and hands open descriptors to workers, who know no path. Nothing here truncates,
renames over or rewrites a byte that was written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SEGMENT_BYTES: Final = 64 * 1024 * 1024  # rotation: small enough to remove, copy and verify one at a time
SEGMENT_AGE: Final = 3600 * 10**9  # ns
MAX_VECTORS: Final = 1000  # below IOV_MAX (1024)
_NAME: Final = re.compile(r"(\d{6,12})\.seg")
_STREAM: Final = re.compile(r"[0-9a-f]{16}")


class ShortWrite(Exception):
    """Fewer bytes reached the file than were given: it ends in a torn block now."""


class SegmentFile:
    """An open segment, for its one writer. `size` is the end of its last whole block."""

    __slots__ = ("fd", "number", "size")

    def __init__(self, fd: int, number: int, size: int = 0) -> None:
        self.fd = fd
        self.number = number
        self.size = size

    def append(self, buffers: Sequence[bytes | bytearray], total: int) -> None:
        """Write one block at once. Raises ShortWrite (torn) or OSError (nothing was written)."""
        written = os.writev(self.fd, buffers)
        if written != total:
            raise ShortWrite(f"{written} of {total} bytes written")
        self.size += total

    def end(self) -> int:
        """The file's size as the file system has it, torn bytes included."""
        try:
            return os.fstat(self.fd).st_size
        except OSError:
            return self.size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def new_stream_id() -> str:
    return os.urandom(8).hex()


def is_stream_id(name: str) -> bool:
    return _STREAM.fullmatch(name) is not None


def segment_name(number: int) -> str:
    return f"{number:06d}.seg"


def segment_number(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    if match is None or segment_name(int(match[1])) != name:  # one name per number
        return None
    return int(match[1])


def list_segments(folder: Path) -> list[tuple[int, Path]]:
    """The segments of one stream in order. A folder that does not exist has none."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = [(number, folder / name) for name in names if (number := segment_number(name)) is not None]
    return sorted(found)


def create_segment(folder: Path, number: int, mode: int = 0o640) -> SegmentFile:
    """A new empty segment, its name durable. Raises FileExistsError: a number is never used twice."""
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    fd = os.open(
        folder / segment_name(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, mode
    )
    try:
        sync_folder(folder)
    except BaseException:
        os.close(fd)
        raise
    return SegmentFile(fd, number)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
