# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 heads: found, checked strictly, and taken apart (RFC 9112).

Owns the grammar of request and response heads and which framing they announce; knows no engine,
policy or body. Bias: whatever two parsers could read differently is refused: bare CR or LF, obs-fold, space
before a colon, two lengths, a length beside chunked, any other transfer coding, other versions.

One parser, and not llhttp under a second one: a strict check has to take each line apart anyway
(2.6 us for eight headers, llhttp's callbacks 1.3 us on top), and what is judged must be what was
checked. llhttp (httptools) is the oracle in tests/wire: what this module accepts, llhttp reads the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from agent.protocols.http import Headers
from agent.protocols.session import Bounds, ProtocolError
from agent.protocols.target import check_host

Side = Literal["client", "server"]

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    }
)
_FRAMING: Final = (
    "host",
    "content-length",
    "transfer-encoding",
    "content-type",
    "content-encoding",
    "expect",
    "connection",
)
_ONCE: Final = frozenset(_FRAMING) - {"connection"}
_LOOKALIKE: Final = frozenset(name.replace("-", "_") for name in _FRAMING if "-" in name)
_SPECIAL: Final = frozenset({*_FRAMING, *_LOOKALIKE, "upgrade", "keep-alive", "te", "trailer"})
_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(r"([A-Z][A-Z\-]{0,19}) ([^ \r\n]+) HTTP/1\.([01])\r\n")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")
_FIELDS: Final = re.compile(rf"(?:{_NAME}:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")
_FIELD: Final = re.compile(r"([^:]+):[ \t]*([^\r]*)\r\n")
_LENGTH: Final = re.compile(r"\r\n(?i:content-length):[ \t]*(0|[1-9][0-9]{0,14})[ \t]*(?=\r\n)")
_DIGITS: Final = 15  # of a length, as in _LENGTH
_ZERO: Final = 0x30
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")


@dataclass(frozen=True, slots=True)
class Head:
    """What both kinds of head have, without the length. `nominated` are the names that Connection lists.

    Shared between messages with the same head (see `HeadParser`): never changed.
    """

    minor: int
    headers: Headers  # lower-case names, in order, content-length taken out
    chunked: bool
    nominated: frozenset[str]
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class RequestHead(Head):
    method: str
    target: str
    host: str
    expect: bool
    upgrade: str | None


@dataclass(frozen=True, slots=True)
class ResponseHead(Head):
    status: int
    phrase: str
    encoding: str | None
    events: bool  # it is a stream of events, which has no end to wait for


H = TypeVar("H", RequestHead, ResponseHead)


class HeadBuffer:
    """The bytes of a head that is not complete yet, bounded; bare line ends are found as they come."""

    __slots__ = ("_bound", "_held", "_scanned", "_side")

    def __init__(self, bounds: Bounds, side: Side) -> None:
        self._held = bytearray()
        self._scanned = 0
        self._bound = bounds.head
        self._side: Side = side

    def __len__(self) -> int:
        return len(self._held)

    def take(self, data: bytes) -> tuple[bytes, int] | None:
        """Add bytes; when the head is complete, all held bytes and where the head ends, else None."""
        if self._held:
            self._held += data
            end = self._held.find(b"\r\n\r\n", max(0, self._scanned - 3))
            if end >= 0:
                data = bytes(self._held)
                self._held.clear()
                self._scanned = 0
        else:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._held += data
        if end < 0:
            self._check_partial()
            return None
        if end + 4 > self._bound:
            raise self._too_large()
        return data, end + 4

    def drop(self) -> bytes:
        """Give back what is held and forget it."""
        held = bytes(self._held)
        self._held.clear()
        self._scanned = 0
        return held

    def _check_partial(self) -> None:
        start = max(0, self._scanned - 1)
        if _BARE.search(self._held, start) is not None:
            raise ProtocolError("bare-line-end", "a bare CR or LF in the head", self._side)
        self._scanned = len(self._held)
        if self._scanned > self._bound:
            raise self._too_large()

    def _too_large(self) -> ProtocolError:
        return ProtocolError("head-too-large", f"the head exceeds {self._bound} bytes", self._side)


