# SPDX-License-Identifier: Apache-2.0
"""What stands inside PostgreSQL's messages: read into values, and written from values.

One function a message, after PostgreSQL docs 54.7 Message Formats; every function takes the body (what
stands behind the five bytes of the header) and wants it used up to its last byte, as the server does. Names
and texts are bytes: what encoding they are in is known to the connection. Bias: a message that is not exactly
of its form is a ProtocolError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from agent.protocols.big_endian import int16_at, int32_at
from agent.protocols.postgres_messages import Back, Front, Side, message
from agent.protocols.session import ProtocolError
from agent.protocols.sql import Column

if TYPE_CHECKING:
    from mypy_extensions import i64  # the compiled form's own integers; where nothing is compiled, any int

Body = bytes | memoryview
Format = Literal[0, 1]
_T = TypeVar("_T")

MAX_COLUMNS: Final = 1664  # MaxTupleAttributeNumber: more cannot come from a server
_INT16: Final = struct.Struct(">H")
_INT32: Final = struct.Struct(">I")
_SIGNED32: Final = struct.Struct(">i")
_COLUMN: Final = struct.Struct(">IhIhiH")


class Cursor:
    """Reads a body from its start; anything missing or left over is a ProtocolError."""

    __slots__ = ("_at", "_body", "_side", "_what")

    def __init__(self, body: Body, what: str, side: Side) -> None:
        self._body = body if isinstance(body, bytes) else bytes(body)
        self._what = what
        self._side: Side = side
        self._at: i64 = 0

    def fail(self, how: str) -> ProtocolError:
        return ProtocolError("message-form", f"a {self._what} message {how}", self._side)

    def string(self) -> bytes:
        """Up to the next zero byte, which is passed over."""
        end = self._body.find(b"\0", self._at)
        if end < 0:
            raise self.fail("with a text that has no end")
        found = self._body[self._at : end]
        self._at = end + 1
        return found

    def take(self, size: i64) -> bytes:
        at = self._pass(size)
        return self._body[at : at + size]

    def _pass(self, size: i64) -> i64:
        """Go on by `size` bytes; returns where they begin."""
        at = self._at
        if at + size > len(self._body):
            raise self.fail("that ends too early")
        self._at = at + size
        return at

    def int8(self) -> int:
        return self._body[self._pass(1)]

    def int16(self) -> i64:
        return int16_at(self._body, self._pass(2))

    def int32(self) -> i64:
        return int32_at(self._body, self._pass(4))

    def value(self) -> bytes | None:
        """A length and as many bytes; length -1 is NULL."""
        size = int32_at(self._body, self._pass(4))
        if size == 0xFFFFFFFF:
            return None
        if size >= 1 << 31:
            raise self.fail("with a value of negative length")
        return self.take(size)

    def format(self) -> Format:
        code = self.int16()
        if code == 0:
            return 0
        if code == 1:
            return 1
        raise self.fail(f"with format code {code}")

    def formats(self) -> tuple[Format, ...]:
        """A count and as many format codes."""
        many = self.int16()
        if many == 0:
            return ()
        found: list[Format] = []
        while len(found) < many:
            found.append(self.format())
        return tuple(found)

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def done(self, found: _T) -> _T:
        if self.left:
            raise self.fail("with something behind its end")
        return found


# -- of the client ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parse:
    statement: bytes
    text: bytes
    types: tuple[int, ...]  # OIDs; 0 or missing: the server decides


@dataclass(slots=True, init=False)
class Bind:
    """`formats` and `results` are as sent: none (all text), one for all, or one each."""

    portal: bytes
    statement: bytes
    formats: tuple[Format, ...]
    values: tuple[bytes | None, ...]
    results: tuple[Format, ...]

    def __init__(
        self,
        portal: bytes,
        statement: bytes,
        formats: tuple[Format, ...],
        values: tuple[bytes | None, ...],
        results: tuple[Format, ...],
    ) -> None:
        self.portal = portal
        self.statement = statement
        self.formats = formats
        self.values = values
        self.results = results

    def format_of(self, index: int) -> Format:
        """The format of a parameter, by its place from 0."""
        return _format_of(self.formats, index)

    def result_format(self, index: int) -> Format:
        return _format_of(self.results, index)


def _format_of(formats: tuple[Format, ...], index: int) -> Format:
    if not formats:
        return 0
    return formats[0] if len(formats) == 1 else formats[index]


@dataclass(frozen=True, slots=True)
class Named:
    """Describe and Close name one of two."""

    of: Literal["statement", "portal"]
    name: bytes


@dataclass(frozen=True, slots=True)
class Execute:
    portal: bytes
    max_rows: int  # 0: all; the server takes what is negative for all too


def read_query(body: Body) -> bytes:
    cursor = Cursor(body, "Query", "client")
    return cursor.done(cursor.string())


def read_parse(body: Body) -> Parse:
    cursor = Cursor(body, "Parse", "client")
    statement, text = cursor.string(), cursor.string()
    return cursor.done(Parse(statement, text, tuple(cursor.int32() for _ in range(cursor.int16()))))


def read_bind(body: Body) -> Bind:
    cursor = Cursor(body, "Bind", "client")
    portal = cursor.string()
    statement = cursor.string()
    formats = cursor.formats()
    many = cursor.int16()
    values: list[bytes | None] = []
    while len(values) < many:
        values.append(cursor.value())
    results = cursor.formats()
    if len(formats) > 1 and len(formats) != len(values):
        raise cursor.fail(f"with {len(formats)} formats for {len(values)} parameters")
    return cursor.done(Bind(portal, statement, formats, tuple(values), results))


def read_named(body: Body, what: Literal["Describe", "Close"]) -> Named:
    cursor = Cursor(body, what, "client")
    kind = cursor.int8()
    name = cursor.string()
    if kind == ord("S"):
        return cursor.done(Named("statement", name))
    if kind == ord("P"):
        return cursor.done(Named("portal", name))
    raise cursor.fail("that names neither a statement nor a portal")


def read_execute(body: Body) -> Execute:
    cursor = Cursor(body, "Execute", "client")
    portal = cursor.string()
    (rows,) = _SIGNED32.unpack(cursor.take(4))
    return cursor.done(Execute(portal, max(rows, 0)))


def read_empty(body: Body, what: str, side: Side) -> None:
    """Sync, Flush, Terminate, CopyDone, ParseComplete and others that have no content."""
    Cursor(body, what, side).done(None)


def write_query(text: bytes) -> bytes:
    return message(Front.QUERY, text + b"\0")


def write_parse(parse: Parse) -> bytes:
    types = _INT16.pack(len(parse.types)) + b"".join(_INT32.pack(oid) for oid in parse.types)
    return message(Front.PARSE, parse.statement + b"\0" + parse.text + b"\0" + types)


def write_bind(bind: Bind) -> bytes:
    parts = [
        bind.portal + b"\0" + bind.statement + b"\0",
        _formats(bind.formats),
        _INT16.pack(len(bind.values)),
    ]
    parts += [_value(value) for value in bind.values]
    parts.append(_formats(bind.results))
    return message(Front.BIND, b"".join(parts))


def write_named(kind: int, named: Named) -> bytes:
    """A Describe or a Close, by `kind`."""
    return message(kind, (b"S" if named.of == "statement" else b"P") + named.name + b"\0")


def write_execute(execute: Execute) -> bytes:
    return message(Front.EXECUTE, execute.portal + b"\0" + _INT32.pack(execute.max_rows))


def _formats(formats: Sequence[Format]) -> bytes:
    return struct.pack(f">H{len(formats)}H", len(formats), *formats)


def _value(value: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if value is None else _INT32.pack(len(value)) + value


# -- of the server ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CopyResponse:
    """CopyInResponse, CopyOutResponse and CopyBothResponse."""

    format: Format
    columns: tuple[Format, ...]


@dataclass(frozen=True, slots=True)
class Notification:
    pid: int
    channel: bytes
    payload: bytes


def read_row_description(body: Body) -> tuple[Column, ...]:
    """Names are read as UTF-8, what is not UTF-8 in them as lone surrogates (then written back as it was)."""
    cursor = Cursor(body, "RowDescription", "server")
    count = cursor.int16()
    if count > MAX_COLUMNS:
        raise cursor.fail(f"of {count} columns")
    return cursor.done(tuple(_read_column(cursor) for _ in range(count)))


def _read_column(cursor: Cursor) -> Column:
    name = cursor.string().decode("utf-8", "surrogateescape")
    table, attribute, kind, size, modifier, code = _COLUMN.unpack(cursor.take(_COLUMN.size))
    if code not in (0, 1):
        raise cursor.fail(f"with format code {code}")
    return Column(name, table, attribute, kind, size, modifier, code)


def write_row_description(columns: Sequence[Column]) -> bytes:
    parts = [_INT16.pack(len(columns))]
    for c in columns:
        parts.append(c.name.encode("utf-8", "surrogateescape") + b"\0")
        parts.append(_COLUMN.pack(c.table, c.attribute, c.type, c.size, c.modifier, c.format))
    return message(Back.ROW_DESCRIPTION, b"".join(parts))


def read_parameter_description(body: Body) -> tuple[int, ...]:
    cursor = Cursor(body, "ParameterDescription", "server")
    return cursor.done(tuple(cursor.int32() for _ in range(cursor.int16())))


def read_data_row(body: Body) -> tuple[bytes | None, ...]:
    cursor = Cursor(body, "DataRow", "server")
    return cursor.done(tuple(cursor.value() for _ in range(cursor.int16())))


def write_data_row(values: Sequence[bytes | None]) -> bytes:
    return message(Back.DATA_ROW, _INT16.pack(len(values)) + b"".join(_value(v) for v in values))


def read_command_complete(body: Body) -> str:
    cursor = Cursor(body, "CommandComplete", "server")
    return cursor.done(cursor.string().decode("latin-1"))


def write_command_complete(tag: str) -> bytes:
    return message(Back.COMMAND_COMPLETE, tag.encode("latin-1") + b"\0")


def read_ready(body: Body) -> Literal["I", "T", "E"]:
    found = bytes(body)
    if found == b"I":
        return "I"
    if found == b"T":
        return "T"
    if found == b"E":
        return "E"
    raise ProtocolError("message-form", "a ReadyForQuery message of no known status", "server")


def read_report(body: Body) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse by their one-letter code, in order."""
    cursor = Cursor(body, "ErrorResponse or NoticeResponse", "server")
    fields: dict[str, str] = {}
    while (code := cursor.int8()) != 0:
        fields[chr(code)] = cursor.string().decode("utf-8", "surrogateescape")
    return cursor.done(fields)


