# SPDX-License-Identifier: Apache-2.0
"""What is left of a masked value."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.mask import DROP, apply, last_shown, mask_value, round_score, token
from policy.model import Mask

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("how", "value", "masked"),
    [
        ("redact", "secret", "[redacted]"),
        ("redact", {"a": 1}, "[redacted]"),
        ("redact", None, "[redacted]"),
        ("null", "secret", None),
        ("drop", "secret", DROP),
        ("partial", "123-45-6789", "***6789"),
        ("partial", 1234567890, "***7890"),
        ("partial", "12345678", "***"),
        ("partial", {"a": "123456789"}, "***"),
        ("partial", True, "***"),
        ("partial", ["123456789", "x"], ["***6789", "***"]),
    ],
)
def test_each_mask_leaves_what_it_says(how: str, value: object, masked: object) -> None:
    assert apply(how, value, KEY) == masked  # type: ignore[arg-type]


def test_tokens_join_equal_values_and_keep_others_apart() -> None:
    assert token("a", KEY) == token("a", KEY)
    assert token(1, KEY) == token(1.0, KEY)
    assert token({"a": 1, "b": 2}, KEY) == token({"b": 2, "a": 1}, KEY)
    assert len({token(value, KEY) for value in ("a", "A", 1, "1", True, [1], {"a": 1})}) == 7
    assert token("a", KEY) != token("a", b"x" * 32)


def test_a_short_key_is_refused_rather_than_used() -> None:
    with pytest.raises(ValueError, match="at least"):
        token("a", b"short")


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_partial_never_shows_half_of_a_value_or_more(text: str) -> None:
    shown = last_shown(text).removeprefix("***")
    assert len(shown) * 2 < max(len(text), 1)


@pytest.mark.parametrize(
    ("score", "digits", "norm", "rounded"),
    [
        (0.123456, 2, None, 0.12),
        (0.000123456, 2, None, 0.00012),
        (123.456, 2, None, 120.0),
        (123.456, 2, 100.0, 123.0),
        (0.000123456, 2, 1.0, 0.0),
        (-0.001, 2, 1.0, 0.0),
        (0.0, 2, None, 0.0),
    ],
)
def test_scores_keep_their_significant_digits(
    score: float, digits: int, norm: float | None, rounded: float
) -> None:
    assert round_score(score, digits, norm) == rounded
    assert math.copysign(1, round_score(score, digits, norm)) == math.copysign(1, rounded)


def test_a_query_scaled_up_buys_no_digits() -> None:
    assert round_score(0.123456 * 1e4, 2, 1e4) == pytest.approx(0.12 * 1e4)


def test_scores_that_are_no_numbers_are_taken_out() -> None:
    assert mask_value(Mask("r", scores=2), [0.123, "0.123", [0.567]], KEY) == [0.12, None, [0.57]]
