# SPDX-License-Identifier: Apache-2.0
"""An operation is a value: told by its fields, copied with others, never changed in place."""

from __future__ import annotations

from policy.model import Action
from policy.operation import FIELDS, Operation

ASKED = Operation(
    "pgvector", "pg", "SELECT", frozenset({Action.SEARCH}), frozenset({"db/public/papers"}), 10, False, 5,
    True, frozenset({"title"}), frozenset({"year"}), True, True, True, 2, 3, 400, True,
)  # fmt: skip


def test_operations_with_equal_fields_are_equal_and_hash_alike() -> None:
    same = ASKED.changed()
    assert same is not ASKED
    assert same == ASKED
    assert hash(same) == hash(ASKED)
    assert ASKED != "SELECT"


def test_a_difference_in_any_field_tells_two_apart() -> None:
    others: dict[str, object] = {
        "actions": frozenset({Action.SCAN}),
        "fields": None,
        "top_k": None,
        "offset": None,
    }
    for name in FIELDS:
        value = getattr(ASKED, name)
        other = others.get(
            name, not value if value.__class__ is bool else value.__class__() if value else value
        )
        assert ASKED.changed(**{name: other}) != ASKED, name
        assert getattr(ASKED.changed(**{name: other}), name) == other


def test_what_is_known_only_now_changes_nothing_else() -> None:
    known = ASKED.asking(None, True, None, 7)
    assert known == ASKED.changed(top_k=None, unbounded=True, offset=None, bytes=7)


def test_a_copy_tells_each_field_by_name() -> None:
    assert all(f"{name}=" in repr(ASKED) for name in FIELDS)
