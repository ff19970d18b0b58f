# SPDX-License-Identifier: Apache-2.0
"""Finds the path of a cgroup from the id that the kernel recorded at connect.

The id decides: it is taken when the process connects, /proc/PID/cgroup says where it is now. The
kernel's file handle of a cgroup is its id (fs/kernfs/mount.c, FILEID_KERNFS), so with
CAP_DAC_READ_SEARCH a path is found without a process; without that capability the path that /proc
shows is checked against the id, and at last the tree is searched, bounded. Ids are never used
twice in one boot, and cgroup v2 does not rename, so a found path is kept.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections import OrderedDict

from agent.identity.process import text

FILEID_KERNFS = 0xFE  # include/linux/exportfs.h
MAX_KEPT = 8192
MAX_VISITED = 4096  # directories of one search

_libc = ctypes.CDLL(None, use_errno=True)


class Hierarchy:
    """The mounted cgroup v2 tree. Safe to use from several reader threads.

    :raises OSError: from the constructor when `mount` cannot be opened.
    """

    def __init__(self, mount: str) -> None:
        self._mount = os.path.realpath(mount)
        self._fd = os.open(self._mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._kept: OrderedDict[int, str] = OrderedDict()
        self._lock = threading.Lock()
        self._handles = True

    def close(self) -> None:
        os.close(self._fd)

    def path_of(self, cgroup_id: int, claimed: str | None = None) -> str | None:
        """The path of the cgroup with this id below the mount, ``/`` for the root; None = gone.

        `claimed` is what /proc/PID/cgroup says; it counts only if the id agrees.
        """
        with self._lock:
            kept = self._kept.get(cgroup_id)
        if kept is not None:
            return kept
        found = self._by_handle(cgroup_id) if self._handles else None
        if found is None and claimed is not None and self._is(claimed, cgroup_id):
            found = claimed
        if found is None and not self._handles:
            found = self._search(cgroup_id)
        if found is not None:
            with self._lock:
                self._kept[cgroup_id] = found
                if len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
        return found

    def _is(self, path: str, cgroup_id: int) -> bool:
        if not path.startswith("/") or ".." in path.split("/"):
            return False
        try:
            return os.stat(self._mount + path, follow_symlinks=False).st_ino == cgroup_id
        except (OSError, ValueError):
            return False

    def _by_handle(self, cgroup_id: int) -> str | None:
        # struct file_handle: handle_bytes u32, handle_type s32, then the handle (open_by_handle_at(2))
        handle = ctypes.create_string_buffer(struct.pack("=IiQ", 8, FILEID_KERNFS, cgroup_id), 16)
        fd = _libc.open_by_handle_at(self._fd, handle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if fd < 0:
            if ctypes.get_errno() in (1, 38, 95):  # EPERM, ENOSYS, EOPNOTSUPP: never on this host
                self._handles = False
            return None
        try:
            shown = os.readlink(b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)
        mount = os.fsencode(self._mount)
        if shown == mount:
            return "/"
        return text(shown[len(mount) :]) if shown.startswith(mount + b"/") else None

    def _search(self, cgroup_id: int) -> str | None:
        pending, visited = [self._mount], 0
        while pending and visited < MAX_VISITED:
            here = pending.pop(0)
            visited += 1
            try:
                if os.stat(here).st_ino == cgroup_id:
                    return here[len(self._mount) :] or "/"
                with os.scandir(here) as entries:
                    pending.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
            except OSError:
                continue
        return None
