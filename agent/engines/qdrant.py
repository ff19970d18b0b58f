# SPDX-License-Identifier: Apache-2.0
"""Qdrant's REST API as an `Engine`.

Owns aliases: a path and a body may name a collection by an alias, so every name is looked up in
``GET /aliases`` (held for 2 s, forgotten when aliases change); when that cannot be read every name is
``*`` as well. Where it may not be asked (in observe) a name is taken as the collection's own. Bias:
refuse or ``unknown``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from agent.engines import qdrant_answers, qdrant_rewrite
from agent.engines.ask import as_object
from agent.engines.body import StrictReader, Tree, norm, write
from agent.engines.names import Names
from agent.engines.qdrant_requests import READS
from agent.engines.qdrant_routes import DUMPS, TABLE
from agent.engines.qdrant_shapes import AliasAnswer
from agent.engines.qdrant_writes import WRITES
from agent.engines.routes import UNKNOWN, Spec
from agent.protocols.http import Answer, Lookup, Refusal, Request, Response, Route
from policy.model import ANY_COLLECTION, Action, Verdict
from policy.operation import Operation

READERS: Final = READS | WRITES
_EVERYTHING: Final = frozenset({ANY_COLLECTION})
_ALIASES: Final = "aliases"
_OPTIONAL: Final = frozenset({"create", "count", "update-batch"})  # kinds whose body may be absent


_aliases = msgspec.json.Decoder(AliasAnswer)


class QdrantEngine:
    name: Final = "qdrant"
    credential_headers: Final = frozenset({"api-key", "authorization"})
    masked_fields_known: Final = frozenset({"payload"})

    def __init__(self, guard: str, *, hmac_key: bytes, clock: Callable[[], float]) -> None:
        self._guard = guard
        self._key = hmac_key
        self._reader = StrictReader()
        self._names: Names[str, Mapping[str, str] | str] = Names(clock)
        self._last: tuple[bytes, Tree] | None = None

    def route(self, request: Request) -> Route:
        line = TABLE.find(request)
        return UNKNOWN if line is None else line.route

    # What is asked.

    def operation(self, request: Request, route: Route) -> Operation | Lookup:
        line = TABLE.named(route) if route.known else None
        size = len(request.body or b"")
        if line is None:
            method, acts = f"{request.method} (unknown)", frozenset({Action.UNKNOWN})
            return Operation(self.name, self._guard, method, acts, _EVERYTHING, bytes=size)
        if line.kind in ("", "list", "everything"):
            found: frozenset[str] = frozenset() if line.kind == "" else _EVERYTHING
            return Operation(self.name, self._guard, route.method, line.actions, found, bytes=size)
        aliases = {} if line.kind == "aliases" else self._names.get(_ALIASES)
        if aliases is None:
            return replace(self._lookup(), unresolved=self._on(request, route, line, {}, size))
        return self._on(request, route, line, aliases, size)

    def _on(
        self, request: Request, route: Route, line: Spec, aliases: Mapping[str, str] | str, size: int
    ) -> Operation:
        """The operation, with what the names in it stand for."""
        named = () if line.kind == "aliases" else (request.segments[1],)
        reader = READERS.get(line.kind)
        if reader is None or (request.body is None and route.streamable):
            return self._unread(
                line.kind, route, line.actions, _resolve(named, aliases), size, reader is not None
            )
        ask = reader(as_object(self._read(self._body(request, line.kind))))
        return Operation(
            self.name,
            self._guard,
            route.method,
            ask.actions,
            _resolve((*named, *ask.also), aliases),
            ask.top_k,
            ask.unbounded,
            ask.offset,
            ask.vectors,
            None if ask.fields is None else frozenset(ask.fields),
            frozenset(ask.probed),
            ask.thresholds,
            ask.filtered,
            ask.carries_filter,
            ask.queries,
            ask.rows,
            size,
        )

    def _unread(
        self,
        kind: str,
        route: Route,
        actions: frozenset[Action],
        found: frozenset[str],
        size: int,
        partial: bool,
    ) -> Operation:
        point = kind == "point"  # it always returns its payload and its vectors
        unbounded = kind == "shard-rows"
        return Operation(
            self.name,
            self._guard,
            route.method,
            actions,
            found,
            top_k=1 if point else None,
            unbounded=unbounded,
            vectors=point or unbounded,
            bytes=size,
            partial=partial,
        )

    def _body(self, request: Request, kind: str) -> bytes:
        return request.body or (b"{}" if kind in _OPTIONAL else b"")

    def _read(self, raw: bytes) -> Tree:
        self._last = None
        tree = self._reader.read(raw)
        self._last = (raw, tree)
        return tree

    # Names.

    def _lookup(self) -> Lookup:
        return Lookup(
            Request("GET", "/aliases", ("aliases",), (), (("accept", "application/json"),)), _ALIASES
        )

    def learn(self, lookup: Lookup, response: Response) -> None:
        if not self._take_aliases(response):
            self._names.put(_ALIASES, ANY_COLLECTION)

    def _take_aliases(self, response: Response) -> bool:
        if response.status != 200:
            return False
        try:
            found = _aliases.decode(response.body).result.aliases
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        self._names.put(_ALIASES, {alias.alias_name: alias.collection_name for alias in found})
        return True

    def _pass_by(self, operation: Operation) -> None:
        if operation.actions & {Action.SCHEMA, Action.SNAPSHOT, Action.ADMIN}:
            self._names.forget()

    # Bringing it under the verdict.

    def rewrite(self, request: Request, operation: Operation, verdict: Verdict) -> Request:
        self._pass_by(operation)
        if verdict.filters and not operation.carries_filter and operation.actions != {Action.SESSION}:
            raise Refusal("filter", "this request cannot carry the filter the policy asks for")
        line = TABLE.find(request)
        if verdict.touches_answer and line is not None and line.route.method in DUMPS:
            raise Refusal("unmaskable", "a copy of the data cannot be brought under the policy's masks")
        if line is None or line.kind not in READERS or request.body is None:
            if verdict.clamps or (verdict.filters and operation.actions != {Action.SESSION}):
                raise Refusal(
                    "filter", "this request cannot be brought under the policy's limits and filters"
                )
            return request
        raw = request.body
        last, self._last = self._last, None  # the tree is changed in place: it must not be found again
        tree = last[1] if last is not None and last[0] is raw else self._reader.read(raw)
        if not qdrant_rewrite.rewrite(line.kind, as_object(tree), verdict):
            return request
        return Request(
            request.method, request.path, request.segments, request.query, request.headers, write(tree)
        )

    def mask(self, request: Request, operation: Operation, verdict: Verdict, response: Response) -> Answer:
        line = TABLE.find(request)
        kind = "unknown" if line is None else line.kind
        self._pass_by(operation)
        return qdrant_answers.mask(
            kind, verdict, response, self._key, operation.fields, lambda: self._norms(kind, request)
        )

    def _norms(self, kind: str, request: Request) -> list[float | None]:
        if request.body is None or kind in ("retrieve", "scroll"):
            return []
        body = as_object(self._read(request.body))
        searches = body["searches"] if kind.endswith("-batch") else [body]
        return [norm(_vector(search)) for search in searches]

    def observe(self, request: Request, operation: Operation, response: Response) -> Answer:
        line = TABLE.find(request)
        kind = "unknown" if line is None else line.kind
        self._pass_by(operation)
        ids, rows = qdrant_answers.seen(kind, response)
        return Answer(response.body, ids, rows)

    def refuse(self, status: int, reason: str, message: str, rule: str | None) -> Response:
        """As the server's ErrorResponse: qdrant-client raises UnexpectedResponse with our message."""
        body = msgspec.json.encode({"result": None, "status": {"error": message}, "time": 0.0})
        return Response(status, (("content-type", "application/json"),), body)

    def digest(self, body: bytes) -> tuple[bytes, int]:
        return self._reader.digest(body)


def _resolve(names: tuple[str, ...], aliases: Mapping[str, str] | str) -> frozenset[str]:
    """What the names stand for; with no list of aliases, that it cannot be told."""
    if isinstance(aliases, str):
        return frozenset(names) | _EVERYTHING
    return frozenset([aliases.get(name, name) for name in names])


def _vector(search: dict[str, Any]) -> Tree:
    """The one query vector of a search, None where there is none or more."""
    query = search.get("query", search.get("vector"))
    if isinstance(query, dict):
        query = query.get("nearest", query.get("vector"))
    return query