def read_parameter_status(body: Body) -> tuple[str, str]:
    cursor = Cursor(body, "ParameterStatus", "server")
    name, value = cursor.string(), cursor.string()
    return cursor.done((name.decode("latin-1"), value.decode("utf-8", "surrogateescape")))


def read_copy_response(body: Body) -> CopyResponse:
    cursor = Cursor(body, "CopyResponse", "server")
    overall: Format = 1 if cursor.int8() else 0
    return cursor.done(CopyResponse(overall, tuple(cursor.format() for _ in range(cursor.int16()))))


def read_notification(body: Body) -> Notification:
    cursor = Cursor(body, "NotificationResponse", "server")
    return cursor.done(Notification(cursor.int32(), cursor.string(), cursor.string()))


def read_backend_key(body: Body) -> tuple[int, bytes]:
    """(process id, key) of BackendKeyData: the key has 4 bytes in protocol 3.0, up to 256 in 3.2."""
    cursor = Cursor(body, "BackendKeyData", "server")
    pid, key = cursor.int32(), cursor.take(cursor.left)
    if not 4 <= len(key) <= 256:
        raise cursor.fail(f"with a key of {len(key)} bytes")
    return pid, key


def read_negotiate_version(body: Body) -> tuple[int, tuple[bytes, ...]]:
    """(newest minor version the server speaks, protocol options it does not know)."""
    cursor = Cursor(body, "NegotiateProtocolVersion", "server")
    version, count = cursor.int32(), cursor.int32()
    return cursor.done((version & 0xFFFF, tuple(cursor.string() for _ in range(min(count, MAX_COLUMNS)))))
