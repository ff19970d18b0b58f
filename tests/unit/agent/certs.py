# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, from our own authority, and two TLS peers that talk through memory."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.ca import create, issue
from agent.config import Guard
from agent.messages import TlsSettings
from agent.tls_contexts import TlsContexts
from agent.tls_files import read_tls


def make_authority(folder: Path) -> Path:
    """An authority in `folder`, a server's certificate `db` (also for 127.0.0.1) and a client's `etl-1`."""
    create(folder, "Test CA")
    issue(folder, "db", ("127.0.0.1",))
    issue(folder, "etl-1", role="client")
    return folder


def guard(tls: dict[str, Any], **changes: Any) -> Guard:
    return Guard(**{"name": "g", "engine": "chroma", "ports": (8000,), "tls": tls, **changes})


def settings(folder: Path, **tls: Any) -> TlsSettings:
    made = read_tls(guard({"cert": "db.crt", "key": "db.key", **tls}), folder)
    assert made is not None
    return made


def contexts(folder: Path, mode: Any = "enforce", **tls: Any) -> TlsContexts:
    return TlsContexts(settings(folder, **tls), "chroma", mode)


class Peer:
    """The other end: OpenSSL as any program has it. `bytes_out` is what it wants to send."""

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool = False, name: str | None = "db"
    ) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._in, self._out, server_side=server_side, server_hostname=None if server_side else name
        )
        self.stands = False
        self.got = b""
        self.ended = False

    def take(self, data: bytes = b"") -> bytes:
        """Give it bytes, get what it answers with. Raises ssl.SSLError."""
        self._in.write(data)
        try:
            if not self.stands:
                self.tls.do_handshake()
                self.stands = True
            while True:
                piece = self.tls.read(65536)
                if not piece:
                    self.ended = True
                    break
                self.got += piece
        except ssl.SSLWantReadError:
            pass
        return self._out.read()

    def said(self) -> bytes:
        """What it wants to send after an error: its alert."""
        return self._out.read()

    def say(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._out.read()

    def close(self) -> bytes:
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        return self._out.read()


def client_context(folder: Path, certificate: str | None = None, **changes: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if certificate is not None:
        context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def server_context(folder: Path, certificate: str = "db") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    return context
