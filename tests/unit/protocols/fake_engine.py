# SPDX-License-Identifier: Apache-2.0
"""An engine and a judge for session tests: small, strict, and they write down what they were asked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from agent.protocols.http import Answer, Lookup, Refusal, Request, Response, Route
from agent.protocols.session import Masked
from policy.model import Action, Verdict
from policy.operation import Operation

ALLOW = Verdict("allow", "rag-app", "10.yaml:1", "allowed", "hash")
DENY = Verdict("deny", "no-bulk", "10.yaml:9", "bulk read is for backup only", "hash")


_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"})
_ROOTS = frozenset({"c", "id", "api", "collections"})


class FakeEngine:
    """``/c/NAME/search`` reads and answers rows, ``/c/NAME/upload`` streams, ``/id/UUID/...`` looks up."""

    name = "fake"
    credential_headers = frozenset({"api-key", "authorization"})
    masked_fields_known = frozenset({"payload"})

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.learnt: list[tuple[Lookup, Response]] = []
        self.judged: list[Request] = []
        self.watched: list[Response] = []

    def route(self, request: Request) -> Route:
        segments = request.segments
        if request.method not in _METHODS:
            return Route("unknown", False)
        if segments[-1:] in (("search",), ("query",)) and segments[0] in _ROOTS:
            return Route("POST search", True, reads_body=True, answer_rows=True)
        if segments[-1:] == ("upload",):
            return Route("PUT upload", True, reads_body=True, streamable=True)
        if not segments or segments[0] in _ROOTS:
            return Route("GET", True)
        return Route("unknown", False)

    def operation(self, request: Request, route: Route) -> Operation | Lookup:
        self.judged.append(request)
        segments = request.segments
        name = segments[1] if len(segments) > 1 else "*"
        if segments[:1] == ("id",):
            if name not in self.names:
                asked = Request(
                    "GET", f"/names/{name}", ("names", name), (), (("accept", "application/json"),)
                )
                return Lookup(asked, name)
            name = self.names[name]
        if route.reads_body and request.body is not None and request.body[:1] not in (b"{", b""):
            raise Refusal("bad-json", "the body is not JSON")
        return Operation(
            engine=self.name,
            guard="g",
            method=route.method,
            actions=frozenset({Action.SEARCH if route.known else Action.UNKNOWN}),
            collections=frozenset({name}),
            top_k=10,
            bytes=len(request.body or b""),
            partial=request.body is None,
        )

    def learn(self, lookup: Lookup, response: Response) -> None:
        self.learnt.append((lookup, response))
        found = re.fullmatch(rb'\{"name":"([a-z]+)"\}', response.body)
        if response.status == 200 and found is not None:
            self.names[lookup.key] = found.group(1).decode()
        elif response.status == 404:
            self.names[lookup.key] = "*"

    def rewrite(self, request: Request, operation: Operation, verdict: Verdict) -> Request:
        if verdict.clamps and request.body:
            return request.with_body(b'{"limit":20}')
        return request

    def mask(self, request: Request, operation: Operation, verdict: Verdict, response: Response) -> Answer:
        if b"secret" not in response.body and b"{" not in response.body:
            raise Refusal("unreadable", "the answer cannot be masked")
        body = response.body.replace(b"secret", b"***")
        return Answer(body, ("1",), 1, (Masked("payload.ssn", "redact", response.body.count(b"secret")),))

    def observe(self, request: Request, operation: Operation, response: Response) -> Answer:
        self.watched.append(response)
        return Answer(response.body, ("1", "2"), 2)

    def refuse(self, status: int, reason: str, message: str, rule: str | None) -> Response:
        body = json.dumps({"error": message, "reason": reason}).encode()
        return Response(status, (("content-type", "application/json"),), body)

    def digest(self, body: bytes) -> tuple[bytes, int]:
        cut = body.count(b"VECTOR")
        return body.replace(b"VECTOR", b"<3:digest>"), cut


@dataclass
class FakeJudge:
    """Gives one verdict, except that it denies collections named in `denied`."""

    verdict: Verdict = ALLOW
    denied: frozenset[str] = frozenset({"forbidden"})
    needs_body: bool = True
    asked: list[Operation] = field(default_factory=list)

    def __call__(self, operation: Operation) -> Verdict:
        self.asked.append(operation)
        if operation.collections & self.denied or Action.UNKNOWN in operation.actions:
            return DENY
        return self.verdict

    def reads_body(self, operation: Operation) -> bool:
        return self.needs_body
