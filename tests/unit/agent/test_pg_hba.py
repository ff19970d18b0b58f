# SPDX-License-Identifier: Apache-2.0
"""Which lines of pg_hba.conf are named because the database sees the proxy's address."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.pg_hba import Unreadable, _rules_of, changed_lines

RULES = """\
# TYPE  DATABASE USER ADDRESS METHOD
local   all all trust
host    all all 127.0.0.1/32 trust
host    all all 10.1.0.0/16 scram-sha-256
hostssl all all 0.0.0.0/0 cert clientcert=verify-full
host    all all all scram-sha-256
include more.conf
"""


def test_lines_that_act_on_addresses_are_named_with_their_number(tmp_path: Path) -> None:
    file = tmp_path / "pg_hba.conf"
    file.write_text(RULES)
    found = changed_lines(file)
    assert [line.partition(":")[0] for line in found] == ["3", "4", "5", "7"]
    assert "without a password" in found[0]
    assert "no caller any more" in found[1]
    assert "proves itself (tls.present_cert)" in found[2]


def test_the_file_is_where_the_server_was_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "postgresql.conf").write_text("# hba_file = 'no'\nhba_file = '/etc/pg/hba.conf'\n")
    assert _rules_of(Path("/"), data, ["postgres"]) == Path("/etc/pg/hba.conf")
    assert _rules_of(Path("/"), data, ["postgres", "-c", "hba_file=/x/hba"]) == Path("/x/hba")
    (data / "postgresql.conf").write_text("port = 5432\n")
    assert _rules_of(Path("/"), data, ["postgres"]) == data / "pg_hba.conf"


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        changed_lines(tmp_path / "none")
