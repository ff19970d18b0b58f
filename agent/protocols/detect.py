# SPDX-License-Identifier: Apache-2.0
"""What the first bytes of a connection look like. A pure look at a prefix; owns no state.

Bias: names a protocol only when the bytes leave no other reading; all else is "unknown", which
enforce refuses and observe relays unread. Never needs more than `PREFIX` bytes.
"""

from __future__ import annotations

from typing import Literal

Protocol = Literal["tls", "http2", "http1", "unknown", "more"]

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
PREFIX = len(HTTP2_PREFACE)
_LONGEST_METHOD = 20
_UPPER = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-")


def detect(prefix: bytes) -> Protocol:
    """Name the protocol of a connection by its first bytes; "more" while two readings are possible."""
    if not prefix:
        return "more"
    if prefix[0] == 0x16:  # TLS handshake record; its version's first byte is 3 (RFC 8446 section 5.1)
        if len(prefix) == 1:
            return "more"
        return "tls" if prefix[1] == 0x03 else "unknown"
    if HTTP2_PREFACE.startswith(prefix[:PREFIX]):
        return "http2" if len(prefix) >= PREFIX else "more"
    for index, byte in enumerate(prefix[: _LONGEST_METHOD + 1]):
        if byte == 0x20:
            return "http1" if index else "unknown"
        if byte not in _UPPER:
            return "unknown"
    return "unknown" if len(prefix) > _LONGEST_METHOD else "more"
