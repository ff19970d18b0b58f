# SPDX-License-Identifier: Apache-2.0
"""Masks on an engine whose fields are columns: they have any name."""

from __future__ import annotations

from policy.context import GuardContext, GuardInfo
from policy.document import load_policy
from tests.unit.policy.tables import NOW

RULES = """version: 1
rules:
  - {id: m, what: {guard: pg}, mask: [{field: docs.email, as: hmac}, {field: public.docs.phone}]}
"""


def test_any_column_can_be_masked_where_fields_are_columns() -> None:
    guards = GuardContext((GuardInfo("pg", "pgvector", frozenset({"*"})),), NOW)
    masks = load_policy([("p.yaml", RULES)], guards).rules[0].masks
    assert [mask.field for mask in masks] == ["docs.email", "public.docs.phone"]
