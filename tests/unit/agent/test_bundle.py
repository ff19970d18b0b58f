# SPDX-License-Identifier: Apache-2.0
"""The support bundle: what is in it, and what is not whatever the host's files say."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import Leak, attempt, check_secrets, config_part, redact_config, redact_status, write_bundle
from agent.cli.main import main
from tests.unit.evidence.sample import story

SECRET = "hunter2-is-the-key"
CONFIG = f"""\
# the password is {SECRET}
guards:
  - name: docs
    engine: qdrant
    ports: [6333]
    credential: {{api_key: secret-file.key}}
    tls: {{cert: /etc/ssl/private-place.pem, key: /etc/ssl/private-place.key, client_cert: none}}
    peers: [{{remote: 10.9.8.7, port: 6333}}]
policy: [policy.d]
evidence: {{dir: evidence, level: masked}}
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "vecward.yaml").write_text(CONFIG)
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d" / "a.yaml").write_text("version: 1\nrules: [{id: tenant-acme-rule}]\n")
    (tmp_path / "credentials").mkdir()
    key = tmp_path / "credentials" / "secret-file.key"
    key.write_text(SECRET)
    key.chmod(0o600)
    story(tmp_path / "evidence")
    return tmp_path


def bundle(host: Path, *args: str) -> dict[str, str]:
    out = host / "report.tar.gz"
    result = CliRunner().invoke(main, ["-c", str(host / "vecward.yaml"), "report", "-o", str(out), *args])
    assert result.exit_code == 0, result.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with tarfile.open(out) as archive:
        members = archive.getmembers()
        assert all(m.name.startswith("report/") and m.isfile() for m in members)
        return {m.name.removeprefix("report/"): archive.extractfile(m).read().decode() for m in members}  # type: ignore[union-attr]


def test_a_bundle_has_the_parts_and_none_of_the_secrets(host: Path) -> None:
    parts = bundle(host)
    assert {"README.txt", "versions.json", "status.json", "doctor.json", "metrics.txt", "files.txt"} <= set(
        parts
    )
    everything = "\n".join(parts.values())
    for word in (SECRET, "secret-file", "private-place", "10.9.8.7", "tenant-acme-rule", "contracts", "ada"):
        assert word not in everything.replace("vecward-audit", ""), word
    known = json.loads(parts["config/vecward.yaml.json"])
    assert (known["guards"][0]["name"], known["guards"][0]["ports"]) == ("docs", [6333])
    assert known["guards"][0]["credential"] == "[redacted]"
    assert known["guards"][0]["tls"]["client_cert"] == "none"
    assert "segment" in parts["files.txt"] or "entries" in parts["files.txt"]
    assert json.loads(parts["versions.json"])["kernel"] == os.uname().release


def test_no_agent_is_said_in_its_place(host: Path) -> None:
    assert bundle(host)["status.json"].startswith("not available")


def test_a_broken_configuration_shows_where_and_not_what(host: Path) -> None:
    (host / "vecward.yaml").write_text(f"guards: [{{name: docs, pasword: {SECRET}}}]\n")
    parts = bundle(host)
    assert SECRET not in "\n".join(parts.values())
    assert "vecward.yaml:1" in parts["config/problems.txt"]


def test_an_unreadable_configuration_is_no_reason_to_fail(host: Path) -> None:
    (host / "vecward.yaml").write_text(f"{SECRET}: [")
    parts = bundle(host)
    assert SECRET not in "\n".join(parts.values())


def test_a_bundle_that_would_hold_a_credential_is_not_written(host: Path) -> None:
    (host / "vecward.yaml").write_text(
        CONFIG.replace("evidence: {dir: evidence", f"evidence: {{dir: {SECRET}")
    )
    out = host / "report.tar.gz"
    result = CliRunner().invoke(main, ["-c", str(host / "vecward.yaml"), "report", "-o", str(out)])
    assert result.exit_code == 1
    assert "holds a credential" in result.stderr
    assert SECRET not in result.stderr
    assert not out.exists()


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").symlink_to("/tmp/elsewhere")
    with pytest.raises(FileExistsError):
        write_bundle(tmp_path / "x.tar.gz", {"a": "b"})


def test_the_status_tells_no_address_no_reason_and_no_line_of_the_policy() -> None:
    made = redact_status(
        {
            "guards": [
                {"name": "q", "off": {"until": None, "reason": "because of Bob"},
                 "pre_existing_connections": [{"client_addr": "10.1.1.1"}]},
                {"name": "o", "off": None, "pre_existing_connections": []},
            ],
            "policy": {"problem": "a.yaml:3: unknown key `tenant-acme`\n    tenant-acme: x", "warnings": []},
        }
    )  # fmt: skip
    text = json.dumps(made)
    assert "Bob" not in text
    assert "10.1.1.1" not in text
    assert "tenant-acme" not in text
    assert made["policy"]["problem"] == "a.yaml:3: unknown key "
    assert made["guards"][0]["pre_existing_connections"] == 1


KEYS = ["guards", "tls", "key", "credential", "evidence", "proxy", "peers", "x", SECRET]
LEAVES = st.one_of(st.just(SECRET), st.integers(), st.booleans(), st.none())
TREES = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(st.sampled_from(KEYS), below),
    ),
    max_leaves=12,
)


@given(TREES)
def test_no_secret_value_and_no_key_that_is_not_on_the_list_comes_through(tree: Any) -> None:
    assert SECRET not in json.dumps(redact_config(tree))


def test_a_part_that_fails_is_named_without_its_message() -> None:
    def fail() -> str:
        raise ValueError(SECRET)

    assert attempt(fail) == "not available: ValueError\n"


def test_short_words_are_not_looked_for_but_longer_ones_are() -> None:
    check_secrets({"a": "an abc"}, ["abc", ""])
    with pytest.raises(Leak, match="b holds a credential"):
        check_secrets({"a": "x", "b": f"..{SECRET}.."}, [SECRET])


def test_a_configuration_that_is_no_mapping_is_redacted_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(SECRET)
    assert config_part(file) == '"[redacted]"\n'
