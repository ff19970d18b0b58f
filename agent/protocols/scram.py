# SPDX-License-Identifier: Apache-2.0
"""SCRAM-SHA-256 without channel binding, in both roles, as state machines over bytes (RFC 5802, RFC 7677).

Owns the proofs and their bounds, the form of a stored verifier (pg_authid.rolpassword) and a memory of salted
keys: PBKDF2 over 4,096 rounds keeps the event loop for about 1 ms, so it is done once for each password, salt
and count. Draws no randomness: nonces come from the caller. Bias: anything unexpected fails the exchange, and
every comparison of secrets takes the same time.
"""

from __future__ import annotations

import hashlib
import hmac
import stringprep
import unicodedata
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

MECHANISM: Final = "SCRAM-SHA-256"
MAX_ITERATIONS: Final = 600_000  # about 0.2 s of this process for one password: more is an attack on it
MIN_ITERATIONS: Final = 1
MAX_MESSAGE: Final = 4096  # bytes of one SCRAM message; real ones have about 100
MAX_SALT: Final = 256
MAX_KEYS: Final = 64  # salted keys remembered: one for each user and guard in practice
_GS2: Final = (b"n,,", b"y,,")  # y: the client could bind to a channel, and believes that we cannot: true


class ScramError(Exception):
    """The exchange failed. `reason`: "form", "proof" or "signature"; the message names no secret."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Verifier:
    """What proves a password without being it: SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


def parse_verifier(text: str) -> Verifier:
    """Raises ValueError; its message does not hold the text."""
    try:
        mechanism, spice, keys = text.split("$")
        count, salt = spice.split(":")
        stored, server = keys.split(":")
        verifier = Verifier(int(count), _decode(salt), _decode(stored), _decode(server))
    except (ValueError, ScramError):
        raise ValueError("not of the form SCRAM-SHA-256$<iterations>:<salt>$<key>:<key>") from None
    if mechanism != MECHANISM:
        raise ValueError("not a SCRAM-SHA-256 verifier")
    if not MIN_ITERATIONS <= verifier.iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations are not between {MIN_ITERATIONS} and {MAX_ITERATIONS}")
    if len(verifier.stored_key) != 32 or len(verifier.server_key) != 32:
        raise ValueError("its keys have not 32 bytes")
    if not 1 <= len(verifier.salt) <= MAX_SALT:
        raise ValueError(f"its salt has not 1 to {MAX_SALT} bytes")
    return verifier


def make_verifier(password: bytes, salt: bytes, iterations: int) -> Verifier:
    salted = _salt(password, salt, iterations)
    client_key = _hmac(salted, b"Client Key")
    return Verifier(iterations, salt, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))


class SaltedKeys:
    """Salted passwords by (password's digest, salt, iterations); the least recently used go first."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, bytes, int], bytes] = OrderedDict()

    def get(self, password: bytes, salt: bytes, iterations: int) -> bytes:
        key = (hashlib.sha256(password).digest(), salt, iterations)
        salted = self._known.get(key)
        if salted is None:
            salted = self._known[key] = _salt(password, salt, iterations)
            if len(self._known) > MAX_KEYS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return salted


class ScramClient:
    """Proves a password: `first`, then `final` with the server's first, then `verify` its last."""

    __slots__ = ("_bare", "_keys", "_nonce", "_password", "_signature")

    def __init__(self, password: bytes, nonce: bytes, keys: SaltedKeys) -> None:
        """`nonce`: 18 random bytes. The user's name is in the startup packet; here it stays empty."""
        self._password = prepare(password)
        self._nonce = b64encode(nonce)
        self._keys = keys
        self._bare = b"n=,r=" + self._nonce
        self._signature = b""

    def first(self) -> bytes:
        return b"n,," + self._bare

    def final(self, server_first: bytes) -> bytes:
        """Raises ScramError."""
        fields = _fields(server_first, b"rsi")
        nonce, count = fields[0], fields[2]
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise ScramError("form", "the server's nonce does not continue ours")
        salt = _decode(fields[1].decode("latin-1"))
        if not count.isdigit() or not MIN_ITERATIONS <= int(count[:12]) <= MAX_ITERATIONS:
            raise ScramError("form", f"an iteration count that is not {MIN_ITERATIONS} to {MAX_ITERATIONS}")
        if not 1 <= len(salt) <= MAX_SALT:
            raise ScramError("form", f"a salt of {len(salt)} bytes")
        salted = self._keys.get(self._password, salt, int(count))
        without_proof = b"c=biws,r=" + nonce
        message = b",".join((self._bare, server_first, without_proof))
        client_key = _hmac(salted, b"Client Key")
        proof = _xor(client_key, _hmac(hashlib.sha256(client_key).digest(), message))
        self._signature = _hmac(_hmac(salted, b"Server Key"), message)
        return without_proof + b",p=" + b64encode(proof)

    def verify(self, server_final: bytes) -> None:
        """Raises ScramError: the server did not prove that it knows the password too."""
        (signature,) = _fields(server_final, b"v")
        found = _decode(signature.decode("latin-1"))
        if not self._signature or not hmac.compare_digest(found, self._signature):
            raise ScramError("signature", "the server did not prove that it knows the password")


