# SPDX-License-Identifier: Apache-2.0
"""A worker's end of the conversation with the agent: connect, hello, ask, and come back.

Owns reconnecting and the questions under way; knows nothing of guards or evidence. Bias: while the
agent is away nothing is answered from imagination. An identity question waits at most 5 s and then
fails; the snapshot the worker has stays in force (architecture.md §9).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from agent import messages
from agent.channel import Channel
from agent.messages import MAX_KEPT_SUBJECTS, AgentMessage, Hello, Identified, Identify, WorkerMessage
from policy.model import Subject

IDENTITY_TIMEOUT = 5.0
OBSERVED_TIMEOUT = 1.0  # a guard in observe goes on without a name rather than keep its client waiting
MAX_QUESTIONS = 16_384
_RETRY = 0.1


class AgentGone(Exception):
    """The agent did not answer in time."""


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
        self._questions: dict[int, tuple[Identify, asyncio.Future[Subject]]] = {}
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
            self._send(self._hello())
            for question, _ in self._questions.values():
                self._send(question)
            await gone.wait()
            self._channel = None
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
        self, question: Callable[[int], Identify], seconds: float = IDENTITY_TIMEOUT
    ) -> Subject:
        """Raises AgentGone after `seconds`. Asked again when the agent comes back within them."""
        if len(self._questions) >= MAX_QUESTIONS:
            raise AgentGone(f"{MAX_QUESTIONS} identity questions wait already")
        self._last += 1
        number = self._last
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Subject] = loop.create_future()
        asked = question(number)
        self._questions[number] = (asked, answer)
        self._send(asked)
        timer = loop.call_later(seconds, _give_up, answer, seconds)
        try:
            return await answer
        finally:
            timer.cancel()
            del self._questions[number]

    def _take(self, payload: bytes, descriptors: list[int]) -> None:
        message = messages.decode_agent(payload)
        if isinstance(message, Identified):
            subject = self._kept(message)
            if subject is None:
                if self._channel is not None:
                    self._channel.close(f"subject {message.number} was not sent")
                return
            waiting = self._questions.get(message.id)
            if waiting is not None and not waiting[1].done():
                waiting[1].set_result(subject)
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
        for _, answer in self._questions.values():
            answer.cancel()

    def close(self) -> None:
        self._closing = True
        if self._channel is not None:
            self._channel.close("stopping")


def _give_up(answer: asyncio.Future[Subject], seconds: float) -> None:
    if not answer.done():
        answer.set_exception(AgentGone(f"the agent did not say within {seconds:g} s who connected"))
