# SPDX-License-Identifier: Apache-2.0
"""What is kept of described statements is what making it anew gives, and nothing of parameters."""

from __future__ import annotations

from agent.engines import pgvector_describe
from agent.engines.pgvector_kept import MAX_BODY, MOST_BODIES, Kept
from agent.protocols.sql import Parameter

VECTOR = "[" + ",".join(f"0.{n}" for n in range(16)) + "]"
TEXT = f"SELECT id FROM papers ORDER BY embedding <=> '{VECTOR}' LIMIT 10"


def test_a_statement_met_again_is_described_and_digested_as_the_first_time() -> None:
    kept = Kept(b"k" * 32)
    for _ in range(2):
        body = kept.describe(TEXT, (), {})
        assert body == pgvector_describe.describe(TEXT, (), {})
        assert kept.digest(body) == pgvector_describe.digest(body)
        assert kept.digest(body)[1] == 1
        assert VECTOR.encode() not in kept.digest(body)[0]


def test_parameters_are_described_each_time_and_not_kept() -> None:
    kept = Kept(b"k" * 32)
    for value in (b"one", b"two"):
        parameters = (Parameter(25, 0, value),)
        body = kept.describe("SELECT $1", parameters, {})
        assert body == pgvector_describe.describe("SELECT $1", parameters, {})
        assert value in body
        assert kept.digest(body) == (body, 0)
    assert not kept._bodies
    assert not kept._digests


def test_what_is_kept_of_statements_is_bounded() -> None:
    kept = Kept(b"k" * 32)
    for n in range(MOST_BODIES * 2 + 3):
        kept.describe(f"SELECT {n}", (), {})
        assert len(kept._bodies) <= MOST_BODIES
        assert len(kept._digests) <= MOST_BODIES
    kept.describe("SELECT '" + "x" * MAX_BODY + "'", (), {})
    assert all(len(text) <= MAX_BODY for text in kept._bodies)
