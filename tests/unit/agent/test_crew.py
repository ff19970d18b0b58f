# SPDX-License-Identifier: Apache-2.0
"""The crew: who may be a worker, what a worker gets, and what leaves with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from agent import crew as crew_module
from agent import messages
from agent.channel import Channel
from agent.crew import Crew
from agent.evidence.segment import create_segment, list_segments, new_stream_id
from agent.member import Member
from agent.messages import (
    VERSION,
    Adopt,
    Counters,
    Ended,
    Hello,
    Identified,
    Identify,
    Kill,
    Listener,
    NeedSegment,
    Present,
    Refused,
    Segment,
    Settings,
    Signed,
    Snapshot,
    Welcome,
)
from policy.model import Attribution, Subject
from tests.unit.agent.turning import pass_time, run, run_still, turns, until

SETTINGS = Settings(1, 1, 1, 60.0, 60.0, "strict", "masked")
SNAPSHOT = Snapshot("1", (), b"", SETTINGS, b"k" * 32)


class Slots:
    """The kernel's tables as the crew sets them."""

    def __init__(self) -> None:
        self.exempted: set[int] = set()
        self.listeners: dict[tuple[int, int], str] = {}

    def exempt(self, cgroup_id: int) -> None:
        self.exempted.add(cgroup_id)

    def unexempt(self, cgroup_id: int) -> None:
        self.exempted.remove(cgroup_id)

    def set_listener(self, guard: int, slot: int, fd: int) -> None:
        self.listeners[guard, slot] = os.readlink(f"/proc/self/fd/{fd}")

    def clear_listener(self, guard: int, slot: int) -> None:
        del self.listeners[guard, slot]


class Owner:
    """The keeper as the crew needs it."""

    def __init__(self) -> None:
        self.guards = {"q": 3, "c": 5}
        self.fresh: list[bool] = []
        self.lost: list[Member] = []
        self.joins = 0
        self.presented: list[Present] = []
        self.asked: list[Identify] = []
        self.answer: asyncio.Future[Subject] | None = None

    def snapshot(self) -> Snapshot:
        return SNAPSHOT

    def guard_index(self, name: str) -> int | None:
        return self.guards.get(name)

    async def identify(self, question: Identify) -> Subject:
        self.asked.append(question)
        if self.answer is not None:
            return await self.answer
        return Subject(Attribution.KERNEL, pid=question.client[1])

    def admitted(self, member: Member, fresh: bool) -> None:
        self.fresh.append(fresh)

    def present(self, member: Member, message: Present) -> None:
        self.presented.append(message)

    def joined(self, member: Member) -> None:
        self.joins += 1

    def left(self, member: Member) -> None:
        self.lost.append(member)


class Peer:
    """A worker's end of the workers' socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.got: list[Any] = []
        self.closed: list[str] = []
        self.channel = Channel(sock, self._received, self.closed.append)

    def _received(self, payload: bytes, descriptors: list[int]) -> None:
        self.got.append(messages.decode_agent(payload))
        for fd in descriptors:
            os.close(fd)

    def say(self, message: Any, *descriptors: int) -> None:
        self.channel.send(messages.encode(message), descriptors)

    def hello(self, **changes: Any) -> None:
        self.say(Hello(**{"version": VERSION, "pid": os.getpid(), "generation": "1", **changes}))

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.got if isinstance(message, kind)]


class Yard:
    """A crew, its fakes, and the workers that connect to it. Every worker is this very process."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.slots, self.owner = Slots(), Owner()
        self.streams = root / "streams"
        self.peers: list[Peer] = []
        own = Path("/proc/self/cgroup").read_text().splitlines()
        name = next((line.removeprefix("0::") for line in own if line.startswith("0::")), None)
        if name is None:
            pytest.skip("no cgroup v2 hierarchy here")
        (root / "cgroup" / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "host": "host-1", "boot": "boot-1", "streams": self.streams, "proxy_uid": os.geteuid(),
            "cgroups": lambda path: True, "cgroup_root": root / "cgroup", "of_process": 128,
        }  # fmt: skip
        self.crew = Crew(self.owner, self.slots, **{**values, **changes})

    def connect(self) -> Peer:
        ours, theirs = socket.socketpair()
        self.crew.accept(ours)
        self.peers.append(Peer(theirs))
        return self.peers[-1]

    async def join(self, *guards: str, **hello: Any) -> Peer:
        """A worker that was welcomed and listens for these guards."""
        peer = self.connect()
        peer.hello(**hello)
        await until(lambda: peer.of(Welcome))
        before = self.owner.joins
        for guard in guards:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                peer.say(Listener(guard), ours.fileno())
        await until(lambda: self.owner.joins == before + len(guards))
        return peer

    async def from_another_process(self, folder: Path, payload: bytes) -> bytes:
        """What another process is told that says this first."""
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(folder / "door"))
            door.listen()
            door.setblocking(False)
            code = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
                "s.sendall(bytes.fromhex(sys.argv[2]))\n"
                "while data := s.recv(65536): sys.stdout.buffer.write(data)"
            )
            frame = struct.pack("<IB", len(payload), 0) + payload
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, str(folder / "door"), frame.hex(), stdout=asyncio.subprocess.PIPE
            )
            sock, _ = await asyncio.get_running_loop().sock_accept(door)
            self.crew.accept(sock)
            said, _ = await child.communicate()
            return said

    async def refused(self, **hello: Any) -> str:
        peer = self.connect()
        peer.hello(**hello)
        await until(lambda: peer.closed)
        assert not peer.of(Snapshot), "nothing is released to who is not taken in"
        assert not peer.of(Segment)
        assert self.crew.members == {}
        assert self.slots.exempted == set()
        return str(peer.of(Refused)[0].reason)


