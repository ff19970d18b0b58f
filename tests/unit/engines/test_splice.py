# SPDX-License-Identifier: Apache-2.0
"""Answers read with their vectors cut out are the answers."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engines.splice import LONG, read_answer
from agent.protocols.http import Refusal

LONG_ARRAY = json.dumps([n / 7 for n in range(40)])
NAMES = st.sampled_from(["vector", "payload", 'x"vector":[', "\\", "NaN", LONG_ARRAY])
TEXTS = st.sampled_from(["", "NaN", '"vector":[1', "\\", LONG_ARRAY, '"' + LONG_ARRAY, "é", "]", "\\u0022"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    TEXTS,
    st.lists(st.floats(-1, 1, width=32), min_size=15, max_size=40),
    st.lists(st.one_of(st.none(), st.integers(10**14, 10**15)), min_size=15, max_size=20),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.booleans())
def test_every_answer_reads_as_the_full_parser_reads_it(value: object, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    reading = read_answer(raw)
    assert json.loads(reading.write(reading.tree)) == value


def test_long_arrays_are_cut_and_kept_as_they_are() -> None:
    raw = b'{"a":' + LONG_ARRAY.encode() + b',"b":"' + b"x" * LONG + b'"}'
    reading = read_answer(raw)
    assert reading.cut == 1
    assert isinstance(reading.tree["a"], msgspec.Raw)
    assert reading.write(reading.tree) == raw


def test_numbers_are_opened_where_they_may_be_personal_data() -> None:
    assert isinstance(read_answer(LONG_ARRAY.encode(), opens_numbers=True).tree, list)


@pytest.mark.parametrize("raw", [b"", b"NaN", b"{", b"[" * 9000, LONG_ARRAY.encode() + b"x", b"\xff"])
def test_what_is_not_json_is_not_released(raw: bytes) -> None:
    with pytest.raises(Refusal):
        read_answer(raw)
