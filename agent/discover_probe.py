# SPDX-License-Identifier: Apache-2.0
"""Asks a listening port what it is: one or two requests that change nothing, each bounded.

Chroma: ``GET /api/v2/heartbeat``, then ``/api/v2/auth/identity``. Qdrant: ``GET /``, then ``/collections``
(whether it asks for a key). PostgreSQL: SSLRequest, then a startup packet of a user that is not there, up to
the first answer (PostgreSQL docs, 54.2.1 and 54.2.10); it leaves a line or two in the server's log. No
credential is sent. What answers is a stranger: at most MAX_ANSWER bytes, TIMEOUT seconds, and nothing in it
is believed but names and versions of a plain form. To be called in the listener's network namespace.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import ssl
import struct
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from agent import __version__

TIMEOUT = 3.0  # seconds of one request, from connect to the last byte
MAX_ANSWER = 64 * 1024
USER = "vecward_discover"
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}")
_SSL_REQUEST = struct.pack("!II", 8, 80877103)
_METHODS = {0: "none (trust)", 2: "kerberos", 3: "password", 5: "md5", 7: "gss", 9: "sspi", 10: "scram"}

Hint = Literal["http", "postgres", "any"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What listens there. `auth`: "none", what it asks for, or None where that was not learnt."""

    engine: str
    version: str | None = None
    auth: str | None = None
    tls: bool = False
    note: str | None = None


def probe(address: str, port: int, hint: Hint = "any") -> Answer | None:
    """What listens at address and port; None where it is none of the engines, or does not answer."""
    if hint != "postgres":
        found = _http(address, port, None)
        if found is None:
            found = _http(address, port, _unverified())
        if found is not None or hint == "http":
            return found
    return _postgres(address, port)


# -- HTTP -----------------------------------------------------------------------------------------


def _http(address: str, port: int, tls: ssl.SSLContext | None) -> Answer | None:
    root = _get(address, port, "/", tls)
    if root is None:
        return None
    body = root[1]
    if isinstance(body, dict) and str(body.get("title", "")).startswith("qdrant"):
        listed = _get(address, port, "/collections", tls)
        auth = None if listed is None else "api key" if listed[0] in (401, 403) else "none"
        return Answer("qdrant", _version(body.get("version")), auth, tls is not None)
    beat = _get(address, port, "/api/v2/heartbeat", tls)
    if beat is not None and isinstance(beat[1], dict) and "nanosecond heartbeat" in beat[1]:
        who = _get(address, port, "/api/v2/auth/identity", tls)
        auth = None if who is None else "credential" if who[0] in (401, 403) else "none"
        told = _get(address, port, "/api/v2/version", tls)
        return Answer("chroma", _version(told[1] if told else None), auth, tls is not None)
    return None


def _get(address: str, port: int, path: str, tls: ssl.SSLContext | None) -> tuple[int, Any] | None:
    """(status, JSON or None) of one request on a connection of its own; None where it is no HTTP."""
    host = f"[{address}]" if ":" in address else address
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: vecward-discover/{__version__}\r\n"
        "Accept: application/json\r\nConnection: close\r\n\r\n"
    )
    raw = _exchange(address, port, request.encode(), tls)
    if not raw.startswith(b"HTTP/1."):
        return None
    try:
        response = http.client.HTTPResponse(_Recorded(raw))  # type: ignore[arg-type]  # all it asks of a socket
        response.begin()
        body = response.read(MAX_ANSWER)
    except (http.client.HTTPException, ValueError, OSError):
        return None
    try:
        return response.status, json.loads(body)
    except (ValueError, RecursionError):
        return response.status, None


class _Recorded:
    """A socket's worth of bytes for http.client."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _unverified() -> ssl.SSLContext:
    """Nothing secret is sent, and who answers is believed nothing: a certificate would prove no more."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _version(value: object) -> str | None:
    return value if isinstance(value, str) and _VERSION.fullmatch(value) else None


# -- PostgreSQL -----------------------------------------------------------------------------------


def _postgres(address: str, port: int) -> Answer | None:
    answer = _exchange(address, port, _SSL_REQUEST, None, enough=1)
    if answer not in (b"S", b"N"):
        return None
    known = _startup(address, port)
    return None if known is None else replace(known, tls=answer == b"S")


def _startup(address: str, port: int) -> Answer | None:
    """The first answer to a startup packet without TLS: how it would authenticate. None: no PostgreSQL."""
    words = b"".join(
        name.encode() + b"\0" for name in ("user", USER, "database", USER, "application_name", "vecward")
    )
    body = struct.pack("!I", 196608) + words + b"\0"
    raw = _exchange(address, port, struct.pack("!I", len(body) + 4) + body, None, enough=64)
    if len(raw) < 9:
        return None
    kind, length, method = struct.unpack_from("!cII", raw)
    known = Answer("pgvector", note="PostgreSQL; whether it has the extension vector was not asked")
    if kind == b"R" and 8 <= length < MAX_ANSWER:
        return replace(known, auth=_METHODS.get(method, f"method {method}"))
    if kind == b"E" and length < MAX_ANSWER and raw[5:6] == b"S" and b"\0C" in raw:  # severity, SQLSTATE
        return replace(known, auth="no rule of pg_hba.conf for this address without TLS")
    return None


# -- bytes ----------------------------------------------------------------------------------------


def _exchange(
    address: str, port: int, data: bytes, tls: ssl.SSLContext | None, enough: int = MAX_ANSWER
) -> bytes:
    """What comes back until the other side closes, `enough` bytes or TIMEOUT; b"" where none answers."""
    deadline = time.monotonic() + TIMEOUT
    got = bytearray()
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError, ValueError):
        sock = stack.enter_context(socket.create_connection((address, port), TIMEOUT))
        if tls is not None:
            sock = stack.enter_context(tls.wrap_socket(sock))
        sock.sendall(data)
        while len(got) < enough and (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            piece = sock.recv(min(8192, enough - len(got)))
            if not piece:
                break
            got += piece
    return bytes(got)
