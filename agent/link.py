# SPDX-License-Identifier: Apache-2.0
"""A worker's end of the conversation with the agent: connect, hello, ask, and come back.

Owns reconnecting and the questions under way; knows nothing of guards or evidence. Bias: while the
agent is away nothing is answered from imagination. An identity question waits at most 5 s for an agent that
is there, and for one that is started again until it was away for 20 s; then it fails. The snapshot
the worker has stays in force.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent import messages
from agent.channel import Channel
from agent.messages import MAX_KEPT_SUBJECTS, AgentMessage, Hello, Identified, Identify, WorkerMessage
from policy.model import Subject

IDENTITY_TIMEOUT = 5.0
AWAY_TIMEOUT = 20.0  # a restart took 5.7 s on two busy cores; who is away for longer is not coming back
OBSERVED_TIMEOUT = 1.0  # a guard in observe goes on without a name rather than keep its client waiting
MAX_QUESTIONS = 16_384
_RETRY = 0.1


class AgentGone(Exception):
    """The agent did not answer in time."""


@dataclass(slots=True, eq=False)
class _Question:
    asked: Identify
    answer: asyncio.Future[Subject]
    began: float  # the loop's time
    seconds: float
    away: float
    timer: asyncio.TimerHandle = field(init=False)


class AgentLink:
    """Keeps one channel to the agent open. `received` gets every message but Identified."""

    def __init__(
        self,
        path: Path,
        hello: Callable[[], Hello],
        received: Callable[[AgentMessage, list[int]], None],
        lost: Callable[[], None],
    ) -> None:
        self._path = path
        self._hello = hello
        self._received = received
        self._lost = lost
        self._channel: Channel | None = None
        self._since = 0.0  # when the agent came, or (without a channel) went; the loop's time
        self._questions: dict[int, _Question] = {}
        self._subjects: dict[int, Subject] = {}  # by number, of this channel
        self._last = 0
        self._closing = False

    @property
    def is_up(self) -> bool:
        return self._channel is not None

    async def keep(self) -> None:
        """Connect, and again each time the agent goes away; until `close`."""
        while not self._closing:
            gone = asyncio.Event()
            try:
                sock = await self._connect()
            except OSError:
                await asyncio.sleep(_RETRY)
                continue

            def closed(reason: str, gone: asyncio.Event = gone) -> None:
                gone.set()

            self._subjects.clear()
            self._channel = Channel(sock, self._take, closed)
            self._since = asyncio.get_running_loop().time()
            self._send(self._hello())
            for question in self._questions.values():
                self._send(question.asked)
            await gone.wait()
            self._channel = None
            self._since = asyncio.get_running_loop().time()
            if not self._closing:
                self._lost()
                await asyncio.sleep(_RETRY)  # an agent that takes nobody in must not be asked in a loop

    async def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, os.fspath(self._path))
        except BaseException:
            sock.close()
            raise
        return sock

    def send(self, message: WorkerMessage, *descriptors: int) -> None:
        """Say something; lost when the agent is away (what matters is said again after hello)."""
        self._send(message, *descriptors)

    def _send(self, message: WorkerMessage, *descriptors: int) -> None:
        if self._channel is not None:
            self._channel.send(messages.encode(message), descriptors)

    async def identify(
        self,
        question: Callable[[int], Identify],
        seconds: float = IDENTITY_TIMEOUT,
        away: float = AWAY_TIMEOUT,
    ) -> Subject:
        """Raises AgentGone when the agent was there for `seconds` and did not say, or was away for `away`.

        Asked again when it comes back; `seconds` and `away` together are the longest wait.
        """
        if len(self._questions) >= MAX_QUESTIONS:
            raise AgentGone(f"{MAX_QUESTIONS} identity questions wait already")
        self._last += 1
        number = self._last
        loop = asyncio.get_running_loop()
        one = _Question(question(number), loop.create_future(), loop.time(), seconds, away)
        self._questions[number] = one
        self._send(one.asked)
        one.timer = loop.call_later(seconds, self._expire, one)
        try:
            return await one.answer
        finally:
            one.timer.cancel()
            del self._questions[number]

    def _expire(self, one: _Question) -> None:
        loop = asyncio.get_running_loop()
        last = max(one.began, self._since) + one.seconds if self.is_up else self._since + one.away
        last = min(last, one.began + one.seconds + one.away)
        if last > loop.time():
            one.timer = loop.call_at(last, self._expire, one)
        elif not one.answer.done():
            waited = loop.time() - one.began
            one.answer.set_exception(AgentGone(f"the agent did not say within {waited:.0f} s who connected"))

    def _take(self, payload: bytes, descriptors: list[int]) -> None:
        message = messages.decode_agent(payload)
        if isinstance(message, Identified):
            subject = self._kept(message)
            if subject is None:
                if self._channel is not None:
                    self._channel.close(f"subject {message.number} was not sent")
                return
            waiting = self._questions.get(message.id)
            if waiting is not None and not waiting.answer.done():
                waiting.answer.set_result(subject)
            return
        self._received(message, descriptors)

    def _kept(self, message: Identified) -> Subject | None:
        """The Subject of an answer, from here where only its number came. None: it was never given."""
        if message.subject is None:
            return self._subjects.get(message.number)
        if 0 <= message.number < MAX_KEPT_SUBJECTS:
            self._subjects[message.number] = message.subject
        return message.subject

    def drop_questions(self) -> None:
        """Whoever waits for an identity is cancelled: this worker stops."""
        for question in self._questions.values():
            question.answer.cancel()

    def close(self) -> None:
        self._closing = True
        if self._channel is not None:
            self._channel.close("stopping")
