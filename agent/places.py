# SPDX-License-Identifier: Apache-2.0
"""The folders of one ``vecward run``: who may use them, who holds them now, what a killed run left.

Runs as root, so it trusts no path: a folder that others may write, or that holds other things, is refused
before its owner changes. A lock on the folder itself says that somebody runs with it; it goes with its
process, however that ends. Bias: what may belong to somebody else is left alone.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from agent import confine
from agent.config import Config

_EVIDENCE = ("host.pub", "keys", "ledger", "streams", "reserve")


class RunError(Exception):
    """It cannot start; one line for a person, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Places:
    """Where this run's processes live and who they are."""

    config_file: Path
    run_dir: Path
    base_cgroup: Path
    agent_uid: int
    agent_gid: int
    proxy_uid: int
    proxy_gid: int
    cgroup_root: Path
    read_group: str

    @property
    def agent_cgroup(self) -> Path:
        return self.base_cgroup / "agent"

    @property
    def proxy_cgroup(self) -> Path:
        return self.base_cgroup / "proxy"

    @property
    def worker_socket(self) -> Path:
        return self.run_dir / "worker.sock"


class Unbroken(io.TextIOBase):
    """stdout or stderr whose reader may go away (`vecward run | head`): what guards the ports goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def claim(folder: Path, key: str) -> int:
    """A descriptor that holds `folder` for this run. `key` names it in the configuration. Raises RunError."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror}", f"{key} names it") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RunError(f"another vecward runs with {folder}", f"stop it first, or set {key}") from None
    return lock


def run_dir_names(config: Config) -> set[str]:
    """What this and earlier versions make there."""
    listen = config.metrics.listen
    metrics = Path("metrics.sock" if listen is None else listen.removeprefix("unix:")).name
    return {"worker.sock", "control.sock", "metrics.sock", "lock", config.control.socket.name, metrics}


def make_run_dir(places: Places, config: Config) -> bool:
    """See that it is there and ours alone; True when it was made now. Raises RunError."""
    folder, hint = places.run_dir, "control.socket needs a folder of its own, like /run/vecward"
    made = False
    try:
        with suppress(FileExistsError):
            folder.mkdir(parents=True, mode=0o755)
            made = True
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise RunError(f"{folder} is not a directory", hint)
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if shared or found.st_uid not in (0, places.agent_uid, *confine.DYNAMIC_IDS):
            raise RunError(f"{folder}: others may write there", hint)
        if set(os.listdir(folder)) - run_dir_names(config):
            raise RunError(f"{folder} holds other things", hint)
        os.chown(folder, places.agent_uid, places.agent_gid, follow_symlinks=False)
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror}", hint) from None
    return made


def make_evidence_dir(places: Places, config: Config) -> None:
    """See that it is there, holds nothing of others, and is the agent's. Raises RunError."""
    folder = config.evidence.dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        names = set(os.listdir(folder)) - {"lost+found"}
        if names and names.isdisjoint(_EVIDENCE):
            raise RunError(f"{folder} holds other things than evidence", "set evidence.dir to a new folder")
        readers = confine.group_id(places.read_group)
        os.chown(folder, places.agent_uid, readers if readers is not None else places.agent_gid)
        folder.chmod(0o2750)
        for name in sorted(names.intersection(_EVIDENCE)):  # an earlier run's users may have been other ids
            for path in (folder / name, *(folder / name).rglob("*")):
                if path.lstat().st_uid != places.agent_uid:
                    os.chown(path, places.agent_uid, -1, follow_symlinks=False)
    except OSError as error:
        raise RunError(
            f"{folder}: {error.strerror}", "set evidence.dir to a folder that root may write"
        ) from None


def sweep_cgroups(point: Path) -> list[str]:
    """Take away the empty cgroups of runs that were killed. Returns their names."""
    swept = []
    for folder in point.glob("vecward-*"):
        number = folder.name.removeprefix("vecward-")
        if not number.isdigit() or (int(number) != os.getpid() and Path("/proc", number).exists()):
            continue
        for each in (folder / "agent", folder / "proxy", folder):
            remove_folder(each)
        if not folder.exists():
            swept.append(folder.name)
    return swept


def remove_folder(folder: Path) -> None:
    """A cgroup stays busy for a moment after its last process."""
    for _ in range(50):
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                return
            time.sleep(0.02)
