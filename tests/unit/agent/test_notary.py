# SPDX-License-Identifier: Apache-2.0
"""The ledger on the agent's loop: keys made once, order kept, nothing dropped in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import notary as notary_module
from agent.config import Evidence
from agent.evidence.ledger import LedgerError
from agent.evidence.retention import Outcome
from agent.evidence.verify import verify
from agent.notary import Notary
from tests.unit.agent.turning import run, until


def evidence(folder: Path) -> Evidence:
    return Evidence(dir=folder / "evidence", reserve=4096)


def test_the_masking_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    key = Notary(evidence(tmp_path)).masking_key()
    file = tmp_path / "evidence" / "keys" / "mask.key"
    assert len(key) == 32
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert Notary(evidence(tmp_path)).masking_key() == key, "a value keeps its token"
    assert Notary(evidence(tmp_path / "other")).masking_key() != key


def test_the_mode_of_the_masking_key_does_not_hang_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Notary(evidence(tmp_path)).masking_key()
    finally:
        os.umask(before)
    assert (tmp_path / "evidence" / "keys" / "mask.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_masking_key_of_another_size_stops_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "evidence" / "keys").mkdir(parents=True)
    (tmp_path / "evidence" / "keys" / "mask.key").write_bytes(content)
    with pytest.raises(LedgerError, match="not a key of 32 bytes") as refused:
        Notary(evidence(tmp_path)).masking_key()
    assert content == b"" or content.decode() not in str(refused.value).replace(str(tmp_path), "")


def test_what_the_agent_did_is_signed_and_verifies(tmp_path: Path) -> None:
    async def story() -> None:
        notary = Notary(evidence(tmp_path))
        notary.masking_key()
        notary.start()
        notary.policy("hash-1", {"rules.yaml": "rules: []"})
        notary.admin("off", {"uid": 0}, {"guard": "q", "reason": "x"})
        notary.bypass({"guard": "q"})
        await notary.checkpoint({"accepted": 1})
        document = notary.document()
        assert (document["failures"], document["unsigned"], document["key_break"]) == (0, 0, False)
        notary.close({"accepted": 1})

    run(story)
    assert verify(tmp_path / "evidence").exit_code == 0


def test_what_the_ledger_refuses_is_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        notary = Notary(evidence(tmp_path))
        notary.admin("off", {}, {})  # before `start` there is no ledger
        await until(lambda: notary._failures)
        assert await notary.checkpoint({}) == {}
        notary.close({})
        assert notary._failures == 2

    run(story)
    said = capsys.readouterr().err
    assert "the ledger is not open" in said
    assert "evidence stays unsigned until this works again" in said


@pytest.mark.parametrize(("jumped", "taken"), [(0.0, True), (366 * 86400.0, False)])
def test_a_clock_that_jumped_takes_no_evidence_for_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jumped: float, taken: bool
) -> None:
    asked: list[int] = []

    def retain(*_: object, keep_ns: int, **__: object) -> Outcome:
        asked.append(keep_ns)
        return Outcome()

    monkeypatch.setattr(notary_module, "retain", retain)
    monkeypatch.setattr(notary_module, "RETENTION_EVERY", 0.0)

    async def story() -> None:
        notary = Notary(evidence(tmp_path))
        notary.masking_key()
        notary.start()
        before = notary_module._clock_offset()
        monkeypatch.setattr(notary_module, "_clock_offset", lambda: before + jumped)
        notary.tend({})
        await notary.checkpoint({})
        notary.close({})

    run(story)
    ninety_days = 90 * 86400 * 10**9
    assert asked[0] == (ninety_days if taken else notary_module.FOREVER_NS)
