# SPDX-License-Identifier: Apache-2.0
"""Who proves what to whom when a PostgreSQL session starts: three machines over authentication messages.

`UpstreamAuth` answers the database with the credential the guard holds, `ClientAuth` asks the client for its
own password and checks it by a verifier, `RelayedAuth` passes both sides' messages where nothing is held.
None of them puts a secret in an error. Bias: what does not come in the order of PostgreSQL docs 54.2.1 fails;
channel binding is never offered, because TLS ends at the proxy.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.protocols.postgres_messages import HEADER, Back, Front, Message, message
from agent.protocols.scram import MECHANISM, SaltedKeys, ScramClient, ScramError, ScramServer, Verifier
from agent.protocols.session import ProtocolError

MAX_RELAYED: Final = 32  # authentication messages of one side; SCRAM takes two, GSSAPI a few
NONCE: Final = 18  # random bytes, as the server itself draws

OK: Final = 0
CLEARTEXT: Final = 3
MD5: Final = 5
GSS: Final = 7
GSS_CONTINUE: Final = 8
SSPI: Final = 9
SASL: Final = 10
SASL_CONTINUE: Final = 11
SASL_FINAL: Final = 12
_METHODS: Final = {CLEARTEXT: "cleartext", MD5: "md5", GSS: "gss", SSPI: "sspi", SASL: "sasl"}
_FOLLOWS: Final = {SASL_CONTINUE: SASL, SASL_FINAL: SASL, GSS_CONTINUE: GSS}
_UINT32: Final = struct.Struct(">I")

AUTHENTICATION_OK: Final = message(Back.AUTHENTICATION, _UINT32.pack(OK))


class AuthRefused(Exception):
    """The session may not start. `sqlstate` and text are for the client, `reason` is a stable short word."""

    def __init__(self, sqlstate: str, reason: str, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.reason = reason
        self.text = text


@dataclass(slots=True)
class Custody:
    """What a guard holds, and how it knows its clients. One a worker and guard, shared by its sessions."""

    auth: Literal["relay", "identity", "password"] = "relay"
    user: str | None = None  # the database user in place of the client's own
    password: bytes | None = field(default=None, repr=False)
    verifiers: Mapping[str, Verifier] = field(default_factory=dict, repr=False)
    decoy: bytes = field(default=b"", repr=False)  # keys the salts of users that do not exist
    keys: SaltedKeys = field(default_factory=SaltedKeys, repr=False)


def authentication_code(found: Message) -> tuple[int, bytes]:
    """(code, what follows it) of an Authentication message. Raises ProtocolError."""
    if len(found.raw) < HEADER + 4:
        raise ProtocolError("message-form", "an Authentication message without its code", "server")
    return _UINT32.unpack_from(found.raw, HEADER)[0], found.raw[HEADER + 4 :]


def _request(code: int, rest: bytes = b"") -> bytes:
    return message(Back.AUTHENTICATION, _UINT32.pack(code) + rest)


def _initial(mechanism: str, data: bytes) -> bytes:
    return message(Front.PASSWORD, mechanism.encode() + b"\0" + _UINT32.pack(len(data)) + data)


class UpstreamAuth:
    """The client's role towards the database, with what the guard holds."""

    __slots__ = ("_custody", "_random", "_scram", "_user", "_verified", "method")

    def __init__(self, custody: Custody, user: bytes, random: Callable[[int], bytes]) -> None:
        self._custody = custody
        self._user = user
        self._random = random
        self._scram: ScramClient | None = None
        self._verified = False
        self.method = "none"

    def take(self, found: Message) -> bytes | None:
        """The answer to an Authentication message; None when it was AuthenticationOk.

        Raises ProtocolError, and AuthRefused where the database wants what the guard does not hold.
        """
        code, rest = authentication_code(found)
        if code in (SASL_CONTINUE, SASL_FINAL):
            return self._go_on(code, rest)
        if code == OK:
            if self._scram is not None and not self._verified:
                # Whoever answers there let us in without proving that it knows the password.
                raise ProtocolError("auth-unproven", "the database ended SCRAM without its proof", "server")
            return None
        if self.method != "none":
            raise ProtocolError("auth-order", "the database asks to authenticate twice", "server")
        self.method = _METHODS.get(code, f"method {code}")
        password = self._custody.password
        if password is None:
            raise self._refused(f"the database asks for a password ({self.method}), and the guard holds none")
        if code == CLEARTEXT:
            return message(Front.PASSWORD, password + b"\0")
        if code == MD5 and len(rest) == 4:
            return message(Front.PASSWORD, b"md5" + _md5(_md5(password + self._user) + rest) + b"\0")
        if code == SASL and MECHANISM.encode() in rest.split(b"\0"):
            self.method = "scram-sha-256"
            self._scram = ScramClient(password, self._random(NONCE), self._custody.keys)
            return _initial(MECHANISM, self._scram.first())
        raise self._refused(f"the database asks for {self.method}, which a held password cannot answer")

    def _go_on(self, code: int, rest: bytes) -> bytes:
        if self._scram is None or self._verified:
            raise ProtocolError("auth-order", "a step of SASL that was not begun", "server")
        try:
            if code == SASL_CONTINUE:
                return message(Front.PASSWORD, self._scram.final(rest))
            self._scram.verify(rest)
        except ScramError as error:
            raise ProtocolError("scram", f"towards the database: {error}", "server") from None
        self._verified = True
        return b""

    def _refused(self, text: str) -> AuthRefused:
        return AuthRefused("28000", "upstream-credential", text)


