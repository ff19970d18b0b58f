# SPDX-License-Identifier: Apache-2.0
"""The events that an operator is told of, each with the MESSAGE_ID it has in systemd's journal.

Ids are promises: scripts and alerts match on them (``journalctl MESSAGE_ID=...``). The catalog in
packaging/catalog explains each to `journalctl -x`, docs/runbook.md says what to do; tests hold them together.
"""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """`priority` as syslog(3) counts them; `runbook` is the heading in docs/runbook.md."""

    message_id: str
    priority: int
    runbook: str


CRITICAL, ERROR, WARNING, NOTICE = 2, 3, 4, 5

EVENTS = {
    "bypass": Event("5c8d2f0b9a714e7fb1c6a3d0e4f28a11", CRITICAL, "bypass"),
    "steering-lost": Event("3fa1c07e52d84b69a0e6d94b178c2f55", CRITICAL, "steering lost"),
    "steering-back": Event("c92b6e13f07a4d8e8b41a5d3607fe914", NOTICE, "steering lost"),
    "gap": Event("d1b7a64e2c3f4f0a8e95b7c2016d4f32", ERROR, "gap"),
    "deny": Event("83f0c5a97be14d26a4d81f6e93b05c47", NOTICE, "deny"),
    "off": Event("e7420d9bc6a84b1f95d3708a1c5e6b28", WARNING, "off and on"),
    "on": Event("2a96f3d871e54c0bb7408de5f19c3a64", NOTICE, "off and on"),
    "key-break": Event("b64e18c70d2f4a9590a3c7f25e8d1b06", CRITICAL, "key break"),
    "reload-refused": Event("0f3d95b2e8764ac1a25c6b81d7e04f93", ERROR, "policy reload refused"),
    "disk": Event("97c1e50a4b8d4f36bd02e9a6853f7c1d", WARNING, "disk full"),
}
