# SPDX-License-Identifier: Apache-2.0
"""What one request asks for: made by engines for every one of them, judged by the rules, put on record."""

from __future__ import annotations

from typing import Any, Final

from policy.model import Action

FIELDS: Final = (
    "engine", "guard", "method", "actions", "collections", "top_k", "unbounded", "offset", "vectors",
    "fields", "probed", "thresholds", "filtered", "carries_filter", "queries", "rows", "bytes", "partial",
)  # fmt: skip
_NONE: Final[frozenset[str]] = frozenset()


class Operation:
    """Whatever the engine and the wire format. Not changed once made."""

    __slots__ = FIELDS

    def __init__(
        self,
        engine: str,
        guard: str,
        method: str,
        actions: frozenset[Action],
        collections: frozenset[str] = _NONE,
        top_k: int | None = None,
        unbounded: bool = False,
        offset: int | None = None,
        vectors: bool = False,
        fields: frozenset[str] | None = None,
        probed: frozenset[str] = _NONE,
        thresholds: bool = False,
        filtered: bool = False,
        carries_filter: bool = False,
        queries: int = 0,
        rows: int = 0,
        bytes: int = 0,  # noqa: A002 - the field's name
        partial: bool = False,
    ) -> None:
        self.engine: Final = engine
        self.guard: Final = guard
        self.method: Final = method  # the engine's own name, e.g. "POST /collections/{c}/points/query"
        self.actions: Final = actions
        self.collections: Final = collections
        self.top_k: Final = top_k  # the most rows it can return; None = not a reading operation
        self.unbounded: Final = unbounded  # no limit is named where the engine has none: any is exceeded
        self.offset: Final = offset
        self.vectors: Final = vectors  # raw embeddings are asked for
        self.fields: Final = fields  # payload fields asked for; None = all there are
        self.probed: Final = probed  # fields in the client's filter, order, group, facet, formula
        self.thresholds: Final = thresholds  # score threshold, radius or the like: an oracle on scores
        self.filtered: Final = filtered
        self.carries_filter: Final = (
            carries_filter  # the engine can add a mandatory filter, or check every row
        )
        self.queries: Final = queries  # query vectors in it
        self.rows: Final = rows  # rows written
        self.bytes: Final = bytes  # of the request body
        self.partial: Final = partial  # judged from the head alone: the body was not read

    def asking(self, top_k: int | None, unbounded: bool, offset: int | None, size: int) -> Operation:
        """A copy with the rows and bytes that are known only now: `changed`, at a tenth of its cost."""
        return Operation(
            self.engine, self.guard, self.method, self.actions, self.collections, top_k, unbounded, offset,
            self.vectors, self.fields, self.probed, self.thresholds, self.filtered, self.carries_filter,
            self.queries, self.rows, size, self.partial,
        )  # fmt: skip

    def changed(self, **values: Any) -> Operation:
        """A copy with other values of these fields."""
        return Operation(**{name: getattr(self, name) for name in FIELDS} | values)

    def _values(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in FIELDS])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operation) and other._values() == self._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in FIELDS)
        return f"Operation({told})"
