# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of a few words, without a socket: the state machine of postgres.c, to check against.

What it does was compared with PostgreSQL 18: an error in extended query skips to Sync, a simple Query in
between included; an error aborts the transaction; a Sync inside COPY FROM STDIN is passed over; answers stay
in a buffer until Sync, Flush, a Query's end, an error or COPY. `ran` keeps every text that was executed with
its values, `parsed` every text that was parsed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from agent.protocols.postgres_forms import (
    read_bind,
    read_execute,
    read_named,
    read_parse,
    read_query,
    write_command_complete,
    write_data_row,
    write_row_description,
)
from agent.protocols.postgres_messages import (
    HEADER,
    Back,
    Framer,
    Front,
    client_limits,
    error_response,
    message,
    notice_response,
    ready_for_query,
)
from agent.protocols.sql import Column

EXITS = ("COMMIT", "ROLLBACK")


class SqlError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Open:
    """A portal."""

    text: str
    values: tuple[bytes | None, ...]
    format: int
    at: int = 0


class Server:
    def __init__(self) -> None:
        self.statements: dict[bytes, str] = {}
        self.portals: dict[bytes, Open] = {}
        self.status = "I"
        self.pipe = False  # something ran since the last Sync, outside a transaction block
        self.skipping = False
        self.copying: Iterator[bytes] | None = None  # what goes on when the COPY has its data
        self.copy_is_query = False
        self.copy_failed = ""
        self.extended = False
        self.dead = False
        self.ran: list[tuple[str, tuple[bytes | None, ...], int]] = []
        self.parsed: list[str] = []
        self._framer = Framer("client", client_limits(1 << 20))
        self._out: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """What the server sends now."""
        self._framer.feed(data)
        sent = b""
        while not self.dead and (taken := self._framer.take()) is not None:
            if self._take(taken.kind, taken.raw):
                sent += b"".join(self._out)
                self._out.clear()
        return sent

    def _take(self, kind: int, raw: bytes) -> bool:
        if self.copying is not None:
            return self._take_copy(kind, raw)
        if kind == Front.SYNC:
            self.skipping = False
            if self.status == "I":
                self.portals.clear()
            self.pipe = False
            self._ready()
            return True
        if kind == Front.FLUSH:
            return not self.skipping
        if kind == Front.TERMINATE:
            self.dead = True
            return True
        if self.skipping or kind in (Front.COPY_DATA, Front.COPY_DONE, Front.COPY_FAIL):
            return False
        self.extended = kind not in (Front.QUERY, Front.FUNCTION_CALL)
        try:
            if kind == Front.QUERY:
                self.statements.pop(b"", None)
                return self._go_on(self._query(read_query(raw[HEADER:]).decode("utf-8", "replace")))
            if kind == Front.FUNCTION_CALL:
                raise SqlError("42883", "function with OID 0 does not exist")
            if kind == Front.EXECUTE:
                form = read_execute(raw[HEADER:])
                return self._go_on(self._execute(form.portal, form.max_rows))
            self._object(kind, raw)
        except SqlError as error:
            return self._fail(error)
        return False

    def _fail(self, error: SqlError) -> bool:
        self._out.append(error_response(error.code, str(error)))
        self.copying = None
        if self.status == "I":
            self.portals.clear()
            self.pipe = False
        else:
            self.status = "E"
        if self.extended:
            self.skipping = True
        else:
            self._ready()
        return True

    def _ready(self) -> None:
        status = "T" if self.status == "I" and self.pipe else self.status
        self._out.append(ready_for_query(status))  # type: ignore[arg-type]

    def _go_on(self, steps: Iterator[bytes]) -> bool:
        """Run until it ends or wants CopyData. True: flush."""
        for step in steps:
            self._out.append(step)
            if step[0] == Back.COPY_IN:
                self.copying = steps
                return True
        if not self.extended:
            if self.status == "I" and not self.pipe:
                self.portals.clear()
            self._ready()
            return True
        return False

    def _take_copy(self, kind: int, raw: bytes) -> bool:
        if kind in (Front.SYNC, Front.FLUSH, Front.COPY_DATA):
            if kind == Front.COPY_DATA and b"nonsense" in raw:
                return self._fail(SqlError("22P02", "invalid input"))
            return False
        steps, self.copying = self.copying, None
        if kind not in (Front.COPY_DONE, Front.COPY_FAIL) or steps is None:
            self._out.append(error_response("08P01", "synchronization was lost", severity="FATAL"))
            self.dead = True
            return True
        if kind == Front.COPY_FAIL:
            return self._fail(SqlError("57014", "COPY from stdin failed"))
        try:
            return self._go_on(steps)
        except SqlError as error:
            return self._fail(error)

    # -- extended query ------------------------------------------------------------------------------

    def _object(self, kind: int, raw: bytes) -> None:
        if kind == Front.PARSE:
            form = read_parse(raw[HEADER:])
            if not form.statement:
                self.statements.pop(b"", None)
            text = form.text.decode("utf-8", "replace")
            self._check(text)
            if form.statement in self.statements:
                raise SqlError("42P05", "prepared statement already exists")
            self.parsed.append(text)
            self.statements[form.statement] = text
            self._out.append(message(Back.PARSE_COMPLETE))
        elif kind == Front.BIND:
            bind = read_bind(raw[HEADER:])
            found = self.statements.get(bind.statement)
            if found is None:
                raise SqlError("26000", "prepared statement does not exist")
            if len(bind.values) != len(set(re.findall(r"\$\d", found))):
                raise SqlError("08P01", "wrong number of parameters")
            self._alive(found)
            if bind.portal and bind.portal in self.portals:
                raise SqlError("42P03", "cursor already exists")
            self.portals[bind.portal] = Open(found, bind.values, bind.result_format(0) if bind.results else 0)
            self._out.append(message(Back.BIND_COMPLETE))
        elif kind == Front.DESCRIBE:
            named = read_named(raw[HEADER:], "Describe")
            if named.of == "statement":
                known = self.statements.get(named.name)
                if known is None:
                    raise SqlError("26000", "prepared statement does not exist")
                self._alive(known)
                count = len(set(re.findall(r"\$\d", known)))
                self._out.append(
                    message(Back.PARAMETER_DESCRIPTION, struct.pack(f">H{count}I", count, *[25] * count))
                )
                self._out.append(self._columns(known, 0))
                return
            portal = self.portals.get(named.name)
            if portal is None:
                raise SqlError("34000", "portal does not exist")
            self._alive(portal.text)
            self._out.append(self._columns(portal.text, portal.format))
        elif kind == Front.CLOSE:
            named = read_named(raw[HEADER:], "Close")
            (self.statements if named.of == "statement" else self.portals).pop(named.name, None)
            self._out.append(message(Back.CLOSE_COMPLETE))

    def _execute(self, name: bytes, rows: int) -> Iterator[bytes]:
        portal = self.portals.get(name)
        if portal is None:
            raise SqlError("34000", "portal does not exist")
        self._alive(portal.text)
        self.pipe = self.pipe or self.status == "I"
        self.ran.append((portal.text, portal.values, rows))
        if not portal.text.strip():
            yield message(Back.EMPTY_QUERY)
            return
        yield from self._run(portal.text, portal, rows)

    # -- statements ----------------------------------------------------------------------------------

    @staticmethod
    def _check(text: str) -> None:
        if "refused_by_vecward" in text or "syntax" in text:
            raise SqlError("42601", "syntax error")

    def _alive(self, text: str) -> None:
        if self.status == "E" and not text.upper().startswith(EXITS):
            raise SqlError("25P02", "current transaction is aborted")

    def _query(self, text: str) -> Iterator[bytes]:
        self._check(text)
        parts = [part.strip() for part in text.split(";") if part.strip()]
        if not parts:
            yield message(Back.EMPTY_QUERY)
        for part in parts:
            self._alive(part)
            self.portals.pop(b"", None)
            self.ran.append((part, (), 0))
            columns = self._columns(part, 0)
            if columns[0] == Back.ROW_DESCRIPTION:
                yield columns
            yield from self._run(part, Open(part, (), 0), 0)

    @staticmethod
    def _columns(text: str, code: int) -> bytes:
        if not text.upper().startswith(("SELECT", "FETCH", "EXECUTE")):
            return message(Back.NO_DATA)
        name = "vector" if "vector" in text else "unplannable" if "unplannable" in text else "x"
        return write_row_description([Column(name, 1, 1, 25, -1, -1, code)])  # type: ignore[arg-type]

    def _run(self, text: str, portal: Open, rows: int) -> Iterator[bytes]:
        word, _, rest = text.partition(" ")
        word, argument = word.upper(), rest.split(" ")[0].lower().encode()
        if "broken" in text:
            raise SqlError("22012", "division by zero, near secret")
        if word in ("SELECT", "FETCH", "EXECUTE"):
            count = int(found.group()) if (found := re.search(r"\d+", text.replace("$1", ""))) else 3
            last = min(count, portal.at + rows) if rows else count
            sent = max(last - portal.at, 0)
            while portal.at < last:
                portal.at += 1
                yield write_data_row(
                    [b"row secret VECTOR" + (b" unprovable" if "unprovable" in text else b"")]
                )
            if rows and portal.at < count:
                yield message(Back.PORTAL_SUSPENDED)
                return
            yield write_command_complete(f"SELECT {sent}")
            return
        if word == "COPY":
            if "from" in rest:
                yield message(Back.COPY_IN, b"\0\0\0")
                if "twice" in rest and not self.extended:
                    yield message(Back.COPY_IN, b"\0\0\0")
            else:
                yield message(Back.COPY_OUT, b"\0\0\0")
                for _ in range(3):
                    yield message(Back.COPY_DATA, b"row secret\n")
                yield message(Back.COPY_DONE)
            yield write_command_complete("COPY 3")
            return
        self._command(word, argument, rest)
        if "noisy" in text:
            yield notice_response("a secret notice")
        yield write_command_complete(word)

    def _command(self, word: str, argument: bytes, rest: str) -> None:
        if word == "BEGIN":
            self.status = "T"
        elif word in EXITS:
            self.status = "I"
            self.portals.clear()
        elif word == "PREPARE":
            if argument in self.statements:
                raise SqlError("42P05", "prepared statement already exists")
            self.statements[argument] = rest.partition(" as ")[2]
        elif word == "DEALLOCATE":
            if argument == b"all":
                self.statements.clear()
            elif self.statements.pop(argument, None) is None:
                raise SqlError("26000", "prepared statement does not exist")
        elif word == "DISCARD":
            if self.status != "I":
                raise SqlError("25001", "DISCARD ALL cannot run inside a transaction block")
            self.statements.clear()
            self.portals.clear()
        elif word == "DECLARE":
            if argument in self.portals:
                raise SqlError("42P03", "cursor already exists")
            self.portals[argument] = Open("SELECT 2", (), 0)
        elif word == "CLOSE" and self.portals.pop(argument, None) is None:
            raise SqlError("34000", "cursor does not exist")
