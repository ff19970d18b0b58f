# SPDX-License-Identifier: Apache-2.0
"""Restrictions in sum, and the ways around them that must not work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from policy.combine import RecordDefaults, combine
from policy.model import Limit
from policy.rules import LimitSpec, MaskSpec, RecordSpec, Rule
from tests.unit.policy.tables import verdict, what, who

MASKED = "  - {id: a, allow: true, mask: [{field: payload.people.ssn}, {field: 'payload.*.tax'}]}"


@pytest.mark.parametrize(
    "probe",
    [
        "people.ssn",
        "payload.people.ssn",
        "people[].ssn",
        "people[0].ssn",
        '"people"."ssn"',
        '"people.ssn"',
        "people",
        "people.ssn.area",
        "payload",
        "other.tax",
        "*",
    ],
)
def test_no_spelling_of_a_masked_field_may_be_probed(probe: str) -> None:
    refused = verdict(MASKED, "user=u", f"action=search probed={probe}")
    assert (refused.outcome, refused.rule) == ("deny", "a")


@pytest.mark.parametrize("probe", ["people.name", "ssn", "peoples", "tax"])
def test_another_field_may_be_probed(probe: str) -> None:
    assert (
        verdict(
            MASKED.replace(", {field: 'payload.*.tax'}", ""), "user=u", f"action=search probed={probe}"
        ).rule
        == "a"
    )
    assert (
        verdict(
            MASKED.replace(", {field: 'payload.*.tax'}", ""), "user=u", f"action=search probed={probe}"
        ).outcome
        == "allow"
    )


@pytest.mark.parametrize("probe", ["secret.title", "titles", "address", "metadata.title", "*"])
def test_what_is_outside_the_fields_may_not_be_probed(probe: str) -> None:
    rules = "  - {id: a, allow: true, fields: [title, address.city]}"
    assert verdict(rules, "user=u", f"action=search probed={probe}").outcome == "deny"
    assert verdict(rules, "user=u", "action=search probed=title,address.city").outcome == "allow"


def test_a_mask_on_the_whole_payload_hides_every_field() -> None:
    rules = "  - {id: a, allow: true, mask: [{field: payload}]}"
    assert verdict(rules, "user=u", "action=search probed=anything").outcome == "deny"


def test_a_number_below_nothing_exceeds_a_limit() -> None:

    from policy.decide import decide
    from tests.unit.policy.tables import NOW, policy

    rules = policy("  - {id: a, allow: true, limit: {top_k: 5, offset: 5}}")
    asked = what("action=search top_k=5 offset=5")
    assert decide(rules, who("user=u"), asked, {}, NOW).outcome == "allow"
    assert decide(rules, who("user=u"), asked.changed(top_k=-1), {}, NOW).outcome == "deny"
    assert decide(rules, who("user=u"), asked.changed(offset=-1), {}, NOW).outcome == "deny"


def test_of_two_masks_on_one_field_the_stronger_holds() -> None:
    found = combine(
        [
            Rule("a", "", masks=(MaskSpec("x", how="hmac"), MaskSpec(pii=("email", "ip"), how="partial"))),
            Rule("b", "", masks=(MaskSpec("x", how="drop"), MaskSpec(pii=("ip",)), MaskSpec(scores=3))),
            Rule("c", "", masks=(MaskSpec("x", how="redact"), MaskSpec(scores=2))),
        ],
        RecordDefaults(),
    )
    told = {(mask.rule, mask.field, mask.pii, mask.scores, mask.how) for mask in found.masks}
    assert told == {
        ("b", "x", (), None, "drop"),
        ("a", None, ("email",), None, "partial"),
        ("b", None, ("ip",), None, "redact"),
        ("c", None, (), 2, "redact"),
    }


def test_the_lowest_limit_is_in_force_and_on_a_tie_the_one_that_denies() -> None:
    found = combine(
        [
            Rule("a", "", limits=(LimitSpec("top_k", 5, "clamp"),)),
            Rule("b", "", limits=(LimitSpec("top_k", 5, "deny"), LimitSpec("rows", 9, "deny"))),
            Rule("c", "", limits=(LimitSpec("top_k", 7, "deny"),)),
        ],
        RecordDefaults(),
    )
    assert set(found.limits) == {Limit("top_k", 5, "deny", "b"), Limit("rows", 9, "deny", "b")}


@pytest.mark.parametrize(
    ("records", "level", "mode"),
    [
        ([], "hashes", "strict"),
        ([RecordSpec("full")], "full", "strict"),
        ([RecordSpec("full"), RecordSpec("meta")], "meta", "strict"),
        ([RecordSpec("full", force=True), RecordSpec("meta")], "full", "strict"),
        ([RecordSpec(mode="best-effort"), RecordSpec(mode="strict-sync")], "hashes", "strict-sync"),
        ([RecordSpec(mode="best-effort")], "hashes", "best-effort"),
    ],
)
def test_the_record_is_the_lowest_level_unless_forced_and_the_strictest_mode(
    records: list[RecordSpec], level: str, mode: str
) -> None:
    rules = [Rule(f"r{at}", "", record=record) for at, record in enumerate(records)]
    found = combine(rules, RecordDefaults("hashes", "strict"))
    assert (found.level, found.mode) == (level, mode)


def test_a_filter_of_true_and_one_of_1_are_two_filters() -> None:
    found = combine(
        [Rule("a", "", filter=(("x", True),)), Rule("b", "", filter=(("x", 1),))], RecordDefaults()
    )
    assert [
        (type(value), rule) for (_, value), rule in zip(found.filters, found.filter_rules, strict=True)
    ] == [
        (bool, "a"),
        (int, "b"),
    ]


def test_a_worker_compiles_and_decides_without_the_parsers_of_policy_files() -> None:
    code = (
        "import sys, policy.compile, policy.decide, policy.mask;"
        "loaded = {name.split('.')[0] for name in sys.modules};"
        "sys.exit(', '.join({'pydantic', 'ruamel', 're2'} & loaded) or None)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
