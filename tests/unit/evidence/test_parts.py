# SPDX-License-Identifier: Apache-2.0
"""What was asked is on record whatever numbers a client wrote."""

from __future__ import annotations

import msgspec

from agent.evidence.parts import operation_part
from policy.model import Action
from policy.operation import Operation


def test_more_rows_than_64_bits_can_say_are_recorded_as_the_most_there_is() -> None:
    asked = Operation(
        "qdrant", "q", "m", frozenset({Action.SEARCH}), top_k=2**70, offset=2**64, queries=2**80, rows=3
    )
    part = operation_part(asked)
    assert msgspec.msgpack.encode(part)
    assert (part.top_k, part.offset, part.queries, part.rows) == (2**63 - 1, 2**63 - 1, 2**63 - 1, 3)
    assert part.actions == ["search"]


def test_what_was_not_asked_stays_unsaid() -> None:
    part = operation_part(Operation("qdrant", "q", "m", frozenset({Action.COUNT})))
    assert part.top_k is None
    assert part.offset is None
