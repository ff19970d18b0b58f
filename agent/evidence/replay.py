# SPDX-License-Identifier: Apache-2.0
"""A session as a sequence of steps in time: connected, asked, answered, gone.

Pure: it orders what evidence says and tells how long to wait; the command shows it and sleeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from agent.evidence.query import Gap
from agent.evidence.views import Exchange, Session
from agent.evidence.wire import Grid, grids, vector_text

MAX_HITS = 1000  # hits that are taken out of one answer; the answer itself stays whole in show --json


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened at `at` (ns since 1970, None where evidence does not say)."""

    kind: Literal["connected", "asked", "answered", "lost", "gap", "gone"]
    at: int | None
    exchange: Exchange | None = None
    gap: Gap | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One row of an answer, as delivered: its id, score or distance, and what came with it."""

    id: str
    score: float | None
    payload: str


def steps(session: Session, exchanges: Iterable[Exchange], gaps: Iterable[Gap] = ()) -> Iterator[Step]:
    """Everything of a session, by time; pipelined answers fall between later questions, as they did."""
    made = [Step("connected", session.started)]
    for exchange in exchanges:
        made.append(Step("asked", exchange.at, exchange))
        ended = exchange.trace.get("ended")
        if isinstance(ended, int):
            made.append(
                Step(
                    "answered" if exchange.response.status is not None or exchange.result_seq else "lost",
                    ended,
                    exchange,
                )
            )
        else:
            made.append(Step("lost", exchange.at, exchange))
    made += [Step("gap", gap.at, gap=gap) for gap in gaps]
    if session.ended is not None:
        made.append(Step("gone", session.ended))
    order = sorted(range(len(made)), key=lambda i: (_moment(made[i], session), i))
    yield from (made[i] for i in order)


def _moment(step: Step, session: Session) -> int:
    if step.kind == "connected":
        return -1
    return step.at if step.at is not None else session.started or 0


def pause(before: Step, after: Step, speed: float, longest: float) -> float:
    """Seconds to wait between two steps at `speed` (2 = twice as fast), never above `longest`."""
    if before.at is None or after.at is None or speed <= 0:
        return 0.0
    return min(longest, max(0.0, (after.at - before.at) / 1e9 / speed))


def hits(exchange: Exchange) -> list[Hit]:
    """The rows of a recorded answer in each engine's shape; [] where there are none or no body."""
    if not exchange.response.body:
        return []
    results = grids(exchange.response.body)
    if results is not None:
        return _table_rows(results, exchange.response.ids)[:MAX_HITS]
    try:
        document = msgspec.json.decode(exchange.response.body)
    except (msgspec.DecodeError, RecursionError):
        return []
    if not isinstance(document, dict):
        return []
    found = _columns(document) if "ids" in document else _rows(document.get("result", document.get("points")))
    return found[:MAX_HITS]


def _table_rows(results: list[Grid], ids: tuple[str, ...]) -> list[Hit]:
    """SQL: each row by its primary key where that is known, with its columns by name."""
    named = ids if len(ids) == sum(grid.count for grid in results) else ()
    made: list[Hit] = []
    for grid in results:
        for row in grid.rows:
            names = grid.columns or tuple(f"column {at + 1}" for at in range(len(row)))
            shown = [
                f"{name}={'NULL' if value is None else vector_text(value)}"
                for name, value in zip(names, row, strict=False)
            ]
            made.append(Hit(named[len(made)] if len(made) < len(named) else "", None, "  ".join(shown)))
    return made


def _columns(document: dict[str, Any]) -> list[Hit]:
    """Chroma: parallel lists, one deeper for a query than for a get."""
    ids = document["ids"]
    if not isinstance(ids, list):
        return []
    nested = bool(ids) and isinstance(ids[0], list)
    made = []
    for i, group in enumerate(ids if nested else [ids]):
        if not isinstance(group, list):
            continue
        for k, identifier in enumerate(group):
            score = _at(document.get("distances"), i, k, nested)
            rest = [_at(document.get(name), i, k, nested) for name in ("documents", "metadatas", "uris")]
            made.append(
                Hit(_plain(identifier), _number(score), "  ".join(_plain(r) for r in rest if r is not None))
            )
    return made


def _rows(result: object) -> list[Hit]:
    """Qdrant: points in ``result``, in ``result.points``, in groups, or in one list per query of a batch."""
    if isinstance(result, dict):
        for name in ("points", "groups", "hits", "result"):
            if isinstance(result.get(name), list):
                return _rows(result[name])
        return [_point(result)] if "id" in result and ("payload" in result or "vector" in result) else []
    made: list[Hit] = []
    for item in result if isinstance(result, list) else ():
        if isinstance(item, dict) and "id" in item and not isinstance(item.get("hits"), list):
            made.append(_point(item))
        elif isinstance(item, dict | list):
            made += _rows(item)
        if len(made) >= MAX_HITS:
            break
    return made


def _point(item: dict[str, Any]) -> Hit:
    payload = item.get("payload")
    return Hit(_plain(item["id"]), _number(item.get("score")), "" if payload is None else _plain(payload))


def _at(value: object, i: int, k: int, nested: bool) -> object:
    """``value[i][k]``, or ``value[k]`` where ids are not nested; None where it is not there."""
    for index in (i, k) if nested else (k,):
        if not isinstance(value, list) or index >= len(value):
            return None
        value = value[index]
    return value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _plain(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
