# SPDX-License-Identifier: Apache-2.0
"""Which sessions and exchanges are wanted: one set of conditions for the index, tail and export.

Every given condition must hold; those on exchanges (action, verdict, collection, time) must hold for
one and the same exchange. Text is compared whole, or as a glob where it holds ``*``, ``?`` or ``[``.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agent.evidence.views import Exchange, Session

VERDICTS = ("allow", "deny", "hold", "tunnel", "would", "masked")
"""What --verdict takes: a verdict, or `would` (enforce would have stepped in), or `masked`."""


def is_glob(pattern: str) -> bool:
    return any(c in pattern for c in "*?[")


def text_matches(pattern: str | None, *values: str | int | None) -> bool:
    """Whether no pattern is given, or one of the values is it or matches it."""
    if pattern is None:
        return True
    present = [str(v) for v in values if v is not None]
    return any(fnmatchcase(v, pattern) if is_glob(pattern) else v == pattern for v in present)


def address_matches(pattern: str, address: str | None, port: int | None) -> bool:
    """`pattern` is an address, a network (10.0.0.0/8), or address:port ([::1]:6333)."""
    if address is None:
        return False
    if pattern in (address, f"{address}:{port}", f"[{address}]:{port}"):
        return True
    if is_glob(pattern):
        return fnmatchcase(address, pattern)
    return _in_network(pattern, address)


@functools.lru_cache(maxsize=4096)
def _in_network(pattern: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in _network(pattern)
    except ValueError:
        return False


@functools.lru_cache(maxsize=16)
def _network(pattern: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(pattern, strict=False)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions as given; None is no condition. `since` and `until` are ns since 1970, inclusive."""

    pid: int | None = None
    exe: str | None = None
    user: str | None = None
    login_user: str | None = None
    unit: str | None = None
    container: str | None = None
    client: str | None = None
    guard: str | None = None
    collection: str | None = None
    action: str | None = None
    verdict: str | None = None
    since: int | None = None
    until: int | None = None

    @property
    def on_exchanges(self) -> bool:
        return bool(self.action or self.verdict or self.collection)

    def wants_session(self, session: Session) -> bool:
        """The conditions on who and where; not those on exchanges, nor time."""
        return (
            (self.pid is None or session.pid == self.pid)
            and text_matches(self.exe, session.exe)
            and text_matches(self.user, session.user, session.uid)
            and text_matches(self.login_user, session.login_user, session.login_uid)
            and text_matches(self.unit, session.unit, session.user_unit)
            and text_matches(self.container, session.container)
            and text_matches(self.guard, session.guard)
            and (
                self.client is None or address_matches(self.client, session.client_addr, session.client_port)
            )
        )

    def wants_exchange(self, exchange: Exchange) -> bool:
        """The conditions on what was asked, what was decided, and when."""
        at = exchange.at or 0
        return (
            (self.since is None or at >= self.since)
            and (self.until is None or at <= self.until)
            and (self.action is None or self.action in exchange.actions)
            and (
                self.collection is None or any(text_matches(self.collection, c) for c in exchange.collections)
            )
            and self._wants_verdict(exchange)
        )

    def _wants_verdict(self, exchange: Exchange) -> bool:
        match self.verdict:
            case None:
                return True
            case "would":
                return exchange.would is not None
            case "masked":
                return bool(exchange.masks)
            case _:
                return exchange.verdict == self.verdict


ANYTHING = Filter()
"""No condition at all."""
