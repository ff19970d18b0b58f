# SPDX-License-Identifier: Apache-2.0
"""The keys of evidence: one host identity, and a key for each epoch that dies with it.

Files in ``DIR/keys`` (0700): ``host.key`` (PEM, 0600) and ``epoch-N.key`` (32 raw bytes, 0600), nearly always
one of the latter. ``DIR/host.pub`` (PEM) is what a verifier needs. Private bytes leave this module only as
signatures. Unlinking a key does not scrub the disk it was on: who reads raw blocks may still find it.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from agent.evidence.segment import sync_folder

KEY_CONTEXT = b"vecward epoch key 1\0"
CHECKPOINT_CONTEXT = b"vecward checkpoint 1\0"
_EPOCH_FILE = re.compile(r"epoch-(\d{1,15})\.key")


class KeyFileError(Exception):
    """A key file that cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and its raw public half."""

    private: Ed25519PrivateKey
    public: bytes

    @classmethod
    def of(cls, private: Ed25519PrivateKey) -> SigningKey:
        return cls(private, private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)


def certificate_message(ledger_head: bytes, epoch: int, public: bytes) -> bytes:
    """What the host identity signs to certify an epoch key at one place of one ledger."""
    return KEY_CONTEXT + ledger_head + epoch.to_bytes(8, "big") + public


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_public(data: bytes) -> bytes:
    """A public key as given by a person: PEM, 64 hex digits, or 32 raw bytes. Raises ValueError."""
    if len(data) == 32:
        return data
    stripped = data.strip()
    if re.fullmatch(rb"[0-9a-fA-F]{64}", stripped):
        return bytes.fromhex(stripped.decode())
    key = load_pem_public_key(stripped)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 public key")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


class KeyFolder:
    """``DIR/keys``. Raises KeyFileError for a file that is there and cannot be used."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / "keys"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)

    def has_host(self) -> bool:
        return (self._folder / "host.key").exists()

    def has_only_epoch(self, epoch: int) -> bool:
        return [found for found, _path in self._epochs()] == [epoch]

    def host(self) -> tuple[SigningKey, bool]:
        """The host identity, made on first use. Returns (key, whether it was made now)."""
        path = self._folder / "host.key"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            key, made = SigningKey.of(Ed25519PrivateKey.generate()), True
            pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_secret(path, pem)
        else:
            try:
                private = load_pem_private_key(data, None)
            except (ValueError, TypeError) as exc:
                raise KeyFileError(f"{path}: {exc}") from None
            if not isinstance(private, Ed25519PrivateKey):
                raise KeyFileError(f"{path}: not an Ed25519 key")
            key, made = SigningKey.of(private), False
        self._publish(key)
        return key, made

    def _publish(self, key: SigningKey) -> None:
        path = self._root / "host.pub"
        pem = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == pem:
                return
        temporary = self._root / "host.pub.new"
        temporary.write_bytes(pem)
        temporary.chmod(0o644)
        temporary.rename(path)

    def make_epoch(self, epoch: int) -> SigningKey:
        """A new epoch key, durable before it is returned. One of a crashed attempt is replaced."""
        key = SigningKey.of(Ed25519PrivateKey.generate())
        path = self._path(epoch)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raw = key.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        _write_secret(path, raw)
        return key

    def find_epoch(self, public: bytes) -> tuple[int, SigningKey] | None:
        """The epoch key with this public half, if its file is here."""
        for epoch, path in self._epochs():
            try:
                key = SigningKey.of(Ed25519PrivateKey.from_private_bytes(path.read_bytes()))
            except (ValueError, OSError):
                continue  # cut short by a crash before it was announced
            if key.public == public:
                return epoch, key
        return None

    def keep_only(self, *epochs: int) -> None:
        """Unlink every other epoch key."""
        for epoch, path in self._epochs():
            if epoch not in epochs:
                path.unlink(missing_ok=True)

    def _epochs(self) -> list[tuple[int, Path]]:
        found = []
        for name in os.listdir(self._folder):
            match = _EPOCH_FILE.fullmatch(name)
            if match:
                found.append((int(match[1]), self._folder / name))
        return sorted(found)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch}.key"


def write_secret(path: Path, data: bytes) -> None:
    """A new 0600 file, durable. It has its name only when it is whole: a key cut short by a crash or a full
    disk would be unusable for ever."""
    temporary = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    _write_secret(temporary, data)
    temporary.rename(path)
    sync_folder(path.parent)


def _write_secret(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(f"{path}: short write")
        os.fdatasync(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)
