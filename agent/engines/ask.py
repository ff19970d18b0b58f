# SPDX-License-Identifier: Apache-2.0
"""What a request's body adds to an operation, and the few readings all engines share.

Owns no engine's field. Bias: a shape that is not the documented one is refused; a key that is not in
an engine's list makes the request ``unknown`` too, because a newer server may read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from agent.engines.body import Raw, Tree, is_array
from agent.protocols.http import Refusal
from policy.model import Action


@dataclass(slots=True)
class Ask:
    """What a body adds to an operation; the names are those of `policy.operation.Operation`."""

    actions: frozenset[Action]
    top_k: int | None = None
    unbounded: bool = False
    offset: int | None = None
    vectors: bool = False
    fields: set[str] | None = None
    probed: set[str] = field(default_factory=set)
    filtered: bool = False
    carries_filter: bool = False
    thresholds: bool = False
    queries: int = 0
    rows: int = 0
    also: list[str] = field(default_factory=list)  # other collections it names, unqualified


def as_object(body: Tree) -> dict[str, Tree]:
    if body.__class__ is not dict:
        raise Refusal("bad-body", "the request body must be a JSON object")
    return body


def listed(body: dict[str, Tree], key: str) -> list[Tree] | None:
    value = body.get(key)
    if value is None:
        return None
    if value.__class__ is Raw and is_array(value):
        raise Refusal("bad-body", f"{key} must be an array of strings")
    if value.__class__ is not list:
        raise Refusal("bad-body", f"{key} must be an array")
    return value


def opened(value: Tree) -> Tree:
    """An array of numbers that was cut unread, as a list; anything else as it is.

    What is told from it is not to be remembered for other bodies of the same skeleton.
    """
    if value.__class__ is not Raw or not is_array(value):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, ValueError) as error:
        raise Refusal("bad-json", "an array in the request body is not JSON") from error


def count_rows(body: dict[str, Tree], key: str) -> int:
    value = listed(body, key)
    return 0 if value is None else len(value)


def count_ids(body: dict[str, Tree], key: str) -> int:
    """Members of an array of ids, which may be numbers, or of rows."""
    value = opened(body.get(key))
    return 0 if value is None else len(listed({key: value}, key) or ())


def text_of(body: dict[str, Tree], key: str) -> str:
    value = body.get(key)
    if value.__class__ is not str or not value:
        raise Refusal("bad-body", f"{key} must be a name")
    return value


def know(ask: Ask, body: dict[str, Tree], keys: frozenset[str]) -> Ask:
    if not body.keys() <= keys:
        ask.actions |= {Action.UNKNOWN}
    return ask
