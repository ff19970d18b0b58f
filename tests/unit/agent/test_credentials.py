# SPDX-License-Identifier: Apache-2.0
"""Credentials the guards hold: from files that others cannot read, and shown nowhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.config import ConfigError, Guard
from agent.credentials import MAX_CREDENTIAL, read_credential
from agent.guards import Watched
from agent.held import Held
from agent.messages import GuardSettings, Settings, Snapshot, TlsSettings

SECRET = "s3cr3t-k3y"


def guard(engine: Any, **credential: str) -> Guard:
    return Guard(name="q", engine=engine, ports=(1,), credential=credential)


def keep(folder: Path, content: bytes = SECRET.encode() + b"\n", mode: int = 0o600) -> str:
    (folder / "credentials").mkdir(exist_ok=True)
    file = folder / "credentials" / "key"
    file.write_bytes(content)
    file.chmod(mode)
    return file.name


@pytest.mark.parametrize(
    ("engine", "kind", "header"),
    [
        ("qdrant", "api_key", ("api-key", SECRET)),
        ("qdrant", "token", ("authorization", f"Bearer {SECRET}")),
        ("chroma", "token", ("x-chroma-token", SECRET)),
        ("chroma", "bearer", ("authorization", f"Bearer {SECRET}")),
    ],
)
def test_each_kind_travels_in_its_engines_header(
    tmp_path: Path, engine: str, kind: str, header: tuple[str, str]
) -> None:
    assert read_credential(guard(engine, **{kind: keep(tmp_path)}), tmp_path) == (header,)


def test_a_guard_without_one_sends_none(tmp_path: Path) -> None:
    assert read_credential(guard("qdrant"), tmp_path) == ()


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (SECRET.encode(), 0o644, "others may read or write it; chmod 0600"),
        (SECRET.encode(), 0o602, "others may read or write it"),
        (SECRET.encode(), 0o660, "others may read or write it"),
        (b"", 0o600, "empty"),
        (b" \n", 0o600, "empty"),
        (SECRET.encode() + b"\r\nx-evil: 1", 0o600, "no header may hold"),
        (SECRET.encode() + b"\0", 0o600, "no header may hold"),
        (SECRET.encode() + b"\xe9", 0o600, "not ASCII"),
        (SECRET.encode() * MAX_CREDENTIAL, 0o600, f"larger than {MAX_CREDENTIAL} bytes"),
    ],
)
def test_a_file_that_is_unfit_is_refused_by_name_and_not_by_content(
    tmp_path: Path, content: bytes, mode: int, why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read_credential(guard("qdrant", api_key=keep(tmp_path, content, mode)), tmp_path)
    assert why in str(refused.value)
    assert "credentials/key" in str(refused.value)
    chain = [refused.value, refused.value.__cause__]
    assert not any(SECRET in repr(error) for error in chain)


def test_a_missing_file_and_an_unknown_kind_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"guard q: .*gone: No such file"):
        read_credential(guard("qdrant", api_key="gone"), tmp_path)
    with pytest.raises(ConfigError, match=r"credential 'bearer' is not one of qdrant's \(api_key, token\)"):
        read_credential(guard("qdrant", bearer="x"), tmp_path)


def test_a_reader_in_the_files_group_is_allowed(tmp_path: Path) -> None:
    name = keep(tmp_path, mode=0o640)
    assert os.stat(tmp_path / "credentials" / name).st_mode & 0o777 == 0o640
    assert read_credential(guard("qdrant", api_key=name), tmp_path) == (("api-key", SECRET),)


def test_what_holds_a_credential_does_not_show_it() -> None:
    headers, tls = (("api-key", SECRET),), TlsSettings(cert=SECRET.encode(), present=SECRET.encode())
    settings = GuardSettings("q", 0, "qdrant", (1,), None, "enforce", "judge", credential=headers, tls=tls)
    watched = Watched(0, guard("qdrant"), Held(headers, tls))
    limits = Settings(1, 1, 1, 60.0, 60.0, "strict", "masked")
    snapshot = Snapshot("1", (settings,), b"", limits, b"masking-key")
    for shown in (repr(settings), str(settings), repr(watched), repr([settings]), repr(snapshot), repr(tls)):
        assert SECRET not in shown
        assert "masking-key" not in shown


VERIFIER_TEXT = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
    "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def held_file(folder: Path, name: str, text: str) -> str:
    (folder / "credentials").mkdir(exist_ok=True)
    file = folder / "credentials" / name
    file.write_text(text)
    file.chmod(0o600)
    return name


def test_a_postgresql_guard_holds_a_user_a_password_and_its_clients_verifiers(tmp_path: Path) -> None:
    credential = {
        "user": "app",
        "password": held_file(tmp_path, "pg", "hunter2\n"),
        "verifiers": held_file(tmp_path, "users", f'; comment\n"ada" "{VERIFIER_TEXT}"\n'),
    }
    guard = Guard(name="pg", engine="pgvector", ports=(5432,), credential=credential, auth="password")
    assert read_credential(guard, tmp_path) == (
        ("user", "app"), ("password", "hunter2"), ("verifier:ada", VERIFIER_TEXT),
    )  # fmt: skip


@pytest.mark.parametrize(
    "line",
    ["ada secret", '"ada" "md5abcdef"', '"ada" "hunter2"', f'"a" "{VERIFIER_TEXT}"\n"a" "{VERIFIER_TEXT}"'],
)
def test_a_verifier_file_names_its_line_and_shows_no_secret(line: str, tmp_path: Path) -> None:
    credential = {"verifiers": held_file(tmp_path, "users", line)}
    guard = Guard(name="pg", engine="pgvector", ports=(5432,), credential=credential, auth="password")
    with pytest.raises(ConfigError) as error:
        read_credential(guard, tmp_path)
    assert "users:" in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"engine": "qdrant", "auth": "identity"},
        {"engine": "pgvector", "auth": "relay", "credential": {"password": "x"}},
        {"engine": "pgvector", "auth": "password"},
        {"engine": "pgvector", "auth": "identity"},  # whose session would it be? the client would say
        {"engine": "pgvector", "credential": {"password": "x"}},
        {"engine": "pgvector", "credential": {"verifiers": "x"}},
    ],
)
def test_ways_to_know_a_client_that_do_not_go_together_are_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="auth"):
        Guard.model_validate({"name": "pg", "ports": [5432], **keys})
