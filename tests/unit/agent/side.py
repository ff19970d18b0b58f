# SPDX-License-Identifier: Apache-2.0
"""Fakes around one relay: two transports, a scripted session, a journal that answers when told, a host.

Nothing here decides anything. The journal and both transports append to one list, so that a test can say
what came before what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal

from agent.host import Refuse
from agent.messages import GuardSettings
from agent.protocols.session import Intent, Output, Record, Result, Secured
from agent.relay import Relay
from agent.tls_layer import TlsLayer
from policy.model import Action, Attribution, RecordMode, Subject, Verdict
from policy.operation import Operation
from tests.unit.agent.turning import turns

Event = tuple[Any, ...]
SUBJECT = Subject(Attribution.KERNEL, pid=42, uid=1000, start_time=7, exe="/usr/bin/app")
OPERATION = Operation("qdrant", "q", "POST /collections/{c}/points/query", frozenset({Action.SEARCH}))


def guard(mode: Any = "enforce", **changes: Any) -> GuardSettings:
    values: dict[str, Any] = {
        "name": "q", "index": 0, "engine": "qdrant", "ports": (6333,), "address": None, "mode": mode,
        "remote": "judge",
    }  # fmt: skip
    return GuardSettings(**{**values, **changes})


def intent(n: int = 1, mode: RecordMode = "strict", outcome: Any = "allow") -> Intent:
    verdict = Verdict(outcome, "r", "rules.yaml:1", "", "hash", mode=mode)
    return Intent(n, OPERATION, verdict, {}, None, b"", 0)


def result(n: int = 1, **changes: Any) -> Result:
    return Result(n, "answered", 200, {}, None, b"", 0, b"", 0, **changes)


class Transport(asyncio.Transport):
    """Notes what is done to it. `waiting` is what its buffer would hold."""

    def __init__(self, name: str, events: list[Event]) -> None:
        super().__init__({"peername": ("::ffff:127.0.0.1", 50000), "sockname": ("::ffff:127.0.0.1", 6333)})
        self.name, self.events = name, events
        self.sent = b""
        self.state = "open"  # open, eof, closed, aborted
        self.paused = False
        self.waiting = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limit = high

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def writelines(self, list_of_data: Any) -> None:
        data = b"".join(list_of_data)
        if data:
            self.write(data)

    def write(self, data: Any) -> None:
        assert self.state == "open", f"a write to the {self.name} after {self.state}"
        self.sent += data
        self.events.append((f"to-{self.name}", bytes(data)))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._become("eof")

    def close(self) -> None:
        self._become("closed")

    def abort(self) -> None:
        self._become("aborted")

    def _become(self, state: str) -> None:
        if self.state not in ("closed", "aborted"):
            self.state = state
            self.events.append((self.name, state))

    def is_closing(self) -> bool:
        return self.state in ("closed", "aborted")

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol


class Script:
    """A session that gives the outputs it was told to, method by method; nothing where none is left."""

    protocol = "http1"
    is_reading = False

    def __init__(self, **outputs: Sequence[Output | Exception]) -> None:
        self.outputs = {name: list(given) for name, given in outputs.items()}
        self.calls: list[Event] = []
        self.early = b""  # what it was given of a handshake

    def _next(self, method: str, *arguments: Any) -> Output:
        self.calls.append((method, *arguments))
        given = self.outputs.get(method)
        output = given.pop(0) if given else Output()
        if isinstance(output, Exception):
            raise output
        return output

    def client_data(self, data: bytes) -> Output:
        return self._next("client_data", data)

    def server_data(self, data: bytes) -> Output:
        return self._next("server_data", data)

    def client_eof(self) -> Output:
        return self._next("client_eof")

    def server_eof(self) -> Output:
        return self._next("server_eof")

    def abandon(self, reason: str) -> Output:
        return self._next("abandon", reason)

    def refuse_all(self, message: str) -> Output:
        return self._next("refuse_all", message)

    def begin_tls(self, side: str) -> bytes:
        self.calls.append(("begin_tls", side))
        return self.early

    def secured(self, secured: Secured) -> Output:
        return self._next("secured", secured.side)


class Journal:
    """Keeps every release until `answer`; `failing` answers that nothing was written."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.cards: dict[str, dict[str, Any]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.puts: list[tuple[list[Record], RecordMode]] = []
        self.waiting: list[tuple[RecordMode, Callable[[bool], None]]] = []
        self.failing = False

    def open_session(self, session_id: str, card: dict[str, Any]) -> None:
        self.cards[session_id] = card
        self.events.append(("card",))

    def amend_session(self, session_id: str, card: dict[str, Any]) -> None:
        self.cards[session_id] = card
        self.events.append(("amended",))

    def close_session(self, session_id: str, summary: dict[str, Any]) -> None:
        self.summaries[session_id] = summary
        self.events.append(("end", summary["reason"]))

    def put(
        self, session_id: str, records: Sequence[Record], mode: RecordMode, release: Callable[[bool], None]
    ) -> None:
        self.puts.append((list(records), mode))
        self.events.append(("put", *(type(record).__name__ for record in records)))
        self.waiting.append((mode, release))

    def answer(self, which: int = 0) -> None:
        """Release one put, as the recorder does: best-effort promises nothing, so nothing fails."""
        mode, release = self.waiting.pop(which)
        release(not self.failing or mode == "best-effort")

    def answer_all(self) -> None:
        while self.waiting:
            self.answer()


