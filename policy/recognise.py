# SPDX-License-Identifier: Apache-2.0
"""Personal data in texts: patterns on RE2 (linear in the text), each with a validator.

Imported only where a rule masks `pii`. Run it after vectors are cut: digits of embeddings look like
card numbers. Bias: of two overlapping findings the whole span goes; a text beyond the bound goes whole.
What it cannot find: data written in words, split over fields, or encoded (base64, images).
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from policy.mask import REDACTED, last_shown, token
from policy.model import MaskAs

MAX_TEXT = 8 * 1024 * 1024
"""Characters of one text that are searched (some 50 ms); a longer one is redacted whole."""
MAX_AT_ONCE = 16 * 1024
"""Bytes of a document that is searched before its texts are."""
NOTHING: Mapping[str, int] = {}
MAX_DEPTH = 64
"""Nesting of a value that is walked; what lies deeper is redacted whole."""

# Span of the data within a match, as offsets from its start; None: not what it looked like.
Validator = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of data: `validate` says how much of a match is it; `canonical` is what is hashed.

    `needs`: characters (as in a regular expression's class) of which every match has at least one; a text
    without any is not searched. Empty: nothing is known.
    """

    name: str
    pattern: str
    validate: Validator
    canonical: Callable[[str], str]
    needs: str


def _whole(match: str) -> int | None:
    return len(match)


def _alnum(text: str) -> str:
    return "".join(char for char in text if char.isalnum()).upper()


def _same(text: str) -> str:
    return text


def passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for at, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * 2 if at % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def _card(match: str) -> int | None:
    digits = _alnum(match)
    if digits[0] in "23456" and len(set(digits)) > 1 and passes_luhn(digits):
        return len(match)
    return None


# SWIFT IBAN registry: length -> countries.
IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
IBAN_LENGTHS = {code: length for length, codes in IBAN_COUNTRIES.items() for code in codes.split()}


def passes_mod97(iban: str) -> bool:
    """ISO 13616-1: the rearranged number is 1 modulo 97."""
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1


def _iban(match: str) -> int | None:
    """The match may run on into the next word: the country says how long the number is."""
    length = IBAN_LENGTHS.get(match[:2].upper())
    if length is None:
        return None
    seen = 0
    for at, char in enumerate(match):
        seen += char.isalnum()
        if seen == length:
            rest = match[at + 1 : at + 2]
            ends = not rest.isalnum()
            return at + 1 if ends and passes_mod97(_alnum(match[: at + 1])) else None
    return None


def _phone(match: str) -> int | None:
    """ITU-T E.164: at most 15 digits."""
    return len(match) if 8 <= sum(map(str.isdigit, match)) <= 15 else None


def _address(match: str) -> int | None:
    text = match.rstrip(".")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return None
    return len(text) if len(text) > 2 else None


