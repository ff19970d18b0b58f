# SPDX-License-Identifier: Apache-2.0
"""The request target in one normal form: what is judged is the only reading a server can take.

Owns path, query and Host rules (RFC 9112 section 3.2, RFC 3986 section 6.2.2). Merges ``//``, decodes
what may be decoded, encodes the rest again in one way. Bias: a target with two readings (dot segments,
encoded slash or backslash, double encoding, control characters, overlong UTF-8, a fragment) is
refused, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from agent.protocols.session import ProtocolError

MAX_QUERY_PAIRS = 256  # no engine has more than a dozen parameters; each pair costs a judge time
_CACHED_TARGET = 256  # longer ones are not remembered, so the cache holds at most ~0.5 MB
_BAD_BYTES = re.compile(r"[^!-~]|[#\\]")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOUBLE = re.compile(r"%[0-9A-Fa-f]{2}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?]*)(.*)", re.DOTALL)
_HOST = re.compile(
    r"(?:[A-Za-z0-9\-._~]{0,255}|\[[0-9A-Fa-f:.]{2,45}(?:%25[A-Za-z0-9\-._~]{1,32})?\])(?::[0-9]{0,5})?"
)
# Left as they are in a path. Not "+" (a space to some decoders) and not ";" (path parameters).
_PATH_SAFE = ":@!$*,()=&-._~"
_QUERY_SAFE = ":@!$*,()/-._~"


@dataclass(frozen=True, slots=True)
class Target:
    """A target in normal form. `encoded` is the query as it is forwarded, without the question mark."""

    path: str
    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    encoded: str


def parse_target(raw: str, host: str, method: str) -> Target:
    """Normalise a request target. `host` is the Host header: an absolute-form target must agree with it.

    Raises `ProtocolError` ("target-...", side client).
    """
    if raw[:1] == "/" and len(raw) <= _CACHED_TARGET:
        return _parse_remembered(raw)
    if raw[:1] == "/":
        return _parse_origin(raw)
    if raw == "*":
        if method != "OPTIONS":
            raise ProtocolError("target-form", "the target '*' is for OPTIONS only")
        return Target("*", ("*",), (), "")
    absolute = _ABSOLUTE.fullmatch(raw)
    if absolute is None:
        raise ProtocolError("target-form", "the request target must be a path that begins with '/'")
    scheme, authority, rest = absolute.groups()
    if scheme.lower() != "http":
        raise ProtocolError("target-scheme", "an absolute target must be http: on this port")
    if "@" in authority:
        raise ProtocolError("target-userinfo", "user information in the request target")
    if authority.lower() != host.lower() or not authority:
        raise ProtocolError("target-host", "the absolute target and the Host header name different hosts")
    return _parse_origin(rest if rest[:1] == "/" else "/" + rest)


def check_host(value: str) -> str:
    """Check a Host header (RFC 9110 section 7.2): a name or address and a port, or empty."""
    if _HOST.fullmatch(value) is None:
        raise ProtocolError("host-form", "the Host header is not a host name with an optional port")
    return value


def encode_query(query: tuple[tuple[str, str], ...]) -> str:
    """The one form in which a decoded query is forwarded: ``k=v`` joined by ``&``, space as %20."""
    return "&".join(
        f"{quote(name, safe=_QUERY_SAFE)}={quote(value, safe=_QUERY_SAFE)}" for name, value in query
    )


def encode_path(segments: tuple[str, ...]) -> str:
    """The one form in which decoded segments are forwarded."""
    return "/" + "/".join([quote(segment, safe=_PATH_SAFE) for segment in segments])


def _parse_origin(raw: str) -> Target:
    bad = _BAD_BYTES.search(raw)
    if bad is not None:
        raise ProtocolError(
            "target-bytes", f"the request target holds {bad.group()!r}, which must be encoded"
        )
    if "%" in raw and _BAD_PERCENT.search(raw) is not None:
        raise ProtocolError("target-percent", "a '%' in the request target is not followed by two hex digits")
    path, mark, query = raw.partition("?")
    segments = tuple([_decode_segment(part) for part in path.split("/") if part])
    pairs = _decode_query(query) if mark else ()
    return Target(encode_path(segments), segments, pairs, encode_query(pairs))


_parse_remembered = lru_cache(maxsize=1024)(_parse_origin)


def _decode_segment(part: str) -> str:
    text = _decode(part) if "%" in part else part
    if text in (".", ".."):
        raise ProtocolError("target-dots", "dot segments in the request path")
    if "/" in text or "\\" in text:
        raise ProtocolError("target-encoded-slash", "an encoded slash or backslash in the request path")
    if "%" in text and _DOUBLE.search(text) is not None:
        raise ProtocolError("target-double-encoding", "the request path is percent-encoded twice")
    return text


def _decode_query(query: str) -> tuple[tuple[str, str], ...]:
    parts = [part for part in query.split("&") if part]
    if len(parts) > MAX_QUERY_PAIRS:
        raise ProtocolError("target-query", f"more than {MAX_QUERY_PAIRS} query parameters")
    pairs = []
    for part in parts:
        name, _, value = part.partition("=")
        pairs.append((_decode(name.replace("+", " ")), _decode(value.replace("+", " "))))
    return tuple(pairs)


def _decode(text: str) -> str:
    if "%" not in text:
        return text
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")  # strict: overlong forms and surrogates fail
    except UnicodeDecodeError:
        raise ProtocolError("target-utf8", "the request target is not valid UTF-8 when decoded") from None
    if _CONTROL.search(decoded) is not None:
        raise ProtocolError("target-control", "an encoded control character in the request target")
    return decoded
