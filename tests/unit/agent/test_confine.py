# SPDX-License-Identifier: Apache-2.0
"""Giving up privilege: what is left can be read back, and cannot be won back."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import confine
from agent.confine import AGENT_CAPABILITIES, ConfineError, become, effective_capabilities, forbid_spying

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
UID, GID, EXTRA = 61184, 61185, 61186
libc = ctypes.CDLL(None, use_errno=True)


def forked(check: Callable[[], None]) -> None:
    """Run `check` in a child that may give up everything; its failure is the test's."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        failure = said.read()
    _, status = os.waitpid(pid, 0)
    assert failure == ""
    assert status == 0


def status(field: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{field}:"))


def masks() -> dict[str, int]:
    return {name: int(status(name), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}


def refused(call: Callable[[], int]) -> bool:
    return call() == -1 and ctypes.get_errno() == 1


@as_root
def test_a_worker_keeps_no_capability_and_no_way_to_one() -> None:
    def check() -> None:
        become(UID, GID, frozenset())
        assert os.getresuid() == (UID, UID, UID)
        assert os.getresgid() == (GID, GID, GID)
        assert os.getgroups() == []
        assert set(masks().values()) == {0}
        assert status("NoNewPrivs") == "1"
        with pytest.raises(PermissionError):
            os.setuid(0)

    forked(check)


@as_root
def test_the_agent_keeps_its_four_capabilities_over_the_change_of_user() -> None:
    def check() -> None:
        become(UID, GID, AGENT_CAPABILITIES, (EXTRA,))
        wanted = sum(1 << cap for cap in AGENT_CAPABILITIES)
        assert masks() == {"CapInh": 0, "CapPrm": wanted, "CapEff": wanted, "CapBnd": wanted, "CapAmb": 0}
        assert effective_capabilities() == AGENT_CAPABILITIES
        assert os.getgroups() == [EXTRA]
        with pytest.raises(PermissionError):
            os.setuid(0)

    forked(check)


@as_root
def test_a_confined_process_is_not_dumpable_and_dies_with_its_parent() -> None:
    def check() -> None:
        become(UID, GID, frozenset())
        assert libc.prctl(3) == 0  # PR_GET_DUMPABLE
        assert Path("/proc/self/mem").stat().st_uid == 0, "its memory is closed to its own user"
        with pytest.raises(PermissionError):
            open("/proc/self/mem", "rb").close()
        signal_ = ctypes.c_int()
        libc.prctl(2, ctypes.byref(signal_))  # PR_GET_PDEATHSIG
        assert signal_.value == 9
        assert os.umask(0) == 0o077

    forked(check)


@as_root
def test_seccomp_denies_looking_into_other_processes() -> None:
    def check() -> None:
        become(UID, GID, AGENT_CAPABILITIES)
        forbid_spying()
        assert status("Seccomp") == "2"
        parent = os.getppid()
        assert refused(lambda: libc.ptrace(16, parent, 0, 0))  # PTRACE_ATTACH
        assert refused(lambda: libc.ptrace(0, 0, 0, 0))  # PTRACE_TRACEME
        assert refused(lambda: libc.process_vm_readv(parent, None, 0, None, 0, 0))
        assert refused(lambda: libc.process_vm_writev(parent, None, 0, None, 0, 0))
        pidfd = os.pidfd_open(parent)
        assert refused(lambda: libc.syscall(438, pidfd, 0, 0))  # pidfd_getfd
        assert Path(f"/proc/{parent}/status").read_text(), "what identity needs still works"

    forked(check)


@as_root
def test_without_the_filter_the_same_calls_are_not_refused() -> None:
    """So that the test above cannot pass for another reason."""

    def check() -> None:
        become(UID, GID, AGENT_CAPABILITIES)
        assert libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0) == 0

    forked(check)


def test_a_machine_without_a_table_is_not_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfineError, match="no system call table for riscv64"):
        forbid_spying()


def test_capabilities_that_cannot_be_had_stop_the_start() -> None:
    def check() -> None:
        if os.geteuid() == 0:
            become(UID, GID, frozenset())
        with pytest.raises((ConfineError, PermissionError)):
            become(UID, GID, AGENT_CAPABILITIES)

    forked(check)


def test_open_files_are_raised_to_the_hard_limit() -> None:
    def check() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lower = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, lower))
        assert confine.raise_open_files() == lower
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (lower, lower)

    forked(check)


def test_a_group_that_is_not_there_is_none() -> None:
    assert confine.group_id("no-such-group-here") is None
    assert confine.group_id("root") == 0
