# SPDX-License-Identifier: Apache-2.0
"""First bytes: what they look like, at every length of prefix."""

from __future__ import annotations

import pytest

from agent.protocols.detect import HTTP2_PREFACE, PREFIX, detect


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x16\x03\x01\x02\x00", "tls"),
        (b"\x16\x04", "unknown"),
        (HTTP2_PREFACE, "http2"),
        (b"PRI * HTTP/1.1\r\nHost: x\r\n", "http1"),
        (b"GET / HTTP/1.1", "http1"),
        (b"POST /", "http1"),
        (b"get / HTTP/1.1", "unknown"),
        (b"*1\r\n$4\r\nPING\r\n", "unknown"),
        (b"PING\r\n", "unknown"),
        (b" GET /", "unknown"),
        (b"A" * 30, "unknown"),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", "unknown"),
    ],
)
def test_a_prefix_is_named_and_shorter_ones_never_say_otherwise(data: bytes, expected: str) -> None:
    assert detect(data[:PREFIX]) == expected
    for size in range(len(data[:PREFIX])):
        assert detect(data[:size]) in ("more", expected)


def test_no_prefix_of_full_size_asks_for_more() -> None:
    for byte in range(256):
        assert detect(bytes([byte]) * PREFIX) != "more"
