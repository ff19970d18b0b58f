# SPDX-License-Identifier: Apache-2.0
"""Strict bodies: the attacks first, then that the fast reader is the slow one."""

from __future__ import annotations

import json
import math
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engines import body
from agent.engines.body import _SHORTEST, LONG, BodyRefusal, Raw, StrictReader, cut_arrays, digest, write
from tests.unit.cost import assert_linear

VECTOR = b"[" + b",".join(b"%.7f" % math.sin(n) for n in range(64)) + b"]"


def refused(raw: bytes) -> str:
    with pytest.raises(BodyRefusal) as caught:
        StrictReader().read(raw)
    return caught.value.reason


@pytest.mark.parametrize(
    "raw",
    [
        b'{"limit":1,"limit":2}',
        b'{"a":{"b":[{"x":1,"y":2,"x":3}]}}',
        b'{"limit":1,"\\u006cimit":2}',
        b'{"vector":' + VECTOR + b',"limit":1,"limit":9}',
        b'{"vector":' + VECTOR + b',"vector":' + VECTOR + b"}",
    ],
)
def test_a_name_given_twice_is_refused_at_any_depth(raw: bytes) -> None:
    assert refused(raw) == "duplicate-key"


@pytest.mark.parametrize(
    "raw", [b'{"limi\\u0074":1}', b'{"a":{"wh\\u0065re":{}}}', b'{"a\\/b":1}', b'{"x":"\\n","\\u0061":1}']
)
def test_a_name_behind_a_needless_escape_is_refused(raw: bytes) -> None:
    assert refused(raw) == "escaped-key"


def test_names_that_must_be_escaped_pass_and_keep_their_meaning() -> None:
    tree = StrictReader().read(b'{"gr\\u00f6\\u00dfe":1,"a\\"b":2,"\\ud83d\\ude00":3,"t\\tb":4}')
    assert tree == {"größe": 1, 'a"b': 2, "😀": 3, "t\tb": 4}


@pytest.mark.parametrize(
    "raw", [b'["\\ud800"]', b'["\\ud800x"]', b'["\\udc00"]', b'["\\ud800\\ud800"]', b'{"\\udfff":1}']
)
def test_half_a_surrogate_pair_is_refused(raw: bytes) -> None:
    assert refused(raw) == "lone-surrogate"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b" ", b"{", b"NaN", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1}x', b"{'a':1}",
        b'{"a":01}', b'{"a":+1}', b'{"a":1.}', b'{"a":.5}', b'{"a":0x1}', b'{"a":1,}', b"[1,]", b'{"a" 1}',
        b'\xef\xbb\xbf{"a":1}', b'{"a":"\xff"}', b'{"a":"\x01"}', b'{"a":1}/* */', b'{"a":"\n"}',
        '{"a":1}'.encode("utf-16"), b"{" + VECTOR + b":1}", b"1" + VECTOR, VECTOR + VECTOR, b"-" + VECTOR,
        b'{"v":NaN,"w":' + VECTOR + b"}", b'{"v":Na' + VECTOR + b"}", b'{"a":' + b"1" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    assert refused(raw) == "bad-json"


def test_nesting_is_bounded_without_recursion() -> None:
    assert refused(b"[" * 100_000 + b"]" * 100_000) == "too-deep"
    assert refused(b'{"a":' * 1000 + b"1" + b"}" * 1000) == "too-deep"
    assert refused(b"[" * 100_000) == "too-deep"
    deep = b"[" * body.MAX_DEPTH + b"]" * body.MAX_DEPTH
    StrictReader().read(deep)
    assert refused(b"[" + deep + b"]") == "too-deep"
    StrictReader().read(json.dumps({"text": "[{" * 1000}).encode())


def test_size_is_bounded() -> None:
    assert refused(b" " * (body.MAX_BYTES + 1)) == "body-too-large"


def test_a_vector_is_kept_as_its_own_bytes() -> None:
    tree = StrictReader().read(b'{"limit": 3, "vector": ' + VECTOR + b', "x": 1.50}')
    assert isinstance(tree["vector"], Raw)
    assert bytes(tree["vector"]) == VECTOR
    assert write(tree) == b'{"limit":3,"vector":' + VECTOR + b',"x":1.50}'


def test_numbers_inside_a_string_are_not_a_vector() -> None:
    raw = b'{"a":"x' + VECTOR + b'y","b":' + VECTOR + b"}"
    tree = StrictReader().read(raw)
    assert tree["a"] == "x" + VECTOR.decode() + "y"
    assert json.loads(write(tree)) == json.loads(raw)


def test_a_reader_that_refused_reads_the_next_body_afresh() -> None:
    reader = StrictReader()
    with pytest.raises(BodyRefusal):
        reader.read(b'{"v":' + VECTOR + b',"a":1,"a":2}')
    assert reader.read(b'{"a":1}') == {"a": 1}
    with pytest.raises(BodyRefusal):
        reader.read(b'{"a":NaN}')


@pytest.mark.parametrize("value", [-1, True, "1", Raw(b"1.0"), [], {}, Raw(b"1e3")])
def test_only_whole_numbers_count(value: object) -> None:
    with pytest.raises(BodyRefusal):
        body.whole(value, "limit")