class HeadParser(Generic[H]):
    """Takes heads of one direction apart. Remembers the last one without its content-length.

    A client of a vector database repeats its head with another length for each query; what was
    checked and taken apart once is the same head as long as every other byte is the same.
    """

    __slots__ = ("_after", "_before", "_bounds", "_head", "_parse", "_side")

    def __init__(self, parse: Callable[[str, Bounds], H], bounds: Bounds, side: Side) -> None:
        self._parse: Callable[[str, Bounds], H] = parse
        self._bounds = bounds
        self._side: Side = side
        self._head: H | None = None
        self._before = self._after = b""  # that head up to the digits of its length, and from there on

    def parse(self, data: bytes) -> tuple[H, int | None]:
        """A whole head, its empty line included: what it says, and its content-length if it has one."""
        head, before, after = self._head, self._before, self._after
        if head is not None:
            if not before:
                if data == after:
                    return head, None
            elif data.startswith(before) and data.endswith(after):
                digits = data[len(before) : len(data) - len(after)]
                if digits.isdigit() and len(digits) <= _DIGITS and (digits[0] != _ZERO or len(digits) == 1):
                    return head, int(digits)
        return self._parse_anew(data)

    def _parse_anew(self, data: bytes) -> tuple[H, int | None]:
        # Every CR must be in a CRLF and every LF too; counting is the cheapest exact proof of it.
        ends = data.count(b"\r\n")
        if data.count(b"\n") != ends or data.count(b"\r") != ends:
            raise ProtocolError("bare-line-end", "a bare CR or LF in the head", self._side)
        text = data.decode("latin-1")
        found = _LENGTH.search(text)
        self._head = None
        if found is None:
            self._head = head = self._parse(text, self._bounds)
            self._before, self._after = b"", data
            return head, None
        head = self._parse(text[: found.start()] + text[found.end() :], self._bounds)
        if head.chunked:
            raise ProtocolError("length-and-chunked", "content-length beside transfer-encoding", self._side)
        self._head = head
        self._before, self._after = data[: found.start(1)], data[found.end(1) :]
        return head, int(found.group(1))


def request_heads(bounds: Bounds) -> HeadParser[RequestHead]:
    return HeadParser(_parse_request_head, bounds, "client")


def response_heads(bounds: Bounds) -> HeadParser[ResponseHead]:
    return HeadParser(_parse_response_head, bounds, "server")


def _parse_request_head(text: str, bounds: Bounds) -> RequestHead:
    line = _REQUEST_LINE.match(text)
    if line is None:
        raise _explain_request_line(text)
    method, target, minor = line.group(1), line.group(2), int(line.group(3))
    if len(target) > bounds.target:
        raise ProtocolError("target-too-long", f"the request target exceeds {bounds.target} bytes")
    headers, special = _fields(text, line.end(), bounds, "client")
    chunked = _framing(special, minor, "client")
    nominated, keep_alive = _connection(special, minor)
    host = special.get("host")
    if host is None and minor == 1:
        raise ProtocolError("host-missing", "an HTTP/1.1 request needs one Host header")
    expect = special.get("expect")
    if expect is not None and expect.lower() != "100-continue":
        raise ProtocolError("expect", "the only expectation known is 100-continue")
    return RequestHead(
        minor,
        headers,
        chunked,
        nominated,
        keep_alive,
        method,
        target,
        check_host(host) if host else "",
        expect is not None and minor == 1,
        special.get("upgrade"),
    )


def _parse_response_head(text: str, bounds: Bounds) -> ResponseHead:
    line = _STATUS_LINE.match(text)
    if line is None:
        raise ProtocolError("status-line", "the database's status line is not HTTP/1.0 or 1.1", "server")
    minor, status = int(line.group(1)), int(line.group(2))
    headers, special = _fields(text, line.end(), bounds, "server")
    chunked = _framing(special, minor, "server")
    nominated, keep_alive = _connection(special, minor)
    encoding = special.get("content-encoding")
    if encoding is not None and encoding.lower() in ("", "identity"):
        encoding = None
    phrase = line.group(3) or ""
    events = special.get("content-type", "").startswith("text/event-stream")
    return ResponseHead(minor, headers, chunked, nominated, keep_alive, status, phrase, encoding, events)


