# SPDX-License-Identifier: Apache-2.0
"""A worker's link: it comes back, asks again what was not answered, and answers nothing by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent import link as link_module
from agent import messages
from agent.channel import Channel
from agent.link import AgentGone, AgentLink
from agent.messages import Counters, Hello, Identified, Identify, Signed
from policy.model import Attribution, Subject
from tests.unit.agent.turning import pass_time, run, run_still, turns, until


class Agent:
    """The agent's end. Each `start` is an agent that was started again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[Any] = []
        self.accepted = 0
        self.channel: Channel | None = None
        self._listener: socket.socket | None = None
        self.refusing = False

    def start(self) -> None:
        self.heard = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        sock, _ = self._listener.accept()
        self.accepted += 1
        if self.refusing:
            sock.close()
            return
        self.channel = Channel(sock, self._received, lambda reason: None)

    def _received(self, payload: bytes, descriptors: list[int]) -> None:
        self.heard.append(messages.decode_worker(payload))

    def say(self, message: Any) -> None:
        assert self.channel is not None
        self.channel.send(messages.encode(message))

    def stop(self) -> None:
        if self.channel is not None:
            self.channel.close()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self.path.unlink()
            self._listener = None

    def questions(self) -> list[Identify]:
        return [message for message in self.heard if isinstance(message, Identify)]


class Worker:
    def __init__(self, path: Path) -> None:
        self.got: list[Any] = []
        self.lost = 0
        self.link = AgentLink(path, lambda: Hello(1, 1, "g"), self._received, self._lost)

    def _received(self, message: Any, descriptors: list[int]) -> None:
        self.got.append(message)

    def _lost(self) -> None:
        self.lost += 1

    async def ask(self, port: int = 5) -> Subject:
        return await self.link.identify(
            lambda number: Identify(number, "q", 1, ("127.0.0.1", port), ("127.0.0.1", 6333))
        )


@contextlib.asynccontextmanager
async def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Agent, Worker]]:
    monkeypatch.setattr(link_module, "_RETRY", 0.005)
    agent, worker = Agent(folder / "worker.sock"), Worker(folder / "worker.sock")
    agent.start()
    keeping = asyncio.get_running_loop().create_task(worker.link.keep())
    try:
        yield agent, worker
    finally:
        worker.link.close()
        agent.stop()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def named(pid: int) -> Subject:
    return Subject(Attribution.KERNEL, pid=pid)


def test_hello_is_the_first_word_and_other_messages_are_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: agent.heard)
            assert agent.heard == [Hello(1, 1, "g")]
            agent.say(Signed(5))
            await until(lambda: worker.got)
            assert worker.got == [Signed(5)]

    run(story)


def test_answers_go_to_their_questions_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: worker.link.is_up)
            first, second = [asyncio.get_running_loop().create_task(worker.ask(port)) for port in (1, 2)]
            await until(lambda: len(agent.questions()) == 2)
            one, two = agent.questions()
            agent.say(Identified(999, named(9)))  # of nobody's question
            agent.say(Identified(two.id, named(two.client[1])))
            agent.say(Identified(one.id, named(one.client[1])))
            agent.say(Identified(one.id, named(77)))  # too late to change it
            assert [(await first).pid, (await second).pid] == [1, 2]
            assert worker.got == []

    run(story)


def test_a_question_is_asked_again_of_an_agent_that_was_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: worker.link.is_up)
            asking = asyncio.get_running_loop().create_task(worker.ask())
            await until(agent.questions)
            agent.stop()
            await until(lambda: worker.lost == 1)
            later = asyncio.get_running_loop().create_task(worker.ask(6))
            agent.start()
            await until(lambda: len(agent.questions()) == 2)
            assert isinstance(agent.heard[0], Hello), "it must be admitted before it may ask"
            for question in agent.questions():
                agent.say(Identified(question.id, named(question.client[1])))
            assert [(await asking).pid, (await later).pid] == [5, 6]

    run(story)


