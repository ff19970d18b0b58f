# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 in normal form: the only bytes that enforce sends to a database or a client.

Owns serialisation and what of a head is recorded. Hop-by-hop fields, the client's framing and headers
that override the request line never pass; a name or value that could break a line is refused.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from agent.protocols.http import Headers, Request, Response
from agent.protocols.http1_head import HOP_BY_HOP, RequestHead
from agent.protocols.session import ProtocolError
from agent.protocols.target import Target, encode_query
from policy.model import Verdict

CREDENTIALS: Final = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "api-key", "x-api-key", "x-chroma-token"}
)
"""Never recorded, whatever the engine."""

_SECRET: Final = re.compile(
    r"(?:api|access|secret|private|auth|subscription)[-_]?key|token(?!s)|secret|passw|credential|authori[sz]ation"
    r"|cookie|signature|(?:^|[-_])auth$",
    re.IGNORECASE,
)
"""Names of headers and query parameters that carry a key of some other service: not recorded either."""

_OVERRIDES: Final = frozenset(
    {
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "x-original-method",
        "x-forwarded-prefix",
    }
)
REQUEST_DROPS: Final = HOP_BY_HOP | _OVERRIDES | {"host", "content-length", "expect"}
READ_DROPS: Final = frozenset(
    {
        "accept-encoding",
        "range",  # a part of an answer cannot be masked, and 304 would tell of an answer that is
        "if-range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
    }
)
"""Dropped besides when the answer must be read."""

RESPONSE_DROPS: Final = HOP_BY_HOP | {"content-length"}
CHANGED_DROPS: Final = frozenset(
    {
        "content-encoding",
        "etag",
        "last-modified",
        "content-md5",
        "digest",
        "content-digest",
        "repr-digest",
        "accept-ranges",
        "content-range",
    }
)
"""Dropped besides from an answer that is not released as the database made it."""

CHUNKED: Final = "transfer-encoding: chunked\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINE_SAFE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff\r\n]*")
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_NOT_NOMINATED: Final = frozenset(
    {
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "expect",
        "accept-encoding",
    }
)


def check_nominated(names: frozenset[str], credentials: frozenset[str]) -> None:
    """Refuse a Connection header that would take away a header which is judged (RFC 9110 section 7.6.1)."""
    wrong = names & (_NOT_NOMINATED | credentials)
    if wrong:
        raise ProtocolError("connection-nominates", f"Connection names the header {min(wrong)}")


def request_block(
    request: Request, target: Target, host: str, dropped: frozenset[str], extra: Headers
) -> str:
    """Head of a forwarded request up to its framing. `target` is the parsed one: its query form is used
    when the query is unchanged.
    """
    query = target.encoded if request.query is target.query else encode_query(request.query)
    path = request.path
    if not path.isascii() or not path.isprintable() or " " in path:
        raise ProtocolError("normal-form", "the request path cannot be written in normal form", "server")
    mark = "?" if query else ""
    first = f"{request.method} {path}{mark}{query} HTTP/1.1\r\nhost: {host}\r\n"
    return _block(first, request.headers, dropped, extra)


def response_block(
    status: int, phrase: str, headers: Headers, dropped: frozenset[str], extra: Headers
) -> str:
    """Head of a released answer up to its framing."""
    return _block(f"HTTP/1.1 {status} {phrase}\r\n", headers, dropped, extra)


def close_head(block: str, framing: str) -> bytes:
    """A whole head: a block of ours, framing of ours, the empty line."""
    return f"{block}{framing}\r\n".encode("latin-1")


def own_response(response: Response, close: bool, head_only: bool) -> list[bytes]:
    """An answer of our own making (a refusal), as bytes."""
    framing = f"content-length: {len(response.body)}\r\n"
    if close:
        framing += "connection: close\r\n"
    phrase = _PHRASES.get(response.status, "")
    head = close_head(response_block(response.status, phrase, response.headers, RESPONSE_DROPS, ()), framing)
    return [head] if head_only or not response.body else [head, response.body]


def chunk_frame(data: bytes) -> list[bytes]:
    """`data` as one chunk, without copying it."""
    return [f"{len(data):x}\r\n".encode(), data, b"\r\n"]


def notices(verdict: Verdict) -> Headers:
    """What the verdict tells the client in headers: clamps in force, and rules in warn."""
    if not verdict.clamps and not verdict.hits:
        return ()
    told: list[tuple[str, str]] = []
    if verdict.clamps:
        told.append(
            ("x-vecward-clamped", ", ".join([f"{limit.name}={limit.value}" for limit in verdict.clamps]))
        )
    for hit in verdict.hits:
        if hit.mode == "warn":
            told.append(("x-vecward-warning", _visible(f"{hit.rule}: {hit.message}")))
    return tuple(told)


def recorded_request(head: RequestHead, target: Target, credentials: frozenset[str]) -> dict[str, str]:
    """The request head as evidence keeps it, but for its length."""
    kept = recorded_headers(head.headers, credentials)
    query = target.encoded
    if query and _SECRET.search(query) is not None:
        query = encode_query(
            tuple([(name, "removed" if _SECRET.search(name) else value) for name, value in target.query])
        )
    return {"method": head.method, "path": target.path, "query": query, **kept}


def recorded_headers(headers: Headers, credentials: frozenset[str]) -> dict[str, str]:
    """Headers as evidence keeps them: credentials taken out, repeated names joined."""
    kept = dict(headers)
    if len(kept) != len(headers):  # a name twice: keep every value
        kept.clear()
        for name, value in headers:
            kept[name] = f"{kept[name]}, {value}" if name in kept else value
    for name in [name for name in kept if name in credentials or _SECRET.search(name) is not None]:
        del kept[name]
    return kept


def _block(first: str, headers: Headers, dropped: frozenset[str], extra: Headers) -> str:
    lines = [f"{name}: {value}\r\n" for name, value in headers if name not in dropped]
    lines += [f"{name}: {value}\r\n" for name, value in extra]
    text = first + "".join(lines)
    # Every line we put in ends with one CRLF; any other line end would come out of a value.
    if text.count("\n") != len(lines) + first.count("\n") or _LINE_SAFE.fullmatch(text) is None:
        raise ProtocolError("normal-form", "a header value cannot be written in normal form", "server")
    return text


def _visible(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)[:512]
