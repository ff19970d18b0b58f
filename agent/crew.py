# SPDX-License-Identifier: Apache-2.0
"""The workers as the agent knows them: who they are, what they hold, when they are gone.

Owns the workers' socket, their admission (user, pidfd, cgroup), their slots in the kernel's maps and
the segments they write to. The cgroup of an admitted worker is what exempts its connections to the
database, so nothing is released to a worker before its cgroup is checked, and the exemption leaves
with the last worker of that cgroup. A worker that connects again takes its own place, whether or not the end
of its old channel was read; nobody else's. Bias: a worker that cannot be checked is refused.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from agent import messages
from agent.channel import Channel, peer_of
from agent.counts import Counts, bounded
from agent.evidence.segment import SegmentFile, create_segment, is_stream_id, list_segments, new_stream_id
from agent.generations import parent_start
from agent.kernel.records import MAX_WORKERS
from agent.member import Member, Unfit, cgroup_of
from agent.messages import (
    OLDEST,
    VERSION,
    Adopt,
    AgentMessage,
    Counters,
    Ended,
    Hello,
    Identify,
    Kill,
    Listener,
    NeedSegment,
    Present,
    Refused,
    Segment,
    Signed,
    Snapshot,
    Welcome,
)
from policy.model import Subject

KILL_TIMEOUT = 2.0
LAST_ANSWERS = 3.0  # seconds: a worker waits 5 for one
HELLO_TIMEOUT = 10.0  # who says nothing must not take a worker's place
SEGMENT_EVERY = 1.0  # seconds between two segments of a worker: without a spare it goes on in the one it has
UNUSED_SEGMENTS = 4  # so many are not even begun: it gets no more
MAX_CONNECTED = MAX_WORKERS * 2  # a generation that drains and one that takes over
MAX_OF_PROCESS = 2  # channels: the one whose end was not read yet, and the next


class Slots(Protocol):
    """What the crew needs of ``agent/kernel/steering.py``."""

    def exempt(self, cgroup_id: int) -> None: ...

    def unexempt(self, cgroup_id: int) -> None: ...

    def set_listener(self, guard: int, slot: int, fd: int) -> None: ...

    def clear_listener(self, guard: int, slot: int) -> None: ...


class Owner(Protocol):
    """What the crew needs of the keeper."""

    def snapshot(self) -> Snapshot: ...

    def guard_index(self, name: str) -> int | None: ...

    def identify(self, question: Identify) -> Subject | Coroutine[Any, Any, Subject]:
        """The answer, or what finds it out where it has to be read first."""
        ...

    def admitted(self, member: Member, fresh: bool) -> None: ...

    def present(self, member: Member, message: Present) -> None: ...

    def joined(self, member: Member) -> None: ...

    def left(self, member: Member) -> None: ...


class Crew:
    """Takes workers in and knows them until they go."""

    def __init__(
        self,
        owner: Owner,
        slots: Slots,
        *,
        host: str,
        boot: str,
        streams: Path,
        proxy_uid: int,
        cgroups: Callable[[Path], bool],
        cgroup_root: Path,
        of_process: int = MAX_OF_PROCESS,
    ) -> None:
        self._owner = owner
        self._slots = slots
        self._host, self._boot, self._streams = host, boot, streams
        self._proxy_uid = proxy_uid
        self._is_proxy_cgroup = cgroups
        self._cgroup_root = cgroup_root
        self.members: dict[int, Member] = {}  # by slot
        self._counts = Counts()
        self._connected: Counter[int] = Counter()  # channels by process
        self._of_process = of_process
        self._kills: dict[str, list[dict[int, asyncio.Future[bool]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- admission ---------------------------------------------------------------------------------

    def accept(self, sock: socket.socket) -> None:
        """A connection on the workers' socket."""
        pid = peer_of(sock)[0]
        if self._connected.total() >= MAX_CONNECTED or self._connected[pid] >= self._of_process:
            sock.close()
            return
        self._connected[pid] += 1
        member: Member | None = None
        channel: Channel

        def received(payload: bytes, descriptors: list[int]) -> None:
            nonlocal member
            try:
                message = messages.decode_worker(payload)
                if member is not None:
                    self._take(member, message, descriptors)
                    return
                # From here on the end of the channel is the end of a member, also in the middle of `_admit`.
                member = self._try(channel, message)
                if member is not None:
                    self._admit(member)
            finally:
                while descriptors:  # nothing that came stays open here, asked for or not
                    os.close(descriptors.pop())

        def closed(reason: str) -> None:
            self._connected -= Counter((pid,))
            if member is not None:
                self._leave(member)

        def silent() -> None:
            if member is None:
                channel.close("no hello")

        channel = Channel(sock, received, closed)
        asyncio.get_running_loop().call_later(HELLO_TIMEOUT, silent)

    def _try(self, channel: Channel, message: messages.WorkerMessage) -> Member | None:
        try:
            return self._check(channel, message)
        except (Unfit, OSError) as error:
            print(f"vecward: refused a worker: {error}", file=sys.stderr, flush=True)
            channel.send(messages.encode(Refused(str(error))))
            channel.close("refused")
            return None

    def _admit(self, member: Member) -> None:
        self.members[member.slot] = member
        self._slots.exempt(member.cgroup_id)
        self._owner.admitted(member, fresh=not list_segments(self._streams / member.stream))
        self._provide(member)
        member.send(self._owner.snapshot())
        member.send(Welcome(member.stream, self._host, self._boot, member.slot))

    def _check(self, channel: Channel, message: messages.WorkerMessage) -> Member:
        if not isinstance(message, Hello):
            raise Unfit("its first message was not hello")
        if not OLDEST <= message.version <= VERSION:
            raise Unfit(f"it speaks version {message.version}; this agent {OLDEST} to {VERSION}")
        if len(message.generation) > 64:
            raise Unfit("its generation has no name but a text")
        pid, uid, _ = channel.peer()
        if uid != self._proxy_uid:
            raise Unfit(f"it runs as uid {uid}; workers run as {self._proxy_uid}")
        pidfd = os.pidfd_open(pid)
        try:
            cgroup = cgroup_of(pid, pidfd, self._cgroup_root)
            if not self._is_proxy_cgroup(cgroup):
                raise Unfit(f"pid {pid} is in cgroup {cgroup}, which is not a proxy's")
            older = self._older(message.stream, pid)
            if older is None and message.stream is not None and not self._may_resume(message.stream):
                raise Unfit(f"it claims stream {message.stream!r}, which it cannot have")
            slot = self._free_slot(message.slot) if older is None else older.slot
            identity = os.stat(cgroup).st_ino
        except BaseException:
            os.close(pidfd)
            raise
        stream = message.stream or new_stream_id()
        born = parent_start(pid, pidfd)
        member = Member(pid, pidfd, cgroup, identity, channel, slot, message.generation, stream, born)
        if older is not None:
            self._supersede(older, member)
        return member

    def _free_slot(self, wanted: int) -> int:
        first = [wanted] if 0 <= wanted < MAX_WORKERS else []
        slots: list[int] = [*first, *range(MAX_WORKERS)]
        free = next((slot for slot in slots if slot not in self.members), None)
        if free is None:
            raise Unfit(f"there are {MAX_WORKERS} workers already")
        return free

    def _older(self, stream: str | None, pid: int) -> Member | None:
        """The member that this very process was on another channel, with this stream."""
        for member in self.members.values():
            if stream is not None and (member.stream, member.pid) == (stream, pid):
                return None if select.select([member.pidfd], [], [], 0)[0] else member  # a pid used again
        return None

    def _supersede(self, older: Member, member: Member) -> None:
        """The newer channel counts. Its listeners stay where they are: the process that holds them lives."""
        member.listening = older.listening
        member.sessions, member.counters, member.draining = older.sessions, older.counters, older.draining
        self.members[member.slot] = member
        older.superseded = True
        older.channel.close("it connected again")

    def _may_resume(self, stream: str) -> bool:
        in_use = any(member.stream == stream for member in self.members.values())
        return is_stream_id(stream) and not in_use and bool(list_segments(self._streams / stream))

    def _provide(self, member: Member) -> None:
        """Two segments for a new stream, one spare for one that goes on."""
        if list_segments(self._streams / member.stream):
            self._give_segment(member)  # on a full disk it keeps its sessions and goes on in what it has
        else:
            self._send_segment(member)
            self._send_segment(member)

    def _give_segment(self, member: Member) -> None:
        """A spare: now, or when the time has come and the disk has room."""
        loop = asyncio.get_running_loop()
        if member.segment_timer is not None:
            return
        if loop.time() >= member.segment_due:
            member.segment_due = loop.time() + SEGMENT_EVERY
            try:
                if not self._has_unused(member):
                    self._send_segment(member)
                    return
            except OSError as error:
                print(f"vecward: no new segment: {error.strerror}", file=sys.stderr, flush=True)

        def again() -> None:
            member.segment_timer = None
            self._give_segment(member)

        member.segment_timer = loop.call_at(member.segment_due, again)

    def _has_unused(self, member: Member) -> bool:
        last = list_segments(self._streams / member.stream)[-UNUSED_SEGMENTS:]
        return len(last) == UNUSED_SEGMENTS and not any(path.stat().st_size for _, path in last)

    def _send_segment(self, member: Member) -> None:
        folder = self._streams / member.stream
        known = list_segments(folder)
        segment: SegmentFile = create_segment(folder, known[-1][0] + 1 if known else 1)
        try:
            member.send(Segment(member.stream, segment.number), segment.fd)
        finally:
            segment.close()

    # -- messages ----------------------------------------------------------------------------------

    def _take(self, member: Member, message: messages.WorkerMessage, descriptors: list[int]) -> None:
        match message:
            case Identify():
                self._identify(member, message)
            case Listener():
                self._listen(member, message.guard, descriptors)
            case Present():
                self._owner.present(member, message)
            case NeedSegment():
                self._give_segment(member)
            case Counters():
                member.counters, member.sessions = bounded(message.values), message.sessions
            case Ended():
                self._ended(member, message)
            case _:
                raise TypeError(f"not from a worker: {type(message).__name__}")

    def _identify(self, member: Member, question: Identify) -> None:
        answer = self._owner.identify(question)
        if isinstance(answer, Subject):  # most processes connect again: no task for them
            member.tell(question, answer)
        else:
            self._spawn(self._tell(member, question, answer))

    async def _tell(self, member: Member, question: Identify, answer: Coroutine[Any, Any, Subject]) -> None:
        member.tell(question, await answer)

    def _listen(self, member: Member, guard: str, descriptors: list[int]) -> None:
        """Put a worker's listener into its slot. The caller closes it here: the worker alone holds it."""
        index = self._owner.guard_index(guard)
        if index is None or member.draining:
            return
        if len(descriptors) != 1 or not stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode):
            raise Unfit("a listener that is not a socket")
        self._slots.set_listener(index, member.slot, descriptors[0])
        member.listening.add(guard)
        self._owner.joined(member)

    def sign(self, stream: str, seq: int) -> None:
        for member in self.members.values():
            if member.stream == stream:
                member.send(Signed(seq))

    def broadcast(self, message: AgentMessage) -> None:
        for member in self.members.values():
            member.send(message)

    def adopt(self, guard: str, descriptor: int) -> bool:
        """Give a waiting connection to the worker with the fewest; False when nobody listens for it."""
        fit = [m for m in self.members.values() if guard in m.listening and not m.draining]
        if not fit:
            return False
        member = min(fit, key=lambda m: m.sessions)
        member.sessions += 1
        member.send(Adopt(guard), descriptor)
        return True

    async def kill(self, session: str) -> bool:
        """Close a session wherever it is; False when no worker has it."""
        loop = asyncio.get_running_loop()
        answers = {id(member): loop.create_future() for member in self.members.values()}
        if not answers:
            return False
        asked = self._kills.setdefault(session, [])
        asked.append(answers)
        try:
            self.broadcast(Kill(session))
            done, _ = await asyncio.wait(answers.values(), timeout=KILL_TIMEOUT)
            return any(answer.result() for answer in done)
        finally:
            asked.remove(answers)
            if not asked:
                del self._kills[session]

    def _ended(self, member: Member, message: Ended) -> None:
        """Each worker answers for itself, once a question."""
        for answers in self._kills.get(message.session, ()):
            waiting = answers.get(id(member))
            if waiting is not None and not waiting.done():
                waiting.set_result(message.found)
                return

    def _leave(self, member: Member) -> None:
        if member.segment_timer is not None:
            member.segment_timer.cancel()
        if member.superseded:
            with suppress(OSError):
                os.close(member.pidfd)
            return
        self._counts.end(member.counters)
        if self.members.get(member.slot) is member:
            del self.members[member.slot]
            for guard in member.listening:
                index = self._owner.guard_index(guard)
                if index is not None:
                    self._slots.clear_listener(index, member.slot)
        with suppress(OSError):
            os.close(member.pidfd)
        if not any(m.cgroup_id == member.cgroup_id for m in self.members.values()):
            self._slots.unexempt(member.cgroup_id)
        self._owner.left(member)

    def counters(self) -> dict[str, int]:
        """Of all workers since the agent started, those that are gone too."""
        return self._counts.total(member.counters for member in self.members.values())

    async def close(self, outlived: bool = False) -> None:
        """`outlived`: by its workers, who ask the next agent again what this one has not read. Whose record
        it took from the kernel it answers: the next agent would find none and know nobody."""
        for member in list(self.members.values()):
            member.channel.mute() if outlived else member.channel.close("the agent stops")
        if outlived and self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_ANSWERS)
            for member in list(self.members.values()):
                member.channel.mute()  # sends them
        for task in self._tasks:
            task.cancel()

    def _spawn(self, coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
