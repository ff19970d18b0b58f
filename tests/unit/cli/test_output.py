# SPDX-License-Identifier: Apache-2.0
"""What reaches a terminal: harmless text, tables that fit, times and sizes for people."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from agent.cli.output import Column, clean, json_text, size, span, table, text, utc
from agent.cli.when import parse_span, parse_when

EVIL = "\x1b]0;pwned\x07\x1b[2J\r\u202egnp.exe\u2066\x9b31m\ud800\u200b[bold red]x[/]"


def shown(width: int, *cells: str) -> str:
    stream = io.StringIO()
    screen = Console(file=stream, width=width, markup=False, emoji=False, highlight=False)
    columns = [Column[list[str]](f"c{i}", lambda row, i=i: row[i], drop=i) for i in range(len(cells))]  # type: ignore[misc]
    screen.print(table(columns, [list(cells)], screen))
    return stream.getvalue()


def test_terminal_escapes_are_shown_and_not_obeyed() -> None:
    made = clean(EVIL)
    assert made == "\\x1b]0;pwned\\x07\\x1b[2J\\x0d\\u202egnp.exe\\u2066\\x9b31m\\ud800\\u200b[bold red]x[/]"
    assert clean("a\nb\tc") == "a\\nb\\tc"
    assert clean("a\nb\tc", lines=True) == "a\nb\tc"


def test_a_cell_is_never_markup() -> None:
    assert "[bold red]x[/]" in shown(200, EVIL)


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_at_all_reaches_the_screen_with_a_control_character(value: str) -> None:
    for out in (clean(value), shown(300, value[:50])):
        assert not any(
            (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u200b" for c in out
        )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_is_safe_on_a_terminal_and_still_the_same_text(value: str) -> None:
    made = json_text({"v": value})
    assert json.loads(made) == {"v": value}
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c == "\u202e" for c in made)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_table_fits_its_screen_and_drops_the_least_wanted_columns(width: int) -> None:
    out = shown(width, "first" * 3, "second" * 3, "third" * 3, "fourth" * 3, "fifth" * 3, "sixth" * 3)
    assert max(len(line) for line in out.splitlines()) <= width
    assert "c0" in out
    assert ("c5" in out) == (width >= 80)


def test_none_is_a_dash() -> None:
    assert text(None) == Text("-")


@pytest.mark.parametrize(
    ("ns", "expected"),
    [(None, None), (0, "1970-01-01T00:00:00.000Z"), (1_795_459_066_123_456_789, "2026-11-23T18:37:46.123Z")],
)
def test_times_are_rfc_3339_utc(ns: int | None, expected: str | None) -> None:
    assert utc(ns) == expected


def test_sizes_and_durations_are_for_people() -> None:
    assert [size(n) for n in (None, 0, 1023, 2457, 64 * 2**20)] == [
        "-",
        "0 B",
        "1023 B",
        "2.4 KiB",
        "64.0 MiB",
    ]
    made = [span(s) for s in (None, 0.00034, 0.0124, 3.2, 250, 7500)]
    assert made == ["-", "340 µs", "12.4 ms", "3.2 s", "4 min 10 s", "2 h 5 min"]


NOW = datetime(2026, 11, 23, 18, 37, 46, tzinfo=UTC)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("now", "2026-11-23T18:37:46.000Z"),
        ("@1795459066", "2026-11-23T18:37:46.000Z"),
        ("@1795459066.25", "2026-11-23T18:37:46.250Z"),
        ("-2h", "2026-11-23T16:37:46.000Z"),
        ("-1h30min", "2026-11-23T17:07:46.000Z"),
        ("+5min", "2026-11-23T18:42:46.000Z"),
        ("2 days ago", "2026-11-21T18:37:46.000Z"),
        ("2026-11-23T18:00:00Z", "2026-11-23T18:00:00.000Z"),
        ("2026-11-23T18:00:00.5+02:00", "2026-11-23T16:00:00.500Z"),
        ("2026-11-23 18:00 UTC", "2026-11-23T18:00:00.000Z"),
        ("Mon 2026-11-23 18:00:01 UTC", "2026-11-23T18:00:01.000Z"),
    ],
)
def test_times_are_taken_as_journalctl_takes_them(word: str, expected: str) -> None:
    assert utc(parse_when(word, NOW)) == expected


def test_times_without_a_zone_are_local() -> None:
    midnight = datetime(2026, 11, 23).astimezone()
    assert parse_when("today", midnight.replace(hour=7)) == int(midnight.timestamp()) * 10**9
    assert parse_when("2026-11-23", NOW) == int(midnight.timestamp()) * 10**9
    assert parse_when("18:30", midnight) == (int(midnight.timestamp()) + 18 * 3600 + 1800) * 10**9
    assert (
        parse_when("yesterday", midnight) < parse_when("today", midnight) < parse_when("tomorrow", midnight)
    )


@pytest.mark.parametrize(
    "word", ["", "soon", "25:00", "2026-13-01", "-", "-5 parsecs", "@x", "ago", "2026-11-23 18"]
)
def test_what_is_no_time_is_refused(word: str) -> None:
    with pytest.raises(ValueError):
        parse_when(word, NOW)


def test_spans_are_systemds() -> None:
    assert parse_span("1h 30min") == 5400
    assert parse_span("1M") == 2629800
    assert parse_span("90") == 90


def test_a_long_text_gives_way_before_a_short_one_vanishes() -> None:
    out = shown(40, "c1", "long " * 40).splitlines()
    assert out[-1].startswith("c1  long long")
    assert out[-1].rstrip().endswith("…")
