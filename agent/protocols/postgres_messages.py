# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's wire messages: where one ends and the next begins, in both directions.

Owns framing, the kinds of messages, the untyped packets of startup and their bounds (PostgreSQL docs, 54.7
Message Formats; src/include/libpq/protocol.h). Knows nothing of order, meaning or policy; what stands
inside messages of the query phase is read by ``postgres_forms``. Bias: a kind that does not exist, a length
that cannot be or is over its bound is a ProtocolError, and nothing of the message is handed on.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from agent.protocols.big_endian import int32_at
from agent.protocols.session import ProtocolError

if TYPE_CHECKING:
    from mypy_extensions import i64  # the compiled form's own integers; where nothing is compiled, any int

Side = Literal["client", "server"]

MAX_STARTUP: Final = 10_000  # bytes; MAX_STARTUP_PACKET_LENGTH of the server
MAX_SMALL: Final = 10_000  # PQ_SMALL_MESSAGE_LIMIT: messages that hold at most a name
MAX_AUTHENTICATION: Final = 65_535  # PG_MAX_AUTH_TOKEN_LENGTH
MAX_NAME: Final = 63  # NAMEDATALEN - 1: the server cuts longer names of users and databases off
MAX_CANCEL_KEY: Final = 256  # MAX_CANCEL_KEY_LENGTH
MAX_REPORT: Final = (
    1 << 20
)  # ErrorResponse, NoticeResponse, NotificationResponse, RowDescription and the like
MAX_PARAMETERS: Final = 256  # of one startup packet

_LENGTH: Final = struct.Struct(">I")
_TYPED: Final = struct.Struct(">BI")
HEADER: Final = 5


class Front:
    """Kinds of messages that a client sends."""

    BIND: Final = ord("B")
    CLOSE: Final = ord("C")
    COPY_DATA: Final = ord("d")
    COPY_DONE: Final = ord("c")
    COPY_FAIL: Final = ord("f")
    DESCRIBE: Final = ord("D")
    EXECUTE: Final = ord("E")
    FLUSH: Final = ord("H")
    FUNCTION_CALL: Final = ord("F")
    PARSE: Final = ord("P")
    PASSWORD: Final = ord("p")  # also SASLInitialResponse, SASLResponse, GSSResponse
    QUERY: Final = ord("Q")
    SYNC: Final = ord("S")
    TERMINATE: Final = ord("X")


class Back:
    """Kinds of messages that a server sends."""

    AUTHENTICATION: Final = ord("R")
    BACKEND_KEY_DATA: Final = ord("K")
    BIND_COMPLETE: Final = ord("2")
    CLOSE_COMPLETE: Final = ord("3")
    COMMAND_COMPLETE: Final = ord("C")
    COPY_BOTH: Final = ord("W")
    COPY_DATA: Final = ord("d")
    COPY_DONE: Final = ord("c")
    COPY_IN: Final = ord("G")
    COPY_OUT: Final = ord("H")
    DATA_ROW: Final = ord("D")
    EMPTY_QUERY: Final = ord("I")
    ERROR: Final = ord("E")
    FUNCTION_CALL: Final = ord("V")
    NEGOTIATE_VERSION: Final = ord("v")
    NO_DATA: Final = ord("n")
    NOTICE: Final = ord("N")
    NOTIFICATION: Final = ord("A")
    PARAMETER_DESCRIPTION: Final = ord("t")
    PARAMETER_STATUS: Final = ord("S")
    PARSE_COMPLETE: Final = ord("1")
    PORTAL_SUSPENDED: Final = ord("s")
    READY_FOR_QUERY: Final = ord("Z")
    ROW_DESCRIPTION: Final = ord("T")


Limits = tuple[int, ...]
"""By kind, the most bytes that a message may have after its header; -1: there is no such kind."""


@lru_cache(maxsize=16)
def client_limits(body: int) -> Limits:
    """For messages of a client. `body`: of the large ones."""
    small = dict.fromkeys(b"CcfDEHSX", MAX_SMALL)  # as SocketBackend of the server has it
    large = dict.fromkeys(b"BdFPQ", body)
    return _limits({**small, **large, Front.PASSWORD: MAX_AUTHENTICATION})


@lru_cache(maxsize=16)
def server_limits(body: int) -> Limits:
    """The same for messages of the server."""
    reports = {k: min(body, MAX_REPORT) for k in b"CENAtTGHWS"}
    large = dict.fromkeys(b"DdV", body)
    small = dict.fromkeys(b"KZ123cInsv", MAX_SMALL)
    return _limits({**small, **reports, **large, Back.AUTHENTICATION: MAX_AUTHENTICATION})


def _limits(by_kind: Mapping[int, int]) -> Limits:
    return tuple(by_kind.get(kind, -1) for kind in range(256))


class Message(NamedTuple):
    """One whole message. `raw` is what came over the wire, header included, and is what is forwarded."""

    kind: int
    raw: bytes

    @property
    def body(self) -> memoryview:
        """What stands behind the header, without a copy."""
        return memoryview(self.raw)[HEADER:]


