# SPDX-License-Identifier: Apache-2.0
"""Whether what was attached still is: the pinned links, looked at again and again.

Root can unpin or detach them, and anybody's traffic then goes to the database unseen. That cannot be
prevented; it must not be silent. Owns the look, not what is done about it. Bias: a link that cannot be read
is lost. Source: struct bpf_link_info of linux/bpf.h; a detached cgroup or netns link keeps its id and shows
0 for its place.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from agent.kernel import syscalls

_CGROUP, _NETNS = 3, 5  # enum bpf_link_type
_PLACE = {_CGROUP: struct.Struct("=Q"), _NETNS: struct.Struct("=I")}
_PLACE_OFFSET = 16


class Links:
    """Every link that ``pins`` holds now is expected from now on, and those of namespaces that join later."""

    def __init__(self, pins: Path) -> None:
        self._folder = pins / "links"
        self._expected: set[str] = set()

    def find_lost(self) -> dict[str, str]:
        """Name of the link -> what happened to it. Empty while all is attached. Raises nothing."""
        try:
            self._expected |= set(os.listdir(self._folder))
        except OSError:
            return dict.fromkeys(sorted(self._expected), "unpinned") or {"all": "no pins"}
        states = {name: _state(self._folder / name) for name in sorted(self._expected)}
        return {name: state for name, state in states.items() if state is not None}


def _state(pin: Path) -> str | None:
    try:
        descriptor = syscalls.object_get(pin)
    except FileNotFoundError:
        return "unpinned"
    except OSError as error:
        return f"unreadable: {error.strerror}"
    try:
        info = syscalls.link_info(descriptor)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    finally:
        os.close(descriptor)
    place = _PLACE.get(struct.unpack_from("=I", info)[0])
    return "detached" if place is not None and place.unpack_from(info, _PLACE_OFFSET)[0] == 0 else None
