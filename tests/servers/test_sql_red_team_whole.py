# SPDX-License-Identifier: Apache-2.0
"""The red team over the whole path: psql, kernel, worker, evidence. One connection for each policy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.postgres import OWNER, SECRET, PostgresStage
from tests.servers.red_team import SCHEMA, canaries, texts_of
from tests.servers.test_sql_red_team import CASES, RULES
from tests.venvs import NoVenv

SKIPPED = re.compile("FROM STDIN|FORMAT binary")  # psql reads on for rows; its output would be no text


@pytest.fixture(scope="module")
def stage() -> Iterator[PostgresStage]:
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(PostgresStage())
            made.start_postgres()
        except NoVenv as missing:
            pytest.skip(str(missing))
        schema = SCHEMA.read_text()
        made.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=schema, direct=True)
        yield made


def script(cases: list[dict[str, Any]]) -> str:
    lines = ["\\set VERBOSITY verbose"]
    for number, case in enumerate(cases):
        lines += [f"\\warn @{number}", f"\\echo @{number}", "BEGIN;"]
        lines += [text if text.endswith(";") else f"{text};" for text in texts_of(case)]
        lines += ["ROLLBACK;", "DEALLOCATE ALL;"]
    return "\n".join(lines)


@pytest.mark.parametrize("under", ["masks", "fields", "tenant"])
def test_no_canary_reaches_psql_and_each_refusal_is_in_the_evidence(stage: PostgresStage, under: str) -> None:
    cases = [case for case in CASES if case["under"] == under and not SKIPPED.search(str(case["sql"]))]
    stage.vecward(
        "version: 1\nrules:\n" + RULES[under],
        credential={"user": OWNER, "password": stage.hold("pg", SECRET)},
    )
    try:
        done = stage.program("psql", "-X", "-q", stdin=script(cases), check=False)
        seen = (done.stdout + done.stderr).encode()
        own = "\n".join(text for case in cases for text in texts_of(case)).encode()
        assert [one for one in canaries(under) if len(one) > 4 and one in seen and one not in own] == []
        parts = [part.partition("\n") for part in ("\n" + done.stderr).split("\n@")[1:]]
        errors = {number.strip(): told for number, _, told in parts}
        for number, case in enumerate(cases):
            told = errors[str(number)]
            if "refused" in case:
                assert "42501" in told, (case, told)
                assert case["refused"] in told
            else:
                assert case.get("fails", "") in told
                assert "42501" not in told, (case, told)
        session = max(stage.json("sessions"), key=lambda one: str(one["started"]))
        assert session["requests"] > len(cases)
        assert session["denied"] >= sum("refused" in case for case in cases)
        shown = stage.cli("replay", session["session"]).stdout
        assert "SELECT * FROM docs" in shown or "id=1" in shown
        assert [
            one for one in canaries(under) if len(one) > 4 and one in shown.encode() and one not in own
        ] == []
    finally:
        stage.stop()