def _ssn(match: str) -> int | None:
    """SSA: no area 000, 666 or 9xx, no group 00, no serial 0000."""
    area, group, serial = match[:3], match[4:6], match[7:]
    usable = area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"
    return len(match) if usable and match[3] == match[6] else None


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "api_key",
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[A-Za-z0-9+/=\s]*"
            r"(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
            r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[0-9A-Za-z_\-]{35}|\bgh[pousr]_[A-Za-z0-9]{36,}"
            r"|\bgithub_pat_[A-Za-z0-9_]{40,}|\bglpat-[A-Za-z0-9_\-]{20,}|\bxox[abeoprs]-[A-Za-z0-9\-]{10,}"
            r"|\bhf_[A-Za-z0-9]{30,}|\b(?:sk|rk|pk)[\-_][A-Za-z0-9_\-]{20,}"
            r"|\beyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*",
            _whole,
            _same,
            "",
        ),
        Kind(
            "email",
            r"[\pL\pN.!#$%&'*+/=?^_`{|}~\-]+@(?:[\pL\pN](?:[\pL\pN\-]*[\pL\pN])?\.)+[\pL][\pL\pN\-]*[\pL\pN]",
            _whole,
            str.lower,
            "@",
        ),
        Kind(
            "iban",
            r"\b[A-Za-z]{2}[0-9]{2}(?:[ \-]?[A-Za-z0-9]{1,4}){3,12}",
            _iban,
            _alnum,
            "0-9",
        ),
        Kind("credit_card", r"\b[2-6](?:[ \-.]?[0-9]){12,18}\b", _card, _alnum, "0-9"),
        Kind("us_ssn", r"\b[0-9]{3}[ \-][0-9]{2}[ \-][0-9]{4}\b", _ssn, _alnum, "0-9"),
        Kind(
            "ip",
            r"\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]{0,15}",
            _address,
            str.lower,
            "0-9:",
        ),
        Kind(
            "phone",
            r"(?:\+|\b00)[1-9](?:[ ().\-/]{0,2}[0-9]){7,14}\b"
            r"|\(?\b[2-9][0-9]{2}\)?[ .\-][0-9]{3}[ .\-][0-9]{4}\b",
            _phone,
            _alnum,
            "0-9",
        ),
    )
}


