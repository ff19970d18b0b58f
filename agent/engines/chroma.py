# SPDX-License-Identifier: Apache-2.0
"""Chroma's REST API v2 as an `Engine`.

Owns names: a data request carries a collection's UUID, and 1.5.9 serves it whatever tenant and
database its path names, so the UUID is resolved where its path says it is and is ``*`` when it is
not there. A collection is called by its name alone in the default tenant and database, else
``tenant/database/name`` with slashes in the first two percent-encoded. Bias: refuse or ``unknown``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final
from urllib.parse import quote

import msgspec

from agent.engines import chroma_answers, chroma_rewrite
from agent.engines.ask import Ask, as_object
from agent.engines.body import StrictReader, Tree, norm, write
from agent.engines.chroma_requests import READERS
from agent.engines.chroma_routes import BY_NAME, TABLE
from agent.engines.chroma_shapes import Collection
from agent.engines.names import Names
from agent.engines.routes import UNKNOWN, Spec
from agent.protocols.http import Answer, Lookup, Refusal, Request, Response, Route
from policy.model import ANY_COLLECTION, Action, Verdict
from policy.operation import Operation

DEFAULT_TENANT: Final = "default_tenant"
DEFAULT_DATABASE: Final = "default_database"
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BASE64: Final = re.compile(rb'"([A-Za-z0-9+/]{8,}={0,2})"')
_BASE64_COLUMN: Final = re.compile(rb' ?\[(?:(?:"[A-Za-z0-9+/]*={0,2}"|null)(?:, ?)?)+\]')
_COLUMN_KEY: Final = b'"embeddings":'  # its quotes are bare, so it stands outside any string
_SCORE_KEYS: Final = (b'"distances":', b'"scores":')
_SCORE_COLUMN: Final = re.compile(rb"\[[0-9eE+\-., \[\]nul]*\]")
_LAST_COLUMN: Final = re.compile(rb',"(?:include|select)":[\[\]",a-zA-Z_#:]*+\}')
_EVERYTHING: Final = frozenset({ANY_COLLECTION})
_TENANT, _DATABASE, _COLLECTION = 3, 5, 7  # places of path segments
_BY_ID: Final = 8
MAX_ASKS: Final = 256  # shapes of requests remembered
MAX_SHAPE: Final = 4096  # bytes of one
Key = tuple[str, str, str]


_collection = msgspec.json.Decoder(Collection)


def qualify(tenant: str, database: str, name: str) -> str:
    """What a policy calls a collection."""
    if tenant == DEFAULT_TENANT and database == DEFAULT_DATABASE:
        return name
    return "/".join((quote(tenant, safe=" "), quote(database, safe=" "), name))


_CHANGES: Final = frozenset({Action.SCHEMA, Action.ADMIN})  # what names stand for may be another thing after


class ChromaEngine:
    name: Final = "chroma"
    credential_headers: Final = frozenset({"x-chroma-token", "authorization"})
    masked_fields_known: Final = frozenset({"payload", "metadata", "metadatas", "documents", "uris"})

    def __init__(self, guard: str, *, hmac_key: bytes, clock: Callable[[], float]) -> None:
        self._guard = guard
        self._key = hmac_key
        self._reader = StrictReader()
        self._names: Names[Key, str] = Names(clock)
        self._last: tuple[bytes, Tree] | None = None
        self._asks: dict[tuple[str, bytes, int], Ask] = {}

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
        found = self._collections(request, line)
        if isinstance(found, Lookup):
            known = self._names.last((request.segments[_TENANT], request.segments[_DATABASE], found.key))
            guess = frozenset({known or ANY_COLLECTION})
            return replace(found, unresolved=self._on(request, route, line, guess, size))
        return self._on(request, route, line, found, size)

    def _on(self, request: Request, route: Route, line: Spec, found: frozenset[str], size: int) -> Operation:
        """The operation, with what the path's collection is called."""
        if line.kind not in READERS:
            return Operation(self.name, self._guard, route.method, line.actions, found, bytes=size)
        if request.body is None and route.streamable:
            return Operation(self.name, self._guard, route.method, line.actions, found, partial=True)
        ask = self._ask(line.kind, request.body or b"")
        if ask.also:
            found |= self._others(request, ask)
        return self._operation(request, route, ask, found, size)

    def _ask(self, kind: str, raw: bytes) -> Ask:
        """What a body asks. Clients repeat themselves but for the vectors, and no reader of these bodies
        looks into a cut array: what was read of one body stands for every other of its skeleton.
        The count keeps a body that says ``NaN`` itself from passing for one that was cut."""
        self._last = None
        skeleton, count = self._reader.skeleton(raw)
        key = (kind, skeleton, count)
        ask = self._asks.get(key)
        if ask is not None:
            self._reader.prove()
            return ask
        ask = READERS[kind](as_object(self._read(raw)))
        if len(skeleton) <= MAX_SHAPE and (count == 0 or self._reader.is_proven):
            if len(self._asks) >= MAX_ASKS:
                self._asks.clear()
            self._asks[key] = ask
        return ask

    def _operation(
        self, request: Request, route: Route, ask: Ask, collections: frozenset[str], size: int
    ) -> Operation:
        return Operation(
            self.name,
            self._guard,
            route.method,
            ask.actions,
            collections,
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

    def _read(self, raw: bytes) -> Tree:
        self._last = None
        tree = self._reader.read(raw)
        self._last = (raw, tree)
        return tree

    def _collections(self, request: Request, line: Spec) -> frozenset[str] | Lookup:
        match line.kind:
            case "everything" | "list":
                return _EVERYTHING
            case "crn":
                names = request.segments[3].split(":")
                return frozenset({qualify(*names)}) if len(names) == 3 else _EVERYTHING
            case "" | "create":
                return frozenset()
        segments = request.segments
        tenant, database = segments[_TENANT], segments[_DATABASE]
        if line.kind in BY_NAME:
            return frozenset({qualify(tenant, database, segments[_COLLECTION])})
        uuid = segments[_BY_ID if line.kind == "by-id" else _COLLECTION].lower()
        if not _UUID.fullmatch(uuid):
            raise Refusal("bad-uuid", "a collection is named by its UUID, 8-4-4-4-12 hexadecimal digits")
        known = self._names.get((tenant, database, uuid))
        return self._lookup(tenant, database, uuid) if known is None else frozenset({known})

    def _others(self, request: Request, ask: Ask) -> frozenset[str]:
        segments = request.segments
        return frozenset(qualify(segments[_TENANT], segments[_DATABASE], name) for name in ask.also)

    # Names.

    def _lookup(self, tenant: str, database: str, uuid: str) -> Lookup:
        segments = ("api", "v2", "tenants", tenant, "databases", database, "collections", "by-id", uuid)
        path = "/" + "/".join(quote(part, safe="") for part in segments)
        request = Request("GET", path, segments, (), (("accept", "application/json"),))
        return Lookup(request, uuid)

    def learn(self, lookup: Lookup, response: Response) -> None:
        segments = lookup.request.segments
        key = (segments[_TENANT], segments[_DATABASE], lookup.key)
        if not self._take_names(response):
            self._names.put(key, ANY_COLLECTION)
        elif self._names.get(key) is None:
            self._names.put(key, ANY_COLLECTION)  # the answer was about another collection

    def _take_names(self, response: Response) -> bool:
        if response.status not in (200, 201):
            return False
        try:
            found = _collection.decode(response.body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return False
        key = (found.tenant, found.database, found.id.lower())
        self._names.put(key, qualify(found.tenant, found.database, found.name))
        return True

    def _pass_by(self, operation: Operation, kind: str, response: Response) -> None:
        if not _CHANGES.isdisjoint(operation.actions):
            self._names.forget()
        if kind in ("create", "describe", "by-id"):
            self._take_names(response)

    # Bringing it under the verdict.

    def rewrite(self, request: Request, operation: Operation, verdict: Verdict) -> Request:
        line = TABLE.find(request)
        if not _CHANGES.isdisjoint(operation.actions):
            self._names.forget()
        if verdict.filters and not operation.carries_filter and operation.actions != {Action.SESSION}:
            raise Refusal("filter", "this request cannot carry the filter the policy asks for")
        if line is None or line.kind not in READERS or request.body is None:
            if verdict.clamps:
                raise Refusal("clamp", "this request cannot be cut to the policy's limits")
            return request
        if not (verdict.clamps or verdict.filters or verdict.fields is not None) and (
            verdict.vectors or not operation.vectors
        ):
            return request  # nothing it asks is to be taken away
        raw = request.body
        last, self._last = self._last, None  # the tree is changed in place: it must not be found again
        tree = last[1] if last is not None and last[0] is raw else self._reader.read(raw)
        if not chroma_rewrite.rewrite(line.kind, as_object(tree), verdict):
            return request
        return Request(
            request.method, request.path, request.segments, request.query, request.headers, write(tree)
        )

    def mask(self, request: Request, operation: Operation, verdict: Verdict, response: Response) -> Answer:
        line = TABLE.find(request)
        kind = "unknown" if line is None else line.kind
        self._pass_by(operation, kind, response)
        return chroma_answers.mask(kind, verdict, response, self._key, lambda: self._norms(kind, request))

    def _norms(self, kind: str, request: Request) -> list[float | None]:
        if kind != "query" or request.body is None:
            return []
        embeddings = as_object(self._read(request.body)).get("query_embeddings")
        return [norm(vector) for vector in embeddings] if isinstance(embeddings, list) else []

    def observe(self, request: Request, operation: Operation, response: Response) -> Answer:
        line = TABLE.find(request)
        kind = "unknown" if line is None else line.kind
        self._pass_by(operation, kind, response)
        ids, rows = chroma_answers.seen(kind, response)
        return Answer(response.body, ids, rows)

    def refuse(self, status: int, reason: str, message: str, rule: str | None) -> Response:
        """As rust/frontend's ErrorResponse: chromadb raises its ChromaError with our message."""
        name = {400: "InvalidArgumentError", 403: "AuthorizationError"}.get(status, "ChromaError")
        body = msgspec.json.encode({"error": name, "message": message})
        return Response(status, (("content-type", "application/json"),), body)

    def digest(self, body: bytes) -> tuple[bytes, int]:
        """As `StrictReader.digest`, and embeddings that a client wrote as base64 of 32-bit floats.

        An answer's column of distances or scores is no vector, however many there are.
        """
        start, end = _score_column(body)
        if start == end:
            return self._digest(body)
        before, count = self._digest(body[:start])
        after, more = self._digest(body[end:])
        return before + body[start:end] + after, count + more

    def _digest(self, body: bytes) -> tuple[bytes, int]:
        done, count = self._reader.digest(body)
        pieces: list[bytes] = []
        found = rest = 0
        at = done.find(_COLUMN_KEY)
        while at >= 0:
            start = at + len(_COLUMN_KEY)
            if column := _BASE64_COLUMN.match(done, start):
                short, n = _BASE64.subn(_shorten, column[0])
                pieces += (done[rest:start], short)
                found, start = found + n, column.end()
                rest = start
            at = done.find(_COLUMN_KEY, start)
        return (b"".join((*pieces, done[rest:])), count + found) if found else (done, count)


def _score_column(body: bytes) -> tuple[int, int]:
    """Where an answer's scores stand; (0, 0): it is no answer, or has none. Both ends lie outside strings.

    They are the last column but one, as the server writes it: with what closes the answer behind them they
    are no row's own.
    """
    if body.startswith(b'{"ids":'):
        for key in _SCORE_KEYS:
            at = body.rfind(key)
            found = _SCORE_COLUMN.match(body, at + len(key)) if at >= 0 else None
            if found is not None and _LAST_COLUMN.fullmatch(body, found.end()):
                return found.span()
    return 0, 0


def _shorten(text: re.Match[bytes]) -> bytes:
    sha = hashlib.sha256(text[1]).hexdigest().encode()
    return b'{"dim":%d,"sha256":"%s"}' % (len(text[1].rstrip(b"=")) * 3 // 16, sha)
