# SPDX-License-Identifier: Apache-2.0
"""Connections that finished their handshake and were gone before a worker could ask for their name.

Owns their count and what the ledger says of them: the kernel's record of the caller, as it is. Asks nothing
of /proc (the caller may be gone, its number another's) and judges nothing: no byte of theirs was read. A
caller can make thousands a second, so one look writes at most ``MAX_WRITTEN`` frames, and the last says how
many more there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agent.kernel.records import Flow, Identity, IdentityFlag

MAX_WRITTEN = 32  # ledger frames a look (a second)


class Unanswered:
    """``write`` takes the detail of a ledger frame; ``guard_of`` names the guard of a port."""

    def __init__(
        self, write: Callable[[dict[str, Any]], None], guard_of: Callable[[int], str | None]
    ) -> None:
        self._write = write
        self._guard_of = guard_of
        self.count = 0

    def note(self, swept: Sequence[tuple[Flow, Identity]]) -> None:
        """``swept``: what nobody asked for. A handshake that never ended (``accepted`` 0) reached nobody."""
        gone = [(f, who) for f, who in swept if who.accepted and not who.flags & IdentityFlag.PROXY]
        self.count += len(gone)
        for flow, who in gone[:MAX_WRITTEN]:
            self._write(self._detail(flow, who))
        if len(gone) > MAX_WRITTEN:
            self._write({"kind": "unanswered", "more": len(gone) - MAX_WRITTEN})

    def _detail(self, flow: Flow, who: Identity) -> dict[str, Any]:
        return {
            "kind": "unanswered",
            "guard": self._guard_of(flow.dport),
            "client": [str(flow.saddr), flow.sport],
            "server": [str(flow.daddr), flow.dport],
            "boottime": who.connected,
            "pid": who.tgid,
            "start": who.start,
            "uid": who.uid,
            "login_uid": who.loginuid,
            "comm": who.comm,
            "exe": None if who.flags & IdentityFlag.NO_EXE else [who.exe_dev, who.exe_ino],
            "cgroup": who.cgroup,
            "proven": who.netns == flow.netns,
        }
