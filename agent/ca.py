# SPDX-License-Identifier: Apache-2.0
"""The built-in certificate authority: one key on this host, and what it has signed.

Owns the folder `ca` beside the configuration: `ca.crt`, `ca.key`, and NAME.crt with NAME.key for each issued
certificate. ECDSA on P-256 with SHA-256, which every client library takes. Keys are written with mode 0600
and nothing is ever overwritten. Bias: it signs for names that were asked for, as one kind of holder, and for
no other authority (pathLenConstraint 0, RFC 5280 section 4.2.1.9). It keeps no list of revoked certificates:
what must not be believed any more is ended by a new authority.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
DAYS = 397  # of what is issued: some clients refuse more of a server
MAX_NAMES = 64
MAX_FILE = 64 * 1024
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,62}")  # also what a subject of ours may be
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)*{_LABEL}")
_CLOCKS = timedelta(minutes=5)  # how far two hosts' clocks may be apart

Role = Literal["server", "client"]


class CaError(Exception):
    """What was asked for cannot be; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate as it stands in a file. `subject` in RFC 4514 form, times UTC."""

    file: Path
    subject: str
    names: tuple[str, ...]
    role: str  # "ca", "server", "client"
    serial: str
    not_before: datetime
    not_after: datetime
    sha256: str  # of the DER form


def create(folder: Path, name: str, days: int = CA_DAYS, now: datetime | None = None) -> Issued:
    """Make the authority. Raises CaError where there is one already, or `name` cannot be a subject."""
    if not name or len(name) > 64 or not name.isprintable():  # ub-common-name of RFC 5280
        raise CaError(f"{name!r} cannot be a certificate's name", "use 1 to 64 printable characters")
    now = now or datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(name)
    certificate = (
        _begun(subject, subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    _free(folder / "ca.crt")
    _write(folder / "ca.key", _private(key), 0o600)
    _write(folder / "ca.crt", certificate.public_bytes(Encoding.PEM), 0o644)
    return read(folder / "ca.crt")


def issue(
    folder: Path,
    name: str,
    names: tuple[str, ...] = (),
    role: Role = "server",
    days: int = DAYS,
    now: datetime | None = None,
) -> Issued:
    """Sign a new key: NAME.crt and NAME.key. `names`: hosts and addresses it is for beside NAME itself.

    Raises CaError: no authority, a name that cannot be one, a file that is there already.
    """
    if not _FILE.fullmatch(name) or name == "ca":
        raise CaError(f"{name!r} cannot be a name here", "up to 63 letters, digits and . _ @ -, and not 'ca'")
    now = now or datetime.now(UTC)
    authority, signer = _load(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    use = ExtendedKeyUsageOID.SERVER_AUTH if role == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _begun(_named(name), authority.subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    alternatives = _alternatives(name, names, role)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    if certificate.not_valid_after_utc > authority.not_valid_after_utc:
        raise CaError(
            f"it would outlive its authority, which ends on {authority.not_valid_after_utc:%Y-%m-%d}",
            "use fewer --days, or make a new authority",
        )
    _free(folder / f"{name}.crt")
    _write(folder / f"{name}.key", _private(key), 0o600)
    _write(folder / f"{name}.crt", certificate.public_bytes(Encoding.PEM), 0o644)
    return read(folder / f"{name}.crt")


def read(file: Path) -> Issued:
    """Raises CaError."""
    try:
        if file.stat().st_size > MAX_FILE:
            raise CaError(f"{file}: larger than {MAX_FILE} bytes", "it is no certificate of this authority")
        found = x509.load_pem_x509_certificate(file.read_bytes())
        return Issued(
            file,
            found.subject.rfc4514_string(),
            _names_of(found),
            _role_of(found),
            f"{found.serial_number:x}",
            found.not_valid_before_utc,
            found.not_valid_after_utc,
            found.fingerprint(hashes.SHA256()).hex(),
        )
    except ValueError:
        raise CaError(f"{file}: not a certificate in PEM form", "restore it from a copy") from None
    except OSError as error:
        raise _no_file(file, error) from None


def listing(folder: Path) -> list[Issued]:
    """The authority first, then what stands beside it, by name. Raises CaError."""
    authority = read(folder / "ca.crt")
    others = [read(file) for file in sorted(folder.glob("*.crt")) if file.name != "ca.crt"]
    return [authority, *others]


def _load(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    read(folder / "ca.crt")
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    file = folder / "ca.key"
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except (ValueError, TypeError):
        raise CaError(f"{file}: not a private key in PEM form", "restore it from a copy") from None
    except OSError as error:
        raise _no_file(file, error) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise CaError(f"{file}: is not the key of ca.crt", "restore both from the same copy")
    return authority, key


def _no_file(file: Path, error: OSError) -> CaError:
    hint = "vecward ca init makes the authority" if isinstance(error, FileNotFoundError) else "run as root"
    return CaError(f"{file}: {error.strerror}", hint)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    if not 1 <= days <= 36_500:
        raise CaError(f"{days} days", "a certificate is for 1 to 36500 days")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _alternatives(name: str, names: tuple[str, ...], role: Role) -> list[x509.GeneralName]:
    wanted = dict.fromkeys([name, *names] if role == "server" else names)
    if len(wanted) > MAX_NAMES:
        raise CaError(f"{len(wanted)} names", f"one certificate is for at most {MAX_NAMES}")
    found: list[x509.GeneralName] = []
    for one in wanted:
        try:
            found.append(x509.IPAddress(ip_address(one)))
        except ValueError:
            if not _HOST.fullmatch(one) or len(one) > 253:
                raise CaError(
                    f"{one!r} is no host name and no address",
                    "write db.example.org, *.example.org or 10.0.0.7",
                ) from None
            found.append(x509.DNSName(one))
    return found


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in extension.value)


def _role_of(certificate: x509.Certificate) -> str:
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "ca"
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "any"
    return "client" if ExtendedKeyUsageOID.CLIENT_AUTH in uses else "server"


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _free(file: Path) -> None:
    """Before its key is written: neither is made without the other."""
    if os.path.lexists(file):
        raise CaError(f"{file} is there already", "nothing is overwritten: move it away first")


def _write(file: Path, data: bytes, mode: int) -> None:
    """A new file, never another's: O_EXCL also refuses a link that waits there."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise CaError(f"{file} is there already", "nothing is overwritten: move it away first") from None
    except OSError as error:
        raise CaError(f"{file}: {error.strerror}", "run as root") from None
    with os.fdopen(descriptor, "wb") as opened:
        os.fchmod(descriptor, mode)  # whatever the umask says
        opened.write(data)
        opened.flush()
        os.fsync(descriptor)
