# SPDX-License-Identifier: Apache-2.0
"""The corpus of statements as it is read without a server: actions, collections, probes, what may come out.

The catalog is a recording (tests/data/sql/catalog.json); tests/servers/test_sql_corpus.py compares both
with the real PostgreSQL.
"""

from __future__ import annotations

import pytest

from agent.engines.pgvector_reading import PgReading, operation
from agent.engines.sql_walk import resolve
from tests.unit.engines.sql_recorded import DATA, recorded_scope


def lines() -> list[str]:
    found = (DATA / "corpus.txt").read_text().splitlines()
    return [line for line in found if line and not line.startswith("#")]


def test_the_corpus_is_large_and_names_no_statement_twice() -> None:
    statements = [line.split(" | ", 4)[4] for line in lines()]
    assert len(statements) >= 450
    assert len(statements) == len(set(statements))


@pytest.mark.parametrize("line", lines())
def test_a_statement_is_read_as_the_corpus_says(line: str) -> None:
    actions, collections, probed, flags, text = line.split(" | ", 4)
    resolved = resolve(text, recorded_scope())
    found = operation(PgReading(text, resolved, "pg", len(text)), None, 0)
    told = {
        "vectors": found.vectors,
        "thresholds": found.thresholds,
        "unbounded": found.unbounded,
        "filter": found.carries_filter,
    }
    assert ",".join(sorted(found.actions)) == actions
    assert (" ".join(sorted(found.collections)) or "-") == collections
    assert (" ".join(sorted(found.probed)) or "-") == probed
    assert (" ".join(name for name, is_so in told.items() if is_so) or "-") == flags
    assert ("unknown" in found.actions) == (resolved.unknown is not None)
