# SPDX-License-Identifier: Apache-2.0
"""What the agent finds missing of its own steering, and what it says about it.

Owns the state between two looks: a loss is told when it begins and when it changes, not each second. Attaches
nothing again: whoever detached it is root, and either wants it so or must be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from agent.journal import announce


class Announce(Protocol):
    """``agent/journal.py``'s."""

    def __call__(self, event: str, text: str, fields: dict[str, object]) -> None: ...


class Losses:
    """``look`` names what is lost (`agent.kernel.links`), ``write`` takes a ledger frame's detail."""

    def __init__(
        self,
        look: Callable[[], dict[str, str]],
        write: Callable[[dict[str, Any]], None],
        tell: Announce = announce,
    ) -> None:
        self._look, self._write, self._tell = look, write, tell
        self.lost: dict[str, str] = {}

    def check(self) -> None:
        """Once a second."""
        lost = self._look()
        if lost == self.lost:
            return
        self.lost = lost
        self._write({"kind": "steering-lost" if lost else "steering-back", "links": lost})
        if lost:
            named = ", ".join(f"{name} {state}" for name, state in lost.items())
            text = f"steering lost: {named}; connections may reach databases unseen"
            self._tell("steering-lost", text, {"links": named})
        else:
            self._tell("steering-back", "steering is back", {})
