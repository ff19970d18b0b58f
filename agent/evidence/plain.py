# SPDX-License-Identifier: Apache-2.0
"""Values that msgpack has no form for, made to have one: rare, slow, and better than not being recorded.

A process may choose its argv, a client its header bytes: neither may keep itself out of the record by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import msgspec

from agent.evidence.frames import Frame

MAX_DEPTH = 16


def plain(value: Any, depth: int = 0) -> Any:
    """Text with lone surrogates is escaped (``\\udcff``), integers beyond 64 bits become text, sets lists,
    and what is of a foreign type or nested too deep its ``repr``."""
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            return {str(plain(key)): plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | Set):
            return [plain(item, depth + 1) for item in value]
    return plain(repr(value))


def plain_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card that can be encoded: itself, or its plain form."""
    made = dict(card)
    try:
        msgspec.msgpack.encode(made)
    except Exception:
        made = plain(made)
    return made


def plain_frame(frame: Frame) -> Frame:
    """The same frame with plain values. Raises msgspec.ValidationError where that does not fit its fields."""
    fields = {name: plain(_builtin(getattr(frame, name))) for name in frame.__struct_fields__}
    return msgspec.convert(fields, type(frame))


def _builtin(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _builtin(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [_builtin(item) for item in value]
    return value
