# SPDX-License-Identifier: Apache-2.0
"""`tls:` of a guard: which keys go together, and what is asked of the files before they are used."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydantic
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from agent.ca import create, issue
from agent.config import ConfigError
from agent.config_tls import Tls
from agent.messages import TlsSettings
from agent.tls_contexts import TlsContexts, make_contexts
from agent.tls_files import MAX_KEY, read_tls, warnings_of
from tests.unit.agent.certs import guard, make_authority, settings
from tests.unit.agent.side import guard as served


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


PAIR = {"cert": "db.crt", "key": "db.key"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_authority(tmp_path)


@pytest.mark.parametrize(
    ("tls", "said"),
    [
        ({"cert": "a"}, "`cert` and `key` go together"),
        ({"present_key": "a", "server": "require"}, "`present_cert` and `present_key` go together"),
        ({**PAIR, "client_cert": "request"}, "needs `client_ca`"),
        ({"client_cert": "require", "client_ca": "a"}, "and `cert` and `key`"),
        ({**PAIR, "client_ca": "a"}, "does nothing without `client_cert"),
        ({"server": "verify"}, "`server: verify` and `ca` go together"),
        ({"server": "require", "ca": "a"}, "`server: verify` and `ca` go together"),
        ({"server_name": "x"}, "do nothing with `server: off`"),
        ({"server": "yes"}, "'off', 'require' or 'verify'"),
        ({"certificate": "a"}, "Extra inputs"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tls: dict[str, Any], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        Tls(**tls)


def test_a_guard_without_tls_has_none(folder: Path) -> None:
    assert read_tls(guard({}), folder) is None
    assert make_contexts(served(), None) is None


def test_what_is_read_is_certificate_and_key_and_nothing_else_of_the_files(folder: Path) -> None:
    file = folder / "db.crt"
    file.write_text("a comment of somebody\n" + file.read_text() + "# another\n")
    made = settings(folder)
    assert b"comment" not in made.cert
    assert made.cert.count(b"BEGIN CERTIFICATE") == made.cert.count(b"PRIVATE KEY-----\n") // 2 == 1
    assert "PRIVATE" not in repr(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "db.key").unlink(), r"db\.key: No such file"),
        (lambda f: (f / "db.key").chmod(0o644), r"db\.key: others may read or write it; chmod 0600"),
        (lambda f: (f / "db.key").chmod(0o620), r"db\.key: others may read or write it"),
        (lambda f: (f / "db.crt").chmod(0o666), r"db\.crt: everybody may write it"),
        (lambda f: (f / "db.key").write_bytes((f / "etl-1.key").read_bytes()), "is not the key of"),
        (lambda f: (f / "db.key").write_bytes(b"x" * (MAX_KEY + 1)), "larger than"),
        (lambda f: (f / "db.key").write_bytes(b""), "no private key in PEM"),
        (lambda f: (f / "db.crt").write_bytes((f / "db.key").read_bytes()), "no certificate in PEM"),
        (lambda f: (f / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nAA==\n"), "no certificate in PEM"),
        (lambda f: make_pipe(f / "db.key"), "not a file"),
    ],
)
def test_a_file_that_would_fail_later_is_refused_now_and_named(folder: Path, change: Any, said: str) -> None:
    change(folder)
    with pytest.raises(ConfigError, match=said):
        settings(folder, server="verify", ca="ca.crt")


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(folder: Path) -> None:
    file = folder / "db.key"
    key = load_pem_private_key(file.read_bytes(), None)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw")))
    with pytest.raises(ConfigError, match="has a password"):
        settings(folder)
    with pytest.raises(ValueError, match="cannot be used"):  # nor by OpenSSL in the worker
        TlsContexts(
            TlsSettings(cert=(folder / "db.crt").read_bytes() + file.read_bytes()), "chroma", "enforce"
        )


def test_a_key_that_its_group_may_read_is_taken(folder: Path) -> None:
    (folder / "db.key").chmod(0o640)
    assert settings(folder).cert


def test_nothing_of_it_stays_open_or_on_a_disk(folder: Path) -> None:
    before = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _stands(fd)}
    TlsContexts(settings(folder), "chroma", "enforce")
    after = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _stands(fd)}
    assert not [link for link in after - before if "vecward" in link]


def _stands(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_unchanged_settings_keep_their_contexts_and_changed_ones_do_not(folder: Path) -> None:
    one = served(tls=settings(folder))
    first = make_contexts(one, None)
    assert make_contexts(served(tls=settings(folder)), first) is first
    (folder / "db.crt").unlink()
    (folder / "db.key").unlink()
    issue(folder, "db")
    assert make_contexts(served(tls=settings(folder)), first) is not first
    assert make_contexts(served(mode="observe", tls=one.tls), first) is not first


@pytest.mark.parametrize(
    ("mode", "client_cert", "client"),
    [
        ("enforce", "require", "required"),
        ("observe", "require", "offered"),
        ("enforce", "request", "offered"),
    ],
)
def test_a_certificate_is_required_in_enforce_alone(
    folder: Path, mode: Any, client_cert: Any, client: str
) -> None:
    made = TlsContexts(settings(folder, client_cert=client_cert, client_ca="ca.crt"), "chroma", mode)
    assert (made.terms.client, made.terms.server) == (client, False)


def test_certificates_that_end_are_said(tmp_path: Path) -> None:
    create(tmp_path, "Test CA")
    issue(tmp_path, "db", days=30)
    made = settings(tmp_path)
    now = datetime.now(UTC)
    assert warnings_of("g", made, now) == []
    assert "ends on" in warnings_of("g", made, now + timedelta(days=20))[0]
    assert "ended on" in warnings_of("g", made, now + timedelta(days=40))[0]
    assert warnings_of("g", None) == []
