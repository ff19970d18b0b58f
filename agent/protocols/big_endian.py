# SPDX-License-Identifier: Apache-2.0
"""Numbers as they stand on PostgreSQL's wire: unsigned, the highest byte first.

In the compiled form this is arithmetic on machine integers, where a `struct` makes a tuple and its objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import i64  # the compiled form's own integers; where nothing is compiled, any int


def int16_at(data: bytes, at: i64) -> i64:
    """Two bytes from `at` on. Raises IndexError where they are not there."""
    high: i64 = data[at]
    low: i64 = data[at + 1]
    return high << 8 | low


def int32_at(data: bytes, at: i64) -> i64:
    """Four bytes from `at` on. Raises IndexError where they are not there."""
    first: i64 = data[at]
    second: i64 = data[at + 1]
    third: i64 = data[at + 2]
    fourth: i64 = data[at + 3]
    return first << 24 | second << 16 | third << 8 | fourth
