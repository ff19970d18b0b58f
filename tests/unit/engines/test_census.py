# SPDX-License-Identifier: Apache-2.0
"""A body that is small in bytes and large in values is refused before any reader makes them."""

from __future__ import annotations

import json

import pytest

from agent.engines import body, chroma_answers, qdrant_answers
from agent.engines.body import BodyRefusal, StrictReader, digest
from agent.engines.census import MAX_VALUES, is_crowded
from agent.engines.splice import open_numbers, read_answer
from agent.protocols.http import Refusal, Response
from tests.unit.engines.calls import answer, mask, verdict

MANY = MAX_VALUES + 1
CROWDS = [b"[],", b"{},", b"true,", b'"",', b"[[[[]]]],", b'{"a":1},', b'"\\\\",', b'"\\"",']


@pytest.mark.parametrize("unit", CROWDS)
def test_a_request_of_too_many_values_is_refused_by_its_name(
    unit: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(raw: bytes) -> None:
        pytest.fail("the body was gone through bracket by bracket")

    monkeypatch.setattr(body, "check_depth", never)
    with pytest.raises(BodyRefusal, match=f"more than {MAX_VALUES} values") as caught:
        StrictReader().read(b"[" + unit * MANY + b"0]")
    assert caught.value.reason == "too-many-values"


def test_a_body_at_the_bound_is_read() -> None:
    assert len(StrictReader().read(b"[" + b"null," * (MAX_VALUES - 2) + b"1]")) == MAX_VALUES - 1


def test_what_stands_in_a_text_is_no_value() -> None:
    raw = json.dumps({"documents": ['[{",\\' * MAX_VALUES]}).encode()
    assert not is_crowded(raw)
    assert StrictReader().read(raw) == json.loads(raw)


def test_vectors_that_are_cut_out_are_no_values() -> None:
    vector = b"[" + b"0.25," * 999 + b"0.25]"
    raw = b'{"vectors":[' + b",".join([vector] * 1100) + b"]}"
    assert len(StrictReader().read(raw)["vectors"]) == 1100


def test_only_so_many_escapes_are_looked_at() -> None:
    with pytest.raises(BodyRefusal) as caught:
        StrictReader().read(b'["' + b"\\ud83d\\ude00" * (body.MAX_ESCAPES // 2 + 1) + b'"]')
    assert caught.value.reason == "too-many-escapes"
    StrictReader().read(b'["' + b"\\u00e9" * (body.MAX_ESCAPES + 1) + b'"]')  # none can hide anything


@pytest.mark.parametrize("unit", [unit for unit in CROWDS if unit != b"true,"])  # a row of those is cut out
def test_an_answer_of_too_many_values_is_not_read(unit: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read_answer(b"[" + unit * MANY + b"0]")
    assert caught.value.reason == "too-many-values"


def test_numbers_that_have_to_be_looked_through_are_values() -> None:
    reading = read_answer(b'{"a":[' + b"1," * MANY + b"1]}")
    assert reading.cut == 1
    with pytest.raises(Refusal) as caught:
        open_numbers(reading.tree)
    assert caught.value.reason == "too-many-values"


@pytest.mark.parametrize("status", [200, 500])
def test_a_mask_does_not_read_a_crowded_answer_of_any_status(status: int) -> None:
    crowd = Response(status, (), b'{"ids":[' + b"[]," * MANY + b'[]],"documents":null}')
    with pytest.raises(Refusal) as caught:
        chroma_answers.mask("get", verdict(masks=(mask(pii=("email",)),)), crowd, b"k", list)
    assert caught.value.reason == "too-many-values"


def test_an_unmasked_crowd_passes_and_leaves_no_ids() -> None:
    crowd = b'{"ids":[' + b"[]," * MANY + b"[]]}"
    assert chroma_answers.seen("get", Response(200, (), crowd)) == ((), 0)
    rows = b'{"result":[' + b"{}," * MANY + b"{}]}"
    assert qdrant_answers.seen("search", Response(200, (), rows)) == ((), 0)
    assert chroma_answers.seen("get", answer({"ids": ["a"]})) == (("a",), 1)


def test_the_recorded_form_of_too_many_arrays_is_a_digest() -> None:
    crowd = b"[" + b"[]," * MANY + b"[]]"
    form, cut = digest(crowd)
    assert (json.loads(form)["bytes"], cut) == (len(crowd), 0)
    reader = StrictReader()
    assert reader.digest(crowd) == (form, 0)
