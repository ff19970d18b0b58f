# SPDX-License-Identifier: Apache-2.0
"""Tells the operator: a line on stderr, and the event with its fields in systemd's journal where it is.

Owns the native protocol (systemd's JOURNAL_NATIVE_PROTOCOL: one datagram, fields that programs can match on)
and how often an event that comes in masses is told. Bias: the journal is no evidence; what it does not take
is lost, nothing waits for it, and the line on stderr is there unless stderr is the journal itself.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.journal_ids import EVENTS

JOURNAL = Path("/run/systemd/journal/socket")
MAX_VALUE = 4096  # bytes of one field: a datagram holds some 200 KiB
DENY_EVERY, GAP_EVERY = 60.0, 10.0  # seconds between two events of one kind
_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def complain(text: str) -> None:
    """A line for whoever reads stderr."""
    print(f"vecward: {text}", file=sys.stderr, flush=True)


def announce(
    event: str, text: str, fields: Mapping[str, object] | None = None, journal: Path = JOURNAL
) -> None:
    """One of `EVENTS`. `fields` become ``VECWARD_NAME=value``; None values are left out. Never raises."""
    known = EVENTS[event]
    told = {
        "MESSAGE": f"vecward: {text}", "MESSAGE_ID": known.message_id, "PRIORITY": known.priority,
        "SYSLOG_IDENTIFIER": "vecward", "VECWARD_EVENT": event,
    }  # fmt: skip
    given = (fields or {}).items()
    more = {f"VECWARD_{name.upper()}": _text(value) for name, value in given if value is not None}
    taken = _send(encode(told | more), journal)
    if not (taken and _stderr_is_journal()):
        complain(text)


def _text(value: object) -> str:
    """An address and its port as people write them; anything else as it is."""
    return ":".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def encode(fields: Mapping[str, object]) -> bytes:
    """Fields in the native protocol; one whose name the journal would not take is left out."""
    made = bytearray()
    for name, value in fields.items():
        if not _FIELD.fullmatch(name):
            continue
        data = str(value).encode("utf-8", "replace")[:MAX_VALUE]
        if b"\n" in data:
            made += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            made += name.encode() + b"=" + data + b"\n"
    return bytes(made)


def _send(data: bytes, journal: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(os.fspath(journal))
            return sock.send(data) == len(data)
    except OSError:
        return False


def _stderr_is_journal() -> bool:
    """systemd.exec(5), $JOURNAL_STREAM: device and inode of the stream that it connected."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class Growth:
    """Events out of counters that only grow: told when they did, at most so often, with how many since."""

    def __init__(
        self, tell: Callable[..., None] = announce, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}

    def note(self, counters: Mapping[str, int]) -> None:
        """`counters` are those of a checkpoint (``proxy_...``)."""
        lost = self._grown("gap", counters.get("proxy_evidence_dropped", 0), GAP_EVERY)
        if lost:
            text = f"gap: {lost} records could not be written; a signed GAP says which"
            self._tell("gap", text, {"count": lost})
        denied = self._grown("deny", counters.get("proxy_requests_deny", 0), DENY_EVERY)
        if denied:
            text = f"deny: {denied} requests were refused; vecward sessions --verdict deny lists them"
            self._tell("deny", text, {"count": denied})

    def _grown(self, event: str, value: int, every: float) -> int:
        now = self._clock()
        at, before = self._told.get(event, (-every, 0))
        if value <= before or now - at < every:
            return 0
        self._told[event] = (now, value)
        return value - before
