# SPDX-License-Identifier: Apache-2.0
"""How many values a JSON body holds, told before any reader makes them.

Owns one bound: a value costs a reader up to 0.8 µs and 200 bytes, so that a body within its bound of bytes
(``[],[],[],...``) could hold a worker for seconds and take a gigabyte. It reads nothing and knows no grammar:
what is counted are commas and opening brackets outside strings, which no JSON value can do without. A body
shorter than the bound cannot be over it and is not looked at. Bias: an empty array counts twice.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

MAX_VALUES: Final = 1_000_000  # of a body; vectors that are cut out unread are no values

STRINGS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # an open one too: never read twice


def is_crowded(raw: bytes) -> bool:
    """Whether a body holds more than MAX_VALUES values. Linear, in memory of the body's own size."""
    if len(raw) <= MAX_VALUES or _marks(raw) < MAX_VALUES:  # also counting those inside strings
        return False
    # That many values have at most twice as many strings (a member's name is one), of two quotes each;
    # only a quote behind a backslash may be none.
    if raw.count(b'"') - raw.count(b'\\"') > 4 * MAX_VALUES:
        return True
    return _marks(STRINGS.sub(b"", raw)) >= MAX_VALUES


def _marks(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def has_many_arrays(raw: bytes) -> bool:
    """Whether there are so many opening brackets that looking at each is too slow, also inside strings."""
    return len(raw) > MAX_VALUES and raw.count(b"[") > MAX_VALUES


def has_many_rows(raw: bytes) -> bool:
    """As `has_many_arrays`, for readers that make an object of each row and skip what is in it."""
    return len(raw) > MAX_VALUES and raw.count(b"{") + raw.count(b"[") > MAX_VALUES


def stand_in(raw: bytes) -> bytes:
    """The recorded form of a body whose vectors cannot be looked for."""
    digest = hashlib.sha256(raw).hexdigest().encode()
    return b'{"unread":"over %d arrays","bytes":%d,"sha256":"%s"}' % (MAX_VALUES, len(raw), digest)