def test_without_an_answer_in_time_nobody_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: worker.link.is_up)
            asking = asyncio.get_running_loop().create_task(worker.ask())
            await until(agent.questions)
            await pass_time(4.9)
            assert not asking.done(), "an answer may take five seconds"
            await pass_time(0.2)
            with pytest.raises(AgentGone, match="did not say within 5 s"):
                await asking
            agent.stop()
            await until(lambda: not worker.link.is_up)
            asking = asyncio.get_running_loop().create_task(worker.ask())
            await turns()
            await pass_time(19)
            assert not asking.done(), "it may be started again within 20 s"
            await pass_time(2)
            with pytest.raises(AgentGone, match="within 21 s"):
                await asking
            late = asyncio.get_running_loop().create_task(worker.ask())
            await turns()
            await pass_time(5.1)
            with pytest.raises(AgentGone, match="within 5 s"):  # whoever was away for so long stays away
                await late
            agent.start()
            await pass_time(1)
            await until(lambda: agent.heard)
            worker.link.send(Counters({}, 1))
            await until(lambda: len(agent.heard) == 2)
            assert agent.questions() == [], "what was given up is not asked again"

    run_still(story)


def test_an_agent_that_comes_back_has_its_five_seconds_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: worker.link.is_up)
            asking = asyncio.get_running_loop().create_task(worker.ask())
            await until(agent.questions)
            agent.stop()
            await until(lambda: worker.lost == 1)
            await pass_time(4)
            agent.start()
            await pass_time(1)
            await until(agent.questions)
            await pass_time(4.9)
            assert not asking.done()
            agent.say(Identified(agent.questions()[0].id, named(5)))
            assert (await asking).pid == 5

    run_still(story)


def test_an_agent_that_comes_and_goes_keeps_nobody_waiting_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: worker.link.is_up)
            asking = asyncio.get_running_loop().create_task(worker.ask())
            for _ in range(7):
                await until(agent.questions)
                assert not asking.done()
                agent.stop()
                await until(lambda: not worker.link.is_up)
                agent.start()
                await pass_time(4)
            with pytest.raises(AgentGone, match=r"within 2[58] s"):
                await asking

    run_still(story)


def test_questions_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_QUESTIONS", 2)

    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (_, worker):
            waiting = [asyncio.get_running_loop().create_task(worker.ask(port)) for port in (1, 2)]
            await asyncio.sleep(0)
            with pytest.raises(AgentGone, match="2 identity questions wait already"):
                await worker.ask(3)
            worker.link.drop_questions()
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(end) for end in ended] == [asyncio.CancelledError] * 2

    run(story)


def test_an_agent_that_takes_nobody_in_is_not_asked_in_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            monkeypatch.setattr(link_module, "_RETRY", 3600)
            agent.refusing = True
            await until(lambda: worker.lost == 1)
            await turns(200)  # a loop without the pause would have knocked dozens of times by now
            assert (agent.accepted, worker.lost) == (1, 1)

    run(story)


def test_what_is_said_while_the_agent_is_away_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: worker.link.is_up)
            agent.stop()
            await until(lambda: not worker.link.is_up)
            worker.link.send(Counters({}, 1))
            agent.start()
            await until(lambda: agent.heard)
            worker.link.send(Counters({}, 2))
            await until(lambda: len(agent.heard) == 2)
            assert agent.heard[1] == Counters({}, 2)

    run(story)


def test_a_subject_that_was_sent_once_is_known_by_its_number_until_the_agent_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with both(tmp_path, monkeypatch) as (agent, worker):
            await until(lambda: worker.link.is_up)

            async def answer(subject: Subject | None, number: int) -> Subject:
                asked = len(agent.questions())
                asking = asyncio.get_running_loop().create_task(worker.ask())
                await until(lambda: len(agent.questions()) > asked)
                agent.say(Identified(agent.questions()[-1].id, subject, number))
                return await asking

            first = await answer(named(1), 0)
            second = await answer(named(2), 1)
            assert await answer(None, 0) is first
            assert await answer(None, 1) is second
            assert (await answer(named(3), 0)).pid == 3
            assert (await answer(None, 0)).pid == 3, "a number may be given again"
            agent.stop()
            await until(lambda: worker.lost == 1)
            agent.heard.clear()
            asking = asyncio.get_running_loop().create_task(worker.ask())
            agent.start()
            await until(agent.questions)
            agent.say(Identified(agent.questions()[-1].id, None, 0))
            await until(lambda: worker.lost == 2)
            assert not asking.done(), "a number that this agent never gave is nobody"
            await until(lambda: len(agent.questions()) == 2)
            agent.say(Identified(agent.questions()[-1].id, named(4), 5000))
            assert (await asking).pid == 4
            assert 5000 not in worker.link._subjects, "numbers are bounded"

    run(story)
