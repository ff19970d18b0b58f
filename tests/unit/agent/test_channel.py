# SPDX-License-Identifier: Apache-2.0
"""The channel: whole messages with their own descriptors, whatever the peer does."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent import channel as channel_module
from agent.channel import MAX_DESCRIPTORS, MAX_MESSAGE, Channel
from tests.unit.agent.turning import run, turns, until


class End:
    """A channel and what came out of it; closes the descriptors that it was given."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[tuple[bytes, int]] = []
        self.names: list[str] = []
        self.closed: list[str] = []
        self.fail: Exception | None = None
        self.channel = Channel(sock, self._received, self.closed.append)

    def _received(self, payload: bytes, descriptors: list[int]) -> None:
        if self.fail is not None:
            raise self.fail
        self.messages.append((payload, len(descriptors)))
        while descriptors:
            fd = descriptors.pop(0)
            self.names.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.close(fd)


@contextlib.asynccontextmanager
async def ends() -> AsyncIterator[tuple[End, socket.socket]]:
    """A channel and the raw socket at its other end."""
    ours, theirs = socket.socketpair()
    end = End(ours)
    try:
        yield end, theirs
    finally:
        end.channel.close()
        theirs.close()


def frame(payload: bytes, descriptors: int = 0) -> bytes:
    return struct.pack("<IB", len(payload), descriptors) + payload


def send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_messages_split_at_every_byte_arrive_whole_and_in_order() -> None:
    async def story() -> None:
        stream = frame(b"first") + frame(b"") + frame(b"third")
        async with ends() as (end, peer):
            for cut in range(1, len(stream)):
                end.messages.clear()
                peer.send(stream[:cut])
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                peer.send(stream[cut:])
                await until(lambda: len(end.messages) == 3)
                assert [payload for payload, _ in end.messages] == [b"first", b"", b"third"]
            assert end.closed == []

    run(story)


def test_descriptors_stay_with_their_message_however_messages_are_read() -> None:
    async def story() -> None:
        files = [os.memfd_create(f"number-{n}") for n in range(4)]
        try:
            async with ends() as (end, peer):
                sender = End(peer)
                sender.channel.send(b"none")
                sender.channel.send(b"one", files[:1])
                sender.channel.send(b"none")
                sender.channel.send(b"big" * 200_000, files[1:3])
                sender.channel.send(b"last", files[3:])
                await until(lambda: len(end.messages) == 5)
                assert [count for _, count in end.messages] == [0, 1, 0, 2, 1]
                assert end.names == [f"/memfd:number-{n} (deleted)" for n in range(4)]
                sender.channel.close()
        finally:
            for fd in files:
                os.close(fd)  # the sender keeps its own

    run(story)


@pytest.mark.parametrize("cut", range(1, 7))
def test_descriptors_of_a_message_in_pieces_wait_for_its_end(cut: int) -> None:
    async def story() -> None:
        file = os.memfd_create("one")
        async with ends() as (end, peer):
            data = frame(b"ab", 1)
            send_fds(peer, data[:cut], [file])
            os.close(file)
            await turns()
            assert end.messages == []
            peer.send(data[cut:])
            await until(lambda: end.messages)
            assert end.names == ["/memfd:one (deleted)"]

    run(story)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (struct.pack("<IB", MAX_MESSAGE + 1, 0), f"at most {MAX_MESSAGE}"),
        (struct.pack("<IB", 1, MAX_DESCRIPTORS + 1), "9 descriptors"),
        (frame(b"x", 1), "without its descriptors"),
    ],
)
def test_a_message_over_a_bound_ends_the_channel_and_says_so(head: bytes, why: str) -> None:
    async def story() -> None:
        async with ends() as (end, peer):
            peer.send(head)
            await until(lambda: end.closed)
            assert why in end.closed[0]
            assert end.messages == []

    run(story)


def test_descriptors_that_nobody_announced_end_the_channel_and_are_closed() -> None:
    async def story() -> None:
        file = os.memfd_create("stray")
        async with ends() as (end, peer):
            send_fds(peer, frame(b"x"), [file] * 8)
            os.close(file)
            await until(lambda: end.closed)
            assert end.messages == [(b"x", 0)]
            assert "without a message" in end.closed[0]

    run(story)


def test_more_descriptors_than_fit_end_the_channel_and_are_closed() -> None:
    async def story() -> None:
        file = os.memfd_create("many")
        async with ends() as (end, peer):
            send_fds(peer, frame(b"x", 8), [file] * 60)
            os.close(file)
            await until(lambda: end.closed)
            assert end.closed == ["descriptors were lost"]

    run(story)


def test_what_is_too_much_to_say_is_refused_before_it_is_sent() -> None:
    async def story() -> None:
        async with ends() as (end, _):
            with pytest.raises(ValueError, match="at most 33554432"):
                end.channel.send(bytes(MAX_MESSAGE + 1))
            with pytest.raises(ValueError, match="9 descriptors; at most 8"):
                end.channel.send(b"x", [0] * 9)
            assert end.channel.is_open

    run(story)


