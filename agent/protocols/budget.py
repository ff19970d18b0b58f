# SPDX-License-Identifier: Apache-2.0
"""What all connections of a worker may hold together of bodies that are not through yet.

Owns a sum and who has which part of it. A `Hold` gives its part back when nothing refers to it any more: with
the exchange that it belongs to its bytes go, on every way out. It refuses nothing; the session that asks
does, by its own bias. Bodies of `FREE` bytes and less are not counted, so that an ordinary request costs a
comparison: 20,000 connections can hold 320 MB of those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FREE: Final = 16 * 1024  # bytes of one body that are not counted
LIMIT: Final = 512 * 1024 * 1024  # of a worker, where the configuration says nothing (proxy.max_held)
REASON: Final = "held-bytes"


class Budget:
    """`held` never is under 0; it is over `limit` only by what could not be refused (`Hold.force`)."""

    __slots__ = ("held", "limit", "note")

    def __init__(self, limit: int = LIMIT, note: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        self.held = 0
        self.note = note  # called where a body had no room

    def hold(self) -> Hold:
        return Hold(self)

    @property
    def message(self) -> str:
        return f"the proxy holds as many bytes of bodies as it may, {self.limit} (proxy.max_held): try again"


class Hold:
    """The part of one body."""

    __slots__ = ("_budget", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = 0

    def resize(self, size: int) -> bool:
        """Hold `size` bytes from now on. False: that is too many, and it holds what it held."""
        budget = self._budget
        more = size - self.size
        if more > 0 and budget.held + more > budget.limit:
            budget.note()
            return False
        budget.held += more
        self.size = size
        return True

    def force(self, size: int) -> None:
        """Hold what is there already and cannot be refused any more."""
        self._budget.held += size - self.size
        self.size = size

    def __del__(self) -> None:
        self._budget.held -= self.size
