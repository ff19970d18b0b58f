# SPDX-License-Identifier: Apache-2.0
"""The names of sessions. Owns their form, nothing else."""

from __future__ import annotations

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing to misread at 3 a.m.
_PAIRS = [one + two for one in ALPHABET for two in ALPHABET]
_SHIFTS = tuple(range(70, -1, -10))


def new_session_id(now_ms: int, rest: int) -> str:
    """16 characters: 48 bits of milliseconds and 32 random ones, sorting by time."""
    value = (now_ms & (1 << 48) - 1) << 32 | rest
    return "".join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])
