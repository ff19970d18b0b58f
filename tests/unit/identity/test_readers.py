# SPDX-License-Identifier: Apache-2.0
"""Threads for reads that may hang: a hung one is given up, counted, and replaced."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from agent.identity.readers import MAX_ABANDONED, Full, Job, Readers

BOUND = 40.0  # seconds: no machine is so busy


@pytest.fixture
def readers() -> Iterator[Readers]:
    made = Readers("test", threads=1, max_waiting=64)
    yield made
    made.close()


def ask(readers: Readers, owner: int = 0) -> int | None:
    answers: SimpleQueue[int | None] = SimpleQueue()
    readers.submit(owner, lambda: 7, lambda result, _: answers.put(result))
    return answers.get(timeout=BOUND)


def hang(readers: Readers, owner: int, release: threading.Event) -> threading.Event:
    """Submit a job that hangs until released, and give it up."""
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        release.wait()

    job = readers.submit(owner, work, lambda *_: ended.set())
    assert began.wait(BOUND)
    readers.abandon(job)
    return ended


def test_work_is_done_and_errors_are_handed_on(readers: Readers) -> None:
    assert ask(readers) == 7
    failures: SimpleQueue[BaseException | None] = SimpleQueue()
    readers.submit(0, lambda: 1 // 0, lambda _, error: failures.put(error))
    assert isinstance(failures.get(timeout=BOUND), ZeroDivisionError)
    assert ask(readers) == 7


def test_a_hung_read_is_counted_against_its_owner_and_replaced(readers: Readers) -> None:
    release = threading.Event()
    ended = hang(readers, 1000, release)
    assert readers.hung(1000)
    assert not readers.hung(1001)
    assert ask(readers, 1001) == 7
    release.set()
    assert ended.wait(BOUND)
    assert not readers.hung(1000)


def test_who_gives_a_job_up_when_it_has_its_answer_does_not_make_it_hung(readers: Readers) -> None:
    jobs: SimpleQueue[Job[int]] = SimpleQueue()
    hung: SimpleQueue[bool] = SimpleQueue()

    def done(*_: object) -> None:
        readers.abandon(jobs.get(timeout=BOUND))
        hung.put(readers.hung(1000))

    jobs.put(readers.submit(1000, lambda: 7, done))
    assert not hung.get(timeout=BOUND)


def test_a_job_that_is_given_up_before_its_turn_is_never_done(readers: Readers) -> None:
    block, ran = threading.Event(), threading.Event()
    readers.submit(0, block.wait, lambda *_: None)
    job = readers.submit(1000, ran.set, lambda *_: None)
    readers.abandon(job)
    block.set()
    assert ask(readers) == 7
    assert not ran.is_set()
    assert not readers.hung(1000)


def test_many_hung_owners_cannot_take_every_thread(readers: Readers) -> None:
    release = threading.Event()
    for owner in range(MAX_ABANDONED // 2):
        hang(readers, owner, release)
    assert readers.hung(99_999), "nobody's memory is read any more"
    assert ask(readers) == 7
    release.set()


def test_a_full_queue_says_so() -> None:
    readers, block = Readers("test", threads=1, max_waiting=1), threading.Event()
    try:
        began = threading.Event()

        def wait() -> None:
            began.set()
            block.wait()

        readers.submit(0, wait, lambda *_: None)
        assert began.wait(BOUND)
        readers.submit(0, lambda: None, lambda *_: None)
        with pytest.raises(Full):
            readers.submit(0, lambda: None, lambda *_: None)
    finally:
        block.set()
        readers.close()
    with pytest.raises(Full):
        readers.submit(0, lambda: None, lambda *_: None)
