# SPDX-License-Identifier: Apache-2.0
"""A worker's evidence stream on its event loop: segments come from the agent, blocks are presented to it.

Wires ``agent/evidence/recorder.py``, which knows no loop, to asyncio. Opens no path: every descriptor was
opened by the agent. Until `begin` there is no stream and nothing may be served.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from agent.evidence.pack import Presented
from agent.evidence.recorder import Recorder
from agent.evidence.segment import SegmentFile
from agent.messages import NeedSegment, Present, Segment, Welcome, WorkerMessage
from agent.tally import request_counts

CARD_WAIT = 0.02  # seconds in which who came and went is written with the next block, or in its own
CLOSE_TIMEOUT = 2.0  # seconds a disk may take for the last frames
Spawn = Callable[[Coroutine[Any, Any, None]], None]


class EvidenceStream:
    """`say` sends a message to the agent, `spawn` keeps a task."""

    def __init__(self, say: Callable[[WorkerMessage], None], spawn: Spawn) -> None:
        self._say = say
        self._spawn = spawn
        self._recorder: Recorder | None = None
        self._segments: list[tuple[str, SegmentFile]] = []  # of which stream
        self.name: str | None = None
        self.host = ""
        self.boot = ""

    @property
    def recorder(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("a connection before the evidence stream stood")
        return self._recorder

    @property
    def is_begun(self) -> bool:
        return self._recorder is not None

    @property
    def stands(self) -> bool:
        """False while strict rules must deny: the disk is full, or nothing is being signed."""
        return self._recorder is not None and self._recorder.refusing is None

    def take_segment(self, message: Segment, descriptor: int) -> None:
        segment = SegmentFile(descriptor, message.number)
        if self._recorder is not None and message.stream == self.name:
            self._recorder.give_spare(segment)
        else:
            self._segments.append((message.stream, segment))

    def begin(self, welcome: Welcome) -> None:
        """Start the stream; an agent that was started again finds it begun."""
        if self._recorder is not None:
            return
        self.name, self.host, self.boot = welcome.stream, welcome.host, welcome.boot
        loop = asyncio.get_running_loop()
        # An agent that died between segments and welcome left some of a stream that never began: to write in
        # them would make an honest stream look tampered with.
        fit = [segment for stream, segment in self._segments if stream == welcome.stream]
        for stream, segment in self._segments:
            if stream != welcome.stream:
                segment.close()
        first, *spares = fit
        self._segments = []

        def schedule(work: Callable[[], None]) -> None:
            loop.call_soon(work)

        def later(work: Callable[[], None]) -> None:
            loop.call_later(CARD_WAIT, work)

        self._recorder = Recorder(
            welcome.stream,
            first,
            spares[0] if spares else None,
            host=welcome.host,
            boot=welcome.boot,
            schedule=schedule,
            later=later,
            sync=self._sync,
            need_spare=lambda: self._say(NeedSegment()),
        )

    def present(self) -> None:
        """Make durable what is written and have it signed."""
        if self._recorder is not None:
            self._recorder.present(self._send_blocks)

    def counters(self) -> dict[str, int]:
        if self._recorder is None:
            return {}
        values = {f"evidence_{name}": value for name, value in self._recorder.counters().items()}
        values |= {"evidence_seq": self._recorder.seq, "evidence_lost": self._recorder.lost}
        return values | request_counts()  # what was judged is what was recorded

    async def close(self) -> None:
        """CLOSE, and the last presentation: a wanted stop leaves nothing unproven, also on a slow disk."""
        if self._recorder is None:
            return
        presented = asyncio.Event()

        def send(blocks: list[Presented]) -> None:
            self._send_blocks(blocks)
            presented.set()

        self._recorder.close("stop")
        self._recorder.present(send)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await presented.wait()

    def _send_blocks(self, blocks: list[Presented]) -> None:
        if blocks:
            self._say(Present(tuple((b.first, b.frames, b.digest) for b in blocks)))

    def _sync(self, descriptors: list[int], done: Callable[[bool], None]) -> None:
        """fdatasync off the loop, then `done` on it."""

        def sync() -> None:
            for fd in descriptors:
                os.fdatasync(fd)

        async def run() -> None:
            try:
                await asyncio.to_thread(sync)
            except OSError:
                done(False)
            else:
                done(True)

        self._spawn(run())
