# SPDX-License-Identifier: Apache-2.0
"""What a policy file is checked against: the guards of the configuration, and the day."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardInfo:
    """One guard of the configuration.

    `roots` are the names that a mask's dotted field may start with (the engine's
    ``masked_fields_known``); None = not known, any is taken. `peers` are the addresses or networks
    that the guard's configuration lists as cluster peers. `auth`: how a guard of
    PostgreSQL knows its clients.
    """

    name: str
    engine: str
    roots: frozenset[str] | None = None
    peers: tuple[str, ...] = ()
    auth: str | None = None


@dataclass(frozen=True, slots=True)
class GuardContext:
    """`guards` None: there is no configuration, guards and fields cannot be checked.

    `now` is seconds since the epoch, for `until`.
    """

    guards: tuple[GuardInfo, ...] | None
    now: float
