# SPDX-License-Identifier: Apache-2.0
"""What the engines cost for one request and one answer, in microseconds of one core.

    python -m tests.bench.engine_cost

Medians of 7 runs; bodies are those of a 768-dimensional search and of answers of 2.4 KB and 150 KB.
"""

from __future__ import annotations

import json
import random
import statistics
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

from agent.engines import make_http_engine
from agent.engines.body import StrictReader
from agent.protocols.http import Engine, Lookup, Request, Response
from policy.model import Mask, Verdict
from policy.operation import Operation

UUID = "7c33cade-7386-4714-a88d-96cd8270adfc"
CHROMA = f"/api/v2/tenants/default_tenant/databases/default_database/collections/{UUID}"
READER = StrictReader()
ALLOW = Verdict("allow", "r", None, "", "h")
FILTER = Verdict("allow", "r", None, "", "h", vectors=False, filters=(("tenant", "acme"),))
OFF = Verdict("allow", "r", None, "", "h", vectors=False)
FIELDS = Verdict(
    "allow", "r", None, "", "h", vectors=False, masks=(Mask("m", field="payload.ssn", how="redact"),)
)
PII = Verdict(
    "allow", "r", None, "", "h", vectors=False, masks=(Mask("m", pii=("email", "credit_card", "iban")),)
)


def micros(act: Callable[[], Any], number: int) -> float:
    return statistics.median(timeit.repeat(act, number=number, repeat=7)) / number * 1e6


def show(what: str, act: Callable[[], Any], number: int = 1000) -> None:
    print(f"{what:<58}{micros(act, number):>9.1f} µs")


def vector(size: int) -> list[float]:
    return [round(random.uniform(-1, 1), 6) for _ in range(size)]


def call(path: str, body: Any) -> Request:
    raw = json.dumps(body, separators=(",", ":")).encode()
    return Request("POST", path, tuple(path.split("/")[1:]), (), (), raw)


def settle(engine: Engine, request: Request) -> Operation:
    """The operation, with look-ups answered."""
    found = engine.operation(request, engine.route(request))
    if isinstance(found, Operation):
        return found
    known = {"id": UUID, "name": "docs", "tenant": "default_tenant", "database": "default_database"}
    aliases: dict[str, Any] = {"result": {"aliases": []}}
    engine.learn(found, Response(200, (), json.dumps({**known, **aliases}).encode()))
    again = engine.operation(request, engine.route(request))
    if isinstance(again, Lookup):
        raise RuntimeError("the look-up was not learnt")
    return again


def rows(count: int, text: int, dimension: int) -> list[dict[str, Any]]:
    payload = {"title": "a title", "ssn": "123-45-6789", "text": "lorem ipsum " * (text // 12), "n": 7}
    more: dict[str, Any] = {"vector": vector(dimension)} if dimension else {}
    return [{"id": n, "version": 3, "score": 0.87654, "payload": payload, **more} for n in range(count)]


def answer(found: list[dict[str, Any]]) -> Response:
    body = {"result": {"points": found}, "status": "ok", "time": 0.001}
    return Response(200, (), json.dumps(body, separators=(",", ":")).encode())


def columns(found: list[dict[str, Any]]) -> Response:
    body = {
        "ids": [[str(row["id"]) for row in found]],
        "embeddings": [[row["vector"] for row in found]] if "vector" in found[0] else None,
        "documents": [[row["payload"]["text"] for row in found]],
        "metadatas": [[{"title": "t", "ssn": "1"} for _ in found]],
        "distances": [[row["score"] for row in found]],
        "include": ["documents"],
    }
    return Response(200, (), json.dumps(body, separators=(",", ":")).encode())


def measure(name: str, request: Request, form: Callable[[list[dict[str, Any]]], Response]) -> None:
    engine = make_http_engine(name, "g", hmac_key=b"k" * 32, clock=lambda: 0.0)
    operation = settle(engine, request)
    size = len(request.body or b"") / 1000

    def judged(verdict: Verdict) -> Callable[[], Any]:
        route = engine.route(request)
        return lambda: engine.rewrite(request, engine.operation(request, route), verdict)  # type: ignore[arg-type]

    show(f"{name}: read of a {size:.1f} KB body", lambda: READER.read(request.body or b""))
    show(f"{name}: operation + rewrite, nothing to change", judged(ALLOW))
    show(f"{name}: operation + rewrite, filter and no vectors", judged(FILTER))
    show(f"{name}: digest of the {size:.1f} KB body", lambda: engine.digest(request.body or b""))
    answers = {
        "text": form(rows(10, 144, 0)),
        "texts": form(rows(100, 1380, 0)),
        "vectors": form(rows(10, 144, 1536)),
    }
    for kind, response in answers.items():
        label = f"{name}: {len(response.body) / 1000:.1f} KB of {kind}"
        number = 300 if len(response.body) < 10_000 else 50
        show(f"{label}: observe", partial(engine.observe, request, operation, response), number)
        for what, verdict in (("vectors off", OFF), ("mask a field", FIELDS), ("mask personal data", PII)):
            show(f"{label}: {what}", partial(engine.mask, request, operation, verdict, response), number)
        show(f"{label}: digest", partial(engine.digest, response.body), number)


def main() -> None:
    random.seed(1)
    where = {"must": [{"key": "city", "match": {"value": "x"}}]}
    body = {"query": vector(768), "limit": 10, "with_payload": True, "filter": where}
    measure("qdrant", call("/collections/docs/points/query", body), answer)
    query = {"query_embeddings": [vector(768)], "n_results": 10, "where": {"city": "x"}}
    measure("chroma", call(f"{CHROMA}/query", query), columns)


if __name__ == "__main__":
    main()
