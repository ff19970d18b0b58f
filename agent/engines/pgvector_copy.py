# SPDX-License-Identifier: Apache-2.0
"""CopyData messages of COPY TO STDOUT: rows in text, CSV and binary format, read where they must be.

Owns the three formats as the server writes them with its default delimiters (PostgreSQL docs, COPY, File
Formats); one CopyData message is one row. Bias: where cells must be looked at and the form is another (a
delimiter, a null string, an encoding of the client's own) the COPY is refused before it begins; a message
that is not a whole row of the announced width is not released.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from struct import Struct, error
from typing import Final

from agent.engines import pgvector_nodes as nodes
from agent.engines import pgvector_values as values
from agent.engines.pgvector_cells import Counts
from agent.engines.pgvector_rows import MAX_IDS, Step
from agent.engines.sql_parse import find
from agent.engines.sql_tree import Node, Statement
from agent.protocols.http import Refusal
from agent.protocols.session import Masked
from agent.protocols.sql import Column
from agent.protocols.sql_made import Released

_SIZE: Final = Struct("!i")
_WIDTH: Final = Struct("!h")
_read_size = _SIZE.unpack_from
_read_width = _WIDTH.unpack_from
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_TO_TEXT: Final = {
    b"\\": b"\\\\", b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t", b"\v": b"\\v",
}  # fmt: skip
_OF_TEXT: Final = {escape[1:]: plain for plain, escape in _TO_TEXT.items()}
_HARMLESS: Final = frozenset({"format", "header", "force_quote"})


def copy_form(tree: Node | None, statement: Statement) -> tuple[str, bool, bool]:
    """(format, header line, whether nothing else is set) of a COPY."""
    if tree is None:
        return "unknown", False, False
    kind, inner = nodes.kind_of(find(tree, statement.path))
    form, header, plain = "text", False, kind == "CopyStmt"
    for one in inner.get("options", ()):
        element = one.get("DefElem", {})
        name = element.get("defname", "")
        word = element.get("arg", {})
        text = str(word.get("String", {}).get("sval", "")).lower()
        if name == "format":
            form = text
        elif name == "header":
            # HEADER alone, true, on, 1: there is a line; MATCH is for COPY FROM.
            off = text in ("false", "off")
            off |= "Boolean" in word and not word["Boolean"].get("boolval")
            off |= "Integer" in word and not word["Integer"].get("ival")
            header = not off
        plain &= name in _HARMLESS
    return form, header, plain


def check_form(form: tuple[str, bool, bool]) -> None:
    """Rows of this form can be read. Raises Refusal."""
    if not form[2] or form[0] not in ("text", "csv", "binary"):
        raise Refusal(
            "copy-form", "rows of this COPY cannot be read: use FORMAT text, csv or binary with its defaults"
        )


class CopyPlan:
    """The rows of one COPY TO STDOUT."""

    def __init__(
        self,
        form: tuple[str, bool, bool],
        steps: Sequence[Step],
        counts: Counts,
        each: Counter[tuple[str, str]],
        must: bool,
    ) -> None:
        """`must`: the cells decide what may be released. Raises Refusal where they cannot be read."""
        self._format, self._header, plain = form
        self._steps = list(steps)
        self._counts = counts
        self._each = each
        self._begun = False
        self._ids = sum(1 for one in self._steps if one.key)
        if must:
            check_form(form)
        readable = plain and self._format in ("text", "csv", "binary") and bool(self._steps)
        if must and not readable:
            raise Refusal("copy-form", "the columns of this COPY are not known")
        self._walks = readable and (
            bool(self._each) or any(one.cell or one.shape or one.key for one in self._steps)
        )

    @property
    def columns(self) -> Sequence[Column] | None:
        return None

    def release(self, run: bytes) -> Released:
        if not self._walks:
            return Released(run, run, -1)
        try:
            return self._walk(run)
        except (error, IndexError, ValueError) as caught:
            raise Refusal("unproven-answer", "the rows of this COPY are not of their format") from caught

    def _walk(self, run: bytes) -> Released:
        shown: list[bytes] = []
        kept: list[bytes] = []
        ids: list[str] = []
        rows = cut = at = 0
        same = True
        while at < len(run):
            end = at + 1 + _read_size(run, at + 1)[0]
            if run[at] != 0x64 or end > len(run) or end <= at:
                raise IndexError
            raw = run[at + 5 : end]
            head, cells, tail = self._cells(raw)
            if cells is None:  # no row: a header line, the end of a binary COPY
                shown.append(run[at:end])
                kept.append(run[at:end])
                at = end
                continue
            rows += 1
            out, record, keys, vectors = self._masked(cells)
            cut += vectors
            if keys and len(ids) < MAX_IDS:
                ids.append(",".join(keys))
            message = run[at:end] if out is None else _message(head + self._joined(out) + tail)
            same &= out is None
            shown.append(message)
            kept.append(message if record is None else _message(head + self._joined(record) + tail))
            at = end
        for what, count in self._each.items():
            self._counts[what] += count * rows
        masks = tuple(Masked(what, how, count) for (what, how), count in sorted(self._counts.items()))
        self._counts.clear()
        released = run if same else b"".join(shown)
        return Released(released, b"".join(kept), rows, tuple(ids), cut, masks)

    def _masked(
        self, cells: list[bytes | None]
    ) -> tuple[list[bytes | None] | None, list[bytes | None] | None, list[str], int]:
        """The cells as released and as recorded (None: as they came), the row's id, vectors digested."""
        if len(cells) != len(self._steps):
            raise IndexError
        out, record = list(cells), list(cells)
        keys: list[str] = []
        vectors = 0
        for at, (step, value) in enumerate(zip(self._steps, cells, strict=True)):
            if value is None:
                continue
            now = value if step.cell is None else step.cell(value)
            out[at] = record[at] = now
            if step.shape is not None and now is not None:
                record[at] = values.digested(step.shape, now, step.binary)
                vectors += 1
            if step.key and now is not None:
                try:
                    keys.append(values.text_of(step.key, now, step.binary))
                except values.Unreadable:
                    keys.append(now.hex())
        return (
            None if out == cells else out,
            None if record == out and out == cells else record,
            keys if len(keys) == self._ids else [],
            vectors,
        )

    # Formats.

    def _cells(self, raw: bytes) -> tuple[bytes, list[bytes | None] | None, bytes]:
        """What stands before the row, its cells (None: it is no row), what stands after it."""
        if self._format == "binary":
            return self._of_binary(raw)
        if not raw.endswith(b"\n"):
            raise ValueError("not a whole line")
        if self._header and not self._begun:
            self._begun = True
            return b"", None, b""
        line = raw[:-1]
        return b"", _of_csv(line) if self._format == "csv" else _of_text(line), b"\n"

    def _joined(self, cells: list[bytes | None]) -> bytes:
        if self._format == "binary":
            return _WIDTH.pack(len(cells)) + b"".join(
                _SIZE.pack(-1) if one is None else _SIZE.pack(len(one)) + one for one in cells
            )
        if self._format == "csv":
            return b",".join(map(_to_csv, cells))
        return b"\t".join(map(_to_text, cells))

    def _of_binary(self, raw: bytes) -> tuple[bytes, list[bytes | None] | None, bytes]:
        start = 0
        if not self._begun:
            if not raw.startswith(_SIGNATURE):
                raise ValueError("no signature")
            start = len(_SIGNATURE) + 8 + _read_size(raw, len(_SIGNATURE) + 4)[0]
            self._begun = True
            if start == len(raw):
                return raw, None, b""
        width = _read_width(raw, start)[0]
        if width == -1:
            return raw, None, b""
        cells: list[bytes | None] = []
        at = start + 2
        for _ in range(width):
            size = _read_size(raw, at)[0]
            at += 4
            if size < 0:
                cells.append(None)
                continue
            if at + size > len(raw):
                raise IndexError
            cells.append(raw[at : at + size])
            at += size
        # The end may stand in the message of the last row.
        if raw[at:] not in (b"", b"\xff\xff"):
            raise ValueError("bytes after a row")
        return raw[:start], cells, raw[at:]


