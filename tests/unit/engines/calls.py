# SPDX-License-Identifier: Apache-2.0
"""Requests, verdicts and engines for the tests of engines, without a session around them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from agent.engines import make_http_engine
from agent.protocols.http import Answer, Engine, Lookup, Request, Response
from policy.model import Mask, Verdict
from policy.operation import Operation

KEY = b"k" * 32
VECTOR = [round(n / 1000, 4) for n in range(64)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def engine(name: str, clock: Clock | None = None) -> Engine:
    return make_http_engine(name, "g", hmac_key=KEY, clock=clock or Clock())


def request(verb: str, path: str, body: Any = None) -> Request:
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    segments = tuple(unquote(part) for part in path.split("/")[1:] if part)
    return Request(verb, path, segments, (), (), raw)


def answer(body: Any, status: int = 200) -> Response:
    return Response(status, (), body if isinstance(body, bytes) else json.dumps(body).encode())


def verdict(**changes: Any) -> Verdict:
    return Verdict("allow", "r", "f:1", "", "hash", **changes)


def mask(**what: Any) -> Mask:
    return Mask("m", **what)


ALIASES = {"alias": "docs"}
UUID = "7c33cade-7386-4714-a88d-96cd8270adfc"
CHROMA = "/api/v2/tenants/default_tenant/databases/default_database/collections"


def serve(lookup: Lookup) -> Response:
    """The database's answer to a look-up."""
    if lookup.request.segments == ("aliases",):
        known = [{"alias_name": alias, "collection_name": name} for alias, name in ALIASES.items()]
        return answer({"result": {"aliases": known}, "status": "ok", "time": 0})
    segments = lookup.request.segments
    if segments[3] == "default_tenant" and segments[5] in ("default_database", "other"):
        found = {"id": UUID, "name": "docs", "tenant": segments[3], "database": segments[5], "dimension": 3}
        if segments[8] == UUID:
            return answer(found)
    return answer({"error": "NotFoundError", "message": "does not exist"}, 404)


def ask(asked: Engine, call: Request) -> Operation:
    """The operation of a request, with its look-ups answered."""
    route = asked.route(call)
    for _ in range(3):
        found = asked.operation(call, route)
        if isinstance(found, Operation):
            return found
        asked.learn(found, serve(found))
    raise AssertionError("it goes on looking up")


def rewritten(asked: Engine, call: Request, decided: Verdict) -> Any:
    """The body as it is forwarded, decoded."""
    out = asked.rewrite(call, ask(asked, call), decided)
    assert out.body is not None
    return json.loads(out.body)


def masked(asked: Engine, call: Request, decided: Verdict, response: Response) -> tuple[Any, Answer]:
    out = asked.mask(call, ask(asked, call), decided, response)
    return json.loads(out.body), out
