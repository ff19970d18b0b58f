# SPDX-License-Identifier: Apache-2.0
"""The certificates and keys of a guard: read from files by the agent, checked, and given to workers.

Owns what is asked of such a file before it is used. A key must not be open to others, and stands in no log,
record, argument or environment. Bias: whatever a handshake would fail on later (a key that does not fit, one
with a password, a file of the wrong kind) stops the start or the reload now, with the file's name.
"""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from agent.config import ConfigError, Guard
from agent.messages import TlsSettings
from agent.tls_contexts import TlsContexts

MAX_FILE = 512 * 1024  # of certificates: a system's whole trust store has about 220 KiB
MAX_KEY = 32 * 1024


def read_tls(guard: Guard, folder: Path) -> TlsSettings | None:
    """What the guard's `tls:` names, None where it names nothing. Relative paths are taken from `folder`.

    Raises ConfigError naming guard and file.
    """
    tls = guard.tls
    if not tls.is_used:
        return None
    try:
        settings = TlsSettings(
            cert=_pair(tls.cert, tls.key, folder),
            client_ca=_certificates(tls.client_ca, folder),
            client_cert=tls.client_cert,
            server=tls.server,
            server_ca=_certificates(tls.ca, folder),
            server_name=tls.server_name,
            present=_pair(tls.present_cert, tls.present_key, folder),
        )
        TlsContexts(settings, guard.engine, guard.mode)
    except ValueError as error:
        raise ConfigError([f"guard {guard.name}: tls: {error}"]) from None
    return settings


def warnings_of(guard: str, settings: TlsSettings | None, now: datetime | None = None) -> list[str]:
    """What is about to end, or has: certificates past their time are used, and clients will refuse them."""
    now = now or datetime.now(UTC)
    said = []
    for what, pem in (("cert", settings.cert), ("present_cert", settings.present)) if settings else ():
        if pem:
            end = x509.load_pem_x509_certificate(pem).not_valid_after_utc
            if end < now:
                said.append(
                    f"guard {guard}: tls: {what} ended on {end:%Y-%m-%d}; whoever verifies refuses it"
                )
            elif (end - now).days < 14:
                said.append(f"guard {guard}: tls: {what} ends on {end:%Y-%m-%d}")
    return said


def _certificates(file: Path | None, folder: Path) -> bytes:
    """The certificates of a file, in PEM, and nothing else that stands in it."""
    if file is None:
        return b""
    path, text = _read(file, folder, MAX_FILE)
    try:
        found = x509.load_pem_x509_certificates(text)
    except ValueError:
        raise ConfigError([f"{path}: no certificate in PEM form"]) from None
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in found)


def _pair(cert: Path | None, key: Path | None, folder: Path) -> bytes:
    """Certificate, chain and key as one PEM text."""
    if cert is None or key is None:
        return b""
    chain = _certificates(cert, folder)
    path, text = _read(key, folder, MAX_KEY, secret=True)
    try:
        private = load_pem_private_key(text, None)
    except TypeError:
        raise ConfigError([f"{path}: the key has a password; store it without one, mode 0600"]) from None
    except ValueError:
        raise ConfigError([f"{path}: no private key in PEM form"]) from None
    leaf = x509.load_pem_x509_certificate(chain).public_key()
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if leaf.public_bytes(*form) != private.public_key().public_bytes(*form):
        raise ConfigError(
            [f"{path}: is not the key of {folder / cert}; the certificate comes first in its file"]
        )
    return chain + text


def _read(file: Path, folder: Path, most: int, *, secret: bool = False) -> tuple[Path, bytes]:
    path = folder / file
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError([f"{path}: not a file"])
        if secret and found.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            raise ConfigError([f"{path}: others may read or write it; chmod 0600"])
        if found.st_mode & stat.S_IWOTH:
            raise ConfigError([f"{path}: everybody may write it; chmod 0644"])
        if found.st_size > most:
            raise ConfigError([f"{path}: larger than {most} bytes"])
        return path, path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
