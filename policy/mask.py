# SPDX-License-Identifier: Apache-2.0
"""What a mask makes of one value. Pure; the key is an argument.

Owns the look of masked values, not where they are (engines walk the answers). Bias: a value that a
mask cannot be applied to is taken out whole, never passed.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from typing import Final

import msgspec

from policy.model import Mask, MaskAs

REDACTED: Final = "[redacted]"
HIDDEN: Final = "***"
SHOWN: Final = 4
"""Characters that `partial` leaves, of values of more than twice as many."""
TOKEN_BYTES: Final = 16
"""Of HMAC-SHA256: 128 bits keep tokens of different values apart in any collection there can be."""
MIN_KEY: Final = 16
"""Bytes of the masking key: a shorter one could be searched."""


class Dropped:
    """The only value of its type: the field itself goes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "DROP"


DROP: Final = Dropped()
_canonical = msgspec.json.Encoder(order="sorted")


def mask_value(mask: Mask, value: object, key: bytes) -> object:
    """One JSON value under one mask; `DROP` where the field must go. Raises ValueError on a short key.

    A mask of scores rounds to significant digits of the value (`round_score` takes a norm).
    """
    if mask.scores is not None:
        return _round_all(value, mask.scores)
    if mask.pii:
        from policy.recognise import recogniser  # re2 is loaded only where a rule asks for it

        return recogniser(mask.pii).redact_value(value, mask.how, key)[0]
    return apply(mask.how, value, key)


def apply(how: MaskAs, value: object, key: bytes) -> object:
    """One JSON value, as `how` says. Lists are masked item by item under hmac and partial."""
    match how:
        case "drop":
            return DROP
        case "null":
            return None
        case "hmac":
            if isinstance(value, list | tuple):
                return [apply(how, item, key) for item in value]
            return None if value is None else token(value, key)
        case "partial":
            if isinstance(value, list | tuple):
                return [apply(how, item, key) for item in value]
            return None if value is None else last_shown(value)
        case _:
            return REDACTED


def token(value: object, key: bytes) -> str:
    """A keyed token: equal for equal values of one key, so that masked answers can still be joined.

    Numbers are equal by value (1 and 1.0), texts are not numbers ("1" and 1). A value with few
    possibilities (a truth, a grade) can be told from how often its token comes: use redact there.
    """
    if len(key) < MIN_KEY:
        raise ValueError(f"a masking key has at least {MIN_KEY} bytes")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "hmac:" + hmac.new(key, _canonical.encode(value), hashlib.sha256).hexdigest()[: 2 * TOKEN_BYTES]


def last_shown(value: object) -> str:
    """``***1234``; nothing is left of short values, of truths and of objects."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return HIDDEN
    text = str(value)
    return HIDDEN + text[-SHOWN:] if len(text) > 2 * SHOWN else HIDDEN


def round_score(score: float, digits: int, norm: float | None = None) -> float:
    """A score with `digits` significant digits: of itself, or, with the query's `norm`, of the norm.

    With a norm the step is absolute, 10^-digits of the norm's power of ten: a client that scales its
    query (dot product) gains nothing, and scores near zero tell no more than others.
    """
    if not math.isfinite(score) or score == 0.0:
        return score
    scale = abs(score) if norm is None or not math.isfinite(norm) or norm <= 0.0 else norm
    # The first significant digit of the score itself counts as one; a norm of 1 leaves `digits` decimals.
    exponent = math.floor(math.log10(scale)) + 1 if norm is None else math.ceil(math.log10(scale))
    return round(score, digits - exponent) + 0.0  # + 0.0: no negative zero


def _round_all(value: object, digits: int) -> object:
    if isinstance(value, list | tuple):
        return [_round_all(item, digits) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round_score(float(value), digits)
    return None