def test_a_digest_replaces_vectors_outside_strings_only() -> None:
    raw = b'{"v":' + VECTOR + b',"s":"\\"' + VECTOR + b'","w":[' + VECTOR + b"," + VECTOR + b'],"k":[1,2]}'
    cut, count = digest(raw)
    tree = json.loads(cut)
    assert count == 3
    assert tree["v"]["dim"] == 64
    assert len(tree["v"]["sha256"]) == 64
    assert tree["s"] == '"' + VECTOR.decode()
    assert tree["k"] == [1, 2]


def test_a_digest_of_the_body_just_read_is_that_of_any_bytes() -> None:
    reader = StrictReader()
    few = b"[" + b",".join(b"%d" % (10**30 + n) for n in range(5)) + b"]"
    for inner in (
        b"",
        b',"k":[1,2,3,4,5,6,7,8,9]',
        b',"s":"\\""',
        b',"few":' + few,
        b',"s":"' + VECTOR + b'"',
    ):
        raw = b'{"v":' + VECTOR + b',"w":[' + VECTOR + b"," + VECTOR + b"]" + inner + b"}"
        reader.read(raw)
        assert reader.digest(raw) == digest(raw)
        assert reader.digest(b"x" + raw) == digest(b"x" + raw)


def test_a_skeleton_tells_a_body_that_says_nan_from_one_that_was_cut() -> None:
    reader = StrictReader()
    skeleton, count = reader.skeleton(b'{"v":' + VECTOR + b"}")
    assert (skeleton, count) == (b'{"v":NaN}', 1)
    assert reader.skeleton(b'{"v":NaN}') == (b'{"v":NaN}', 0)
    padded = b'{"v":NaN}'.ljust(200)
    assert reader.skeleton(padded) == (padded, 0)


# The fast reader against the slow one.

NAMES = st.sampled_from(["vector", "a", 'q"', "\\", "ü", "NaN", "[1,2]", VECTOR.decode()])
TEXTS = st.one_of(
    st.text(max_size=8), st.just("x" + VECTOR.decode()), st.sampled_from(['"', "\\", "NaN", "[", "]"])
)
VECTORS = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=40)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), TEXTS, VECTORS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(VALUES, st.booleans())
def test_every_body_reads_as_the_full_parser_reads_it(value: object, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    reader = StrictReader()
    tree = reader.read(raw)
    assert json.loads(write(tree)) == value
    recorded, _ = found = digest(raw)
    json.loads(recorded)
    assert reader.digest(raw) == found


@settings(max_examples=60, deadline=None)
@given(
    VALUES,
    st.integers(0, 400),
    st.sampled_from([b'"', b"\\", b"NaN", b"[", b"]", b",", b"{", b"\\u", VECTOR]),
)
def test_a_broken_body_is_read_as_the_full_parser_reads_it_or_refused(
    value: object, at: int, junk: bytes
) -> None:
    raw = json.dumps(value).encode()
    raw = raw[: at % (len(raw) + 1)] + junk + raw[at % (len(raw) + 1) :]
    try:
        tree = StrictReader().read(raw)
    except BodyRefusal:
        return
    assert json.loads(write(tree)) == json.loads(raw)


@pytest.mark.parametrize("unit", [b'\\"', b'"\\', b'"', b"\\"])
def test_deep_bodies_with_open_strings_are_refused_in_linear_time(unit: bytes) -> None:
    def read(units: int) -> None:
        with pytest.raises(BodyRefusal):  # 5 s for each 32 KB where every quote reads on to the end
            StrictReader().read(b"[" * 65 + unit * units)

    assert_linear(read, 64_000)


def test_a_long_string_of_escapes_is_read_in_memory_of_its_own_size() -> None:
    raw = b'{"text":"' + b"\\n" * 250_000 + b'"}'  # 32 MiB where the search may go back
    tracemalloc.start()
    try:
        assert len(StrictReader().read(raw)["text"]) == 250_000
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def _cut_bracket_by_bracket(raw: bytes, least: int) -> tuple[list[bytes], list[bytes], list[int]]:
    """`cut_arrays` as it is meant: every innermost pair of brackets is looked at."""
    pieces, cuts, dims, done = [], [], [], 0
    for end in [at for at, byte in enumerate(raw) if byte == 0x5D]:
        start = max(raw.rfind(b"[", done, end), raw.rfind(b"]", 0, end))
        inner = raw[start : end + 1]
        if start < done or end - start < least or inner[:1] != b"[":
            continue
        if inner[1:2] in b"0123456789+-.eE, \t\r\n" and not inner[1:-1].strip(b"0123456789+-.eE, \t\r\n"):
            pieces.append(raw[done:start])
            cuts.append(inner)
            dims.append(inner.count(b",") + 1)
            done = end + 1
    return [*pieces, raw[done:]], cuts, dims


@given(
    st.lists(
        st.one_of(
            st.sampled_from([b"[", b"]", b"[[", b"]]", b'"', b"{", b"}", b",", b" ", b"x", b"NaN"]),
            st.integers(1, 40).map(lambda n: b"1," * n + b"2"),
            st.integers(14, 18).map(lambda n: b"[" + b"3" * n + b"]"),
        ),
        max_size=30,
    ).map(b"".join),
    st.sampled_from([_SHORTEST, LONG]),
)
@settings(max_examples=300)
def test_arrays_are_found_as_if_every_bracket_were_looked_at(raw: bytes, least: int) -> None:
    found = cut_arrays(raw, least)
    assert (found.pieces, found.cuts, found.dims) == _cut_bracket_by_bracket(raw, least)
