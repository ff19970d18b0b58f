# SPDX-License-Identifier: Apache-2.0
"""A Subject that was read a moment ago is given again only where reading again would give the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.identity.observe import Observation
from agent.identity.process import Reading
from agent.identity.recent import KEEP_S, MAX_KEPT, Recent
from agent.identity.record import NS_PER_S, ExecRecord, KernelRecord
from policy.model import Attribution, Subject
from tests.unit.identity.fake_proc import FakeProc

SECOND = NS_PER_S
SUBJECT = Subject(Attribution.KERNEL, pid=50)
PARENT = 40


class World:
    """One process (50, child of 40) that connected at second 20, with a clock and an exec map to turn."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeProc(folder)
        self.app = self.fake.program("app")
        self.folder = self.fake.process(50, self.app, ppid=PARENT, groups=[4, 27])
        self.fake.process(PARENT, self.fake.program("shell"))
        self.record = self.fake.record(50, self.app, parent_tgid=PARENT, parent_start_ns=10 * SECOND)
        self.time = 21 * SECOND
        self.executed: dict[int, ExecRecord] = {}
        self.recent = Recent(
            self.fake.host,
            lambda tgid, _: self.executed.get(tgid),
            lambda tgid, _: self.executed.get(tgid),
            lambda: self.time,
        )

    def exec(self, pid: int, at: float) -> None:
        start = self.record.start_ns if pid == 50 else self.record.parent_start_ns
        self.executed[pid] = ExecRecord(pid, start, "app", None, int(at * SECOND))

    def seen(self, **reading: Any) -> Observation:
        values = {
            "state": "live", "exe_link": os.fsencode(self.app), "cwd": "/srv", "groups": (4, 27),
            "argv": ("app",),
        } | reading  # fmt: skip
        return Observation(reading=Reading(**values), same_image=True, names_read=True, complete=True)

    def read(self, record: KernelRecord | None = None, seen: Observation | None = None) -> None:
        """As the identifier does it where nothing is recalled: twice, for once is not kept."""
        record = record or self.record
        assert self.recent.begin(record) is None or (record.tgid, record.start_ns) in self.recent._met
        attempt = self.recent.begin(record)
        assert attempt is not None
        self.recent.keep(attempt, record, 7, seen or self.seen(), SUBJECT)

    def connects(self, after: float = 0.1, **changes: Any) -> Subject | None:
        """What is recalled for a connection so much later."""
        self.time += int(after * SECOND)
        return self.recent.recall(replace(self.record, connect_ns=self.time, **changes), 7)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.recent.close()


def test_a_process_that_connects_again_is_known(world: World) -> None:
    world.read()
    assert world.connects() is SUBJECT
    assert world.connects() is SUBJECT


def test_one_connection_alone_is_not_kept(world: World) -> None:
    assert world.recent.begin(world.record) is None
    assert world.connects() is None