def _message(data: bytes) -> bytes:
    return b"d" + _SIZE.pack(len(data) + 4) + data


def _of_text(line: bytes) -> list[bytes | None]:
    return [None if one == b"\\N" else _unescaped(one) for one in line.split(b"\t")]


def _unescaped(cell: bytes) -> bytes:
    if b"\\" not in cell:
        return cell
    pieces = cell.split(b"\\")
    done = [pieces[0]]
    at = 1
    while at < len(pieces):
        piece = pieces[at]
        if piece:
            done.append(_OF_TEXT[piece[:1]] if piece[:1] in _OF_TEXT else piece[:1])
            done.append(piece[1:])
        elif at + 1 < len(pieces):  # two backslashes
            at += 1
            done += (b"\\", pieces[at])
        else:
            raise ValueError("a backslash at the end")
        at += 1
    return b"".join(done)


def _to_text(cell: bytes | None) -> bytes:
    if cell is None:
        return b"\\N"
    for plain, escape in _TO_TEXT.items():
        if plain in cell:
            cell = cell.replace(plain, escape)
    return cell


def _of_csv(line: bytes) -> list[bytes | None]:
    """RFC 4180 as the server writes it: a quoted cell doubles its quotes, an unquoted empty one is NULL."""
    cells: list[bytes | None] = []
    at = 0
    while True:
        if line[at : at + 1] == b'"':
            pieces = []
            at += 1
            while True:
                end = line.index(b'"', at)
                pieces.append(line[at:end])
                at = end + 1
                if line[at : at + 1] != b'"':
                    break
                pieces.append(b'"')
                at += 1
            cells.append(b"".join(pieces))
        else:
            end = line.find(b",", at)
            end = len(line) if end < 0 else end
            cells.append(line[at:end] or None)
            at = end
        if at == len(line):
            return cells
        if line[at : at + 1] != b",":
            raise ValueError("not CSV")
        at += 1


def _to_csv(cell: bytes | None) -> bytes:
    if cell is None:
        return b""
    if not cell or any(one in cell for one in (b'"', b",", b"\n", b"\r", b" ", b"\\")) or cell == b"\\.":
        return b'"' + cell.replace(b'"', b'""') + b'"'
    return cell
