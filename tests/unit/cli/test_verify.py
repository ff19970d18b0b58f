# SPDX-License-Identifier: Apache-2.0
"""``vecward verify`` and the reading commands on what the real recorder and ledger wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import main
from tests.unit.evidence.host import Host, Worker
from tests.unit.evidence.sample import card


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    host = Host(tmp_path / "evidence")
    made = host.worker()
    made.recorder.open_session("s1", card(guard="q", engine="qdrant"))
    for n in (1, 2, 3):
        made.exchange(n, body=b'{"result":[{"id":7,"score":0.5,"payload":{"t":"x"}}]}')
    made.recorder.close_session("s1", {"bytes_in": 10, "bytes_out": 20})
    made.turn()
    made.sign()
    yield made
    host.release()


def call(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["--dir", str(folder), *args])


def test_whole_evidence_is_whole_and_exit_0(worker: Worker, tmp_path: Path) -> None:
    result = call(tmp_path / "evidence", "verify")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("whole")
    made = json.loads(call(tmp_path / "evidence", "verify", "--json").stdout)
    assert (made["whole"], made["exchanges"], made["unknown"]["count"]) == (True, 3, 0)


def test_a_flipped_byte_is_named_and_exit_4(worker: Worker, tmp_path: Path) -> None:
    path = worker.folder / "000000.seg"
    if not path.exists():
        path = sorted(worker.folder.glob("*.seg"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    result = call(tmp_path / "evidence", "verify")
    assert result.exit_code == 4
    assert result.stdout.startswith("NOT WHOLE")
    assert "tampered" in result.stdout
    assert path.name in result.stdout
    assert json.loads(call(tmp_path / "evidence", "verify", "--json").stdout)["whole"] is False


def test_a_key_that_is_not_the_hosts_proves_nothing(worker: Worker, tmp_path: Path) -> None:
    key = tmp_path / "other.pub"
    key.write_text("00" * 32)
    assert call(tmp_path / "evidence", "verify", "--key", str(key)).exit_code != 0


def test_the_reading_commands_show_what_the_recorder_wrote(worker: Worker, tmp_path: Path) -> None:
    (session,) = json.loads(call(tmp_path / "evidence", "sessions", "--json").stdout)
    assert (session["session"], session["user"], session["requests"], session["bytes_out"]) == (
        "s1",
        "rag",
        3,
        20,
    )
    shown = json.loads(
        call(tmp_path / "evidence", "show", f"s1@{session['evidence']['stream']}", "--json").stdout
    )
    assert [e["outcome"] for e in shown["exchanges"]] == ["answered"] * 3
    assert "0.5" in call(tmp_path / "evidence", "replay", "s1").stdout


def test_an_exported_page_says_that_it_was_verified_and_signed(worker: Worker, tmp_path: Path) -> None:
    target = tmp_path / "s1.html"
    result = call(tmp_path / "evidence", "export", "--format", "html", "-s", "s1", "-o", str(target))
    assert result.exit_code == 0, result.output
    page = target.read_text()
    assert '<p class="proof good">whole' in page
    assert page.count("<th>Signed</th><td>yes</td>") == 3
