# SPDX-License-Identifier: Apache-2.0
"""``vecward ca``: what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.cli.main import main


def run(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[int, str, str]:
    code = main.main(["-c", str(folder / "vecward.yaml"), "ca", *args], standalone_mode=False)
    out, err = capsys.readouterr()
    return int(code or 0), out, err


def test_init_issue_and_show_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, tmp_path, "init", "--name", "Lab", "--json")
    assert (code, json.loads(out)["subject"]) == (0, "CN=Lab")
    code, out, _ = run(capsys, tmp_path, "issue", "db.lab", "--san", "127.0.0.1", "--json")
    made = json.loads(out)
    assert (made["names"], made["role"]) == (["db.lab", "127.0.0.1"], "server")
    assert Path(made["key"]).read_text().startswith("-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in out
    code, out, _ = run(capsys, tmp_path, "show", "--json")
    assert [one["role"] for one in json.loads(out)["certificates"]] == ["ca", "server"]


def test_for_people_it_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, tmp_path, "init")
    run(capsys, tmp_path, "issue", "etl", "--client")
    code, out, _ = run(capsys, tmp_path, "show")
    assert code == 0
    assert out.index("ca.crt") < out.index("etl.crt") < out.index("CN=etl")


@pytest.mark.parametrize(("args", "said"), [(("show",), "ca init"), (("issue", "db"), "ca init")])
def test_without_an_authority_it_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    code, out, err = run(capsys, tmp_path, *args)
    assert (code, out) == (1, "")
    assert said in err


def test_a_second_authority_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, tmp_path, "init")
    before = (tmp_path / "ca" / "ca.key").read_bytes()
    code, _, err = run(capsys, tmp_path, "init")
    assert (code, "is there already" in err) == (1, True)
    assert (tmp_path / "ca" / "ca.key").read_bytes() == before
