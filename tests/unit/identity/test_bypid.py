# SPDX-License-Identifier: Apache-2.0
"""A living process is identified by its number as it would be by its connection."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.identity.bypid import identify_process, read_record
from agent.identity.host import read_host
from agent.identity.process import ProcessGone
from agent.identity.record import UNSET_ID
from policy.model import Attribution


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that says when it runs its own program, and waits to be told to end."""
    command = [sys.executable, "-c", "print(flush=True); input()", "an argument"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.communicate(b"\n")


def test_a_record_is_what_the_kernel_would_write(child: subprocess.Popen[bytes]) -> None:
    record = read_record(child.pid, read_host())
    assert (record.tgid, record.parent_tgid) == (child.pid, os.getpid())
    assert (record.uid, record.euid, record.gid) == (os.getuid(), os.geteuid(), os.getgid())
    file = os.stat(sys.executable)
    assert record.exe is not None
    assert (record.exe.dev, record.exe.ino) == (file.st_dev, file.st_ino)
    assert record.mnt_ns == os.stat("/proc/self/ns/mnt").st_ino
    assert record.start_ns > record.parent_start_ns > 0
    login = Path("/proc/self/loginuid")
    assert record.login_uid == (int(login.read_text()) if login.exists() else UNSET_ID)


def test_a_living_process_has_all_that_can_be_read_of_it(child: subprocess.Popen[bytes]) -> None:
    subject = identify_process(child.pid)
    assert subject.attribution is Attribution.KERNEL
    assert (subject.pid, subject.uid) == (child.pid, os.getuid())
    assert subject.argv is not None
    assert subject.argv[-1] == "an argument"
    assert subject.cwd == "/"
    assert subject.exe == os.path.realpath(sys.executable)
    assert subject.exe_sha256 == hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()
    assert subject.parents[0].pid == os.getpid()
    assert subject.parent_exe == subject.exe


def test_who_owns_the_database_is_not_claimed_to_be_known(child: subprocess.Popen[bytes]) -> None:
    subject = identify_process(child.pid)
    assert "is_self" in subject.unobtained
    assert not subject.is_self


def test_a_process_that_ended_or_never_was_is_nobody() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: it has its number still
    with pytest.raises(ProcessGone, match="has ended"):
        identify_process(process.pid)
    process.wait()
    with pytest.raises(ProcessGone, match="none of this number"):
        identify_process(process.pid)


def test_a_kernel_thread_has_no_executable() -> None:
    try:
        if "kthreadd" not in Path("/proc/2/comm").read_text() or os.geteuid() != 0:
            pytest.skip("needs root and the host's own /proc")
    except OSError:
        pytest.skip("needs the host's own /proc")
    subject = identify_process(2)
    assert (subject.exe, "exe" in subject.unobtained) == (None, False)
