# SPDX-License-Identifier: Apache-2.0
"""The database engines: what their requests ask, and how their requests and answers are changed.

Sans-I/O; one instance for each worker and guard. `ENGINES` is the list of what a guard may name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.engines.chroma import ChromaEngine
from agent.engines.qdrant import QdrantEngine
from agent.protocols.http import Engine

ENGINES: Final[dict[str, type[ChromaEngine] | type[QdrantEngine]]] = {
    ChromaEngine.name: ChromaEngine,
    QdrantEngine.name: QdrantEngine,
}

MASKED_FIELD_ROOTS: Final = {name: engine.masked_fields_known for name, engine in ENGINES.items()}
"""For each engine, the words a mask's dotted field may start with."""


class UnknownEngine(ValueError):
    """A guard names an engine there is none of."""


def make_engine(name: str, guard: str, *, hmac_key: bytes, clock: Callable[[], float]) -> Engine:
    """The engine of a guard. `hmac_key` keys masks that are joinable tokens; `clock` gives monotonic seconds.

    Raises UnknownEngine.
    """
    kind = ENGINES.get(name)
    if kind is None:
        raise UnknownEngine(f"there is no engine {name!r}; there are {', '.join(sorted(ENGINES))}")
    return kind(guard, hmac_key=hmac_key, clock=clock)
