# SPDX-License-Identifier: Apache-2.0
"""TLS under one side of a relay: ciphertext in, plain text and ciphertext out. No socket, clock or task.

Owns the state of one TLS connection, in either role, and what of its handshake is told (`Secured`). It
decides nothing but what its context says. Bias: whatever is wrong ends the connection with a reason; what
was not authenticated is never given out as plain text, and an end without close_notify is a truncation
(RFC 8446 section 6.1), which `ended` does not claim.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Literal

from agent.protocols.session import Secured

MAX_HANDSHAKE = 128 * 1024  # bytes of the peer's; OpenSSL takes certificate chains of at most 100 KiB
MAX_SUBJECT = 2048  # characters of a subject in RFC 4514 form
RECORD = 16 * 1024  # plain bytes in one record (RFC 8446 section 5.1)
SLICE = 256 * 1024  # plain bytes encrypted at once: bounds what is held twice

NameOf = Callable[[bytes], str]


class TlsError(Exception):
    """TLS that cannot go on. `reason` is a stable short word, "tls-" in front."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class TlsLayer:
    """One TLS connection. `name_of` gives a certificate's subject (DER in, RFC 4514 out)."""

    __slots__ = (
        "_incoming",
        "_name_of",
        "_object",
        "_outgoing",
        "_received",
        "_side",
        "ended",
        "failed",
        "stands",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        side: Literal["client", "server"],
        server_name: str | None = None,
        name_of: NameOf | None = None,
    ) -> None:
        """`side` is the peer's: towards a client we are the server of the handshake."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=side == "client", server_hostname=server_name
        )
        self._side = side
        self._name_of = name_of
        self._received = 0
        self.stands = False  # the handshake ended well
        self.ended = False  # the peer said close_notify
        self.failed = False

    def receive(self, data: bytes) -> bytes:
        """The plain text that `data` completes. Take `outgoing` afterwards, also when it raised TlsError."""
        self._incoming.write(data)
        try:
            if not self.stands and not self._shake_hands(len(data)):
                return b""
            return self._read()
        except ssl.SSLError as error:
            self.failed = True
            raise _explain(error, self.stands) from None
        except TlsError:
            self.failed = True
            raise

    def _shake_hands(self, size: int) -> bool:
        self._received += size
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            if self._received > MAX_HANDSHAKE:
                message = f"the TLS handshake has more than {MAX_HANDSHAKE} bytes"
                raise TlsError("tls-handshake-too-large", message) from None
            return False
        self.stands = True
        return True

    def _read(self) -> bytes:
        if self.ended:
            return b""
        pieces = []
        read = self._object.read
        try:
            while piece := read(RECORD):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def begin(self) -> None:
        """Towards a server: say ClientHello."""
        try:
            self._shake_hands(0)
        except ssl.SSLError as error:
            self.failed = True
            raise _explain(error, False) from None

    def send(self, parts: Iterable[bytes]) -> list[bytes]:
        """The ciphertext of these bytes. Raises TlsError; nothing may be sent after a failure."""
        data = b"".join(parts)
        made = []
        try:
            for start in range(0, len(data), SLICE):
                piece: bytes | memoryview = (
                    data if len(data) <= SLICE else memoryview(data)[start : start + SLICE]
                )
                while sent := self._object.write(piece):
                    if sent == len(piece):
                        break
                    piece = piece[sent:]
                made.append(self._outgoing.read())
        except ssl.SSLError as error:
            self.failed = True
            raise _explain(error, self.stands) from None
        return made

    def close(self) -> None:
        """Say close_notify: what was sent is the whole. Reading goes on."""
        if self.stands and not self.failed:
            with suppress(ssl.SSLError):  # it waits for the peer's own, which `receive` finds
                self._object.unwrap()

    def outgoing(self) -> bytes:
        return self._outgoing.read()

    def secured(self) -> Secured:
        """What the handshake agreed on. Raises TlsError where the peer's subject cannot be told."""
        cipher = self._object.cipher()
        certificate = self._object.getpeercert(True) or b""
        return Secured(
            self._side,
            self._object.version() or "",
            cipher[0] if cipher else "",
            self._object.selected_alpn_protocol(),
            self._subject(certificate),
            certificate,
        )

    def _subject(self, certificate: bytes) -> str | None:
        if not certificate or self._name_of is None:
            return None
        try:
            subject = self._name_of(certificate)
        except ValueError:
            self.failed = True
            raise TlsError("tls-subject", "the subject of the certificate cannot be read") from None
        if len(subject) > MAX_SUBJECT:
            self.failed = True
            raise TlsError(
                "tls-subject", f"the certificate's subject is longer than {MAX_SUBJECT} characters"
            )
        return subject or None


def _explain(error: ssl.SSLError, stands: bool) -> TlsError:
    """OpenSSL's reason as a word and a line; both hold letters that OpenSSL wrote, never the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError("tls-certificate", f"the certificate was not accepted: {error.verify_message}")
    reason = re.sub(r"[^a-z0-9]+", "-", (error.reason or "protocol").lower()).strip("-")[:48] or "protocol"
    when = "on a connection that stood" if stands else "in the handshake"
    return TlsError(f"tls-{reason}", f"TLS failed {when}: {reason.replace('-', ' ')}")
