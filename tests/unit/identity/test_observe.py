# SPDX-License-Identifier: Apache-2.0
"""Reading a process from /proc and attesting what it runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.identity.attest import KnownExecutables, attest_gone
from agent.identity.observe import Observation, Observer
from agent.identity.process import parse_cgroups, parse_groups, parse_stat, tty_name
from agent.identity.record import ExecRecord, KernelRecord, same_ctime
from policy.model import Parent
from tests.unit.identity.fake_proc import TICK_NS, FakeProc, file_id


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def observe(fake: FakeProc, record: KernelRecord, *known: ExecRecord, memory: bool = True) -> Observation:
    records = {(each.tgid, each.start_ns): each for each in known}
    observer = Observer(fake.host, None, executed=lambda tgid, start: records.get((tgid, start)))
    return observer.observe(record, Observation(), memory=memory)


def executed(path: Path | str, exe: Path, pid: int = 50, at: int = 1500) -> ExecRecord:
    return ExecRecord(pid, 1000 * TICK_NS, str(path), file_id(exe), exec_ns=at * TICK_NS)


def test_a_live_process_is_read_whole(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    fake.process(50, app, argv=("app", "--x"), groups=(4, 27), tty=(136 << 8) | 3)
    seen = observe(fake, fake.record(50, app))
    assert seen.exe is not None
    assert seen.exe.value == str(app)
    assert seen.same_image
    assert (seen.reading.argv, seen.reading.cwd, seen.reading.groups) == (("app", "--x"), "/srv", (4, 27))
    assert seen.reading.tty == "pts/3"
    assert seen.complete


def test_a_process_that_started_at_another_time_is_another_one(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    fake.process(50, app, start=1001)
    seen = observe(fake, fake.record(50, app))
    assert seen.reading.state == "replaced"
    assert (seen.reading.argv, seen.reading.exe_link, seen.reading.groups) == (None, None, None)
    assert seen.exe is not None
    assert seen.exe.unobtained


def test_the_start_time_is_compared_in_whole_ticks(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    fake.process(50, app)
    record = fake.record(50, app, start_ns=1000 * TICK_NS + TICK_NS - 1)
    assert observe(fake, record).reading.state == "live"


def test_a_zombie_is_gone(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    fake.process(50, app, state="Z")
    assert observe(fake, fake.record(50, app)).reading.state == "gone"


def test_an_exe_link_to_a_file_the_host_does_not_have_there_is_foreign(fake: FakeProc) -> None:
    app, other = fake.program("bin/app"), fake.program("bin/other")
    folder = fake.process(50, app)
    alias = fake.files / "alias"
    alias.symlink_to(app)
    assert observe(fake, fake.record(50, app)).exe is not None
    (folder / "exe").unlink()
    (folder / "exe").symlink_to(alias)
    seen = observe(fake, fake.record(50, app))
    assert seen.exe is not None
    assert seen.exe.value == str(app), "the host's canonical name, not the one that was shown"
    assert not observe(fake, fake.record(50, other)).same_image


def test_a_program_executed_after_connect_is_not_the_caller(fake: FakeProc) -> None:
    first, second = fake.program("bin/first"), fake.program("bin/second")
    fake.process(50, second, argv=("second",))
    seen = observe(fake, fake.record(50, first), executed(first, first))
    assert seen.exe is not None
    assert seen.exe.value == str(first), "the record wins, by the path of its own execve"
    assert seen.reading.argv is None
    assert seen.reading.cwd is None
    later = observe(fake, fake.record(50, first), executed(second, second, at=2500))
    assert later.exe is not None
    assert later.exe.unobtained


def test_an_exchanged_executable_is_foreign(fake: FakeProc) -> None:
    """prctl(PR_SET_MM_MAP): the kernel's inode is not that of the last execve before the connect."""
    ran, claimed = fake.program("bin/ran"), fake.program("bin/claimed")
    fake.process(50, claimed)
    seen = observe(fake, fake.record(50, claimed), executed(ran, ran))
    assert seen.exe is not None
    assert seen.exe.value == f"foreign:{claimed}"


