# SPDX-License-Identifier: Apache-2.0
"""The language in its own words: policy files with cases, each of which must come out as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.cases import run_cases
from policy.compile import Policy
from policy.document import load_policy
from tests.unit.policy.tables import CONTEXT, ENGINES, NOW

TABLES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_every_case_of_the_table_comes_out_as_written(table: Path) -> None:
    document = load_policy([(table.name, table.read_text())], CONTEXT)
    results = run_cases(Policy(document.rules), document.cases, ENGINES, NOW)
    assert results
    assert [str(result.problem) for result in results if not result.passed] == []
