# SPDX-License-Identifier: Apache-2.0
"""A worker's stream on its loop: whose segments it writes to."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from agent.evidence.segment import create_segment, new_stream_id
from agent.messages import Present, Segment, Welcome
from agent.stream import CARD_WAIT, EvidenceStream
from tests.unit.agent.turning import pass_time, run, run_still, turns


def test_segments_of_a_stream_that_never_began_are_not_written_to(tmp_path: Path) -> None:
    """The agent died between segments and welcome; the next one gives the worker another stream. Frames of
    one stream in a segment of another would be called tampering."""
    old, new = new_stream_id(), new_stream_id()

    async def story() -> None:
        stream = EvidenceStream(lambda message: None, _never)
        for name, number in ((old, 1), (new, 1), (new, 2)):
            made = create_segment(tmp_path / name, number)
            stream.take_segment(Segment(name, number), made.fd)
        stream.begin(Welcome(new, "host-1", "boot-1", 0))
        stream.recorder.open_session("s", {"session": "s"})
        await turns()
        assert (tmp_path / new / "000001.seg").stat().st_size == 0, "nothing waits for a card"
        await pass_time(CARD_WAIT)
        stream.recorder.release_files()

    run_still(story)
    assert (tmp_path / old / "000001.seg").stat().st_size == 0
    assert new.encode() in (tmp_path / new / "000001.seg").read_bytes()
    held = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _exists(n)]
    assert not [path for path in held if str(tmp_path) in path]


def test_the_last_frames_are_presented_before_a_stop_on_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, said = new_stream_id(), list[Any]()

    def slow(fd: int) -> None:
        time.sleep(0.1)

    async def story() -> None:
        async with asyncio.TaskGroup() as group:

            def spawn(coroutine: Any) -> None:
                group.create_task(coroutine)

            stream = EvidenceStream(said.append, spawn)
            made = create_segment(tmp_path / name, 1)
            stream.take_segment(Segment(name, 1), made.fd)
            stream.begin(Welcome(name, "host-1", "boot-1", 0))
            stream.recorder.open_session("s", {"session": "s"})
            monkeypatch.setattr(os, "fdatasync", slow)
            await stream.close()
        last = [message for message in said if isinstance(message, Present)][-1].blocks[-1]
        assert last[0] + last[1] - 1 == stream.recorder.seq
        stream.recorder.release_files()

    run(story)


def _exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def _never(coroutine: Any) -> None:
    coroutine.close()