def test_memory_is_not_touched_when_told_so(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    fake.process(50, app)
    seen = observe(fake, fake.record(50, app), memory=False)
    assert seen.reading.argv is None
    assert "hang" in seen.reading.missing["argv"]
    assert seen.exe is not None
    assert seen.exe.value == str(app)


def test_the_parents_are_followed_up_but_not_into_a_reused_number(fake: FakeProc) -> None:
    app, shell, login = fake.program("app"), fake.program("shell"), fake.program("login")
    fake.process(50, app, ppid=40)
    fake.process(40, shell, start=900, ppid=30)
    fake.process(30, login, start=800, ppid=20)
    fake.process(20, app, start=950)
    seen = observe(fake, fake.record(50, app, parent_tgid=40, parent_start_ns=900 * TICK_NS))
    assert seen.parents == (Parent(40, str(shell)), Parent(30, str(login)))
    assert seen.parent_exe is not None
    assert seen.parent_exe.value == str(shell)


def test_a_parent_whose_number_was_reused_lends_nothing(fake: FakeProc) -> None:
    app, shell = fake.program("app"), fake.program("shell")
    fake.process(50, app, ppid=40)
    fake.process(40, shell, start=990)
    seen = observe(fake, fake.record(50, app, parent_tgid=40, parent_start_ns=900 * TICK_NS))
    assert seen.parents == (Parent(40, None),)
    assert seen.parent_exe is not None
    assert seen.parent_exe.unobtained


def test_a_parent_that_executed_after_the_connect_is_not_named(fake: FakeProc) -> None:
    app, shell = fake.program("app"), fake.program("shell")
    fake.process(50, app, ppid=40)
    fake.process(40, shell)
    record = fake.record(50, app, parent_tgid=40, parent_start_ns=1000 * TICK_NS)
    late = observe(fake, record, executed(shell, shell, pid=40, at=2001)).parent_exe
    early = observe(fake, record, executed(shell, shell, pid=40, at=1999)).parent_exe
    assert late is not None
    assert early is not None
    assert (late.value, late.unobtained, early.value) == (None, True, str(shell))


def test_a_chain_has_a_bound(fake: FakeProc) -> None:
    app = fake.program("app")
    for pid in range(100, 140):
        fake.process(pid, app, ppid=pid - 1, start=pid)
    seen = observe(fake, replace(fake.record(139, app), start_ns=139 * TICK_NS, parent_tgid=138,
                                 parent_start_ns=138 * TICK_NS))  # fmt: skip
    assert len(seen.parents) == 16


# ---- gone ----


def gone(
    fake: FakeProc, exe: Path, filename: Path | str | None, known: KnownExecutables | None = None
) -> str | None:
    found = attest_gone(
        "", file_id(exe), str(filename) if filename else None, known or KnownExecutables(), "gone"
    )
    assert (found.value is None) == found.unobtained
    return found.value


def test_a_gone_process_is_named_by_its_execve_link_or_script(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    link = fake.files / "link"
    link.symlink_to(app)
    script = fake.program("job", b"#! " + os.fsencode(app) + b" -u\nprint()\n")
    assert [gone(fake, app, name) for name in (app, link, script)] == [str(app)] * 3


def test_a_gone_process_is_not_named_by_a_path_that_holds_another_file(fake: FakeProc) -> None:
    app, other = fake.program("bin/app"), fake.program("bin/other")
    assert gone(fake, app, other) == f"foreign:{other}"
    assert gone(fake, app, "/nowhere") == "foreign:/nowhere"


def test_a_relative_name_is_not_guessed_but_a_known_inode_is(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    assert gone(fake, app, "./app") is None
    assert gone(fake, app, None) is None
    known = KnownExecutables()
    known.remember(file_id(app), os.fsencode(app))
    assert gone(fake, app, "./app", known) == str(app)


def test_an_inode_that_was_reused_is_not_believed(fake: FakeProc) -> None:
    app = fake.program("bin/app")
    stale = replace(file_id(app), ctime_ns=file_id(app).ctime_ns - 1 if file_id(app).ctime_ns else None)  # type: ignore[operator]
    known = KnownExecutables()
    known.remember(stale, os.fsencode(app))
    assert attest_gone("", stale, str(app), known, "gone").value == f"foreign:{app}"
    unknown = attest_gone("", replace(stale, ctime_ns=None), str(app), known, "gone")
    assert (unknown.value, unknown.unobtained) == (None, True)


def test_what_is_no_regular_file_is_neither_opened_nor_believed(fake: FakeProc) -> None:
    fifo = fake.files / "fifo"
    os.mkfifo(fifo)
    assert gone(fake, fifo, fifo) == f"foreign:{fifo}"
    assert gone(fake, fake.program("x"), "/with\0nul") == "foreign:/with\0nul"


# ---- formats ----


def test_a_name_with_parentheses_and_spaces_does_not_shift_the_fields() -> None:
    line = b"7 (a) Z 9 (x) S 5 1 1 34816 " + b"0 " * 14 + b"4242 0 0"
    stat = parse_stat(line)
    assert (stat.zombie, stat.ppid, stat.tty, stat.start_ticks) == (False, 5, 34816, 4242)
    with pytest.raises(ValueError):
        parse_stat(b"garbage")


def test_terminals_have_their_names() -> None:
    assert [tty_name(number) for number in (0, 34816, 34819, 1025, 1088)] == [
        None, "pts/0", "pts/3", "tty1", "ttyS0"
    ]  # fmt: skip


def test_cgroup_lines_of_a_hybrid_host_are_told_apart() -> None:
    raw = b"9:name=systemd:/system.slice/a.service\n8:pids:/x\n0::/b:c\n"
    assert parse_cgroups(raw) == ("/b:c", "/system.slice/a.service")


def test_groups_are_found_in_status() -> None:
    assert parse_groups(b"Name:\tx\nGroups:\t4 27 \nX:\n") == (4, 27)
    assert parse_groups(b"Name:\tGroups: 5\nGroups:\t\nX:\n") == ()
    with pytest.raises(ValueError):
        parse_groups(b"Name:\tx\n")


def test_the_queried_bit_of_a_kernel_ctime_is_not_a_difference() -> None:
    assert same_ctime(5, 5)
    assert same_ctime(5 + (1 << 31), 5)
    assert not same_ctime(6, 5)
