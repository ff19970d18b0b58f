# SPDX-License-Identifier: Apache-2.0
"""What both sides of a PostgreSQL connection in enforce share: its state, and how a refusal is put into it.

Owns the state of one connection in the query phase and the ways in which an entry of the queue ends. Reads no
message. The state is always the database's own: a refused message is replaced by one that the database itself
fails at, so that it aborts and skips as after any error.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NoReturn

from agent.protocols.budget import FREE, REASON, Hold
from agent.protocols.http import Refusal
from agent.protocols.postgres_messages import (
    Framer,
    Front,
    Side,
    client_limits,
    error_response,
    message,
    report,
    server_limits,
)
from agent.protocols.postgres_query_record import Recorder
from agent.protocols.postgres_query_state import NAMES, Entry, Kind, Names, Portal, Queue, has_sync
from agent.protocols.postgres_wants import CatalogQuery
from agent.protocols.session import Bounds, Judge, Output, ProtocolError
from agent.protocols.sql import Column, Conversation, SqlEngine, Where
from policy.model import Verdict

INSUFFICIENT_PRIVILEGE: Final = "42501"
_REFUSED: Final = b"refused_by_vecward"
# A text that is no statement in any state of the database: its error makes the database abort and skip.
POISON: Final = message(Front.PARSE, b"vecward-refused\0" + _REFUSED + b"\0\0\0")
POISON_QUERY: Final = message(Front.QUERY, _REFUSED + b"\0")
POISON_CALL: Final = message(Front.FUNCTION_CALL, bytes(4 + 2 + 2 + 2))  # there is no function with OID 0


class Link:
    """One connection in the query phase."""

    def __init__(
        self,
        engine: SqlEngine,
        conversation: Conversation,
        judge: Judge,
        guard: str,
        where: Where,
        bounds: Bounds,
        n_from: int,
    ) -> None:
        self._conversation = conversation
        self._judge = judge
        self._bounds = bounds
        self._recorder = Recorder(engine, conversation, guard, where, n_from)
        self._front = Framer("client", client_limits(bounds.body))
        self._back = Framer("server", server_limits(bounds.body))
        self._names = Names()
        self._queue: Queue = deque()
        self._catalog = CatalogQuery(conversation)
        self._status = "I"  # of the transaction, as last told
        self._epoch = 0  # counts what may change what a text means
        self._unsettled = 0  # outstanding entries with effects
        self._open = False  # the client has not ended its segment with a Sync
        self._skipping = False  # the database skips, or will, what the client sends up to its next Sync
        self._copy: Entry | None = None  # a COPY FROM STDIN that is outstanding
        self._copying = False  # the database reads CopyData now
        self._copied = False  # CopyData was forwarded for it
        self._copy_out = False  # the database sends CopyData now
        self._moved = False  # client_encoding may be changing
        self._muted: int | None = None  # answers are thrown away up to the ReadyForQuery of this kind
        self._known: dict[bytes, tuple[Column, ...]] = {}
        self._hold: Hold | None = None  # of the bytes that wait here
        self._last: Verdict | None = None  # of the last exchange: for what comes outside of any

    @property
    def is_reading(self) -> bool:
        """A drain waits: a message has begun, an answer is awaited, or a transaction is open."""
        return bool(self._queue) or self._status != "I" or self._front.waiting > 0

    def _count_held(self, side: Side, stalled: int = 0) -> None:
        """Count what waits here of both sides against the worker's budget. Raises ProtocolError."""
        size = self._front.waiting + self._back.waiting + stalled
        if size <= FREE:
            self._hold = None
            return
        if self._hold is None:
            self._hold = self._bounds.budget.hold()
        if not self._hold.resize(size):
            raise ProtocolError(REASON, self._bounds.budget.message, side)

    def _unexpected(self, kind: int) -> NoReturn:
        waits = NAMES[self._queue[0].kind] if self._queue else "nothing"
        raise ProtocolError(
            "unexpected", f"the database sent {chr(kind)!r} where {waits} was to be answered", "server"
        )

    def _release_entry(self, entry: Entry) -> None:
        """It is answered, or never will be: what waited for it may go on."""
        if entry.effects:
            self._unsettled -= 1
            self._epoch += 1
        if entry is self._copy:
            self._copy = None
            self._copying = False

    def _shown_error(self, raw: bytes, fields: dict[str, str], verdict: Verdict | None) -> bytes:
        if verdict is None:
            return raw
        shown = self._conversation.error(fields, verdict)
        return raw if shown == fields else report(raw[0], shown)

    def _refuse_answer(self, out: Output, entry: Entry, refusal: Refusal) -> None:
        """What the database answers may not be shown: an error instead, and nothing up to ReadyForQuery."""
        if self._muted is not None:
            return
        exchange = entry.exchange
        if exchange is None and entry.operation is not None and entry.verdict is not None:
            exchange = self._recorder.begin(
                out, entry.reading, (), entry.operation, entry.verdict, entry.rewriting, head_of(entry)
            )
        if exchange is not None:
            exchange.sqlstate = INSUFFICIENT_PRIVILEGE
            exchange.add(b"", error_response(INSUFFICIENT_PRIVILEGE, refusal.message))
            exchange.finish(out, "refused", refusal.message)
        entry.exchange = None
        if entry.kind == Kind.QUERY:
            self._muted = Kind.QUERY
            return
        self._muted = Kind.SYNC
        for later in self._queue:
            if later.kind == Kind.SYNC:
                break
            if later.exchange is not None:
                later.exchange.finish(out, "refused", "an earlier answer of the pipeline was refused")
                later.exchange = None
        if not has_sync(self._queue) and not self._skipping:
            # Its side effects are taken back where they still can be: by an error before the Sync.
            self._skipping = True
            out.to_server.append(POISON)
            self._queue.append(Entry(Kind.PARSE, error=b""))
        if entry.kind in (Kind.DESCRIBE_STATEMENT, Kind.DESCRIBE_PORTAL) and self._queue[0] is entry:
            self._queue.popleft()


def head_of(entry: Entry) -> dict[str, str]:
    head = {"phase": NAMES[entry.kind]}
    if entry.statement is not None and entry.statement.name:
        head["statement-name"] = entry.statement.name.decode("utf-8", "replace")
    if isinstance(entry.portal, Portal) and entry.portal.name:
        head["portal"] = entry.portal.name.decode("utf-8", "replace")
    return head
