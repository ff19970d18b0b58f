# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 body framing: where a body ends (RFC 9112 sections 6 and 7).

Owns the three framings; hands out the caller's own bytes, never copies of them but where a read
holds more than the body. Bias: chunk extensions, trailers, leading zeros and signs are refused,
because other parsers read them differently.
"""

from __future__ import annotations

import re
from typing import Final, Literal, Protocol

from agent.protocols.session import Bounds, ProtocolError

Side = Literal["client", "server"]
_SIZE: Final = re.compile(rb"(0|[1-9A-Fa-f][0-9A-Fa-f]{0,7})\r\n")
_SIZE_PREFIX: Final = re.compile(rb"(?:(?:0|[1-9A-Fa-f][0-9A-Fa-f]{0,7})\r?)?")
_MOST_PIECES: Final = 1024
"""A bytes object costs 33 bytes besides its content: two-byte chunks would cost 20 times."""
_LONGEST_LINE: Final = 10  # eight hex digits, CR, LF


class Pieces:
    """A body as it is collected. A body of tiny pieces is held in few objects, at its own size."""

    __slots__ = ("_held", "_joined")

    def __init__(self) -> None:
        self._joined: list[bytes] = []
        self._held: list[bytes] = []

    def add(self, pieces: list[bytes]) -> None:
        self._held += pieces
        if len(self._held) > _MOST_PIECES:
            self._joined.append(b"".join(self._held))
            self._held = []

    def take(self) -> bytes:
        """The whole body so far; it is forgotten here."""
        held, joined = self._held, self._joined
        if joined:
            held = [*joined, *held]
            self._joined = []
        if held:
            self._held = []
        return held[0] if len(held) == 1 else b"".join(held)


class BodyReader(Protocol):
    done: bool

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """Take bytes; give the pieces of body in them, and what follows the body."""
        ...

    def end(self) -> bool:
        """The peer has closed: whether the body is whole."""
        ...


class LengthBody:
    """A body of announced length."""

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        size = len(data)
        if size <= self.left:
            self.left -= size
            self.done = self.left == 0
            return [data], b""
        body, rest = data[: self.left], data[self.left :]
        self.left = 0
        self.done = True
        return [body], rest

    def end(self) -> bool:
        return self.done


class CloseBody:
    """A response body that ends with the connection."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        return [data], b""

    def end(self) -> bool:
        self.done = True
        return True


class ChunkedBody:
    """A chunked body: sizes of at most eight hex digits, no extensions, no trailers."""

    __slots__ = ("_held", "_left", "_line", "_side", "done")

    def __init__(self, bounds: Bounds, side: Side) -> None:
        self.done = False
        self._side: Side = side
        self._line = min(_LONGEST_LINE, bounds.chunk_line)
        self._left = (
            -1
        )  # data bytes to come in this chunk; -1: a size line, -2: CRLF after data, -3: the last
        self._held = b""  # the beginning of a line, at most a few bytes

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        pieces: list[bytes] = []
        if self._held:
            data = self._held + data
            self._held = b""
        at, size = 0, len(data)
        while at < size:
            if self._left > 0:
                piece = data[at : at + self._left] if at or size > self._left else data
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left == 0:
                    self._left = -2
                continue
            used = self._size_line(data, at) if self._left == -1 else self._line_end(data, at)
            if used == 0:
                self._held = data[at:]
                return pieces, b""
            at += used
            if self.done:
                return pieces, data[at:]
        return pieces, b""

    def end(self) -> bool:
        return self.done

    def _size_line(self, data: bytes, at: int) -> int:
        match = _SIZE.match(data, at)
        if match is not None:
            size = int(match.group(1), 16)
            self._left = size if size else -3
            return match.end() - at
        head = data[at : at + self._line]
        if len(head) < self._line and _SIZE_PREFIX.fullmatch(head) is not None:
            return 0
        raise ProtocolError("chunk-size", "a chunk-size line is not one to eight hex digits", self._side)

    def _line_end(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if end == b"\r\n":
            self.done = self._left == -3
            self._left = -1
            return 2
        if end == b"\r":
            return 0
        if self._left == -3:
            raise ProtocolError("trailers", "trailers after a chunked body are not accepted", self._side)
        raise ProtocolError("chunk-end", "a chunk is longer than its size line says", self._side)
