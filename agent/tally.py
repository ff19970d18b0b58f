# SPDX-License-Identifier: Apache-2.0
"""What the end of a session sums up, and what all sessions of this process did. Counts records and bytes,
reads no content."""

from __future__ import annotations

from collections import Counter
from typing import Any

from agent.protocols.session import Abort, Intent, Opaque, Record, Result

_REQUESTS: Counter[str] = Counter()


def request_counts() -> dict[str, int]:
    """Requests of all sessions of this process since it started, by verdict; `would`: in observe, other than
    passed on as it is."""
    return {f"requests_{name}": count for name, count in _REQUESTS.items()}


class Tally:
    """What the session record sums up."""

    __slots__ = ("allowed", "denied", "held", "masked", "opaque", "open", "requests", "rows", "would")

    def __init__(self) -> None:
        self.requests = self.allowed = self.denied = self.held = self.masked = self.would = self.rows = (
            self.open
        ) = 0
        self.opaque: str | None = None

    def note(self, record: Record) -> None:
        if type(record) is Intent:
            verdict = record.verdict
            outcome = verdict.outcome
            self.requests += 1
            self.open += 1
            self.allowed += outcome in ("allow", "tunnel")
            self.denied += outcome == "deny"
            self.held += outcome == "hold"
            _REQUESTS[outcome] += 1
            if verdict.would is not None:
                self.would += 1
                _REQUESTS["would"] += 1
        elif type(record) is Result:
            self.open -= 1
            self.rows += record.rows
            self.masked += bool(record.masks)
        elif type(record) is Abort:
            self.open -= 1
        elif type(record) is Opaque:
            self.opaque = record.reason

    def summary(self, reason: str, protocol: str | None, bytes_in: int, bytes_out: int) -> dict[str, Any]:
        """The END frame's summary; names are those of the session fields."""
        return {
            "reason": reason,
            "requests": self.requests,
            "allowed": self.allowed,
            "denied": self.denied,
            "held": self.held,
            "masked": self.masked,
            "would": self.would,
            "rows": self.rows,
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "opaque": self.opaque,
            "protocol": protocol,
        }
