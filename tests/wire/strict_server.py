# SPDX-License-Identifier: Apache-2.0
"""A database that reads only normal form: whatever else reaches it is a failed test.

It parses with llhttp, not with the code under test, and then checks the form byte by byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import httptools

_HEAD = re.compile(
    rb"[A-Z]+ /(?:[A-Za-z0-9\-._~:@!$*,()=&%/]*)(?:\?[A-Za-z0-9\-._~:@!$*,()/%=&]+)? HTTP/1\.1\r\n"
    rb"host: [^\r\n]*\r\n(?:[a-z0-9!#$%&'*+.^_`|~-]+: [^\r\n]*\r\n)*\r\n"
)
_FORBIDDEN = (b"\nconnection:", b"\nupgrade:", b"\nte:", b"\ntrailer:", b"\nkeep-alive:", b"\nexpect:")


@dataclass
class Seen:
    method: bytes = b""
    path: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False
    first: bytes = b""  # the head as it came


class _Reader:
    def __init__(self) -> None:
        self.requests: list[Seen] = []

    def on_message_begin(self) -> None:
        self.requests.append(Seen())

    def on_url(self, url: bytes) -> None:
        self.requests[-1].path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.requests[-1].headers.append((name, value))

    def on_body(self, data: bytes) -> None:
        self.requests[-1].body += data

    def on_message_complete(self) -> None:
        self.requests[-1].whole = True


def parse(received: bytes) -> list[Seen]:
    """What llhttp makes of the bytes."""
    reader = _Reader()
    if received:
        httptools.HttpRequestParser(reader).feed_data(received)
    return reader.requests


def read(received: bytes) -> list[Seen]:
    """The requests in what a session sent to its database. Fails on all that is not normal form."""
    requests = parse(received)  # raises where llhttp does not agree
    rest = received
    for request in requests:
        end = rest.find(b"\r\n\r\n") + 4
        head = request.first = rest[:end]
        assert _HEAD.fullmatch(head), f"not normal form: {head!r}"
        assert not any(name in head for name in _FORBIDDEN), head
        lengths = [value for name, value in request.headers if name == b"content-length"]
        codings = [value for name, value in request.headers if name == b"transfer-encoding"]
        assert len(lengths) + len(codings) <= 1, head
        segments = request.path.split(b"?")[0].split(b"/")
        assert not {b".", b".."} & set(segments), head
        assert b"//" not in request.path, head
        assert not re.search(rb"%(?:2[fF]|5[cC]|00|2[eE])", request.path.split(b"?")[0]), head
        rest = rest[end:]
        if codings:
            assert codings == [b"chunked"]
            rest = rest[rest.find(b"0\r\n\r\n") + 5 :] if request.whole else b""
        else:
            rest = rest[int(lengths[0]) if lengths else 0 :]
    assert rest == b"", "bytes that are no request"
    return requests
