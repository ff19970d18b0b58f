# SPDX-License-Identifier: Apache-2.0
"""Content codings under a bound."""

from __future__ import annotations

import gzip
import zlib

import pytest

from agent.protocols.coding import MAX_MEMBERS, decode_body
from agent.protocols.session import ProtocolError

PLAIN = b'{"a":1}' * 100


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (PLAIN, None),
        (gzip.compress(PLAIN), "gzip"),
        (gzip.compress(PLAIN[:50]) + gzip.compress(PLAIN[50:]), "X-Gzip"),
        (zlib.compress(PLAIN), "deflate"),
        (raw_deflate(PLAIN), "deflate"),
    ],
)
def test_known_codings_are_undone(body: bytes, coding: str | None) -> None:
    assert decode_body(body, coding, len(PLAIN)) == PLAIN


@pytest.mark.parametrize(
    ("body", "coding", "reason"),
    [
        (PLAIN, "br", "content-encoding"),
        (gzip.compress(PLAIN), "gzip, gzip", "content-encoding"),
        (gzip.compress(PLAIN)[:-5], "gzip", "content-encoding"),
        (gzip.compress(PLAIN) + b"junk", "gzip", "content-encoding"),
        (zlib.compress(PLAIN) + b"junk", "deflate", "content-encoding"),
        (PLAIN, "gzip", "content-encoding"),
        (gzip.compress(b"x" * 10_000_000), "gzip", "decoded-too-large"),
        (gzip.compress(PLAIN) * 2, "gzip", "decoded-too-large"),
        (gzip.compress(b"") * (MAX_MEMBERS + 1), "gzip", "content-encoding"),
    ],
)
def test_anything_else_is_an_error_of_the_database(body: bytes, coding: str, reason: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        decode_body(body, coding, len(PLAIN))
    assert (raised.value.reason, raised.value.side) == (reason, "server")