def test_a_peer_that_does_not_read_ends_the_channel_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_WAITING", 1_000_000)

    async def story() -> None:
        file = os.memfd_create("queued")
        async with ends() as (end, _):
            sent = 0
            while end.channel.is_open:
                end.channel.send(bytes(100_000), [file])
                sent += 100_000
                assert sent < 3_000_000, "the queue has no bound"
            os.close(file)
            assert end.closed == ["more than 1000000 bytes wait to be sent"]
            end.channel.send(b"nobody hears this")

    run(story)


def test_what_waited_is_sent_in_order_once_the_peer_reads() -> None:
    async def story() -> None:
        async with ends() as (end, peer):
            for n in range(20):
                end.channel.send(bytes([n]) * 100_000)
            reader = End(peer)
            await until(lambda: len(reader.messages) == 20)
            assert [payload[0] for payload, _ in reader.messages] == list(range(20))
            reader.channel.close()

    run(story)


def test_what_is_said_in_one_turn_leaves_as_one_and_descriptors_with_their_own_message() -> None:
    async def story() -> None:
        async with ends() as (end, peer):
            calls: list[int] = []
            sock = end.channel._sock

            class Counted:
                def sendmsg(self, frames: list[bytes], ancillary: Any) -> int:
                    calls.append(len(frames))
                    return sock.sendmsg(frames, ancillary)

                def __getattr__(self, name: str) -> Any:
                    return getattr(sock, name)

            end.channel._sock = Counted()  # type: ignore[assignment]
            file = os.memfd_create("with the third")
            for n in range(5):
                end.channel.send(bytes([n]), [file] if n == 2 else [])
            os.close(file)
            assert calls == []
            await turns()
            assert calls == [2, 1, 2]
            reader = End(peer)
            await until(lambda: len(reader.messages) == 5)
            assert reader.messages == [(bytes([n]), int(n == 2)) for n in range(5)]
            reader.channel.close()

    run(story)


def test_what_was_said_before_a_close_is_heard() -> None:
    async def story() -> None:
        async with ends() as (end, peer):
            end.channel.send(b"you are refused")
            end.channel.close("refused")
            assert peer.recv(100) == frame(b"you are refused")
            assert peer.recv(100) == b""
            await turns()
            assert end.closed == ["refused"]

    run(story)


def test_a_peer_that_is_gone_when_the_last_word_is_said_is_told_once() -> None:
    async def story() -> None:
        async with ends() as (end, peer):
            end.channel.send(b"to nobody")
            peer.close()
            end.channel.close("stopping")
            assert end.closed == ["cannot send: Broken pipe"]

    run(story)


def test_a_peer_that_went_away_is_told_once() -> None:
    async def story() -> None:
        async with ends() as (end, peer):
            peer.send(frame(b"last") + frame(b"a longer one")[:9])
            peer.close()
            await until(lambda: end.closed)
            end.channel.send(b"anyone?")
            end.channel.close("again")
            assert end.messages == [(b"last", 0)]
            assert end.closed == ["the other side went away"]

    run(story)


def test_a_message_that_cannot_be_taken_ends_the_channel_and_its_descriptors_are_closed() -> None:
    async def story() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: errors.append(context["exception"])
        )
        file = os.memfd_create("lost")
        async with ends() as (end, peer):
            end.fail = TypeError("not for me")
            send_fds(peer, frame(b"x", 1), [file])
            os.close(file)
            await until(lambda: end.closed)
            assert end.closed == ["TypeError: not for me"]
            assert errors == [end.fail]

    run(story)


def test_the_kernel_says_who_the_peer_is() -> None:
    async def story() -> None:
        async with ends() as (end, _):
            assert end.channel.peer() == (os.getpid(), os.geteuid(), os.getegid())

    run(story)


def test_a_muted_channel_sends_what_waits_and_takes_nothing_more() -> None:
    async def main() -> None:
        async with ends() as (end, theirs):
            end.channel.send(b"the last answer")
            end.channel.mute()
            assert theirs.recv(100) == frame(b"the last answer")
            theirs.send(frame(b"asked too late"))
            await turns(20)
            assert end.messages == []
            assert end.closed == []

    run(main)


def test_what_a_peer_said_before_it_left_is_heard_though_nothing_can_be_said_to_it() -> None:
    async def story() -> None:
        given, waiting = os.memfd_create("given"), os.memfd_create("waiting")
        async with ends() as (end, peer):
            send_fds(peer, frame(b"the last answer", 1), [given])
            peer.close()
            end.channel.send(b"the next question", [waiting])
            end.channel.send(b"and one more")
            os.close(given)
            os.close(waiting)
            end.channel._flush()  # before the reader's turn: the send finds out first
            assert (end.messages, end.closed) == ([], [])
            end.channel.send(b"to nobody")
            await until(lambda: end.closed)
            assert end.messages == [(b"the last answer", 1)]
            assert end.closed == ["cannot send: Broken pipe"]

    run(story)


@pytest.mark.parametrize("muted_first", [True, False])
def test_a_muted_channel_whose_peer_is_gone_is_closed(muted_first: bool) -> None:
    async def story() -> None:
        async with ends() as (end, peer):
            if muted_first:
                end.channel.mute()
            end.channel.send(b"to nobody")
            peer.close()
            end.channel.mute()
            assert end.closed == ["cannot send: Broken pipe"]
            await turns()

    run(story)