def _fields(text: str, start: int, bounds: Bounds, side: Side) -> tuple[Headers, dict[str, str]]:
    if _FIELDS.fullmatch(text, start) is None:
        raise _explain_fields(text, start, side)
    headers: Headers = tuple(
        [(name.lower(), value.rstrip(" \t")) for name, value in _FIELD.findall(text, start, len(text) - 2)]
    )
    if len(headers) > bounds.headers:
        raise ProtocolError("too-many-headers", f"more than {bounds.headers} header lines", side)
    special: dict[str, str] = {}
    for name, value in headers:
        if name not in _SPECIAL:
            continue
        if name not in special:
            special[name] = value
        elif name in _ONCE:
            raise ProtocolError(f"two-{name}", f"more than one {name} header", side)
        else:
            special[name] += "," + value
    if not _LOOKALIKE.isdisjoint(special):
        raise ProtocolError("header-lookalike", "a framing header spelt with an underscore", side)
    return headers, special


def _framing(special: dict[str, str], minor: int, side: Side) -> bool:
    """Whether the body is chunked. A content-length that is still there is a second or a malformed one."""
    coding = special.get("transfer-encoding")
    if "content-length" in special:
        if coding is not None:
            raise ProtocolError("length-and-chunked", "content-length beside transfer-encoding", side)
        raise ProtocolError("content-length", "content-length is not one plain decimal number", side)
    if coding is None:
        return False
    if coding != "chunked":
        raise ProtocolError("transfer-encoding", "the only transfer-encoding accepted is chunked", side)
    if minor == 0:
        raise ProtocolError("chunked-in-1.0", "transfer-encoding in an HTTP/1.0 message", side)
    return True


def _connection(special: dict[str, str], minor: int) -> tuple[frozenset[str], bool]:
    value = special.get("connection")
    if value is None:
        return frozenset(), minor == 1
    if value == "keep-alive" or value == "Keep-Alive":
        return frozenset(), True
    names = frozenset([name.strip(" \t").lower() for name in value.split(",")])
    if "close" in names:
        return names, False
    return names, minor == 1 or "keep-alive" in names


def _explain_request_line(text: str) -> ProtocolError:
    """Say what is wrong with a request line. Off the fast path."""
    line = text.split("\r\n", 1)[0]
    parts = line.split(" ")
    if not line:
        return ProtocolError("empty-line", "an empty line where a request must begin")
    if len(parts) == 2:
        return ProtocolError("version", "HTTP/0.9 requests are not accepted")
    if len(parts) == 3 and re.fullmatch(r"[A-Z][A-Z\-]{0,19}", parts[0]) is None:
        return ProtocolError("method-form", "the method is not a word of capital letters")
    if len(parts) == 3 and re.fullmatch(r"HTTP/1\.[01]", parts[2]) is None:
        return ProtocolError("version", "only HTTP/1.0 and HTTP/1.1 are accepted")
    return ProtocolError("request-line", "the request line is not METHOD SP TARGET SP VERSION")


def _explain_fields(text: str, start: int, side: Side) -> ProtocolError:
    """Say what is wrong with the header lines. Off the fast path."""
    for line in text[start:-4].split("\r\n"):
        name, colon, value = line.partition(":")
        if line[:1] in (" ", "\t"):
            return ProtocolError("obs-fold", "a header line is folded over two lines", side)
        if colon and name[-1:] in (" ", "\t"):
            return ProtocolError("space-before-colon", "white space before a header's colon", side)
        if not colon or re.fullmatch(_NAME, name) is None:
            return ProtocolError("header-name", "a header name is not a token", side)
        if re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value) is None:
            return ProtocolError("header-value", "a control character in a header value", side)
    return ProtocolError("head", "the head is malformed", side)