@contextlib.asynccontextmanager
async def yard(root: Path, **changes: Any) -> AsyncIterator[Yard]:
    made = Yard(root, **changes)
    try:
        yield made
    finally:
        for peer in made.peers:
            peer.channel.close()
        await turns()
        await made.crew.close()
        await turns()


# -- admission ------------------------------------------------------------------------------------


def test_a_worker_gets_its_segments_and_the_snapshot_before_it_is_welcomed(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            peer = await here.join()
            assert [type(message) for message in peer.got] == [Segment, Segment, Snapshot, Welcome]
            welcome = peer.of(Welcome)[0]
            assert (welcome.host, welcome.boot, welcome.slot) == ("host-1", "boot-1", 0)
            assert [number for number, _ in list_segments(here.streams / welcome.stream)] == [1, 2]
            assert here.owner.fresh == [True]
            assert len(here.slots.exempted) == 1

    run(story)


@pytest.mark.parametrize(
    ("crew", "hello", "why"),
    [
        ({"proxy_uid": 12345}, {}, "workers run as 12345"),
        ({"cgroups": lambda path: False}, {}, "not a proxy's"),
        ({}, {"version": VERSION + 1}, f"version {VERSION + 1}"),
        ({}, {"version": 0}, "version 0"),
        ({}, {"stream": "../../../etc"}, "which it cannot have"),
        ({}, {"stream": "0123456789abcdef"}, "which it cannot have"),
    ],
)
def test_who_does_not_fit_is_refused_with_the_reason_and_gets_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], crew: Any, hello: Any, why: str
) -> None:
    async def story() -> None:
        async with yard(tmp_path, **crew) as here:
            assert why in await here.refused(**hello)

    run(story)
    assert why in capsys.readouterr().err


