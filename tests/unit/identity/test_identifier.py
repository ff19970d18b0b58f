# SPDX-License-Identifier: Apache-2.0
"""Answers within their time, whatever the process, the name service or a disk does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.identity import identifier as module
from agent.identity.convert import exec_record, kernel_record
from agent.identity.identifier import Identifier, Sources, plain
from agent.identity.record import UNSET_ID, FileId, KernelRecord
from agent.kernel.records import Identity, IdentityFlag, ProcessRecord
from policy.model import Attribution
from tests.unit.agent.turning import pass_time, run_still, until
from tests.unit.identity.fake_proc import FakeProc

Play = Callable[[Identifier], Coroutine[Any, Any, Any]]


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def play(fake: FakeProc, record: KernelRecord | None, what: Play) -> Any:
    """What `what` makes of an identifier. No wait ends by itself: the clock stands."""
    found: list[Any] = []

    async def story() -> None:
        identifier = Identifier(Sources(lambda *_: record, lambda _: [], lambda *_: None), fake.host)
        try:
            found.append(await what(identifier))
        finally:
            identifier.close()

    run_still(story)
    return found[0]


async def ask(identifier: Identifier, sha256: bool = False) -> Any:
    return await identifier.identify(1, "127.0.0.1", 40000, "127.0.0.1", 6333, sha256)


def test_a_local_caller_is_answered_with_hash_and_names(fake: FakeProc) -> None:
    app = fake.program("app", b"x" * 100)
    fake.process(50, app)
    subject = play(fake, fake.record(50, app, uid=0, gid=0), lambda made: ask(made, True))
    assert (subject.attribution, subject.exe) == (Attribution.KERNEL, str(app))
    assert len(subject.exe_sha256) == 64
    assert "container" in subject.unobtained, "no cgroup tree here: whether it has one is not known"


def test_without_a_record_a_local_caller_is_nobody(fake: FakeProc) -> None:
    assert play(fake, None, ask).attribution is Attribution.UNATTRIBUTED


async def ask_and_wait(identifier: Identifier, hangs: Callable[[], Any], seconds: float) -> Any:
    """The answer when the read that `hangs` has been waited for so long."""
    asking = asyncio.get_running_loop().create_task(ask(identifier))
    await until(hangs)
    await pass_time(seconds - 0.01)
    assert not asking.done()
    await pass_time(0.02)
    return await asking


def test_a_process_whose_memory_hangs_costs_a_bounded_wait_and_only_its_arguments(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, release = fake.program("app"), threading.Event()
    fake.process(50, app)
    touched: list[int] = []

    def hang(fd: int, reading: object) -> None:
        touched.append(fd)
        release.wait()

    monkeypatch.setattr("agent.identity.observe.read_memory", hang)

    async def twice(identifier: Identifier) -> Any:
        try:
            first = await ask_and_wait(identifier, lambda: touched, module.READ_S)
            return first, await ask(identifier)
        finally:
            release.set()

    first, second = play(fake, fake.record(50, app), twice)
    for subject in (first, second):
        assert (subject.exe, subject.argv) == (str(app), None)
        assert "argv" in subject.unobtained
    assert len(touched) == 1, "a user whose memory hung is not read again"


def test_a_slow_name_service_is_not_waited_for(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    app, asked, release = fake.program("app"), threading.Event(), threading.Event()
    fake.process(50, app)

    def hang(uid: int) -> None:
        asked.set()
        release.wait()

    monkeypatch.setattr("agent.identity.users.pwd.getpwuid", hang)

    async def once(identifier: Identifier) -> Any:
        try:
            return await ask_and_wait(identifier, asked.is_set, module.NAMES_S)
        finally:
            release.set()

    record = replace(fake.record(50, app), user_ns=fake.host.user_ns)
    subject = play(fake, record, once)
    assert subject.user is None
    assert "user" in subject.unobtained


def test_addresses_have_one_form() -> None:
    assert [plain(text) for text in ("::ffff:10.0.0.1", "fe80::1%eth0", "0:0::1", "127.0.0.1")] == [
        "10.0.0.1", "fe80::1", "::1", "127.0.0.1"
    ]  # fmt: skip
    with pytest.raises(ValueError):
        plain("db.example")


def test_kernel_records_are_taken_over_field_by_field() -> None:
    identity = Identity(
        version=1, flags=IdentityFlag(0), tgid=2, tid=3, uid=4, gid=5, euid=6, loginuid=None, sessionid=7,
        start=8, cgroup=9, netns=10, netns_inum=11, mntns_inum=0, userns_inum=13, exe_dev=14, exe_ino=15,
        exe_ctime=16, parent_start=17, parent_tgid=18, bucket=19, cookie=20, connected=21, comm="a\udcff",
    )  # fmt: skip
    assert kernel_record(identity) == KernelRecord(
        tgid=2, start_ns=8, uid=4, gid=5, euid=6, login_uid=UNSET_ID, audit_session=7, cgroup_id=9,
        netns_cookie=10, comm="a\\xff", exe=FileId(14, 15, 16), parent_tgid=18, parent_start_ns=17,
        connect_ns=21, mnt_ns=None, user_ns=13, net_ns=11,
    )  # fmt: skip
    assert kernel_record(replace(identity, flags=IdentityFlag.NO_EXE)).exe is None
    process = ProcessRecord(
        executed=0, exited=0, exe_ino=15, exe_ctime=16, parent_start=17, cgroup=9, parent_tgid=18,
        exe_dev=14, uid=4, comm="a", filename="/x",
    )  # fmt: skip
    kept = exec_record(2, 8, process)
    assert (kept.exe, kept.exec_ns, kept.filename) == (FileId(14, 15, 16), None, "/x")
