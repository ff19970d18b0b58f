# SPDX-License-Identifier: Apache-2.0
"""A catalog query of our own, on the client's connection, between what the client asks.

Owns one simple Query at a time and swallows its answer; what the results mean is the conversation's. Used at
startup and whenever a statement has changed what names mean. It may be begun only at a ReadyForQuery in
status I or T with nothing outstanding: inside an unfinished pipeline it would commit, in a failed transaction
it would fail. Bias: an answer that fails, or is larger than its bound, teaches nothing, and names stay
unknown; one that is no answer to a simple Query is a ProtocolError.
"""

from __future__ import annotations

from typing import Final, Literal

from agent.protocols.postgres_forms import read_data_row, read_ready, write_query
from agent.protocols.postgres_messages import HEADER, Back
from agent.protocols.session import ProtocolError
from agent.protocols.sql import Conversation, Rows

MAX_ANSWER: Final = 16 << 20  # bytes of rows that one catalog query may answer
MAX_ROUNDS: Final = 8  # queries of our own in a row: a conversation that goes on asking does not converge

_ASYNCHRONOUS: Final = frozenset((Back.NOTICE, Back.NOTIFICATION, Back.PARAMETER_STATUS))
_SILENT: Final = frozenset((Back.ROW_DESCRIPTION, Back.EMPTY_QUERY))


class CatalogQuery:
    """Asks what `Conversation.wants`, until it wants no more. One a connection.

    `begin` gives the message to send, or None. While `under_way`, every message of the server goes to `take`.
    """

    __slots__ = ("_conversation", "_failed", "_results", "_rounds", "_rows", "_size", "under_way")

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.under_way = False
        self._rounds = 0
        self._results: list[Rows] = []
        self._rows: list[list[str | None]] = []
        self._size = 0
        self._failed = False

    def begin(self, *, again: bool = False) -> bytes | None:
        """The next Query to send, or None where nothing is wanted. `again`: right after another one."""
        text = self._conversation.wants
        self._rounds = self._rounds + 1 if again else 1
        if text is None or self._rounds > MAX_ROUNDS:
            return None
        self.under_way = True
        self._results, self._rows, self._size, self._failed = [], [], 0, False
        return write_query(text.encode("utf-8", "surrogateescape"))

    def take(self, kind: int, raw: bytes) -> Literal["more", "pass", "I", "T", "E"]:
        """One message of the server. "pass": it is not part of the answer (a notification, a status).

        A status ends the answer: the conversation has learnt it, and `begin(again=True)` may follow.
        """
        if kind == Back.DATA_ROW:
            self._size += len(raw)
            if self._size > MAX_ANSWER:
                self._failed, self._rows, self._results = True, [], []
            elif not self._failed:
                row = read_data_row(raw[HEADER:])
                self._rows.append([None if v is None else v.decode("utf-8", "replace") for v in row])
        elif kind == Back.COMMAND_COMPLETE:
            self._results.append(self._rows)
            self._rows = []
        elif kind == Back.ERROR:
            self._failed = True
        elif kind in _ASYNCHRONOUS:
            return "more" if kind == Back.NOTICE else "pass"
        elif kind == Back.READY_FOR_QUERY:
            status = read_ready(raw[HEADER:])
            self.under_way = False
            self._conversation.learn(None if self._failed else self._results)
            self._results, self._rows = [], []
            return status
        elif kind not in _SILENT:
            raise ProtocolError(
                "unexpected", f"the database answered a catalog query with {chr(kind)!r}", "server"
            )
        return "more"
