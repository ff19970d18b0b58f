# SPDX-License-Identifier: Apache-2.0
"""A parser that remembers the last head says of every head what one that remembers nothing says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocols.http1_head import RequestHead, request_heads
from agent.protocols.session import Bounds, ProtocolError

KNOWN = b"POST /a HTTP/1.1\r\nHost: db\r\nContent-Length: 7300\r\nAccept: */*\r\n\r\n"
LENGTHS = [
    b"0", b"7", b"7300", b"007", b"00", b"", b" 7", b"7 ", b"+7", b"-7", b"7,7", b"0x7", b"7\r\nX: y",
    b"\xb2", b"9" * 15, b"9" * 16, b"7\n", b"7\r", b"7\r\nContent-Length: 8",
    b"7\r\nTransfer-Encoding: chunked", b"7\x00",
]  # fmt: skip


def read(data: bytes, *before: bytes) -> tuple[RequestHead, int | None] | str:
    """What a parser says of a head after others: the head and its length, or why not."""
    parser = request_heads(Bounds())
    for head in before:
        parser.parse(head)
    try:
        return parser.parse(data)
    except ProtocolError as error:
        return error.reason


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", [b"Content-Length: %b", b"content-length:%b", b"Content-Length : %b"])
def test_a_length_is_read_alike_whether_its_head_is_known_or_not(length: bytes, form: bytes) -> None:
    data = KNOWN.replace(b"Content-Length: 7300", form % length)
    assert read(data, KNOWN) == read(data)


def test_a_head_without_a_length_is_not_taken_for_one_with_it() -> None:
    bare = KNOWN.replace(b"Content-Length: 7300\r\n", b"")
    for first, then in ((KNOWN, bare), (bare, KNOWN), (bare, bare), (KNOWN, KNOWN)):
        assert read(then, first) == read(then)
        assert read(then, first, then, first) == read(then)


def test_a_head_that_was_refused_is_not_remembered() -> None:
    parser = request_heads(Bounds())
    both = KNOWN.replace(b"Accept: */*", b"Transfer-Encoding: chunked")
    for _ in range(2):
        with pytest.raises(ProtocolError):
            parser.parse(both)


@given(st.data())
def test_a_changed_head_is_read_alike_whether_the_other_is_known_or_not(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(KNOWN) - 5))
    end = data.draw(st.integers(at, min(at + 6, len(KNOWN) - 4)))
    changed = KNOWN[:at] + data.draw(st.binary(max_size=6)) + KNOWN[end:]
    if changed.find(b"\r\n\r\n") == len(changed) - 4:
        assert read(changed, KNOWN) == read(changed)
