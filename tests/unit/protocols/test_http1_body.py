# SPDX-License-Identifier: Apache-2.0
"""Body framing at every cut; refused chunk forms are in tests/wire/test_attacks.py."""

from __future__ import annotations

import pytest

from agent.protocols.http1_body import BodyReader, ChunkedBody, CloseBody, LengthBody, Pieces
from agent.protocols.session import Bounds, ProtocolError


def feed_all(reader: BodyReader, parts: list[bytes]) -> tuple[bytes, bytes]:
    body, rest = b"", b""
    for part in parts:
        if reader.done:
            rest += part
            continue
        pieces, left = reader.feed(part)
        body += b"".join(pieces)
        rest += left
    return body, rest


CHUNKS = b"5\r\nhello\r\nA\r\n, big worl\r\n1\r\nd\r\n0\r\n\r\nNEXT"


@pytest.mark.parametrize("at", range(1, len(CHUNKS)))
def test_chunks_are_read_at_every_cut(at: int) -> None:
    reader = ChunkedBody(Bounds(), "client")
    assert feed_all(reader, [CHUNKS[:at], CHUNKS[at:]]) == (b"hello, big world", b"NEXT")
    assert reader.done


def test_chunks_are_read_byte_by_byte() -> None:
    reader = ChunkedBody(Bounds(), "client")
    assert feed_all(reader, [CHUNKS[i : i + 1] for i in range(len(CHUNKS))]) == (b"hello, big world", b"NEXT")


def test_a_length_ends_where_it_says() -> None:
    reader = LengthBody(5)
    assert feed_all(reader, [b"he", b"lloNEXT"]) == (b"hello", b"NEXT")
    assert reader.end()
    assert LengthBody(0).done


def test_a_body_that_fills_its_read_is_not_copied() -> None:
    data = b"x" * 1000
    assert LengthBody(1000).feed(data)[0][0] is data


def test_only_a_body_to_the_close_is_whole_when_the_peer_closes() -> None:
    assert CloseBody().end()
    assert not LengthBody(1).end()
    assert not ChunkedBody(Bounds(), "server").end()


def test_an_endless_size_line_is_refused_at_once() -> None:
    reader = ChunkedBody(Bounds(), "client")
    reader.feed(b"1" * 8)
    with pytest.raises(ProtocolError):
        reader.feed(b"1")


def test_tiny_pieces_are_held_in_few_objects() -> None:
    pieces = Pieces()
    for _ in range(10_000):
        pieces.add([b"ab"])
    assert len(pieces._held) + len(pieces._joined) < 1100
    assert pieces.take() == b"ab" * 10_000
    assert pieces.take() == b""
