# SPDX-License-Identifier: Apache-2.0
"""What a relay needs of the worker that accepted it, and how that says no. Types only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from agent.protocols.session import Record, Secured, Session
from agent.tls_layer import TlsLayer
from policy.model import RecordMode, Subject

if TYPE_CHECKING:
    from agent.relay import Relay


class Refuse(Exception):
    """This connection may not go on; `reason` is a stable short word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Journal(Protocol):
    """What the relay needs of ``agent/evidence/recorder.py``."""

    def open_session(self, session_id: str, card: dict[str, Any]) -> None: ...

    def amend_session(self, session_id: str, card: dict[str, Any]) -> None: ...

    def close_session(self, session_id: str, summary: dict[str, Any]) -> None: ...

    def put(
        self,
        session_id: str,
        records: list[Record],
        mode: RecordMode,
        release: Callable[[bool], None],
    ) -> None: ...


class Host(Protocol):
    """Implemented by ``agent/worker.py``."""

    @property
    def journal(self) -> Journal: ...

    @property
    def first_request(self) -> float: ...

    def new_session_id(self) -> str: ...

    async def identify(self, relay: Relay) -> Subject: ...

    def admit(self, relay: Relay) -> None:
        """Raises Refuse where this subject may not even connect."""
        ...

    def open_protocol(self, relay: Relay) -> Session: ...

    def tls_layer(self, relay: Relay, side: Literal["client", "server"]) -> TlsLayer:
        """For a side whose session asked for TLS, as its guard is configured now."""
        ...

    def secured(self, relay: Relay, secured: Secured) -> None:
        """A handshake ended well: the subject may have another name now, and its judge must know."""
        ...

    def card(self, relay: Relay) -> dict[str, Any]: ...

    def count(self, name: str, by: int = 1) -> None: ...

    def report_bug(self, error: BaseException) -> None: ...

    def forget(self, relay: Relay) -> None: ...
