# SPDX-License-Identifier: Apache-2.0
"""SQL exchanges for people: a recorded answer as tables, a recorded request as its statement.

Owns reading PostgreSQL's backend messages as they stand in evidence (docs 54.7), and nothing else: what is
not wholly made of them is no such answer (None). Cells are shown as text; binary ones by their type where it
is a plain one, else as hex. Evidence may be of hostile origin: every length is checked, everything is
bounded, nothing raises.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct, error
from typing import Any, Final

import msgspec

MAX_ROWS: Final = 1000  # of one answer; the record has them all
MAX_COLUMNS: Final = 1664
WIDEST: Final = 60  # characters of one cell on the screen
_KINDS: Final = frozenset(b"TDCEIdcHnNtsZ123GAS")
_BINARY: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # no text that a database keeps for people
_SIZE: Final = Struct("!i").unpack_from
_WIDTH: Final = Struct("!H").unpack_from
_FIELD: Final = Struct("!IhIhih").unpack_from
_NUMBERS: Final = {16: "!?", 21: "!h", 23: "!i", 20: "!q", 26: "!I", 700: "!f", 701: "!d"}
_DECODERS: Final = {oid: Struct(form) for oid, form in _NUMBERS.items()}
_UUID: Final = 2950
_SHOWN: Final = {
    "S": "",
    "C": "",
    "M": "",
    "D": "detail: ",
    "H": "hint: ",
    "W": "where: ",
    "n": "constraint: ",
}


@dataclass(slots=True)
class Grid:
    """The rows of one result. `rows` holds at most `MAX_ROWS` of `count`; `notes` are errors and notices."""

    columns: tuple[str, ...] = ()
    rows: list[tuple[str | None, ...]] = field(default_factory=list)
    count: int = 0
    tag: str | None = None
    notes: list[str] = field(default_factory=list)


def grids(body: bytes | None) -> list[Grid] | None:
    """The results in a recorded answer; None where it is not one of PostgreSQL's. Never raises."""
    if not body or body[0] not in _KINDS:
        return None
    try:
        return _Reader().read(body)
    except (error, IndexError, ValueError):
        return None


class _Reader:
    def __init__(self) -> None:
        self._types: list[tuple[int, int]] = []  # (type, format) of each column
        self._made: list[Grid] = []
        self._open = False

    def read(self, body: bytes) -> list[Grid]:
        at = 0
        while at < len(body):
            kind, size = body[at], _SIZE(body, at + 1)[0]
            end = at + 1 + size
            if kind not in _KINDS or size < 4 or end > len(body):
                raise ValueError("not a message")
            self._take(chr(kind), body[at + 5 : end])
            at = end
        return self._made

    def _grid(self) -> Grid:
        if not self._open:
            self._made.append(Grid())
            self._types = []
            self._open = True
        return self._made[-1]

    def _take(self, kind: str, data: bytes) -> None:
        match kind:
            case "T":
                self._open = False
                grid = self._grid()
                grid.columns, self._types = _columns(data)
            case "D":
                grid = self._grid()
                grid.count += 1
                if grid.count <= MAX_ROWS:
                    grid.rows.append(self._cells(data))
            case "d":
                grid = self._grid()
                grid.columns = grid.columns or ("COPY",)
                grid.count += 1
                if grid.count <= MAX_ROWS:
                    grid.rows.append((data.decode("utf-8", "backslashreplace").rstrip("\n"),))
            case "C":
                self._grid().tag = data.rstrip(b"\0").decode("utf-8", "replace")
                self._open = False
            case "E" | "N":
                self._grid().notes += _notes(data)
                self._open = kind == "N"
            case "s":
                self._grid().notes.append("more rows were left in the portal")
                self._open = False
            case _:
                pass

    def _cells(self, data: bytes) -> tuple[str | None, ...]:
        many = _WIDTH(data)[0]
        if many > MAX_COLUMNS:
            raise ValueError("too many columns")
        at = 2
        cells: list[str | None] = []
        for number in range(many):
            size = _SIZE(data, at)[0]
            at += 4
            if size < 0:
                cells.append(None)
                continue
            if at + size > len(data):
                raise ValueError("a cell beyond its row")
            kind, form = self._types[number] if number < len(self._types) else (0, 0)
            cells.append(_shown(kind, form, data[at : at + size]))
            at += size
        return tuple(cells)


