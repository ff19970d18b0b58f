# SPDX-License-Identifier: Apache-2.0
"""What the database answers with rows: descriptions, DataRow and CopyData runs, and how a statement ends.

Owns masking: every run of rows goes through the plan that was made for its description. Bias: fail closed.
Rows that no description or no plan covers are a ProtocolError, and a plan that cannot be carried out turns
what is left of the answer into an error.
"""

from __future__ import annotations

import struct
from typing import Final

from agent.protocols.http import Refusal
from agent.protocols.postgres_forms import (
    read_command_complete,
    read_row_description,
    write_command_complete,
    write_row_description,
)
from agent.protocols.postgres_messages import HEADER, Back, notice_response
from agent.protocols.postgres_query_link import Link
from agent.protocols.postgres_query_record import MAX_SLICE, Exchange
from agent.protocols.postgres_query_state import Entry, Kind, Statement, shaped
from agent.protocols.session import Output, ProtocolError
from agent.protocols.sql import Column, Plan, Rewriting
from policy.model import Verdict

MAX_KNOWN: Final = 256  # RowDescriptions, and tags of CommandComplete, that are kept read
MAX_KEPT_TAG: Final = 64  # bytes
_HEADER: Final = struct.Struct(">BI")


class RowsSide(Link):
    """Answers that have rows."""

    @staticmethod
    def _learn_columns(entry: Entry, columns: tuple[Column, ...] | None) -> None:
        if entry.portal is not None:
            entry.portal.columns = columns
        elif entry.statement is not None:
            entry.statement.columns = columns
            entry.statement.rowless = columns is None

    def _on_columns(self, out: Output, raw: bytes) -> None:
        queue = self._queue
        if not queue or queue[0].error is not None:
            self._unexpected(raw[0])
        columns = self._known.get(raw)
        if columns is None:
            columns = read_row_description(raw[HEADER:])
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[raw] = columns
        entry = queue[0]
        try:
            if entry.kind == Kind.QUERY:
                self._begin_rows(entry, raw, columns)
                return
            if entry.kind not in (Kind.DESCRIBE_STATEMENT, Kind.DESCRIBE_PORTAL):
                self._unexpected(raw[0])
            self._learn_columns(entry, columns)
            if not entry.ours and self._muted is None:
                out.to_client.append(self._shown_columns(entry, raw, columns))
            queue.popleft()
        except Refusal as refusal:
            self._refuse_answer(out, entry, refusal)

    def _begin_rows(self, entry: Entry, raw: bytes, columns: tuple[Column, ...]) -> None:
        exchange = entry.exchange
        if exchange is None or exchange.rewriting is None:
            return  # muted
        if exchange.plan is not None:
            self._unexpected(raw[0])
        exchange.plan = plan = self._conversation.plan(
            exchange.rewriting, entry.index, columns, exchange.verdict
        )
        shown = plan.columns
        exchange.add(raw, raw if shown is None else write_row_description(shown))

    def _shown_columns(self, entry: Entry, raw: bytes, columns: tuple[Column, ...]) -> bytes:
        statement = entry.statement
        if entry.rewriting is None or entry.verdict is None or statement is None:
            raise RuntimeError("a description that nobody judged")
        shown = self._plan_of(statement, entry.rewriting, columns, entry.verdict).columns
        return raw if shown is None else write_row_description(shown)

    def _plan_of(
        self, statement: Statement, rewriting: Rewriting, columns: tuple[Column, ...], verdict: Verdict
    ) -> Plan:
        """The plan for these columns; the last one made stands for as long as all it was made of does."""
        made = statement.plan
        if made is not None and made[0] is rewriting and made[1] is columns and made[2] is verdict:
            return made[3]
        plan = self._conversation.plan(rewriting, 0, columns, verdict)
        statement.plan = (rewriting, columns, verdict, plan)
        return plan

    # -- rows --------------------------------------------------------------------------------------

    def _on_rows(self, out: Output, kind: int, run: bytes, count: int) -> None:
        entry = self._queue[0] if self._queue else None
        if (
            entry is None
            or entry.error is not None
            or entry.kind not in (Kind.EXECUTE, Kind.QUERY)
            or self._copy_out is not (kind == Back.COPY_DATA)
        ):
            self._unexpected(kind)
        exchange = entry.exchange
        if exchange is None:
            return  # muted
        try:
            plan = exchange.plan
            if plan is None:
                plan = exchange.plan = self._plan_for_portal(entry, exchange)
            if exchange.limit is not None:
                count = min(count, exchange.limit)
                exchange.limit -= count
                run = run[: first_messages(run, count)]
                if not run:
                    return
            exchange.add_released(run, plan.release(run), count)
        except Refusal as refusal:
            self._refuse_answer(out, entry, refusal)
            return
        if exchange.held >= MAX_SLICE:
            exchange.stream(out)

    def _plan_for_portal(self, entry: Entry, exchange: Exchange) -> Plan:
        portal = entry.portal
        if portal is None or exchange.rewriting is None:
            raise ProtocolError(
                "rows-undescribed", "the database sent rows before it described them", "server"
            )
        columns = portal.columns
        if columns is None:
            columns = shaped(portal.statement, portal.results)
        if columns is None:
            raise ProtocolError(
                "rows-undescribed", "the database sent rows that it did not describe", "server"
            )
        return self._plan_of(portal.statement, exchange.rewriting, columns, exchange.verdict)

    def _on_copy_in(self, out: Output, raw: bytes) -> None:
        entry = self._queue[0] if self._queue else None
        if entry is None or entry is not self._copy or self._copying or entry.error is not None:
            self._unexpected(raw[0])
        self._copying, self._copied = True, False
        if entry.exchange is not None:
            entry.exchange.stream(out)
            out.to_client.append(raw)

    def _on_copy_out(self, out: Output, raw: bytes) -> None:
        entry = self._queue[0] if self._queue else None
        if (
            entry is None
            or entry.kind not in (Kind.EXECUTE, Kind.QUERY)
            or entry.reading is None
            or entry.reading.copies is None
            or self._copy_out
        ):
            self._unexpected(raw[0])
        self._copy_out = True
        exchange = entry.exchange
        if exchange is None or exchange.rewriting is None:
            return
        try:
            exchange.plan = self._conversation.plan(exchange.rewriting, entry.index, None, exchange.verdict)
        except Refusal as refusal:
            self._refuse_answer(out, entry, refusal)
            return
        exchange.add(raw)

    def _on_copy_done(self, out: Output, raw: bytes) -> None:
        if not self._copy_out or len(raw) != HEADER:
            self._unexpected(raw[0])
        self._copy_out = False
        exchange = self._queue[0].exchange
        if exchange is not None:
            exchange.add(raw)

    # -- the end of a statement --------------------------------------------------------------------

    def _statement_head(self, kind: int) -> Entry:
        entry = self._queue[0] if self._queue else None
        if (
            entry is None
            or entry.kind not in (Kind.EXECUTE, Kind.QUERY)
            or entry.error is not None
            or self._copy_out
        ):
            self._unexpected(kind)
        return entry

    def _on_complete(self, out: Output, raw: bytes) -> None:
        entry = self._statement_head(raw[0])
        tag = _TAGS.get(raw)
        if tag is None:
            tag = _read_tag(raw)
        exchange, reading = entry.exchange, entry.reading
        self._copying = False
        if entry.kind == Kind.QUERY:
            if reading is not None:
                if 0 < len(reading.methods) <= entry.index:
                    raise ProtocolError(
                        "more-results", "the database answered more statements than were read", "server"
                    )
                self._conversation.settle(reading, entry.index, tag)
            if exchange is not None:
                exchange.tag = tag
                shown = raw
                if exchange.limit == 0 and exchange.plan is not None and tag.startswith("SELECT "):
                    shown = write_command_complete(f"SELECT {exchange.rows}")
                if entry.index == 0:
                    self._notify(exchange)
                exchange.add(raw, shown)
                exchange.plan = None
            entry.index += 1
            return
        if reading is not None:
            self._conversation.settle(reading, 0, tag)
        self._end_execute(out, entry, tag, raw)

    def _on_empty(self, out: Output, raw: bytes) -> None:
        entry = self._statement_head(raw[0])
        if entry.kind == Kind.QUERY:
            if entry.exchange is not None:
                entry.exchange.add(raw)
            return
        self._end_execute(out, entry, "", raw)

    def _on_suspended(self, out: Output, raw: bytes) -> None:
        entry = self._statement_head(raw[0])
        if entry.kind == Kind.QUERY:
            self._unexpected(raw[0])
        tag = None
        shown = raw
        if entry.all_rows and entry.exchange is not None and entry.reading is not None:
            method = "FETCH" if entry.reading.methods[:1] == ("FETCH",) else "SELECT"
            tag = f"{method} {entry.exchange.rows}"
            shown = write_command_complete(tag)
            self._conversation.settle(entry.reading, 0, tag)
        self._end_execute(out, entry, tag, raw, shown)

    def _end_execute(
        self, out: Output, entry: Entry, tag: str | None, raw: bytes, shown: bytes | None = None
    ) -> None:
        exchange = entry.exchange
        if exchange is not None:
            exchange.tag = tag
            self._notify(exchange)
            exchange.add(raw, raw if shown is None else shown)
            exchange.finish(out, "answered")
        self._queue.popleft()
        self._release_entry(entry)

    @staticmethod
    def _notify(exchange: Exchange) -> None:
        """What the client is told about clamps, once an exchange."""
        rewriting = exchange.rewriting
        if rewriting is not None:
            for text in rewriting.notices:
                exchange.add(b"", notice_response(text))


_TAGS: Final[dict[bytes, str]] = {}  # of whole CommandComplete messages, of all connections


def _read_tag(raw: bytes) -> str:
    tag = read_command_complete(raw[HEADER:])
    if len(raw) <= MAX_KEPT_TAG:
        if len(_TAGS) >= MAX_KNOWN:
            _TAGS.clear()
        _TAGS[raw] = tag
    return tag


def first_messages(run: bytes, count: int) -> int:
    """Where the first `count` messages of a run of whole messages end."""
    at = 0
    for _ in range(count):
        at += 1 + int(_HEADER.unpack_from(run, at)[1])
    return at
