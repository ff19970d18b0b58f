# SPDX-License-Identifier: Apache-2.0
"""The policy in force: read whole, tested by its own cases, or not taken at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import rulebook as rulebook_module
from agent.config import Config, ConfigError, Guard
from agent.rulebook import MAX_FILE, load_rulebook, read_files
from policy.compile import decode_rules
from policy.problem import PolicyError

ALLOW = """\
version: 1
rules:
  - id: app-searches
    who: {user: app}
    what: {guard: q, action: search}
    allow: true
"""


def config(*files: Path) -> Config:
    return Config(guards=(Guard(name="q", engine="qdrant", ports=(6333,)),), policy=files)


def write(folder: Path, text: str, name: str = "rules.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_policy_is_what_workers_get(tmp_path: Path) -> None:
    book = load_rulebook(config(write(tmp_path, ALLOW)), 0.0)
    assert [rule.id for rule in decode_rules(book.encoded)] == ["app-searches"]
    assert len(book.hash) == 64
    assert book.files == (tmp_path / "rules.yaml",)


def test_the_hash_changes_with_a_rule_and_not_with_a_comment(tmp_path: Path) -> None:
    first = load_rulebook(config(write(tmp_path, ALLOW)), 0.0).hash
    assert load_rulebook(config(write(tmp_path, ALLOW + "# said\n")), 0.0).hash == first
    assert load_rulebook(config(write(tmp_path, ALLOW.replace("app}", "apt}"))), 0.0).hash != first


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    file = write(tmp_path, ALLOW.replace("allow: true", "alow: true"))
    with pytest.raises(PolicyError, match=rf"{file}:\d+"):
        load_rulebook(config(file), 0.0)


CASE = """\
tests:
  - name: strangers do not search
    who: {user: USER}
    what: {guard: q, action: search, collection: docs}
    expect: deny
"""


def test_a_case_that_fails_keeps_the_policy_out(tmp_path: Path) -> None:
    good = write(tmp_path, ALLOW + CASE.replace("USER", "stranger"))
    assert load_rulebook(config(good), 0.0).policy.hash
    bad = write(tmp_path, ALLOW + CASE.replace("USER", "app"))
    with pytest.raises(PolicyError, match=r"rules\.yaml:\d+") as refused:
        load_rulebook(config(bad), 0.0)
    assert "strangers do not search" in str(refused.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"gone.yaml: No such file"):
        read_files([tmp_path / "gone.yaml"])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary.yaml: not UTF-8"):
        read_files([tmp_path / "binary.yaml"])
    with pytest.raises(ConfigError, match="larger than 1048576 bytes; split it"):
        read_files([write(tmp_path, "#" * (MAX_FILE + 1), "big.yaml")])
    monkeypatch.setattr(rulebook_module, "MAX_FILES", 2)
    with pytest.raises(ConfigError, match="3 policy files; at most 2"):
        read_files([tmp_path] * 3)
