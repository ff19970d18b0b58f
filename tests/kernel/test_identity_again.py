# SPDX-License-Identifier: Apache-2.0
"""A process that connects again and again is known without being read as a whole, and never for what it was:
real processes that change between two connections, asked for through one `Identifier`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.identity import identifier as identifier_module
from agent.identity import recent
from agent.identity.convert import sources
from agent.identity.host import read_host
from agent.identity.identifier import Identifier
from agent.identity.process import parse_stat
from agent.kernel.records import PROCESS_KEY, ProcessRecord
from agent.kernel.steering import Steering
from policy.model import Attribution, Subject
from tests.kernel.arena import Arena
from tests.kernel.cast import OBSERVE, PORT, Database, Worker, guard

PYTHON = os.path.realpath("/usr/bin/python3")
NOBODY = 65534

CLIENT = f"""
import os, signal, socket, sys
PYTHON, CLIENT, held = {PYTHON!r}, sys.argv[1], []
def go():
    held.append(socket.create_connection(("127.0.0.1", {PORT})))
    print(held[-1].getsockname()[1], flush=True)
print("up", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""
FAMILY = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
if os.fork():
    signal.sigwait([signal.SIGUSR1])
    os.execv("/bin/sleep", ["sleep", "60"])
exec(sys.argv[1])
"""


class Again:
    """A process told what to do, in an arena with a database, and one identifier that is asked for it."""

    def __init__(self, arena: Arena, steering: Steering, app: Path) -> None:
        self.arena, self.app = arena, app
        self.steering = steering
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, script: str = CLIENT, user: int | None = NOBODY) -> None:
        self.process = self.arena.popen(
            [str(self.app), "-uc", script, CLIENT], user=user, cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.hear()

    def hear(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def tell(self, code: str) -> str:
        """What it prints first."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(code.encode() + b"\n")
        self.process.stdin.flush()
        return self.hear()

    async def connect(self, identifier: Identifier) -> Subject:
        port = int(self.tell("go()"))
        self.hear()
        return await identifier.identify(self.arena.netns.cookie, "127.0.0.1", port, "127.0.0.1", PORT)

    def play(self, change: Callable[[Subject], object]) -> tuple[Subject, Subject]:
        """(what it was known for, what it is for after the `change`)."""

        async def story() -> tuple[Subject, Subject]:
            identifier = Identifier(sources(self.steering), read_host())
            try:
                before = [await self.connect(identifier) for _ in range(4)]
                assert before[2] is before[1], "it is known again without being read"
                assert before[3] is before[1]
                change(before[3])
                return before[3], await self.connect(identifier)
            finally:
                identifier.close()

        return asyncio.run(story())

    def end(self) -> None:
        if self.process is None:
            return
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def again(
    arena: Arena,
    steering: Steering,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Again]:
    # Nothing is forgotten, and nothing given up, because the machine is slow.
    monkeypatch.setattr(recent, "KEEP_S", 3600.0)
    monkeypatch.setattr(identifier_module, "READ_S", 60.0)
    monkeypatch.setattr(identifier_module, "NAMES_S", 60.0)
    Database(arena)
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    folder = tmp_path_factory.mktemp("again")
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o755)
    subprocess.run(["cp", PYTHON, str(folder / "app")], check=True)
    made = Again(arena, steering, folder / "app")
    yield made
    made.end()


def test_an_unchanged_process_is_the_same_subject(again: Again) -> None:
    again.start()
    before, after = again.play(lambda _: None)
    assert after is before
    assert (after.attribution, after.exe, after.user) == (Attribution.KERNEL, str(again.app), "nobody")


@pytest.mark.parametrize(
    ("code", "user", "field", "value"),
    [
        ("os.setgroups([12])", None, "groups", ("man",)),
        ("os.setuid(65534)", None, "uid", NOBODY),
        ("os.seteuid(65534)", None, "euid", NOBODY),
        ("os.setgid(12)", None, "gid", 12),
        ("os.chdir('/tmp')", NOBODY, "cwd", "/tmp"),
        ("os.execv(PYTHON, [PYTHON, '-uc', CLIENT, CLIENT])", NOBODY, "exe", PYTHON),
        ("open('/proc/self/comm', 'w').write('other')", None, "comm", "other"),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_a_process_that_changed_is_not_known_for_what_it_was(
    again: Again, code: str, user: int | None, field: str, value: Any
) -> None:
    again.start(user=user)
    before, after = again.play(lambda _: again.tell(code))
    assert getattr(before, field) != value
    assert getattr(after, field) == value


def test_an_execve_of_the_same_file_is_noticed(again: Again) -> None:
    again.start()
    code = f"os.execv({str(again.app)!r}, ['renamed', '-uc', CLIENT, CLIENT])"
    before, after = again.play(lambda _: again.tell(code))
    assert before.argv is not None
    assert after.argv is not None
    assert (before.argv[0], after.argv[0]) == (str(again.app), "renamed")


def test_an_executable_that_was_replaced_is_foreign_at_once(again: Again) -> None:
    def replace(_: Subject) -> None:
        subprocess.run(["cp", PYTHON, f"{again.app}.new"], check=True)
        os.rename(f"{again.app}.new", again.app)

    again.start()
    before, after = again.play(replace)
    assert (before.exe, after.exe) == (str(again.app), f"foreign:{again.app} (deleted)")


def test_an_executable_that_was_renamed_goes_by_its_new_name(again: Again) -> None:
    again.start()
    before, after = again.play(lambda _: os.rename(again.app, f"{again.app}.old"))
    assert (before.exe, after.exe) == (str(again.app), f"{again.app}.old")


def test_a_parent_that_executed_another_program_is_noticed(again: Again) -> None:
    def turn(subject: Subject) -> None:
        parent = subject.parents[0].pid
        os.kill(parent, signal.SIGUSR1)
        while b"sleep" not in Path(f"/proc/{parent}/cmdline").read_bytes():
            time.sleep(0.01)
        while not any("sleep" in one.filename for one in executed(parent)):
            time.sleep(0.01)

    def executed(pid: int) -> list[ProcessRecord]:
        """The exec map's word on it: written at the very end of an execve."""
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        tick = parse_stat(stat).start_ticks
        keys = again.steering._keys("processes", PROCESS_KEY.size)
        found = [PROCESS_KEY.unpack(key)[:2] for key in keys]
        known = [again.steering.process(tgid, start) for start, tgid in found if tgid == pid]
        assert all(start // 10**7 == tick for start, tgid in found if tgid == pid)
        return [one for one in known if one is not None]

    again.start(FAMILY)
    before, after = again.play(turn)
    assert (before.parent_exe, after.parent_exe) == (str(again.app), os.path.realpath("/bin/sleep"))


def test_a_process_that_was_moved_to_another_cgroup_is_noticed(again: Again) -> None:
    def move(subject: Subject) -> None:
        other = again.arena.cgroup / "clients" / "other"
        other.mkdir()
        (other / "cgroup.procs").write_text(str(subject.pid))

    again.start()
    before, after = again.play(move)
    assert before.cgroup is not None
    assert after.cgroup == f"{before.cgroup}/other"
    again.end()
    (again.arena.cgroup / "clients" / "other").rmdir()
