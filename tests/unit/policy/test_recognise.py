# SPDX-License-Identifier: Apache-2.0
"""Personal data that is found, what only looks like it, and what hides."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.recognise import KINDS, Recogniser, recogniser
from tests.unit.cost import assert_linear

KEY = b"k" * 32
ALL = recogniser(tuple(KINDS))


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail bob.o'x@example.co.uk now", "mail [email] now"),
        ("ünïcode@exämple.org", "[email]"),
        ("card 4111 1111 1111 1111.", "card [credit_card]."),
        ("5500-0000-0000-0004", "[credit_card]"),
        ("call 1234567 4111111111111111", "call 1234567 [credit_card]"),
        ("DE89 3704 0044 0532 0130 00 and more", "[iban] and more"),
        ("de89370400440532013000", "[iban]"),
        ("+44 20 7946 0958", "[phone]"),
        ("(212) 555-0100", "[phone]"),
        ("ssn 123-45-6789", "ssn [us_ssn]"),
        ("10.0.0.1. and fe80::1", "[ip]. and [ip]"),
        ("AKIAIOSFODNN7EXAMPLE", "[api_key]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln", "[api_key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "[api_key]"),
    ],
)
def test_personal_data_is_replaced(text: str, redacted: str) -> None:
    assert ALL.redact(text, "redact", KEY)[0] == redacted
    assert ALL.may_contain(text.encode())


@pytest.mark.parametrize(
    "text",
    ["4111 1111 1111 1112", "GB82 WEST 1234 5698 7654 33", "666-12-3456", "000-12-3456", "12:30:45",
     "1.2.3.400", "a@b", "chapter 3-12", "0000000000000000", "2024-01-31", "price 1234567", ""],
)  # fmt: skip
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert ALL.redact(text, "redact", KEY) == (text, {})


def test_only_the_kinds_asked_for_are_touched() -> None:
    only = Recogniser(["email"])
    assert only.redact("a@x.org 10.0.0.1", "redact", KEY) == ("[email] 10.0.0.1", {"email": 1})


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="passport"):
        Recogniser(["passport"])


def test_tokens_are_equal_however_the_data_is_written() -> None:
    one = ALL.redact("4111 1111 1111 1111", "hmac", KEY)[0]
    assert one == ALL.redact("4111-1111-1111-1111", "hmac", KEY)[0]
    assert ALL.redact("A@X.org", "hmac", KEY)[0] == ALL.redact("a@x.ORG", "hmac", KEY)[0]


def test_keys_and_numbers_that_read_as_data_are_replaced_too() -> None:
    value = {"a@x.org": [4111111111111111, 12, True, None, {"deep": "b@y.org"}]}
    masked, counts = ALL.redact_value(value, "redact", KEY)
    assert masked == {"[email]": ["[credit_card]", 12, True, None, {"deep": "[email]"}]}
    assert counts == {"email": 2, "credit_card": 1}


def test_an_escape_cannot_hide_an_address_from_the_look_at_the_bytes() -> None:
    assert ALL.may_contain(b'{"a": "bob\\u0040example.org"}')


def test_what_cannot_be_searched_is_taken_out_whole() -> None:
    assert ALL.redact("bob@example.org \ud800", "redact", KEY)[0] == "[redacted]"
    assert ALL.redact("x" * (8 * 1024 * 1024 + 1), "redact", KEY)[0] == "[redacted]"
    deep: object = "a@x.org"
    for _ in range(100):
        deep = [deep]
    assert "a@x.org" not in json.dumps(ALL.redact_value(deep, "redact", KEY)[0])


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=" ab1@.:-+é\n", max_size=40), st.sampled_from(["bob@example.org", "123-45-6789"]))
def test_data_is_found_wherever_it_stands_between_words(around: str, data: str) -> None:
    text = f"{around} {data} {around}"
    assert data not in ALL.redact(text, "redact", KEY)[0]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_the_look_at_the_bytes_never_misses_what_the_search_finds(text: str) -> None:
    if text.isprintable() and ALL.redact(text, "redact", KEY)[1]:
        assert ALL.may_contain(json.dumps(text, ensure_ascii=False).encode())


@pytest.mark.parametrize("unit", ["a@b.cc ", "4111 1111 1111 1112 ", "ä 10.0.0.1 ", "+49 30 1234567 "])
def test_many_findings_are_replaced_in_linear_time(unit: str) -> None:
    found = recogniser(("email", "credit_card", "ip", "phone", "iban"))
    assert_linear(lambda times: found.redact(unit * times, "redact", KEY), 16_000)


def test_findings_beside_letters_of_many_bytes_are_cut_where_they_are() -> None:
    found = recogniser(("email", "credit_card"))
    text = "größe 4111111111111111 €uro ü@müller.de 漢字"
    assert found.redact(text, "redact", KEY)[0] == "größe [credit_card] €uro [email] 漢字"