class Framer:
    """Cuts one direction of a connection into whole messages.

    Holds what was fed and not taken: where everything whole is taken, at most one unfinished message, which
    is never more than the bound of its kind and one read. A message split at any byte comes out the same.
    """

    __slots__ = ("_at", "_buffer", "_limits", "_need", "_part", "_side")

    def __init__(self, side: Side, limits: Limits) -> None:
        self._side: Side = side
        self._limits = limits
        self._buffer = b""
        self._at: i64 = 0
        self._part: bytearray | None = None  # an unfinished message; then the buffer is empty
        self._need: i64 = 0  # bytes that `part` must have before it is looked at again

    @property
    def waiting(self) -> int:
        """Bytes that came and were not taken yet."""
        return len(self._part) if self._part is not None else len(self._buffer) - self._at

    def feed(self, data: bytes) -> None:
        """Raises ProtocolError where a message that was begun cannot be."""
        if self._part is None:
            if self._at >= len(self._buffer):
                self._buffer, self._at = data, 0
                return
            self._part, self._need = bytearray(self._buffer[self._at :]), 0
            self._buffer, self._at = b"", 0
        part = self._part
        part += data
        if self._need <= HEADER:
            self._need = self._size(bytes(part[:HEADER]), 0) or HEADER
        if len(part) >= self._need:
            self._buffer, self._part = bytes(part), None

    def take(self) -> Message | None:
        """The next whole message, or None until more bytes come. Raises ProtocolError."""
        raw = self.take_raw()
        return None if raw is None else Message(raw[0], raw)

    def take_raw(self) -> bytes | None:
        """As `take`, the bytes alone."""
        at, buffer = self._at, self._buffer
        size = self._size(buffer, at)
        end = at + size
        if size == 0 or end > len(buffer):
            return None
        self._at = end
        return buffer if at == 0 and end == len(buffer) else buffer[at:end]

    def peek(self) -> int | None:
        """The kind of the message that `take` would give; None while it is not whole."""
        size = self._size(self._buffer, self._at)
        return self._buffer[self._at] if size and self._at + size <= len(self._buffer) else None

    def begins(self) -> int:
        """The kind of the message that begins here, whole or not; -1 where nothing is left."""
        return self._buffer[self._at] if self._at < len(self._buffer) else -1

    def take_run(self, kind: int, most: int) -> tuple[bytes, int]:
        """As many whole messages of `kind` as stand here in a row, in one piece, and how many they are.

        At least one where the next message is one; more only while all of them fit in `most` bytes. (b"", 0)
        where the next message is of another kind, or not whole yet. Raises ProtocolError.
        """
        buffer, start = self._buffer, self._at
        count: i64 = 0
        end: i64 = start
        here: i64 = len(buffer)
        longest: i64 = self._limits[kind] + 4
        wanted: i64 = kind
        last: i64 = start + most  # where a run of several messages must end
        while end + HEADER <= here and buffer[end] == wanted:
            length = int32_at(buffer, end + 1)
            if not 4 <= length <= longest:
                self._fail(kind, length)
            after = end + 1 + length
            if after > here or (count and after > last):
                break
            end = after
            count += 1
        self._at = end
        return (buffer if start == 0 and end == here else buffer[start:end]), count

    def rest(self) -> bytes:
        """Everything not taken yet; the framer is empty afterwards."""
        left = bytes(self._part) if self._part is not None else self._buffer[self._at :]
        self._buffer, self._at, self._part = b"", 0, None
        return left

    def _size(self, buffer: bytes, at: i64) -> i64:
        """Bytes of the message that begins at `at`, header included; 0 while its header is not whole."""
        here: i64 = len(buffer) - at
        if here < HEADER:
            if here > 0 and self._limits[buffer[at]] < 0:
                self._fail(buffer[at], 0)
            return 0
        length = int32_at(buffer, at + 1)
        kind = buffer[at]
        if not 4 <= length <= self._limits[kind] + 4:
            self._fail(kind, length)
        return 1 + length

    def _fail(self, kind: int, length: int) -> None:
        limit = self._limits[kind]
        if limit < 0:
            raise ProtocolError(
                "unknown-message", f"a {self._side} message of no known kind ({kind:#04x})", self._side
            )
        if length < 4:
            raise ProtocolError("message-length", f"a message that says it has {length} bytes", self._side)
        what = f"a {chr(kind)!r} message of {length - 4} bytes; at most {limit} here"
        raise ProtocolError("message-too-large", what, self._side)


# -- startup: packets without a kind, before anything else -----------------------------------------------

SSL_REQUEST: Final = 80877103
GSSENC_REQUEST: Final = 80877104
CANCEL_REQUEST: Final = 80877102


@dataclass(frozen=True, slots=True)
class EncryptionRequest:
    """SSLRequest or GSSENCRequest: answered with one byte."""

    kind: Literal["tls", "gss"]
    raw: bytes


