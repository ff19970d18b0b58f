# SPDX-License-Identifier: Apache-2.0
"""The catalogs that a worker's connections to one guard share, and the texts they have read.

Owns how long a catalog may be believed, and the bounds of the cache of readings. A catalog is shared only
when it was told outside of any transaction: inside, it may be an old snapshot, or what is rolled back later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from agent.engines.sql_catalog import Catalog

BELIEVED: Final = 30.0
"""Seconds, at most, until the next connection to that database asks whether the catalog still stands."""
BELIEVED_LEAST: Final = 2.0
SHARE: Final = 0.01
"""Of the time in between that asking may take: 1 ms for ten tables, 150 ms for 5,000 with 45,000 columns."""
MAX_CACHED: Final = 8192
MAX_CACHED_BYTES: Final = 64 * 1024 * 1024
"""Bytes of all readings kept, by `weight`; half of each bound is a generation."""
MAX_CACHED_TEXT: Final = 64 * 1024
_FIXED, _PER_BYTE = 4000, 120
"""What a reading takes, measured: a tree of dicts is about 100 times its text."""
MAX_SCOPES: Final = 4096

Value = TypeVar("Value")


def weight(text: str) -> int:
    return _FIXED + _PER_BYTE * len(text)


class Cache(Generic[Value]):
    """Readings by (scope, text), in two generations: what is not asked for twice is forgotten first."""

    __slots__ = ("_bytes", "_old", "_young")

    def __init__(self) -> None:
        self._young: dict[tuple[int, str], Value] = {}
        self._old: dict[tuple[int, str], Value] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: tuple[int, str]) -> Value | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                del self._old[key]
                self.put(key, found)
        return found

    def put(self, key: tuple[int, str], value: Value) -> None:
        if len(key[1]) > MAX_CACHED_TEXT:
            return
        self._bytes += weight(key[1])
        if self._bytes > MAX_CACHED_BYTES // 2 or len(self._young) >= MAX_CACHED // 2:
            self._old, self._young, self._bytes = self._young, {}, weight(key[1])
        self._young[key] = value


@dataclass(slots=True)
class Shared:
    """The catalog of one database, and when it was last found to stand."""

    catalog: Catalog
    checked: float
    stale: bool = False
    believed: float = BELIEVED_LEAST


class Catalogs(Generic[Value]):
    """All that the connections of one guard share in a worker. `clock` gives monotonic seconds."""

    __slots__ = ("_clock", "_last", "_scopes", "cache", "shared")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.cache: Cache[Value] = Cache()
        self.shared: dict[str, Shared] = {}
        self._scopes: dict[tuple[int, tuple[str, ...]], int] = {}
        self._last = 0

    def number(self) -> int:
        """One that was not given before."""
        self._last += 1
        return self._last

    def scope(self, catalog: Catalog, path: tuple[str, ...]) -> int:
        """The number of a catalog seen by a path: connections that stand alike share their readings."""
        key = (catalog.number, path)
        number = self._scopes.get(key)
        if number is None:
            if len(self._scopes) >= MAX_SCOPES:
                self._scopes.clear()
            number = self._scopes[key] = self.number()
        return number

    def find(self, database: str) -> Catalog | None:
        held = self.shared.get(database)
        return None if held is None else held.catalog

    def is_due(self, database: str) -> bool:
        """Whether somebody should ask if the catalog still stands."""
        held = self.shared.get(database)
        return held is not None and (held.stale or self._clock() - held.checked > held.believed)

    def stands(self, database: str, fingerprint: str, took: float) -> bool:
        """The fingerprint of this moment, told outside of a transaction: True where nothing has changed.

        `took`: seconds for the database to tell it.
        """
        held = self.shared.get(database)
        if held is None or held.catalog.fingerprint != fingerprint:
            return False
        held.checked, held.stale = self._clock(), False
        held.believed = min(BELIEVED, max(BELIEVED_LEAST, took / SHARE))
        return True

    def put(self, database: str, catalog: Catalog) -> None:
        self.shared[database] = Shared(catalog, self._clock())

    def doubt(self, database: str) -> None:
        """Somebody changed the database through us."""
        held = self.shared.get(database)
        if held is not None:
            held.stale = True
