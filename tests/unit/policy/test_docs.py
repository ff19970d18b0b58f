# SPDX-License-Identifier: Apache-2.0
"""docs/policy.md says what the code does: its first policy passes, its keys are all there."""

from __future__ import annotations

import re
from pathlib import Path

from policy.cases import run_cases
from policy.compile import Policy
from policy.context import GuardContext, GuardInfo
from policy.document import load_policy
from policy.model import Action, Attribution, Subject
from policy.operation import Operation
from policy.schema import LimitModel, MaskModel, RecordModel, RuleModel, WhatModel, WhoModel
from tests.unit.policy.tables import NOW

TEXT = (Path(__file__).parents[3] / "docs" / "policy.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
NAMED = (("qdrant-prod", "qdrant"), ("chroma", "chroma"), ("pg", "pgvector"))
GUARDS = GuardContext(tuple(GuardInfo(name, engine) for name, engine in NAMED), NOW)


def test_every_key_of_the_language_is_in_the_reference() -> None:
    for model in (RuleModel, WhoModel, WhatModel, LimitModel, MaskModel, RecordModel):
        for name, field in model.model_fields.items():
            assert re.search(rf"`[^`\n]*\b{field.alias or name}\b[^`]*`", TEXT), name
    for action in Action:
        assert f"`{action.value}`" in TEXT


def test_the_first_policy_of_the_reference_passes_its_own_cases() -> None:
    document = load_policy([("docs", BLOCKS[0])], GUARDS)
    results = run_cases(Policy(document.rules), document.cases, {"qdrant-prod": "qdrant"}, NOW)
    assert [result.passed for result in results] == [True, True]


def test_every_rule_shown_in_the_reference_is_taken() -> None:
    shown = [block for block in BLOCKS if block.lstrip().startswith("- ")]
    assert len(shown) == 5
    for block in shown:
        load_policy([("docs", "version: 1\nrules:\n" + block)], GUARDS)


def test_the_recipe_refuses_embeddings_by_name_and_strips_them_for_who_may_search() -> None:
    block = next(block for block in BLOCKS if "contracts-are-for-rag" in block)
    policy = Policy(load_policy([("docs", "version: 1\nrules:\n" + block)], GUARDS).rules)
    asked = Operation(
        engine="chroma",
        guard="chroma",
        method="query",
        actions=frozenset({Action.SEARCH}),
        collections=frozenset({"contracts"}),
        vectors=True,
    )
    refused = policy.bind(Subject(Attribution.KERNEL, user="mallory"), "chroma").decide(asked, NOW)
    assert (refused.outcome, refused.rule) == ("deny", "contracts-are-for-rag")
    allowed = policy.bind(Subject(Attribution.KERNEL, user="rag"), "chroma").decide(asked, NOW)
    assert (allowed.outcome, allowed.vectors, allowed.vectors_rule) == ("allow", False, "rag-searches")