class Recogniser:
    """Some kinds of personal data, found and replaced. Immutable; make one a set of kinds (`recogniser`)."""

    def __init__(self, kinds: Iterable[str]) -> None:
        wanted = frozenset(kinds)
        self._kinds = [kind for name, kind in KINDS.items() if name in wanted]
        unknown = sorted(wanted.difference(KINDS))
        if unknown or not wanted:
            raise ValueError(f"unknown kinds of personal data: {', '.join(unknown)}")
        # On bytes: re2 encodes a text anew for every search in it, which is quadratic in the findings.
        self._each: list[tuple[Kind, Any]] = [
            (kind, re2.compile(kind.pattern.encode())) for kind in self._kinds
        ]
        any_of = "|".join(f"(?:{kind.pattern})" for kind in self._kinds)
        self._any: Any = re2.compile(any_of.encode())
        # A search by re2 costs microseconds however short the text; most texts of an answer hold nothing.
        needs = [kind.needs for kind in self._kinds]
        self._needed = re.compile(f"[{''.join(needs)}]".encode() if all(needs) else b"")
        self._needs_at = set(needs) == {"@"}

    def may_contain(self, data: bytes) -> bool:
        """False: no text in this JSON (or plain) document can hold any of the kinds."""
        # A \u escape can spell any character, so that the bytes need not look like the text.
        if b"\\" in data and b"\\u" in data:
            return True
        if self._lacks_all(data):
            return False
        # In a large one each text is looked at for itself anyway, and its numbers need not be.
        return len(data) > MAX_AT_ONCE or self._any.search(data) is not None

    def lacks(self, data: bytes) -> bool:
        """True: bytes of any framing, texts in them as they are, hold no character that a finding needs."""
        return self._lacks_all(data)

    def redact(self, text: str, how: MaskAs, key: bytes) -> tuple[str, Mapping[str, int]]:
        """The text with each finding replaced, and how many of each kind there were.

        redact: ``[email]``; partial: ``***last4``; hmac: ``[email hmac:...]``, equal for equal data
        however it is spaced; drop and null cannot be done to a part of a text, they redact.
        """
        if self._needs_at and "@" not in text:
            return text, NOTHING
        if len(text) > MAX_TEXT:
            return REDACTED, {"oversize": 1}
        try:
            data = text.encode()
        except UnicodeError:  # lone surrogates: no text that we could search
            return REDACTED, {"unreadable": 1}
        if self._lacks_all(data):
            return text, NOTHING
        if len(self._each) > 1 and self._any.search(data) is None:
            return text, NOTHING
        spans = self._spans(data)
        if not spans:
            return text, NOTHING
        pieces: list[str] = []
        counts: dict[str, int] = {}
        end = 0
        for start, stop, kind in spans:
            found = data[start:stop].decode()
            pieces += (data[end:start].decode(), _replacement(kind, found, how, key))
            counts[kind.name] = counts.get(kind.name, 0) + 1
            end = stop
        return "".join((*pieces, data[end:].decode())), counts

    def redact_value(
        self, value: object, how: MaskAs, key: bytes, depth: int = 0
    ) -> tuple[object, Mapping[str, int]]:
        """A JSON value with every text in it redacted: keys, and numbers that read as data, too."""
        if depth > MAX_DEPTH:
            return REDACTED, {"too_deep": 1}
        match value:
            case str():
                return self.redact(value, how, key)
            case bool() | None:
                return value, NOTHING
            case int() | float():
                if isinstance(value, float) and not (math.isfinite(value) and value.is_integer()):
                    return value, NOTHING
                masked, counts = self.redact(str(int(value)), how, key)
                return (masked, counts) if counts else (value, NOTHING)
            case list() | tuple():
                items: list[object] = []
                found: dict[str, int] = {}
                for item in value:
                    masked_item, counts = self.redact_value(item, how, key, depth + 1)
                    items.append(masked_item)
                    _add(found, counts)
                return items, found
            case dict():
                return self._redact_object(value, how, key, depth)
            case _:
                return REDACTED, {"unreadable": 1}

    def _redact_object(
        self, value: dict[object, object], how: MaskAs, key: bytes, depth: int
    ) -> tuple[object, Mapping[str, int]]:
        masked: dict[str, object] = {}
        found: dict[str, int] = {}
        for name, inner in value.items():
            shown, counts = self.redact(str(name), how, key)
            if counts:
                _add(found, counts)
            masked[shown], counts = self.redact_value(inner, how, key, depth + 1)
            if counts:
                _add(found, counts)
        return masked, found

    def _lacks_all(self, data: bytes) -> bool:
        """True: no character that a match needs is there. A single one is found at the speed of memory."""
        return b"@" not in data if self._needs_at else self._needed.search(data) is None

    @staticmethod
    def _next(kind: Kind, pattern: Any, data: bytes, at: int) -> Any:
        if kind.needs == "@" and data.find(b"@", at) < 0:
            return None
        return pattern.search(data, at)

    def _spans(self, data: bytes) -> list[tuple[int, int, Kind]]:
        """Findings in order, by bytes; overlapping ones are joined under the kind that begins first."""
        found = []
        for rank, (kind, pattern) in enumerate(self._each):
            at = 0
            while match := self._next(kind, pattern, data, at):
                start, text = match.start(), match.group().decode()
                length = kind.validate(text)
                if length is None:
                    at = start + len(text[: _first_run(text)].encode())
                else:
                    at = start + len(text[: max(length, 1)].encode())
                    found.append((start, at, rank, kind))
        found.sort(key=lambda span: span[:3])
        joined: list[tuple[int, int, Kind]] = []
        for start, stop, _, kind in found:
            if joined and start < joined[-1][1]:
                joined[-1] = (joined[-1][0], max(stop, joined[-1][1]), joined[-1][2])
            else:
                joined.append((start, stop, kind))
        return joined


def _add(found: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        found[name] = found.get(name, 0) + count


def _first_run(match: str) -> int:
    """How far to step over a match that was not it: its first run of letters or digits, at least one."""
    at = 0
    while at < len(match) and match[at].isalnum():
        at += 1
    return max(at, 1)


def _replacement(kind: Kind, found: str, how: MaskAs, key: bytes) -> str:
    if how == "partial":
        return last_shown(found)
    if how == "hmac":
        return f"[{kind.name} {token(kind.canonical(found), key)}]"
    return f"[{kind.name}]"


@lru_cache(maxsize=64)
def recogniser(kinds: tuple[str, ...]) -> Recogniser:
    """The recogniser of some kinds; compiled once."""
    return Recogniser(kinds)
