# SPDX-License-Identifier: Apache-2.0
"""Names of uids and gids through the host's name service (nsswitch), cached and bounded.

May block as long as the name service does: called in reader threads only. A caller in another user
namespace or in a container must not be given these names; that is decided in `subject`.
"""

from __future__ import annotations

import grp
import pwd
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import psutil

MAX_NAMES = 4096
KEEP_S = 60.0
KEEP_MISSING_S = 5.0
MAX_GROUPS = 256  # supplementary groups that are looked up; with more none are given


def _user(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _group(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


class Names:
    """A cache of one kind of name. `lookup` may block; the lock is not held while it does."""

    def __init__(
        self, lookup: Callable[[int], str | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lookup = lookup
        self._clock = clock
        self._names: OrderedDict[int, tuple[float, str | None]] = OrderedDict()
        self._lock = threading.Lock()

    def cached(self, number: int) -> tuple[bool, str | None]:
        """(whether it is known now, the name)."""
        with self._lock:
            entry = self._names.get(number)
        if entry is None or entry[0] < self._clock():
            return False, None
        return True, entry[1]

    def name(self, number: int) -> str | None:
        """The name, from the cache or the name service; None = there is none."""
        known, name = self.cached(number)
        if known:
            return name
        name = self._lookup(number)
        keep = KEEP_S if name is not None else KEEP_MISSING_S
        with self._lock:
            self._names[number] = (self._clock() + keep, name)
            self._names.move_to_end(number)
            if len(self._names) > MAX_NAMES:
                self._names.popitem(last=False)
        return name


class Directory:
    """The host's users and groups."""

    def __init__(
        self, user: Callable[[int], str | None] = _user, group: Callable[[int], str | None] = _group
    ) -> None:
        self.users = Names(user)
        self.groups = Names(group)


class Logins:
    """From which address each terminal was logged in, from utmp; not attested, for the record."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._read_at = -KEEP_MISSING_S
        self._hosts: dict[str, str] = {}
        self._lock = threading.Lock()

    def peer(self, tty: str) -> str | None:
        """The host that utmp names for a terminal like ``pts/3``, at most 5 s old."""
        with self._lock:
            if self._clock() - self._read_at >= KEEP_MISSING_S:
                self._hosts = {login.terminal: login.host for login in psutil.users() if login.terminal}
                self._read_at = self._clock()
            return self._hosts.get(tty) or None
