# SPDX-License-Identifier: Apache-2.0
"""Content codings of answers, undone under a bound (RFC 9110 section 8.4.1).

Owns gzip and deflate. Bias: any other coding, a second coding, trailing bytes, a torn stream or one that
grows over its bound is an error; the caller decides whether that stops the answer (a mask has to
read it) or only leaves it out of the record.
"""

from __future__ import annotations

import zlib

from agent.protocols.session import ProtocolError

MAX_MEMBERS = 64  # gzip members in one body; each copies the rest, so many would cost quadratic time


def decode_body(body: bytes, coding: str | None, bound: int) -> bytes:
    """The body without its content coding, at most `bound` bytes. Raises `ProtocolError` (server)."""
    if coding is None or not body:
        return body
    name = coding.strip(" \t").lower()
    if name in ("gzip", "x-gzip"):
        return _inflate(body, 31, bound)
    if name == "deflate":  # zlib format by the standard, raw deflate from some servers
        zlib_header = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return _inflate(body, 15 if zlib_header else -15, bound)
    raise ProtocolError(
        "content-encoding", f"the answer is encoded as {name[:32]!r}, which is not read", "server"
    )


def _inflate(body: bytes, window: int, bound: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    for _ in range(MAX_MEMBERS):
        stream = zlib.decompressobj(window)
        try:
            piece = stream.decompress(body, bound - size + 1)
        except zlib.error:
            raise ProtocolError(
                "content-encoding", "the encoded answer cannot be decoded", "server"
            ) from None
        size += len(piece)
        if size > bound:
            raise ProtocolError(
                "decoded-too-large", f"the answer decodes to more than {bound} bytes", "server"
            )
        if not stream.eof:
            raise ProtocolError("content-encoding", "the encoded answer is cut short", "server")
        pieces.append(piece)
        body = stream.unused_data  # gzip allows members one after another (RFC 1952 section 2.2)
        if body and window != 31:
            break
        if not body:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    raise ProtocolError("content-encoding", "bytes follow the encoded answer", "server")
