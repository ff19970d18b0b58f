# SPDX-License-Identifier: Apache-2.0
"""What is kept of described statements is what making it anew gives, and nothing of parameters."""

from __future__ import annotations

from agent.engines.pgvector_describe import Stated, describe
from agent.engines.pgvector_kept import MAX_STATED, MOST_STATED, Kept
from agent.protocols.sql_made import Described, Parameter

VECTOR = "[" + ",".join(f"0.{n}" for n in range(16)) + "]"
TEXT = f"SELECT id FROM papers ORDER BY embedding <=> '{VECTOR}' LIMIT 10"


def parts(one: Described) -> tuple[bytes, bytes, int, bytes]:
    return one.body, one.recorded, one.cut, one.sha256


def test_a_statement_met_again_is_described_as_the_first_time() -> None:
    kept = Kept(b"k" * 32)
    first = kept.describe(TEXT, (), {}, True)
    assert kept.describe(TEXT, (), {}, True) is first
    assert parts(first) == parts(describe(Stated(TEXT), (), {}, True))
    assert first.cut == 1
    assert VECTOR.encode() in first.body
    assert VECTOR.encode() not in first.recorded
    whole = kept.describe(TEXT, (), {}, False)
    assert parts(whole) == (first.body, first.body, 0, first.sha256)


def test_parameters_are_described_each_time_and_not_kept() -> None:
    kept = Kept(b"k" * 32)
    for value in (b"one of them", b"two of them"):
        parameters = (Parameter(25, 0, value),)
        made = kept.describe("SELECT $1", parameters, {}, True)
        assert parts(made) == parts(describe(Stated("SELECT $1"), parameters, {}, True))
        assert value in made.body
        assert made.recorded is made.body
    for one in kept._stated.values():
        for alone in (one.alone(True), one.alone(False)):
            assert parts(alone)[:3] == (b'{"statement":"SELECT $1"}', b'{"statement":"SELECT $1"}', 0)


def test_what_is_kept_of_statements_is_bounded() -> None:
    kept = Kept(b"k" * 32)
    for n in range(MOST_STATED * 2 + 3):
        kept.describe(f"SELECT {n}", (), {}, True)
        assert len(kept._stated) <= MOST_STATED
    kept.describe("SELECT '" + "x" * MAX_STATED + "'", (), {}, True)
    assert all(len(text) <= MAX_STATED for text in kept._stated)
