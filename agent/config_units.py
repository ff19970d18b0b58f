# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations as people write them: ``64MiB``, ``15m``. Owns their units and their upper bound."""

from __future__ import annotations

import re

_SIZES = {
    "": 1,
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}
_LARGEST = 2.0**52  # bytes or seconds: in nanoseconds and as a float it is still a number
_DURATIONS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(value: object) -> int:
    """Bytes from ``64MiB``, ``10GiB``, ``4096``. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"not a size: {value!r}")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if not found or found[2].lower() not in _SIZES:
        raise ValueError(f"not a size: {value!r}; write 64MiB, 10GiB or a number of bytes")
    return int(_bounded(float(found[1]) * _SIZES[found[2].lower()], value))


def parse_duration(value: object) -> float:
    """Seconds from ``15m``, ``90d``, ``1h``, ``60``. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"not a duration: {value!r}")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value))
    if not found or (found[2] and found[2] not in _DURATIONS):
        raise ValueError(f"not a duration: {value!r}; write 60s, 15m, 1h or 90d")
    return _bounded(float(found[1]) * _DURATIONS[found[2] or "s"], value)


def _bounded(number: float, value: object) -> float:
    if number > _LARGEST:
        raise ValueError(f"too large: {str(value)[:40]}; at most {_LARGEST:.0f} bytes or seconds")
    return number