class Host:
    """What the worker is to a relay."""

    def __init__(self, session: Any = None, *, dials: bool = True) -> None:
        self.events: list[Event] = []
        self.journal = Journal(self.events)
        self.session = session if session is not None else Script()
        self.server = Transport("server", self.events)
        self.client = Transport("client", self.events)
        self.dials = dials
        self.first_request = 60.0
        self.counts: dict[str, int] = {}
        self.bugs: list[BaseException] = []
        self.forgotten = 0
        self.identity: asyncio.Future[Subject] | None = None  # set: identity waits for it
        self.refusal: Refuse | None = None
        self.dialled: list[tuple[str, int]] = []
        self.layers: dict[str, TlsLayer] = {}

    def new_session_id(self) -> str:
        return "s000000000000001"

    async def identify(self, relay: Relay) -> Subject:
        return SUBJECT if self.identity is None else await self.identity

    def admit(self, relay: Relay) -> None:
        if self.refusal is not None:
            raise self.refusal

    def open_protocol(self, relay: Relay) -> Any:
        return self.session

    def tls_layer(self, relay: Relay, side: Literal["client", "server"]) -> TlsLayer:
        return self.layers[side]

    def secured(self, relay: Relay, secured: Secured) -> None:
        self.events.append(("secured", secured.side, secured.subject))

    def card(self, relay: Relay) -> dict[str, Any]:
        return {"pid": relay.subject.pid if relay.subject else None, **({"tls": True} if relay.tls else {})}

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def report_bug(self, error: BaseException) -> None:
        self.bugs.append(error)

    def forget(self, relay: Relay) -> None:
        self.forgotten += 1

    def accept(self, mode: Any = "enforce", **changes: Any) -> Relay:
        """The relay of a connection that was just accepted. The running loop dials fakes from now on."""
        loop: Any = asyncio.get_running_loop()

        async def dial(factory: Callable[[], Any], host: str, port: int) -> None:
            self.dialled.append((host, port))
            if not self.dials:
                raise ConnectionRefusedError(111, "Connection refused")
            factory().connection_made(self.server)

        loop.create_connection = dial
        return Relay(self, guard(mode, **changes), self.client)

    async def stand(self, mode: Any = "enforce", **changes: Any) -> Relay:
        """A relay whose session stands."""
        relay = self.accept(mode, **changes)
        await turns()
        return relay

    @property
    def bytes_events(self) -> list[Event]:
        return [e for e in self.events if e[0] in ("put", "to-client", "to-server")]
