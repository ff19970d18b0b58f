# SPDX-License-Identifier: Apache-2.0
"""One normal form for a target; the refusals are in tests/wire/test_attacks.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocols.session import ProtocolError
from agent.protocols.target import MAX_QUERY_PAIRS, check_host, encode_path, encode_query, parse_target


def test_a_path_is_decoded_into_segments_and_encoded_in_one_way() -> None:
    target = parse_target("//collections/my%20docs//%7Ex/?limit=3&q=a+b&q=%C3%BC", "db", "GET")
    assert target.segments == ("collections", "my docs", "~x")
    assert target.path == "/collections/my%20docs/~x"
    assert target.query == (("limit", "3"), ("q", "a b"), ("q", "ü"))
    assert target.encoded == "limit=3&q=a%20b&q=%C3%BC"


def test_a_query_may_hold_what_a_path_may_not() -> None:
    target = parse_target("/c?filter=a%2F..%2Fb%25", "db", "GET")
    assert target.query == (("filter", "a/../b%"),)


def test_a_query_has_a_bound() -> None:
    with pytest.raises(ProtocolError, match=str(MAX_QUERY_PAIRS)):
        parse_target("/c?" + "a=1&" * (MAX_QUERY_PAIRS + 1), "db", "GET")


def test_options_may_ask_for_the_whole_server() -> None:
    assert parse_target("*", "db", "OPTIONS").path == "*"


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\%"), min_size=1))
)
def test_a_normal_form_is_its_own_normal_form(parts: list[str]) -> None:
    segments = tuple(part for part in parts if part not in (".", ".."))
    target = parse_target(encode_path(segments), "db", "GET")
    assert target.segments == segments
    assert target.path == encode_path(segments)


@given(st.lists(st.tuples(st.text("ab &=+%/;ü", min_size=1), st.text("ab &=+%/;ü")), max_size=5))
def test_a_query_survives_its_own_encoding(pairs: list[tuple[str, str]]) -> None:
    query = tuple(pairs)
    assert parse_target(f"/c?{encode_query(query)}", "db", "GET").query == query


@given(st.text(st.characters(max_codepoint=255)))
def test_any_target_is_refused_or_normal(raw: str) -> None:
    try:
        target = parse_target(raw, "db", "GET")
    except ProtocolError:
        return
    assert target.path.startswith("/")
    assert "//" not in target.path
    again = parse_target(target.path + ("?" + target.encoded if target.encoded else ""), "db", "GET")
    assert (again.path, again.query) == (target.path, target.query)


@pytest.mark.parametrize("host", ["db", "db:6333", "127.0.0.1:8000", "[::1]:80", "[fe80::1%25eth0]", ""])
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize("host", ["a b", "a@b", "a/b", "db:port", "[::1", "a,b", "db:80:80", "ü"])
def test_anything_else_is_no_host(host: str) -> None:
    with pytest.raises(ProtocolError):
        check_host(host)
