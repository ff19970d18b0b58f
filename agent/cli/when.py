# SPDX-License-Identifier: Apache-2.0
"""Times as journalctl takes them (systemd.time(7)), for --since and --until.

Local time unless the text says otherwise, like journalctl. Taken: ``2026-11-23 18:00:00``, ``18:00``,
``2026-11-23``, RFC 3339, ``... UTC``, ``now``, ``today``, ``yesterday``, ``tomorrow``, ``-1h30min``,
``+5min``, ``2 days ago``, ``@1795459066``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_UNITS = {
    "us": 1e-6,
    "usec": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "": 1,
    "s": 1,
    "sec": 1,
    "second": 1,
    "seconds": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "minutes": 60,
    "h": 3600,
    "hr": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "day": 86400,
    "days": 86400,
    "w": 604800,
    "week": 604800,
    "weeks": 604800,
    "M": 2629800,
    "month": 2629800,
    "months": 2629800,
    "y": 31557600,
    "year": 31557600,
    "years": 31557600,
}
_DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-zµ]*)")
_STAMP = re.compile(
    r"(?:[A-Z][a-z]{2} )?(?:(\d{4})-(\d\d?)-(\d\d?))?[ T]?"
    r"(?:(\d\d?):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?\s*(Z|UTC|[+-]\d\d:?\d\d)?"
)


def parse_span(text: str) -> float:
    """Seconds of ``1h 30min``, ``90``, ``2 days``. Raises ValueError."""
    total, at = 0.0, 0
    while at < len(text.rstrip()):
        found = _SPAN.match(text, at)
        if not found or found[2] not in _UNITS:
            raise ValueError(f"not a time span: {text!r}")
        total += float(found[1]) * _UNITS[found[2]]
        at = found.end()
    if at == 0:
        raise ValueError("no time span")
    return total


def parse_when(text: str, now: datetime | None = None) -> int:
    """Nanoseconds since 1970 of a journalctl time. `now` is aware, for tests. Raises ValueError."""
    now = now or datetime.now().astimezone()
    word = text.strip()
    if word == "now":
        return _ns(now)
    if word in _DAYS:
        midnight = datetime.combine(now.date() + timedelta(days=_DAYS[word]), datetime.min.time())
        return _ns(midnight.astimezone())
    if re.fullmatch(r"@\d+(\.\d+)?", word):
        whole, _, rest = word[1:].partition(".")
        return int(whole) * 10**9 + int((rest + "0" * 9)[:9])
    if word.startswith(("-", "+")):
        return _ns(now) + int(parse_span(word[1:]) * 1e9) * (-1 if word[0] == "-" else 1)
    if word.endswith((" ago", " left")):
        body, _, direction = word.rpartition(" ")
        return _ns(now) + int(parse_span(body) * 1e9) * (-1 if direction == "ago" else 1)
    return _parse_stamp(word, now)


def _parse_stamp(word: str, now: datetime) -> int:
    found = _STAMP.fullmatch(word)
    if not found or (found[1] is None and found[4] is None):
        raise ValueError(
            f"not a time: {word!r}; write it as journalctl takes it: "
            "'2026-11-23 18:00', 'yesterday', '-2h', '@1795459066'"
        )
    year, month, day = (int(g) for g in found.group(1, 2, 3)) if found[1] else (now.year, now.month, now.day)
    hour, minute, second = (int(g or 0) for g in found.group(4, 5, 6))
    plain = datetime(year, month, day, hour, minute, second)  # noqa: DTZ001 - its zone follows
    zone = found[8]
    if zone in ("Z", "UTC"):
        aware = plain.replace(tzinfo=UTC)
    elif zone:
        aware = datetime.fromisoformat(f"{plain.isoformat()}{zone[:3]}:{zone[-2:]}")
    else:
        aware = plain.astimezone()  # the offset of that day, not of today
    return _ns(aware) + int((found[7] or "0").ljust(9, "0"))


def _ns(moment: datetime) -> int:
    whole = moment.replace(microsecond=0)
    return int(whole.timestamp()) * 10**9 + moment.microsecond * 1000


class When(click.ParamType[int]):
    """A click type: nanoseconds since 1970."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_when(str(value))
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)