class ClientAuth:
    """The server's role towards the client: SCRAM-SHA-256 by the guard's verifier of its user."""

    __slots__ = ("_begun", "_scram", "_user")

    def __init__(self, custody: Custody, user: str, random: Callable[[int], bytes]) -> None:
        decoy = hashlib.blake2b(user.encode(), key=custody.decoy[:64], digest_size=16).digest()
        self._user = user
        self._scram = ScramServer(custody.verifiers.get(user), random(NONCE), decoy)
        self._begun = False

    def ask(self) -> bytes:
        return _request(SASL, MECHANISM.encode() + b"\0\0")

    def take(self, found: Message) -> tuple[bytes, bool]:
        """(what the client is sent, whether its password is proven). Raises AuthRefused, ProtocolError."""
        if found.kind != Front.PASSWORD:
            raise ProtocolError("auth-order", "the client's password was asked for, and something else came")
        body = found.raw[HEADER:]
        try:
            if self._begun:
                return _request(SASL_FINAL, self._scram.final(body)), True
            self._begun = True
            return _request(SASL_CONTINUE, self._scram.first(_initial_response(body))), False
        except ScramError as error:
            if error.reason == "proof":
                text = f'password authentication failed for user "{self._user}"'
                raise AuthRefused("28P01", "wrong-password", text) from None
            raise AuthRefused("08P01", "scram", str(error)) from None


def _initial_response(body: bytes) -> bytes:
    mechanism, _, rest = body.partition(b"\0")
    if mechanism != MECHANISM.encode():
        raise ScramError("form", f"only {MECHANISM} is offered here")
    if len(rest) < 4 or _UINT32.unpack_from(rest)[0] != len(rest) - 4:
        raise ScramError("form", "a SASLInitialResponse that is not of its form")
    return rest[4:]


class RelayedAuth:
    """Passes authentication between client and database, and sees that it is nothing else.

    `presents`: the database is shown a certificate of the guard's, by which it may let anybody in.
    """

    __slots__ = ("_asked", "_client", "_presents", "_server", "method")

    def __init__(self, *, presents: bool = False) -> None:
        self._presents = presents
        self._asked = False  # the client may answer
        self._client = self._server = 0
        self.method = "none"

    def from_server(self, found: Message) -> bytes | None:
        """What the client is sent; None when it was AuthenticationOk. Raises ProtocolError, AuthRefused."""
        code, rest = authentication_code(found)
        self._server += 1
        if code == OK:
            if self._presents and self.method == "none":
                # Else whoever dials would choose among the users that the certificate is good for.
                text = "the database asked for no proof, and the guard's certificate is none of the client's"
                raise AuthRefused("28000", "upstream-credential", text)
            return None
        if code in _METHODS:
            if self.method != "none":
                raise ProtocolError("auth-order", "the database asks to authenticate twice", "server")
            self.method = _METHODS[code]
        elif self.method != _METHODS.get(_FOLLOWS.get(code, -1)):
            raise ProtocolError("auth-order", f"an authentication step {code} that was not begun", "server")
        if self._server > MAX_RELAYED:
            raise ProtocolError("auth-order", f"more than {MAX_RELAYED} authentication messages", "server")
        self._asked = code != SASL_FINAL
        return _without_binding(rest) if code == SASL else found.raw

    def from_client(self, found: Message) -> bytes:
        self._client += 1
        if found.kind != Front.PASSWORD or not self._asked or self._client > MAX_RELAYED:
            raise ProtocolError("auth-order", "a client message that authentication did not ask for")
        self._asked = False
        return found.raw


def _without_binding(mechanisms: bytes) -> bytes:
    """AuthenticationSASL without the mechanisms that bind to a TLS channel: there are two channels here."""
    names = [name for name in mechanisms.split(b"\0") if name and not name.endswith(b"-PLUS")]
    if not names:
        raise ProtocolError(
            "channel-binding", "the database takes only channel binding: hold a credential", "server"
        )
    return _request(SASL, b"".join(name + b"\0" for name in names) + b"\0")


def _md5(data: bytes) -> bytes:
    """As text: what the server's own method wants; nothing else relies on it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()