def test_the_first_message_must_be_hello(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            peer = here.connect()
            peer.say(NeedSegment())
            await until(lambda: peer.closed)
            assert "not hello" in peer.of(Refused)[0].reason
            assert not here.streams.exists()

    run(story)


def test_a_worker_goes_on_with_its_stream_after_the_agent_was_started_again(tmp_path: Path) -> None:
    async def story() -> None:
        stream = new_stream_id()
        create_segment(tmp_path / "streams" / stream, 1).close()
        async with yard(tmp_path) as here:
            peer = await here.join(stream=stream, slot=7)
            assert (peer.of(Welcome)[0].stream, peer.of(Welcome)[0].slot) == (stream, 7)
            assert [segment.number for segment in peer.of(Segment)] == [2], "one spare is enough"
            assert here.owner.fresh == [False]

    run(story)


def test_a_stream_has_one_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            first = await here.join("q")
            (own,) = here.crew.members.values()
            stranger = Hello(VERSION, 1, "1", own.stream, own.slot)
            said = await here.from_another_process(tmp_path, messages.encode(stranger))
            assert b"which it cannot have" in said
            assert here.crew.members == {0: own}
            assert not first.closed

    run(story)


def test_a_worker_that_connects_again_before_its_old_end_was_read_takes_its_own_place(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            first = await here.join("q", slot=4)
            welcome = first.of(Welcome)[0]
            held = dict(here.slots.listeners)
            second = await here.join(stream=welcome.stream, slot=4)
            assert second.of(Welcome)[0] == welcome
            await until(lambda: first.closed)
            assert here.slots.listeners == held  # the port was never without it
            (member,) = here.crew.members.values()
            assert (member.slot, member.listening) == (4, {"q"})
            assert here.owner.lost == []  # its stream did not end
            assert len(here.slots.exempted) == 1
            second.channel.close()
            await until(lambda: here.owner.lost)
            assert here.owner.lost == [member]
            assert here.slots.listeners == {}
            assert here.slots.exempted == set()

    run(story)


def test_one_process_has_two_channels_at_most(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path, of_process=2) as here:
            several = [here.connect() for _ in range(3)]
            await until(lambda: several[2].closed)
            several[0].channel.close()
            await turns()
            assert (await here.join()).of(Welcome)

    run(story)


def test_two_workers_that_want_one_slot_get_two(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            slots = [(await here.join(slot=5)).of(Welcome)[0].slot for _ in range(2)]
            assert slots == [5, 0]
            wild = await here.join(slot=10_000)
            assert wild.of(Welcome)[0].slot == 1

    run(story)


def test_no_more_workers_connect_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew_module, "MAX_CONNECTED", 2)

    async def story() -> None:
        async with yard(tmp_path) as here:
            silent = [here.connect() for _ in range(3)]
            await until(lambda: silent[2].closed)
            silent[0].channel.close()
            await turns()
            late = await here.join()
            assert late.of(Welcome)

    run(story)


def test_a_worker_whose_segment_cannot_be_made_leaves_no_trace(tmp_path: Path) -> None:
    """A full disk at the moment of admission must not eat a slot, nor leave a cgroup exempt."""

    async def story() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: errors.append(c["exception"]))
        async with yard(tmp_path) as here:
            here.streams.write_text("in the way")
            peer = here.connect()
            peer.hello()
            await until(lambda: peer.closed)
            assert [type(error) for error in errors] == [NotADirectoryError]
            assert here.crew.members == {}
            assert here.slots.exempted == set()
            assert len(here.owner.lost) == 1
            here.streams.unlink()
            assert (await here.join()).of(Welcome)[0].slot == 0

    run(story)


def test_a_worker_that_is_gone_when_it_is_welcomed_leaves_no_trace(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            peer = here.connect()
            peer.hello()
            peer.channel.close()
            await until(lambda: here.owner.lost or here.owner.fresh)
            await turns()
            assert here.crew.members == {}
            assert here.slots.exempted == set()

    run(story)


# -- what a worker holds --------------------------------------------------------------------------


def test_a_listener_is_put_into_the_slot_of_its_worker_and_kept_by_it_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            await here.join("q", "c")
            await here.join("q")
            assert sorted(here.slots.listeners) == [(3, 0), (3, 1), (5, 0)]
            assert here.crew.members[0].listening == {"q", "c"}
            held = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _exists(n)}
            assert not held & set(here.slots.listeners.values()), "its death could not empty the slot"

    run(story)


def _exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_what_is_no_socket_is_no_listener(tmp_path: Path) -> None:
    async def story() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: errors.append(c["exception"]))
        async with yard(tmp_path) as here:
            peer = await here.join()
            file = os.memfd_create("file")
            peer.say(Listener("q"), file)
            os.close(file)
            await until(lambda: peer.closed)
            assert here.slots.listeners == {}
            assert here.crew.members == {}
            assert "not a socket" in str(errors[0])

    run(story)


def test_descriptors_beside_messages_that_need_none_do_not_pile_up(tmp_path: Path) -> None:
    async def story() -> None:
        file = os.memfd_create("pile")
        async with yard(tmp_path) as here:
            peer = here.connect()
            peer.say(Hello(VERSION, 0, "1"), file)
            await until(lambda: peer.of(Welcome))
            for n in range(3):
                peer.say(Counters({"accepted": n}, n), file, file)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                peer.say(Listener("nobody's"), ours.fileno())
            peer.say(Counters({"accepted": 9}, 9))
            await until(lambda: here.crew.members[0].sessions == 9)
            names = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _exists(n)]
            assert [name for name in names if "pile" in name] == ["/memfd:pile (deleted)"]
        os.close(file)

    run(story)