@pytest.mark.parametrize(
    "change",
    [
        {"uid": 0}, {"euid": 0}, {"gid": 0}, {"login_uid": 1}, {"audit_session": 1}, {"cgroup_id": 1},
        {"netns_cookie": 2}, {"comm": "other"}, {"exe": None}, {"parent_tgid": 1}, {"parent_start_ns": 1},
        {"mnt_ns": 1}, {"user_ns": 1}, {"net_ns": 1}, {"pid_ns": 1}, {"start_ns": 1}, {"tgid": 51},
        {"exchanged": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_differs_in_any_field_is_read_again(world: World, change: dict[str, Any]) -> None:
    world.read()
    assert world.connects(**change) is None


def test_every_field_of_a_record_but_the_time_counts(world: World) -> None:
    world.read()
    known = world.recent._kept[50, world.record.start_ns]
    assert len(known.facts) == len(KernelRecord.__slots__) - 1


def test_another_owner_of_the_database_is_another_answer(world: World) -> None:
    world.read()
    assert world.recent.recall(replace(world.record, connect_ns=world.time + 1), 8) is None


def exec_it(world: World) -> None:
    world.exec(50, world.time / SECOND)


def exec_parent(world: World) -> None:
    world.exec(PARENT, world.time / SECOND)


def exec_parent_unseen(world: World) -> None:
    (world.fake.proc / str(PARENT) / "exe").unlink()
    (world.fake.proc / str(PARENT) / "exe").symlink_to(world.app)


def change_groups(world: World) -> None:
    (world.folder / "status").write_text("Name:\tapp\nGroups:\t4 \nVmPeak:\t1 kB\n")


def end(world: World) -> None:
    (world.folder / "status").write_text("Name:\tapp\nState:\tZ (zombie)\nGroups:\t4 27 \n")


def go_elsewhere(world: World) -> None:
    (world.folder / "cwd").unlink()
    (world.folder / "cwd").symlink_to("/")


def replace_program(world: World) -> None:
    (world.folder / "exe").unlink()
    (world.folder / "exe").symlink_to(str(world.app) + " (deleted)")


def vanish(world: World) -> None:
    for name in ("exe", "cwd"):
        (world.folder / name).unlink()


CHANGES = [
    exec_it,
    exec_parent,
    exec_parent_unseen,
    change_groups,
    end,
    go_elsewhere,
    replace_program,
    vanish,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_since_is_read_again(world: World, change: Callable[[World], None]) -> None:
    world.read()
    assert world.connects() is SUBJECT
    change(world)
    assert world.connects() is None
    assert world.recent._kept == {}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_while_it_was_read_is_not_kept(world: World, change: Callable[[World], None]) -> None:
    world.recent.begin(world.record)
    attempt = world.recent.begin(world.record)
    assert attempt is not None
    change(world)
    world.recent.keep(attempt, world.record, 7, world.seen(), SUBJECT)
    assert world.connects() is None


def test_a_connection_from_before_the_last_look_needs_none(world: World) -> None:
    world.read()
    made = replace(world.record, connect_ns=world.time - 1)
    change_groups(world)
    assert world.recent.recall(made, 7) is SUBJECT, "its groups were read after it was made"


@pytest.mark.parametrize("pid", [50, PARENT])
def test_a_connection_from_before_an_execve_is_read_again(world: World, pid: int) -> None:
    world.exec(pid, 20.5)
    world.read(replace(world.record, connect_ns=int(20.7 * SECOND)))
    assert world.recent.recall(replace(world.record, connect_ns=int(20.4 * SECOND)), 7) is None
    assert world.connects() is SUBJECT


@pytest.mark.parametrize("pid", [50, PARENT])
def test_what_was_read_after_an_execve_says_nothing_of_the_next(world: World, pid: int) -> None:
    world.exec(pid, 20.5)
    world.read()  # it connected at 20
    assert world.connects() is None


@pytest.mark.parametrize("pid", [50, PARENT])
def test_an_execve_in_the_middle_of_the_beginning_is_not_missed(world: World, pid: int) -> None:
    """Its time would be unknown, and a connection of the program before be given the next one's arguments."""
    world.exec(pid, 19.5)
    asked: list[int] = []

    def executed(tgid: int, _: int) -> ExecRecord | None:
        found = world.executed.get(tgid)
        asked.append(tgid)
        if asked == [50, PARENT]:
            world.exec(pid, 20.5)
        return found

    world.recent._executed = executed
    assert world.recent.begin(world.record) is None
    attempt = world.recent.begin(world.record)
    assert attempt is not None
    world.recent.keep(attempt, world.record, 7, world.seen(), SUBJECT)
    assert world.recent._kept == {}


def test_nothing_is_known_for_long(world: World) -> None:
    world.read()
    assert world.connects(KEEP_S * 0.9) is SUBJECT
    assert world.connects(KEEP_S * 0.2) is None


@pytest.mark.parametrize(
    "seen",
    [
        {"state": "gone"},
        {"exe_link": None},
        {"exe_link": b"/other"},
        {"cwd": None},
        {"cwd": "/other"},
        {"groups": None},
        {"groups": (4,)},
        {"argv": None},
    ],
    ids=str,
)
def test_a_reading_with_gaps_or_of_another_moment_is_not_kept(world: World, seen: dict[str, Any]) -> None:
    world.read(seen=world.seen(**seen))
    assert world.connects() is None


@pytest.mark.parametrize("gap", [{"complete": False}, {"names_read": False}, {"same_image": None}], ids=str)
def test_an_observation_with_gaps_is_not_kept(world: World, gap: dict[str, Any]) -> None:
    seen = world.seen()
    for name, value in gap.items():
        setattr(seen, name, value)
    world.read(seen=seen)
    assert world.connects() is None


def test_a_process_of_another_start_is_not_held(world: World) -> None:
    record = replace(world.record, start_ns=9 * SECOND)
    world.read(record)
    assert world.recent._kept == {}


def test_units_in_a_hierarchy_without_ids_are_read_each_time(world: World) -> None:
    world.recent = Recent(replace(world.fake.host, systemd_v1=True), lambda *_: None, lambda *_: None)
    assert world.recent.begin(world.record) is None
    assert world.recent.begin(world.record) is None


def test_descriptors_are_bounded_and_given_back(world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for pid in range(100, 100 + MAX_KEPT + 5):
        world.fake.process(pid, world.app, ppid=PARENT, groups=[4, 27])
        world.read(replace(world.record, tgid=pid))
        world.read(replace(world.record, tgid=pid))
    assert len(os.listdir("/proc/self/fd")) == before + 2 * MAX_KEPT
    world.recent.close()
    assert len(os.listdir("/proc/self/fd")) == before