def _columns(data: bytes) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    many = _WIDTH(data)[0]
    if many > MAX_COLUMNS:
        raise ValueError("too many columns")
    at = 2
    names, types = [], []
    for _ in range(many):
        end = data.index(b"\0", at)
        names.append(data[at:end].decode("utf-8", "replace"))
        _, _, kind, _, _, form = _FIELD(data, end + 1)
        types.append((kind, form))
        at = end + 19
    return tuple(names), types


def _shown(kind: int, form: int, value: bytes) -> str:
    """A cell as text. A described statement is recorded before its formats are known: bytes decide too."""
    if form == 1 and not value.startswith(b'{"dim":'):
        if (number := _DECODERS.get(kind)) is not None and len(value) == number.size:
            found: Any = number.unpack(value)[0]
            return f"{found:.9g}" if isinstance(found, float) and math.isfinite(found) else str(found)
        if kind == _UUID and len(value) == 16:
            return str(uuid.UUID(bytes=value))
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "\\x" + value.hex()
    return "\\x" + value.hex() if _BINARY.search(text) else text


def _notes(data: bytes) -> list[str]:
    """Severity, code and message of an error or notice, then what it adds."""
    fields = {}
    for part in data.split(b"\0"):
        if part:
            fields[chr(part[0])] = part[1:].decode("utf-8", "replace")
    head = " ".join(fields[name] for name in ("S", "C") if name in fields)
    return [f"{head}: {fields.get('M', '')}"] + [
        f"{word}{fields[name]}" for name, word in _SHOWN.items() if word and name in fields
    ]


def vector_text(cell: str) -> str:
    """A digested vector as ``<vector 768: 1f2e3d4c…>``; any other cell as it is."""
    if not cell.startswith('{"dim":'):
        return cell
    try:
        found = msgspec.json.decode(cell)
        return f"<vector {int(found['dim'])}: {str(found['sha256'])[:8]}…>"
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return cell


def answer_lines(body: bytes | None) -> list[str] | None:
    """The answer as psql would print it; None where it is not SQL's."""
    found = grids(body)
    if found is None:
        return None
    lines: list[str] = []
    for grid in found:
        lines += _grid_lines(grid)
    return lines


def _grid_lines(grid: Grid) -> Iterator[str]:
    if grid.columns or grid.rows:
        names = grid.columns or tuple(f"column {n + 1}" for n in range(len(grid.rows[0])))
        cells = [["NULL" if one is None else _cell(one) for one in row] for row in grid.rows]
        widths = [
            max([len(name), *(len(row[at]) for row in cells if at < len(row))])
            for at, name in enumerate(names)
        ]
        yield " | ".join(name.ljust(width) for name, width in zip(names, widths, strict=True)).rstrip()
        yield "-+-".join("-" * width for width in widths)
        for row in cells:
            yield " | ".join(one.ljust(width) for one, width in zip(row, widths, strict=False)).rstrip()
        if grid.count > len(grid.rows):
            yield f"… {grid.count - len(grid.rows)} more rows"
    if grid.tag:
        yield grid.tag
    yield from grid.notes


def _cell(text: str) -> str:
    text = vector_text(text).replace("\n", "\\n").replace("\r", "\\r")
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def request_lines(body: bytes | None) -> list[str] | None:
    """A recorded statement as it was written, its parameters below; None where it is not SQL's."""
    found = _request(body)
    if found is None:
        return None
    lines = found[0].splitlines()
    for number, value in enumerate(found[1], 1):
        shown = "NULL" if value is None else value if isinstance(value, str) else _plain(value)
        lines.append(f"${number} = {shown}")
    return lines


def _request(body: bytes | None) -> tuple[str, list[Any]] | None:
    if not body or not body.startswith(b'{"statement":'):
        return None
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(document, dict) or not document.keys() <= {"statement", "parameters"}:
        return None
    statement, parameters = document.get("statement"), document.get("parameters", [])
    if not isinstance(statement, str) or not isinstance(parameters, list):
        return None
    return statement, parameters


def _plain(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return vector_text(text)