def test_what_leaves_with_a_worker_is_its_slots_and_with_the_last_the_exemption(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            first, second = await here.join("q", "c"), await here.join("q")
            first.channel.close()
            await until(lambda: len(here.owner.lost) == 1)
            assert sorted(here.slots.listeners) == [(3, 1)]
            assert len(here.slots.exempted) == 1, "another worker of that cgroup lives"
            second.channel.close()
            await until(lambda: len(here.owner.lost) == 2)
            assert (here.slots.listeners, here.slots.exempted) == ({}, set())
            again = await here.join("q")
            assert again.of(Welcome)[0].slot == 0

    run(story)


def test_a_draining_worker_announces_nothing_more(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            peer = await here.join()
            here.crew.members[0].draining = True
            ours, theirs = socket.socketpair()
            with ours, theirs:
                peer.say(Listener("q"), ours.fileno())
            peer.say(Counters({}, 4))
            await until(lambda: here.crew.members[0].sessions == 4)
            assert here.slots.listeners == {}
            assert not here.crew.adopt("q", 0)

    run(story)


# -- messages -------------------------------------------------------------------------------------


def test_an_identity_question_is_answered_to_who_asked_and_others_are_not_held_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            here.owner.answer = asyncio.get_running_loop().create_future()
            first, second = await here.join(), await here.join()
            first.say(Identify(11, "q", 1, ("127.0.0.1", 5), ("127.0.0.1", 6333)))
            await until(lambda: here.owner.asked)
            slow, here.owner.answer = here.owner.answer, None
            second.say(Identify(11, "q", 1, ("127.0.0.1", 6), ("127.0.0.1", 6333)))
            await until(lambda: second.of(Identified))
            slow.set_result(Subject(Attribution.KERNEL, pid=77))
            await until(lambda: first.of(Identified))
            assert [m.subject.pid for m in (*first.of(Identified), *second.of(Identified))] == [77, 6]

    run(story)


def test_an_agent_that_its_workers_outlive_answers_first_whom_it_took_from_the_kernel(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            here.owner.answer = asyncio.get_running_loop().create_future()
            peer = await here.join()
            peer.say(Identify(11, "q", 1, ("127.0.0.1", 5), ("127.0.0.1", 6333)))
            await until(lambda: here.owner.asked)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(here.crew.close(outlived=True))
                peer.say(Identify(12, "q", 1, ("127.0.0.1", 6), ("127.0.0.1", 6333)))
                await turns()
                here.owner.answer.set_result(Subject(Attribution.KERNEL, pid=77))
            await until(lambda: peer.of(Identified))
            assert [m.subject.pid for m in peer.of(Identified)] == [77]
            assert len(here.owner.asked) == 1, "what comes after is left for the next agent"

    run(story)


@pytest.mark.parametrize(("outlived", "seconds"), [(True, crew_module.LAST_ANSWERS), (False, 0.0)])
def test_an_agent_that_stops_waits_for_an_answer_a_bounded_time_and_only_for_a_worker_that_goes_on(
    tmp_path: Path, outlived: bool, seconds: float
) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            here.owner.answer = asyncio.get_running_loop().create_future()
            peer = await here.join()
            peer.say(Identify(11, "q", 1, ("127.0.0.1", 5), ("127.0.0.1", 6333)))
            await until(lambda: here.owner.asked)
            async with asyncio.TaskGroup() as tasks:
                closing = tasks.create_task(here.crew.close(outlived))
                await turns()
                if seconds:
                    await pass_time(seconds - 0.1)
                    assert not closing.done()
                    await pass_time(0.2)
                await until(closing.done)
            assert here.owner.answer.cancelled()

    run_still(story)


def test_a_worker_that_keeps_subjects_is_sent_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.member.MAX_KEPT_SUBJECTS", 2)
    one, two, three = (Subject(Attribution.KERNEL, pid=pid) for pid in (1, 2, 3))

    async def story() -> None:
        async with yard(tmp_path) as here:
            keeps, other = await here.join(), await here.join()

            async def ask(peer: Peer, subject: Subject, keeping: bool = True) -> tuple[int | None, int]:
                here.owner.answer = asyncio.get_running_loop().create_future()
                here.owner.answer.set_result(subject)
                count = len(peer.of(Identified))
                peer.say(Identify(5, "q", 1, ("127.0.0.1", 5), ("127.0.0.1", 6333), keeps=keeping))
                await until(lambda: len(peer.of(Identified)) > count)
                said = peer.of(Identified)[-1]
                return said.subject and said.subject.pid, said.number

            assert [await ask(keeps, s) for s in (one, two, one)] == [(1, 0), (2, 1), (None, 0)]
            assert await ask(keeps, three) == (3, 1), "the one that was longest not asked for makes room"
            assert [await ask(keeps, s) for s in (one, two)] == [(None, 0), (2, 1)]
            assert await ask(other, one) == (1, 0), "each worker has its own numbers"
            assert await ask(keeps, one, keeping=False) == (1, -1)
            assert len(here.crew.members[0].told) == 2

    run(story)


def test_a_subject_that_cannot_be_sent_leaves_no_number_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the number alone would be sent next, and be another's Subject to the worker."""
    monkeypatch.setattr("agent.member.MAX_KEPT_SUBJECTS", 2)
    sent: list[tuple[Subject | None, int]] = []

    class Wire:
        def send(self, payload: bytes, descriptors: object) -> None:
            message = messages.decode_agent(payload)
            assert isinstance(message, Identified)
            if message.subject is not None and message.subject.pid == 9:
                raise ValueError("too long")
            sent.append((message.subject, message.number))

    member = Member(1, -1, Path("/"), 1, Wire())  # type: ignore[arg-type]
    question = Identify(5, "q", 1, ("127.0.0.1", 5), ("127.0.0.1", 6333), keeps=True)
    one, two, three, bad = (Subject(Attribution.KERNEL, pid=pid) for pid in (1, 2, 3, 9))
    there: dict[int, Subject] = {}  # what the worker has
    for subject in (bad, one, bad, two, bad, three, one, bad, two, three, one):
        for _ in range(2):
            sent.clear()
            with pytest.raises(ValueError, match="too long") if subject is bad else nullcontext():
                member.tell(question, subject)
            for given, number in sent:
                if given is not None:
                    there[number] = given
                assert there[number] == subject
            assert len(sent) == (subject is not bad)


def test_a_worker_gets_further_segments_and_word_of_its_own_stream_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            first, second = await here.join(), await here.join()
            first.say(NeedSegment())
            first.say(Present(((1, 2, b"digest"),)))
            await until(lambda: len(first.of(Segment)) == 3 and here.owner.presented)
            assert [segment.number for segment in first.of(Segment)] == [1, 2, 3]
            here.crew.sign(second.of(Welcome)[0].stream, 9)
            await until(lambda: second.of(Signed))
            assert (first.of(Signed), second.of(Signed)) == ([], [Signed(9)])

    run(story)


def test_a_worker_that_goes_on_with_its_stream_keeps_its_sessions_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a spare it goes on in the segment it has, and gets one when there is room again."""
    full = True

    def create(folder: Path, number: int) -> Any:
        if full:
            raise OSError(28, "No space left on device")
        return create_segment(folder, number)

    async def story() -> None:
        nonlocal full
        async with yard(tmp_path) as here:
            stream = new_stream_id()
            create_segment(here.streams / stream, 1).close()
            monkeypatch.setattr(crew_module, "create_segment", create)
            peer = await here.join("q", stream=stream)
            peer.say(NeedSegment())
            for _ in range(5):
                await pass_time(crew_module.SEGMENT_EVERY)
            assert not peer.closed
            assert peer.of(Segment) == []
            full = False
            await pass_time(crew_module.SEGMENT_EVERY)
            await until(lambda: peer.of(Segment))
            for _ in range(5):
                await pass_time(crew_module.SEGMENT_EVERY)
            assert [segment.number for segment in peer.of(Segment)] == [2]

    run_still(story)
    assert "no new segment: No space left on device" in capsys.readouterr().err


def test_a_worker_that_floods_gets_no_more_segments_than_it_could_use(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            peer = await here.join()
            folder = here.streams / peer.of(Welcome)[0].stream
            for _ in range(50):
                peer.say(NeedSegment())
            await turns(100)
            assert len(list_segments(folder)) == 3, "one at once, the next a second later"
            for _ in range(20):
                peer.say(NeedSegment())
                await pass_time(crew_module.SEGMENT_EVERY)
            assert len(list_segments(folder)) == crew_module.UNUSED_SEGMENTS

    run_still(story)


@pytest.mark.parametrize(
    "values",
    [{"a": 2**63}, {"a": -1}, {"a" * 65: 1}, {"a b": 1}, {f"a{n}": 1 for n in range(257)}],
    ids=["huge", "negative", "long", "no name", "many"],
)
def test_counters_that_could_not_be_signed_end_their_worker(tmp_path: Path, values: dict[str, int]) -> None:
    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with yard(tmp_path) as here:
            peer = await here.join()
            counted = {"accepted": 3, "protocol_client_chunked-in-1.0": 1, "refused_database-refused": 2}
            peer.say(Counters(counted, 1))
            await until(lambda: here.crew.members[0].counters == counted)
            peer.say(Counters(values, 1))
            await until(lambda: peer.closed)
            assert here.crew.members == {}

    run(story)


def test_who_says_nothing_does_not_keep_a_place(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            worker, silent = await here.join(), here.connect()
            await pass_time(crew_module.HELLO_TIMEOUT - 1)
            assert not silent.closed
            await pass_time(2)
            await until(lambda: silent.closed)
            await pass_time(crew_module.HELLO_TIMEOUT * 10)
            assert not worker.closed

    run_still(story)


def test_a_waiting_connection_goes_to_the_worker_with_the_fewest(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            busy, idle, deaf = await here.join("q"), await here.join("q"), await here.join()
            here.crew.members[0].sessions = 10
            ours, theirs = socket.socketpair()
            with ours, theirs:
                assert here.crew.adopt("q", ours.fileno())
                assert not here.crew.adopt("c", ours.fileno())
            await until(lambda: idle.of(Adopt))
            assert (busy.of(Adopt), deaf.of(Adopt)) == ([], [])

    run(story)


def test_a_session_is_killed_wherever_it_is(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            first, second = await here.join(), await here.join()
            killing = asyncio.get_running_loop().create_task(here.crew.kill("s1"))
            await until(lambda: first.of(Kill) and second.of(Kill))
            first.say(Ended("s1", found=False))
            second.say(Ended("s1", found=True))
            assert await killing

            killing = asyncio.get_running_loop().create_task(here.crew.kill("s2"))
            await until(lambda: len(first.of(Kill)) == 2)
            for peer in (first, second):
                peer.say(Ended("s2", found=False))
            assert not await killing

    run(story)


def test_two_who_kill_one_session_both_get_an_answer(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            peer = await here.join()
            loop = asyncio.get_running_loop()
            killing = [loop.create_task(here.crew.kill("s1")) for _ in range(2)]
            await until(lambda: len(peer.of(Kill)) == 2)
            peer.say(Ended("s1", found=True))
            peer.say(Ended("s1", found=False))
            assert sorted(await asyncio.gather(*killing)) == [False, True]

    run(story)


def test_one_worker_does_not_answer_for_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            liar, honest = await here.join(), await here.join()
            killing = asyncio.get_running_loop().create_task(here.crew.kill("s1"))
            await until(lambda: liar.of(Kill) and honest.of(Kill))
            liar.say(Ended("s1", found=False))
            liar.say(Ended("s1", found=False))
            liar.say(Counters({}, 7))
            await until(lambda: here.crew.members[0].sessions == 7)
            honest.say(Ended("s1", found=True))
            assert await killing

    run(story)


def test_a_worker_that_does_not_answer_holds_a_kill_up_for_a_bounded_time(tmp_path: Path) -> None:
    async def story() -> None:
        async with yard(tmp_path) as here:
            assert not await here.crew.kill("s0"), "nobody is there"
            answers, silent = await here.join(), await here.join()
            killing = asyncio.get_running_loop().create_task(here.crew.kill("s1"))
            await until(lambda: answers.of(Kill) and silent.of(Kill))
            answers.say(Ended("s1", found=True))
            answers.say(Counters({}, 2))
            await until(lambda: here.crew.members[0].sessions == 2)
            await pass_time(crew_module.KILL_TIMEOUT - 0.1)
            assert not killing.done(), "the other one may still answer"
            await pass_time(0.2)
            assert await killing
            answers.say(Ended("s1", found=True))  # late: nobody waits
            answers.say(Counters({}, 3))
            await until(lambda: here.crew.members[0].sessions == 3)

    run_still(story)
