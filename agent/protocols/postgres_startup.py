# SPDX-License-Identifier: Apache-2.0
"""What a client's first packets ask for: a session as some user in some database, or a cancel.

Owns how a StartupMessage is read as the server reads it, what of it is forwarded, and the operations that are
judged before anything is. Bias: a packet that the server could read otherwise, or that asks for a replication
session, is refused; nothing is forwarded before the judge allowed it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.protocols.postgres_auth import AuthRefused, Custody
from agent.protocols.postgres_messages import (
    MAX_NAME,
    Back,
    CancelRequest,
    StartupMessage,
    message,
    startup_message,
)
from agent.protocols.session import ProtocolError
from agent.protocols.sql import Where
from policy.login import CANCEL_METHOD
from policy.login import Login as Named
from policy.model import Action
from policy.operation import Operation

MAX_MINOR: Final = 2  # protocol 3.2; what later ones change is not known here
EXTENSION: Final = b"_pq_."  # of the protocol itself: what one would change is not known here either
MAX_HEAD: Final = 256  # characters of one startup parameter in the record
STARTUP: Final = "StartupMessage"
_SESSION: Final = frozenset({Action.SESSION})
_RECORDED: Final = ("application_name", "options", "client_encoding")
_ROLES: Final = frozenset(("role", "session_authorization"))
_SETS_ROLE: Final = re.compile(r"(?<![.])(?:role|session_authorization)=")
_NO: Final = frozenset((b"off", b"of", b"false", b"fals", b"fal", b"fa", b"f", b"no", b"n", b"0"))


@dataclass(frozen=True, slots=True)
class Login:
    """A session that is asked for. `upstream`: the database's user; `user`: whom the client named."""

    user: str
    upstream: str
    database: str
    parameters: Mapping[str, str] = field(repr=False)  # by lower-case name, as sent
    packet: bytes = field(repr=False)  # what the database gets
    minor: int
    lowered: bool  # the client asked for a later protocol than is spoken here, or for an extension
    extensions: tuple[bytes, ...] = ()  # that it asked for, and the database does not hear of

    @property
    def where(self) -> Where:
        return Where(self.upstream, self.database, self.parameters, self.user)

    @property
    def named(self) -> Named:
        """What rules know of it."""
        return Named(self.user, self.database)

    @property
    def sets_role(self) -> bool:
        """It wants the rights of another role than the one that logs in (options: -c role=, --role=)."""
        options = self.parameters.get("options", "").replace("\\", "").replace("-", "_").lower()
        return not _ROLES.isdisjoint(self.parameters) or _SETS_ROLE.search(options) is not None

    def head(self, auth: str) -> dict[str, str]:
        """For the record; `auth`: how the client is known."""
        head = {"user": self.user, "database": self.database, "protocol": f"3.{self.minor}", "auth": auth}
        if self.upstream != self.user:
            head["upstream-user"] = self.upstream
        for name in _RECORDED:
            if self.parameters.get(name):
                head[name] = _printable(self.parameters[name][:MAX_HEAD])
        return head


def read_login(startup: StartupMessage, custody: Custody) -> Login:
    """Raises AuthRefused: a name the server would cut off or that is no text, replication, a double."""
    user = _name(startup.get(b"user") or b"", "user")
    if not user:
        raise AuthRefused("28000", "no-user", "no PostgreSQL user name specified in startup packet")
    _check_replication(startup)
    database = _name(startup.get(b"database") or b"", "database") or user
    upstream = custody.user if custody.user is not None else user
    parameters: dict[str, str] = {}
    for name, value in startup.parameters:
        key = name.decode("utf-8", "surrogateescape").lower()
        if key in parameters:
            raise AuthRefused("08P01", "startup-parameters", "the same startup parameter twice")
        parameters[key] = value.decode("utf-8", "surrogateescape")
    parameters.update(user=upstream, database=database)
    minor = min(startup.minor, MAX_MINOR)
    extensions = tuple(name for name, _ in startup.parameters if name.startswith(EXTENSION))
    lowered = minor != startup.minor or bool(extensions)
    packet = startup.raw
    if upstream != user or lowered:
        forwarded = {k: v for k, v in startup.parameters if k not in extensions}
        forwarded[b"user"], forwarded[b"database"] = upstream.encode(), database.encode()
        packet = startup_message(minor, forwarded)
    return Login(user, upstream, database, parameters, packet, minor, lowered, extensions)


def lower_version(login: Login, answer: bytes | None = None) -> bytes:
    """NegotiateProtocolVersion (54.7): nothing after `login.minor`, or after what the database's own says.

    And no extension. `answer`: the body of the database's. Raises ProtocolError.
    """
    latest, refused = (3 << 16 | login.minor).to_bytes(4, "big"), b""
    count = len(login.extensions)
    if answer is not None:
        if len(answer) < 8:
            text = "a NegotiateProtocolVersion that is not of its form"
            raise ProtocolError("message-form", text, "server")
        latest, refused = answer[:4], answer[8:]
        count += int.from_bytes(answer[4:8], "big")
    names = b"".join(name + b"\0" for name in login.extensions)
    return message(Back.NEGOTIATE_VERSION, latest + (count & 0xFFFFFFFF).to_bytes(4, "big") + names + refused)


def startup_operation(engine: str, guard: str, size: int, sets_role: bool = False) -> Operation:
    """To open a session is a session operation: a handshake, as with the other engines.

    `sets_role`: as another role than the one that logs in, which is SET ROLE's.
    """
    return _operation(engine, guard, STARTUP, size, _SESSION | {Action.ADMIN} if sets_role else _SESSION)


def cancel_operation(engine: str, guard: str, cancel: CancelRequest) -> Operation:
    return _operation(engine, guard, CANCEL_METHOD, len(cancel.raw), _SESSION)


def _operation(engine: str, guard: str, method: str, size: int, actions: frozenset[Action]) -> Operation:
    return Operation(engine=engine, guard=guard, method=method, actions=actions, bytes=size)


def _check_replication(startup: StartupMessage) -> None:
    """Anything but a plain no (as parse_bool of the server reads it) may be a walsender."""
    value = startup.get(b"replication")
    if value is not None and value.lower() not in _NO:
        text = "replication is not judged here: it needs a rule with `tunnel` for this caller"
        raise AuthRefused("42501", "replication", text)


def _name(value: bytes, what: str) -> str:
    if len(value) > MAX_NAME:
        # The server would cut it off, and so open another one's session than was judged.
        raise AuthRefused("08P01", "name-too-long", f"the name of a {what} has at most {MAX_NAME} bytes")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise AuthRefused("08P01", "name-encoding", f"the name of the {what} is not UTF-8") from None


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
