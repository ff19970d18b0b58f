# SPDX-License-Identifier: Apache-2.0
"""SQL exchanges as people read them."""

from __future__ import annotations

import json
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.whole import body_lines
from agent.evidence.assemble import Pieces, exchange_of
from agent.evidence.replay import Hit, hits
from agent.evidence.wire import MAX_ROWS, answer_lines, grids, request_lines
from tests.unit.evidence.sample import answered, asked


def message(kind: bytes, body: bytes) -> bytes:
    return kind + pack("!i", len(body) + 4) + body


def described(*columns: tuple[str, int, int]) -> bytes:
    fields = b"".join(
        name.encode() + b"\0" + pack("!IhIhih", 0, 0, kind, -1, -1, form) for name, kind, form in columns
    )
    return message(b"T", pack("!H", len(columns)) + fields)


def row(*cells: bytes | None) -> bytes:
    return message(
        b"D",
        pack("!H", len(cells))
        + b"".join(pack("!i", -1) if cell is None else pack("!i", len(cell)) + cell for cell in cells),
    )


VECTOR = json.dumps({"dim": 3, "sha256": "ab" * 32}, separators=(",", ":")).encode()
ANSWER = (
    described(("id", 23, 1), ("title", 25, 0), ("embedding", 90001, 1))
    + row(pack("!i", 7), b"one\ntwo", VECTOR)
    + row(pack("!i", 8), None, b"\0\1")
    + message(b"C", b"SELECT 2\0")
)


def test_an_answer_reads_like_psql() -> None:
    assert answer_lines(ANSWER) == [
        "id | title    | embedding",
        "---+----------+----------------------",
        "7  | one\\ntwo | <vector 3: abababab…>",
        "8  | NULL     | \\x0001",
        "SELECT 2",
    ]
    assert body_lines(ANSWER)[0] == "id | title    | embedding"


def test_an_error_shows_its_code_and_message() -> None:
    error = message(b"E", b"SERROR\0C42501\0Mdenied by rule r\0Ddetail here\0\0")
    assert answer_lines(error) == ["ERROR 42501: denied by rule r", "detail: detail here"]


def test_a_statement_is_shown_as_it_was_written() -> None:
    body = json.dumps({"statement": "SELECT 1\nWHERE x = $1", "parameters": ["a", None, json.loads(VECTOR)]})
    made = request_lines(body.replace('": ', '":', 1).encode())
    assert made == ["SELECT 1", "WHERE x = $1", "$1 = a", "$2 = NULL", "$3 = <vector 3: abababab…>"]


def test_the_rows_of_a_replay_carry_their_keys() -> None:
    exchange = exchange_of(
        "s", "s1", 1, Pieces(asked("s1", 1), 1), answered("s1", 1, body=ANSWER, ids=("7", "8")), 2
    )
    assert hits(exchange) == [
        Hit("7", None, "id=7  title=one\ntwo  embedding=<vector 3: abababab…>"),
        Hit("8", None, "id=8  title=NULL  embedding=\\x0001"),
    ]


def test_rows_without_a_description_are_shown_too() -> None:
    assert answer_lines(row(b"x", b"\xff")) == [
        "column 1 | column 2",
        "---------+---------",
        "x        | \\xff",
    ]


def test_long_answers_are_bounded() -> None:
    made = grids(row(b"x") * (MAX_ROWS + 5))
    assert made is not None
    assert (len(made[0].rows), made[0].count) == (MAX_ROWS, MAX_ROWS + 5)


def test_copied_lines_are_rows() -> None:
    assert answer_lines(message(b"H", b"\0\0\0") + message(b"d", b"1\ta\n") + message(b"C", b"COPY 1\0")) == [
        "COPY", "----", "1\ta", "COPY 1",
    ]  # fmt: skip


@pytest.mark.parametrize("body", [None, b"", b'{"a":1}', b"Dxxxx", ANSWER[:-1], b"T" + ANSWER, ANSWER + b"D"])
def test_what_is_not_sql_is_shown_as_before(body: bytes | None) -> None:
    assert grids(body) is None


@given(st.binary(max_size=200), st.integers(0, len(ANSWER)))
def test_no_bytes_raise(noise: bytes, at: int) -> None:
    for body in (noise, ANSWER[:at] + noise, ANSWER[:at] + noise + ANSWER[at:]):
        answer_lines(body)
        request_lines(body)
        request_lines(b'{"statement":' + noise)
