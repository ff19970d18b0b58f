# SPDX-License-Identifier: Apache-2.0
"""What an opaque collection key (a UUID, an alias) stands for, for a short while.

Owns a bounded cache with an injected clock. It must not outlive the truth: an entry is trusted for
`TTL` seconds and forgotten at once when a schema operation passes by. A miss is answered by asking
the database again, never by an old entry; only where nothing may be asked and nothing is enforced (a
guard in observe) does `last` give the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

TTL: Final = 2.0  # seconds
MAX_NAMES: Final = 4096  # entries; the oldest goes first

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Names(Generic[K, V]):
    """Key to value with an age limit. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float], ttl: float = TTL, most: int = MAX_NAMES) -> None:
        self._clock = clock
        self._ttl = ttl
        self._most = most
        self._known: dict[K, tuple[float, V]] = {}

    def put(self, key: K, value: V) -> None:
        self._known.pop(key, None)
        while len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[key] = (self._clock(), value)

    def get(self, key: K) -> V | None:
        held = self._known.get(key)
        if held is None:
            return None
        return held[1] if 0 <= self._clock() - held[0] < self._ttl else None

    def last(self, key: K) -> V | None:
        """What was last known, however old: good enough for a guess, never for a right."""
        held = self._known.get(key)
        return None if held is None else held[1]

    def forget(self) -> None:
        """Everything: the schema may have changed."""
        self._known.clear()

    def __len__(self) -> int:
        return len(self._known)
