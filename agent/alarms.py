# SPDX-License-Identifier: Apache-2.0
"""What the kernel part reports by itself: a connection that reached a database without the proxy.

Owns its record in the ledger, the line on stderr and, where the guard enforces, the end of that connection.
"""

from __future__ import annotations

from contextlib import suppress

from agent.guards import Guards
from agent.journal import announce
from agent.kernel import sockdiag
from agent.kernel.records import Event, EventKind
from agent.kernel.steering import Steering
from agent.notary import Notary


class Alarms:
    """Reads the kernel's events until the agent stops."""

    def __init__(self, steering: Steering, guards: Guards, notary: Notary) -> None:
        self._steering = steering
        self._guards = guards
        self._notary = notary

    def read(self) -> None:
        """Call when the event descriptor is readable."""
        for event in self._steering.read_events():
            self._take(event)

    def _take(self, event: Event) -> None:
        watched = self._guards.at(event.guard)
        detail = {
            "kind": event.kind.name.lower(),
            "guard": watched.guard.name if watched else None,
            "client": [str(event.flow.saddr), event.flow.sport],
            "server": [str(event.flow.daddr), event.flow.dport],
            "boottime": event.at,
        }
        if event.who is not None:
            proven = event.who.netns == event.flow.netns
            detail |= {"pid": event.who.tgid, "uid": event.who.uid, "comm": event.who.comm, "proven": proven}
        self._notary.bypass(detail)
        if event.kind is EventKind.BYPASS:
            line = f"bypass: {detail['client']} reached {detail['server']} without the proxy"
            announce("bypass", line, detail)
        # Also what was let through on purpose, but a moment before the guard began to enforce.
        if watched is not None and watched.guard.mode == "enforce" and not watched.off:
            _destroy(event)


def _destroy(event: Event) -> None:
    for one in sockdiag.connections(event.flow.dport):
        if (one.remote, one.remote_port) == (event.flow.saddr, event.flow.sport):
            with suppress(OSError):
                sockdiag.destroy(one)
