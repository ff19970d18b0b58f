# SPDX-License-Identifier: Apache-2.0
"""The built-in authority: what it signs, for whom, and that it overwrites nothing."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    ClientVerifier,
    PolicyBuilder,
    ServerVerifier,
    Store,
    VerificationError,
)

from agent.ca import CaError, create, issue, listing


def load(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def servers(folder: Path, name: str) -> ServerVerifier:
    store = Store([load(folder / "ca.crt")])
    return PolicyBuilder().store(store).build_server_verifier(x509.DNSName(name))


def clients(folder: Path) -> ClientVerifier:
    return PolicyBuilder().store(Store([load(folder / "ca.crt")])).build_client_verifier()


def test_what_it_issues_is_believed_for_the_names_that_were_asked_for(tmp_path: Path) -> None:
    create(tmp_path, "Test CA")
    made = issue(tmp_path, "db.example.org", ("*.db.example.org", "10.0.0.7", "::1"))
    assert made.names == ("db.example.org", "*.db.example.org", "10.0.0.7", "::1")
    leaf = load(made.file)
    for name in ("db.example.org", "x.db.example.org"):
        servers(tmp_path, name).verify(leaf, [])
    with pytest.raises(VerificationError):
        servers(tmp_path, "other.example.org").verify(leaf, [])


def test_a_servers_certificate_is_not_a_clients_and_the_other_way_round(tmp_path: Path) -> None:
    create(tmp_path, "Test CA")
    server, client = issue(tmp_path, "db"), issue(tmp_path, "etl-1", ("etl-1.example.org",), "client")
    assert (client.subject, client.role, server.role) == ("CN=etl-1", "client", "server")
    clients(tmp_path).verify(load(client.file), [])
    with pytest.raises(VerificationError):
        clients(tmp_path).verify(load(server.file), [])
    with pytest.raises(VerificationError):
        servers(tmp_path, "etl-1.example.org").verify(load(client.file), [])


def test_what_it_issues_signs_nothing_itself(tmp_path: Path) -> None:
    create(tmp_path, "Test CA")
    leaf = load(issue(tmp_path, "db").file)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.SERVER_AUTH]
    authority = load(tmp_path / "ca.crt")
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_keys_are_the_owners_alone_and_certificates_everybodys(tmp_path: Path) -> None:
    create(tmp_path, "Test CA")
    issue(tmp_path, "db")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {"ca.key": 0o600, "ca.crt": 0o644, "db.key": 0o600, "db.crt": 0o644}


@pytest.mark.parametrize("standing", ["ca.key", "ca.crt", "db.key", "db.crt"])
def test_nothing_is_overwritten_nor_half_made(tmp_path: Path, standing: str) -> None:
    if standing.startswith("db"):
        create(tmp_path, "Test CA")
    before = sorted(file.name for file in tmp_path.iterdir())
    (tmp_path / standing).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CaError, match="is there already"):
        _ = issue(tmp_path, "db") if standing.startswith("db") else create(tmp_path, "Test CA")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*before, standing])


@pytest.mark.parametrize("name", ["", "ca", "../up", "a/b", ".hidden", "a b", "x" * 64, "a\nb", "-rf"])
def test_a_name_that_cannot_be_a_file_and_a_subject_is_refused(tmp_path: Path, name: str) -> None:
    create(tmp_path, "Test CA")
    with pytest.raises(CaError):
        issue(tmp_path, name)
    assert {file.name for file in tmp_path.iterdir()} == {"ca.crt", "ca.key"}


@pytest.mark.parametrize(
    "name", ["bad host", "a..b", "*.*.x", "x" * 300, "é.example", "db\n.x", "10.0.0.0/8", ""]
)
def test_a_name_that_is_no_host_and_no_address_is_refused(tmp_path: Path, name: str) -> None:
    create(tmp_path, "Test CA")
    with pytest.raises(CaError, match="no host name"):
        issue(tmp_path, "db", (name,))


def test_nothing_outlives_its_authority(tmp_path: Path) -> None:
    create(tmp_path, "Test CA", days=30)
    with pytest.raises(CaError, match="outlive"):
        issue(tmp_path, "db", days=31)
    end = datetime.now(UTC) + timedelta(days=20)
    assert abs(issue(tmp_path, "db", days=20).not_after - end) < timedelta(hours=1)


def test_a_key_that_is_not_the_authoritys_signs_nothing(tmp_path: Path) -> None:
    create(tmp_path, "Test CA")
    create(tmp_path / "other", "Other CA")
    (tmp_path / "other" / "ca.key").replace(tmp_path / "ca.key")
    with pytest.raises(CaError, match=r"not the key of ca\.crt"):
        issue(tmp_path, "db")


def test_the_list_begins_with_the_authority(tmp_path: Path) -> None:
    with pytest.raises(CaError, match="No such file"):
        listing(tmp_path)
    create(tmp_path, "Test CA")
    issue(tmp_path, "b")
    issue(tmp_path, "a", role="client")
    assert [(one.file.name, one.role) for one in listing(tmp_path)] == [
        ("ca.crt", "ca"), ("a.crt", "client"), ("b.crt", "server"),
    ]  # fmt: skip


def test_a_file_that_is_no_certificate_is_said_by_name(tmp_path: Path) -> None:
    create(tmp_path, "Test CA")
    (tmp_path / "torn.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    with pytest.raises(CaError, match=r"torn\.crt: not a certificate"):
        listing(tmp_path)
