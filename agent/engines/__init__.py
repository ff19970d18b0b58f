# SPDX-License-Identifier: Apache-2.0
"""The database engines: what their requests ask, and how their requests and answers are changed.

Sans-I/O; one instance for each worker and guard. `ENGINES` is the list of what a guard may name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeGuard

from agent.engines.chroma import ChromaEngine
from agent.engines.pgvector import PgvectorEngine
from agent.engines.qdrant import QdrantEngine
from agent.protocols.http import Engine
from agent.protocols.sql import SqlEngine

ENGINES: Final[dict[str, type[ChromaEngine] | type[QdrantEngine] | type[PgvectorEngine]]] = {
    ChromaEngine.name: ChromaEngine,
    QdrantEngine.name: QdrantEngine,
    PgvectorEngine.name: PgvectorEngine,
}
SQL_ENGINES: Final = frozenset({PgvectorEngine.name})
"""Those that speak PostgreSQL's protocol; the others speak HTTP."""

MASKED_FIELD_ROOTS: Final = {name: engine.masked_fields_known for name, engine in ENGINES.items()}
"""For each engine, the words a mask's dotted field may start with."""


class UnknownEngine(ValueError):
    """A guard names an engine there is none of."""


def make_engine(name: str, guard: str, *, hmac_key: bytes, clock: Callable[[], float]) -> Engine | SqlEngine:
    """The engine of a guard. `hmac_key` keys masks that are joinable tokens; `clock` gives monotonic seconds.

    Raises UnknownEngine.
    """
    kind = ENGINES.get(name)
    if kind is None:
        raise UnknownEngine(f"there is no engine {name!r}; there are {', '.join(sorted(ENGINES))}")
    return kind(guard, hmac_key=hmac_key, clock=clock)


def make_http_engine(name: str, guard: str, *, hmac_key: bytes, clock: Callable[[], float]) -> Engine:
    """The same where only an engine of HTTP will do. Raises UnknownEngine."""
    engine = make_engine(name, guard, hmac_key=hmac_key, clock=clock)
    if is_http(engine):
        return engine
    raise UnknownEngine(f"the engine {name!r} does not speak HTTP")


def is_sql(engine: Engine | SqlEngine) -> TypeGuard[SqlEngine]:
    return engine.name in SQL_ENGINES


def is_http(engine: Engine | SqlEngine) -> TypeGuard[Engine]:
    return engine.name not in SQL_ENGINES