@dataclass(frozen=True, slots=True)
class CancelRequest:
    pid: int
    key: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """The parameters are in order, each name once; values are what the client sent, without their zero."""

    major: int
    minor: int
    parameters: tuple[tuple[bytes, bytes], ...]
    raw: bytes

    def get(self, name: bytes) -> bytes | None:
        return next((v for k, v in self.parameters if k == name), None)


StartupPacket = EncryptionRequest | CancelRequest | StartupMessage


def read_startup(data: bytes) -> tuple[StartupPacket, bytes] | None:
    """The first packet of `data` and what stands behind it; None while it is not whole.

    Raises ProtocolError: a length out of bounds, a version other than 3.x, a packet the server would not
    read as we do (54.7, StartupMessage; ProcessStartupPacket of the server).
    """
    if len(data) < 4:
        if data and data[0] != 0:
            raise ProtocolError("not-postgres", "the first bytes are no PostgreSQL startup packet")
        return None
    (length,) = _LENGTH.unpack_from(data)
    if not 8 <= length <= MAX_STARTUP:
        raise ProtocolError("not-postgres", f"a startup packet of {length} bytes; 8 to {MAX_STARTUP} here")
    if len(data) < length:
        return None
    raw, rest = data[:length], data[length:]
    (code,) = _LENGTH.unpack_from(raw, 4)
    if code in (SSL_REQUEST, GSSENC_REQUEST):
        if length != 8:
            raise ProtocolError("startup-length", "an encryption request with something behind it")
        return EncryptionRequest("tls" if code == SSL_REQUEST else "gss", raw), rest
    if code == CANCEL_REQUEST:
        if not 13 <= length <= 12 + MAX_CANCEL_KEY:
            raise ProtocolError("cancel-length", f"a cancel key of {length - 12} bytes")
        return CancelRequest(_LENGTH.unpack_from(raw, 8)[0], raw[12:], raw), rest
    major, minor = code >> 16, code & 0xFFFF
    if major != 3:
        raise ProtocolError("version", f"protocol {major}.{minor} is not spoken here; 3.0 to 3.2 are")
    return StartupMessage(major, minor, _read_parameters(raw), raw), rest


def _read_parameters(raw: bytes) -> tuple[tuple[bytes, bytes], ...]:
    if raw[-1] != 0:
        raise ProtocolError("startup-layout", "a startup packet must end with a zero byte")
    if len(raw) == 9:  # the terminator alone
        return ()
    # name 0 value 0 ... 0: behind the last value's zero and behind the terminator stands an empty text
    words = raw[8:].split(b"\0")
    if len(words) % 2 or words[-1] or words[-2]:
        raise ProtocolError("startup-layout", "the parameters of the startup packet are not in pairs")
    names, values = words[:-2:2], words[1:-2:2]
    if not all(names):
        raise ProtocolError("startup-layout", "a startup parameter without a name")
    if len(names) > MAX_PARAMETERS:
        raise ProtocolError("startup-parameters", f"more than {MAX_PARAMETERS} startup parameters")
    if len(set(names)) != len(names):
        raise ProtocolError("startup-parameters", "the same startup parameter twice")
    return tuple(zip(names, values, strict=True))


def startup_message(minor: int, parameters: Mapping[bytes, bytes]) -> bytes:
    """A StartupMessage of protocol 3.`minor`."""
    body = b"".join(k + b"\0" + v + b"\0" for k, v in parameters.items()) + b"\0"
    return struct.pack(">II", len(body) + 8, 3 << 16 | minor) + body


# -- what we say ourselves ---------------------------------------------------------------------------------


def message(kind: int, body: bytes = b"") -> bytes:
    """One message of either side."""
    return _TYPED.pack(kind, len(body) + 4) + body


def report(kind: int, fields: Mapping[str, str]) -> bytes:
    """An ErrorResponse or NoticeResponse from fields by their one-letter code (54.8)."""
    parts = [
        k.encode() + v.encode("utf-8", "surrogateescape").replace(b"\0", b"") + b"\0"
        for k, v in fields.items()
    ]
    return message(kind, b"".join(parts) + b"\0")


def error_response(
    sqlstate: str,
    text: str,
    *,
    severity: Literal["ERROR", "FATAL"] = "ERROR",
    detail: str = "",
    hint: str = "",
    position: int | None = None,
) -> bytes:
    """Our own error. FATAL where the connection ends with it. `position`: in the text, from 1."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text, "D": detail, "H": hint}
    fields["P"] = "" if position is None else str(position)
    return report(Back.ERROR, {k: v for k, v in fields.items() if v})


def notice_response(
    text: str, sqlstate: str = "00000", *, severity: str = "NOTICE", detail: str = ""
) -> bytes:
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text, "D": detail}
    return report(Back.NOTICE, {k: v for k, v in fields.items() if v})


def ready_for_query(status: Literal["I", "T", "E"]) -> bytes:
    return message(Back.READY_FOR_QUERY, status.encode())


def parameter_status(name: str, value: str) -> bytes:
    return message(Back.PARAMETER_STATUS, name.encode() + b"\0" + value.encode() + b"\0")
