# SPDX-License-Identifier: Apache-2.0
"""What every command prints with: console, tables, JSON, times, sizes, progress.

Bias: what is shown was written by strangers. Every text goes through `clean`, which makes control
characters visible, so that no payload can move the cursor, recolour the screen or hide a line; and
never through rich's markup. Colours and bars are for terminals only: piped output is plain.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
PIPED_WIDTH = 200  # columns of a table that is not on a terminal: wide, so that grep finds whole values
STYLES = {
    "allow": "green",
    "answered": "green",
    "deny": "bold red",
    "refused": "bold red",
    "failed": "red",
    "hold": "yellow",
    "tunnel": "cyan",
    "unknown": "bold yellow",
    "masked": "magenta",
    "dim": "dim",
}

# C0 but tab and newline, DEL, C1, zero-width and bidirectional controls, separators, BOM, tags, surrogates.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clean(value: object, lines: bool = False) -> str:
    """The value as text that a terminal shows and does not obey. `lines` keeps newlines and tabs."""
    text = _HIDDEN.sub(_visible, str(value))
    return text if lines else text.replace("\n", "\\n").replace("\t", "\\t")


def text(value: object, style: str = "", lines: bool = False) -> Text:
    """Cleaned text for a cell; None is a dim dash."""
    return Text("-", style="dim") if value is None else Text(clean(value, lines), style=style)


class _Screen(Console):
    """rich ends the program with 1 when the reader has gone; whoever calls us decides that."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(stderr: bool = False) -> Console:
    """A console on today's stdout or stderr: colour on a terminal only, never markup or emoji."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPED_WIDTH
    return _Screen(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def count(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc(ns: int | None, digits: int = 3) -> str | None:
    """RFC 3339 UTC of nanoseconds since 1970, like ``2026-11-23T18:37:46.123Z``."""
    if ns is None:
        return None
    seconds, rest = divmod(ns, 10**9)
    stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{stamp}.{rest // 10 ** (9 - digits):0{digits}d}Z" if digits else f"{stamp}Z"


def day_time(stamp: str | None) -> str:
    """An RFC 3339 time as a table shows it: ``11-23 18:37:46`` (UTC, as the column says)."""
    return "-" if not stamp else f"{stamp[5:10]} {stamp[11:19]}"


def clock(stamp: str | None) -> str:
    """The time of day of an RFC 3339 time, to the millisecond."""
    return "-" if not stamp else stamp[11:23].rstrip("Z")


def size(count: int | None) -> str:
    """Bytes for people: ``912 B``, ``2.4 KiB``, ``64.0 MiB``."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def span(seconds: float | None) -> str:
    """A duration for people: ``340 µs``, ``12.4 ms``, ``3.2 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)  # no slots: typing sets an attribute on instances of generic classes
class Column(Generic[T]):
    """One column of a table.

    `cell` gives a value, or a Text that is styled already. Where the screen is too narrow, columns go in the
    order of `drop`, the highest first; 0 stays. `keep`: never shortened; else down to `least`, and then
    folded (`fold`) or ended in ….
    """

    title: str
    cell: Callable[[T], object]
    drop: int = 0
    right: bool = False
    fold: bool = False
    style: str = ""
    keep: bool = False
    least: int = 10


def table(columns: Sequence[Column[T]], rows: Iterable[T], screen: Console) -> Table:
    """A table of those columns for which the screen is wide enough."""
    lines = [
        [c if isinstance(c := column.cell(row), Text) else text(c) for column in columns] for row in rows
    ]
    least = [_least(column, [line[i] for line in lines]) for i, column in enumerate(columns)]
    shown = list(range(len(columns)))
    while sum(least[i] + 2 for i in shown) > screen.width and any(columns[i].drop for i in shown):
        shown.remove(max(shown, key=lambda i: columns[i].drop))
    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    natural = [max(len(columns[i].title), *(line[i].cell_len for line in lines), 0) for i in shown]
    folding = {n for n, i in enumerate(shown) if columns[i].fold}
    widths = _widths([least[i] for i in shown], natural, folding, screen)
    for i, width in zip(shown, widths, strict=True):
        column = columns[i]
        overflow: Literal["fold", "ellipsis"] = "fold" if column.fold else "ellipsis"
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow=overflow,
            no_wrap=not column.fold,
            style=column.style,
            min_width=least[i],
            max_width=width,
        )
    for line in lines:
        made.add_row(*(line[i] for i in shown))
    return made


def _widths(least: list[int], natural: list[int], folding: set[int], screen: Console) -> list[int]:
    """How wide each column may be: those that fold and then the widest give way first, down to their least.

    rich would take as much from every column, so that a long text makes a short id vanish.
    """
    widths = list(natural)
    while (excess := sum(widths) + 2 * len(widths) - 2 - screen.width) > 0:
        free = {i for i, width in enumerate(widths) if width > least[i]}
        free = free & folding or free
        if not free:
            break  # none can shrink: the screen is too narrow for this table
        widest = max(free, key=lambda i: widths[i])
        next_widest = max((widths[i] for i in free if i != widest), default=0)
        widths[widest] -= min(excess, max(1, widths[widest] - next_widest), widths[widest] - least[widest])
    return widths


def _least(column: Column[Any], cells: list[Text]) -> int:
    """The fewest screen cells that this column is of use with."""
    natural = max([len(column.title), *(cell.cell_len for cell in cells)])
    return natural if column.keep else min(natural, max(column.least, len(column.title)))


def heading(title: str, screen: Console) -> None:
    """A bold line with a rule after it, no wider than one reads."""
    screen.print(Rule(text(title, "bold"), style="dim", align="left"), width=min(screen.width, 100))


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Name and value lines without borders; None is left out, "" is shown as a dash."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            made.add_row(name, value if isinstance(value, Text) else text(value if value != "" else None))
    return made


def verdict_text(verdict: str | None, would: str | None = None) -> Text:
    """The verdict in its colour; in observe, what enforce would do stands beside it."""
    made = text(verdict, STYLES.get(verdict or "", ""))
    if would:
        made.append(f" (would {clean(would)})", style="yellow")
    return made


def json_text(value: object, indent: int | None = None) -> str:
    """JSON that is safe on a terminal and in a log line: control characters escaped, as \\u."""
    raw = msgspec.json.encode(value).decode()
    plain = _HIDDEN.sub(lambda m: "".join(f"\\u{u:04x}" for u in _units(m[0])), raw)
    return msgspec.json.format(plain, indent=indent) if indent else plain


def _units(char: str) -> list[int]:
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def emit_json(document: object) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json_text(document, indent=2) + "\n")


def emit_line(value: Any) -> None:
    """One JSON line on stdout."""
    sys.stdout.write(json_text(value) + "\n")


@contextmanager
def progress(what: str, total: int | None = None, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while work lasts, gone at its end; gives `advance(by)`. Nothing when piped."""
    screen = console(stderr=True)
    if not screen.is_terminal or not show:
        yield lambda by: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task(clean(what), total=total)
        yield lambda by: bar.update(task, advance=by)
