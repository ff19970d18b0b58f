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
