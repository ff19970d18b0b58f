# SPDX-License-Identifier: Apache-2.0
"""Whether a caller has any right left: what closes its open session after a reload."""

from __future__ import annotations

import pytest

from tests.unit.policy.tables import NOW, policy, who

RULE = "  - id: a\n    what: {guard: q, action: [search]}\n    allow: true\n"


def has_rights(rules: str, caller: str) -> bool:
    return policy(rules).bind(who(caller), "q").has_rights(NOW)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", True),
        ("    who: {user: eve}\n", False),
        ("    who: {user: bob}\n", True),
        ("    unless: {who: {user: bob}}\n", False),
        ("    unless: {who: {user: bob}, what: {guard: q}}\n", False),
        ("    unless: {who: {user: eve}}\n", True),
        ("    unless: {who: {user: bob}, what: {action: count}}\n", True),
        ("    mode: shadow\n", False),
    ],
)
def test_a_caller_has_rights_while_any_allow_could_still_be_met(more: str, expected: bool) -> None:
    assert has_rights(RULE + more, "user=bob") is expected