class ScramServer:
    """Checks a password by its verifier: `first` with the client's first, then `final` with its last."""

    __slots__ = ("_bare", "_first", "_gs2", "_known", "_nonce", "_own", "_verifier")

    def __init__(self, verifier: Verifier | None, nonce: bytes, decoy: bytes) -> None:
        """`verifier` None: the user is not known; the exchange looks the same and fails at its end.

        `decoy`: 16 bytes that are always the same for this name, and that nobody can compute.
        """
        self._known = verifier is not None
        self._verifier = verifier or Verifier(4096, decoy[:16], bytes(32), bytes(32))
        self._own = b64encode(nonce)
        self._gs2 = self._bare = self._first = self._nonce = b""

    def first(self, client_first: bytes) -> bytes:
        """Raises ScramError."""
        self._gs2, self._bare = client_first[:3], client_first[3:]
        if self._gs2 not in _GS2:
            raise ScramError("form", "channel binding and other identities are not offered here")
        _, nonce = _fields(self._bare, b"nr")
        if not nonce or len(nonce) > 256:
            raise ScramError("form", f"a nonce of {len(nonce)} bytes")
        self._nonce = nonce + self._own
        salt = b64encode(self._verifier.salt)
        self._first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, self._verifier.iterations)
        return self._first

    def final(self, client_final: bytes) -> bytes:
        """The server's last message. Raises ScramError: reason "proof" where the password is not the one."""
        binding, nonce, proof = _fields(client_final, b"crp")
        if _decode(binding.decode("latin-1")) != self._gs2:
            raise ScramError("form", "the client's last message is bound to another channel than its first")
        if not self._nonce or not hmac.compare_digest(nonce, self._nonce):
            raise ScramError("form", "the client's last message has another nonce")
        message = b",".join((self._bare, self._first, client_final[: client_final.rindex(b",p=")]))
        signature = _hmac(self._verifier.stored_key, message)
        given = _decode(proof.decode("latin-1"))
        if len(given) != 32:
            raise ScramError("form", "a proof that has not 32 bytes")
        found = hashlib.sha256(_xor(given, signature)).digest()
        if not hmac.compare_digest(found, self._verifier.stored_key) or not self._known:
            raise ScramError("proof", "the password is not the one")
        return b"v=" + b64encode(_hmac(self._verifier.server_key, message))


def prepare(password: bytes) -> bytes:
    """SASLprep (RFC 4013); what it forbids, or is not UTF-8, is taken as it is, as PostgreSQL does."""
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        return password
    if text.isascii():
        return password
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c))
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not normal or any(_is_forbidden(c) for c in normal) or not _is_one_way(normal):
        return password
    return normal.encode("utf-8")


_FORBIDDEN: Final = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
    stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
    stringprep.in_table_c9, stringprep.in_table_a1,
)  # fmt: skip


def _is_forbidden(char: str) -> bool:
    return any(table(char) for table in _FORBIDDEN)


def _is_one_way(text: str) -> bool:
    """RFC 3454 section 6: no mix of writing directions."""
    if not any(stringprep.in_table_d1(c) for c in text):
        return True
    mixed = any(stringprep.in_table_d2(c) for c in text)
    return not mixed and stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])


def _fields(text: bytes, names: bytes) -> list[bytes]:
    """The values of `a=..,b=..` with exactly these names in this order (extensions are refused)."""
    if len(text) > MAX_MESSAGE:
        raise ScramError("form", f"a SCRAM message of more than {MAX_MESSAGE} bytes")
    parts = text.split(b",")
    if len(parts) != len(names) or any(p[:2] != b"%c=" % n for p, n in zip(parts, names, strict=True)):
        if text.startswith(b"e=") and names in (b"rsi", b"v"):
            raise ScramError("proof", "the server refused the exchange")
        raise ScramError("form", "a SCRAM message with other attributes than it must have")
    return [part[2:] for part in parts]


def _decode(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise ScramError("form", "a SCRAM attribute that is not base64") from None


def _salt(password: bytes, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password, salt, iterations)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
