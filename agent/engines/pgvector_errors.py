# SPDX-License-Identifier: Apache-2.0
"""Errors and notices of the database as a restricted client may see them.

Owns ErrorResponse and NoticeResponse fields (PostgreSQL docs, 54.8) by SQLSTATE class (Appendix A). A
message of class 22 or 23 quotes values (``invalid input syntax for type integer: "secret"``, ``Key
(email)=(a@b) already exists``), and so does what a function of the database raises. Bias: where anything
restricts the answer, only messages that PostgreSQL writes of names, types and states pass; the code always
does, so that drivers raise what they always raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.engines.pgvector_hidden import Hidden
from policy.model import Verdict
from policy.recognise import recogniser

# Messages of these classes name objects, types, settings, states; none quotes a value of a row.
_SAFE_CLASSES: Final = frozenset(
    {"00", "01", "02", "03", "08", "0A", "0B", "25", "26", "28", "34", "3B", "3D", "3F", "40", "53", "54"}
    | {"55", "57", "58"}
)
_SAFE_CODES: Final = frozenset(
    # Of class 42: syntax and names. 42P22 and others of types; 42804 and 42883 name types only.
    {"42601", "42501", "42703", "42883", "42P01", "42P02", "42P10", "42701", "42702", "42712", "42725"}
    | {"42803", "42804", "42846", "42P03", "42P04", "42P05", "42P06", "42P07", "42P08", "42P18", "42P19"}
    | {"42P20", "42P22", "42704", "42710", "42723", "42809", "42P09", "42P13", "42P17", "42602", "42622"}
    | {"42611", "42830", "42939", "42000"}
)
_LOGGED: Final = frozenset({"LOG", "DEBUG"})
_KEPT: Final = frozenset("SVCPctdnsR")  # severity, code, position, names of objects, routine
_WITHHELD: Final = "the database's message is withheld by policy"
_NAMES: Final = {
    "22": "data exception",
    "23": "integrity constraint violation",
    "P0": "raised by a function",
    "21": "cardinality violation",
    "44": "with check option violation",
    "XX": "internal error",
    "00": "a line of the server's log",
}
_CONDITIONS: Final = {
    "22001": "string data right truncation",
    "22003": "numeric value out of range",
    "22007": "invalid datetime format",
    "22008": "datetime field overflow",
    "22012": "division by zero",
    "22023": "invalid parameter value",
    "22P02": "invalid text representation",
    "22P03": "invalid binary representation",
    "22000": "data exception",
    "23502": "not null violation",
    "23503": "foreign key violation",
    "23505": "unique violation",
    "23514": "check violation",
    "23P01": "exclusion violation",
}


def show_error(fields: Mapping[str, str], verdict: Verdict, rewritten: bool, key: bytes) -> Mapping[str, str]:
    """Fields by their one-letter code. `rewritten`: positions would be in another text than the client's."""
    hidden = Hidden.of(verdict)
    if not hidden.restricts:
        return {k: v for k, v in fields.items() if k not in "Ppq"} if rewritten else fields
    code = fields.get("C", "XX000")
    made = {name: value for name, value in fields.items() if name in _KEPT}
    if rewritten:
        made.pop("P", None)
    # What a function raises has any code, and the function in its context.
    is_safe = (code[:2] in _SAFE_CLASSES or code in _SAFE_CODES) and "W" not in fields
    # With client_min_messages = log: statements and plans as they were rewritten, with the values of filters.
    is_safe = is_safe and fields.get("V", fields.get("S")) not in _LOGGED
    if is_safe:
        message = fields.get("M", "")
        for mask in hidden.pii:
            message = recogniser(mask.pii).redact(message, mask.how, key)[0]
        made["M"] = message
    else:
        condition = _CONDITIONS.get(code) or _NAMES.get(code[:2]) or f"error {code}"
        made["M"] = f"{condition} ({_WITHHELD})"
    return made
