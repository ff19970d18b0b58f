# SPDX-License-Identifier: Apache-2.0
"""A Qdrant REST server made of the official client's own models and local engine.

There is no Qdrant binary in a package index, so this stands in for it: what qdrant-client's local
engine implements is served by it (the client's own tests hold that engine equal to the server), every
other route of the client's generated API answers with a body made from its response model, and the
rest of tests/data/qdrant_routes.txt with a bare ok. Runs in the venv of requirements-qdrant.txt.

    python tests/servers/qdrant_stub.py --port 6333 [--host 127.0.0.1] [--log seen.jsonl] [--key-file F]
        [--raw bytes.jsonl] [--answers plain|chunked|gzip|deflate|gzip-chunked] [--cert PEM --cert-key PEM]

``--log`` appends one JSON line for each request: method, raw path, headers, raw body (latin-1). ``--raw``
appends one for each connection when it ends: every byte that came (latin-1). ``--answers`` says in which form
answers are written, whatever the client accepts: a server may do that, and a proxy must cope.
"""

from __future__ import annotations

import argparse
import enum
import gzip
import http.server
import json
import re
import ssl
import threading
import types
import typing
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import qdrant_client.http.api as generated
from pydantic import BaseModel, TypeAdapter
from qdrant_client import QdrantClient, models

DATA = Path(__file__).resolve().parent.parent / "data" / "qdrant_routes.txt"
TITLE = {"title": "qdrant - vector search engine", "version": "1.19.0", "commit": "stub"}
Body = dict[str, Any]
db = QdrantClient(":memory:")
lock = threading.Lock()


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# What the local engine serves.


def plain(value: Any) -> Any:
    """Models as the server writes them."""
    if isinstance(value, BaseModel):
        return json.loads(value.model_dump_json(exclude_none=True))
    if isinstance(value, list):
        return [plain(member) for member in value]
    return value


DONE = {"operation_id": 0, "status": "completed"}


def parse(kind: Any, value: Any) -> Any:
    return None if value is None else TypeAdapter(kind).validate_python(value)


def with_vector(body: Body) -> Any:
    return body.get("with_vector", body.get("with_vectors")) or False


def outputs(body: Body, default: bool = False) -> Body:
    given = body.get("with_payload")
    payload = default if given is None else parse(models.WithPayloadInterface, given)
    return {"with_payload": payload, "with_vectors": with_vector(body)}


def query_of(body: Body) -> Any:
    return models.QueryRequest(**{k: v for k, v in body.items() if k in models.QueryRequest.model_fields})


def run_query(name: str, body: Body) -> list[Any]:
    request = query_of(body)
    found = db.query_points(
        name,
        query=request.query,
        using=request.using,
        prefetch=request.prefetch,
        query_filter=request.filter,
        limit=request.limit or 10,
        offset=request.offset,
        score_threshold=request.score_threshold,
        lookup_from=request.lookup_from,
        **outputs(body),
    )
    points: list[Any] = plain(found.points)
    return points


def run_groups(name: str, body: Body) -> Body:
    request = models.QueryGroupsRequest(**body)
    found = db.query_points_groups(
        name,
        group_by=request.group_by,
        query=request.query,
        using=request.using,
        prefetch=request.prefetch,
        query_filter=request.filter,
        limit=request.limit or 10,
        group_size=request.group_size or 3,
        score_threshold=request.score_threshold,
        with_lookup=request.with_lookup,
        **outputs(body),
    )
    groups: Body = plain(found)
    return groups


def from_search(body: Body) -> Body:
    """A request of the older search family as the query it is."""
    old = dict(body)
    if "top" in old:
        old["limit"] = old.pop("top")
    vector = old.pop("vector", None)
    if isinstance(vector, dict) and "vector" in vector:
        old["using"], vector = vector.get("name"), vector["vector"]
    if vector is not None:
        old["query"] = {"nearest": vector}
    if "positive" in old or "negative" in old:
        inner = {k: old.pop(k) for k in ("positive", "negative", "strategy") if k in old}
        old["query"] = {"recommend": inner}
    elif "target" in old:
        old["query"] = {"discover": {"target": old.pop("target"), "context": old.pop("context", [])}}
    elif "context" in old:
        old["query"] = {"context": old.pop("context")}
    return old


def retrieve(name: str, body: Body) -> Any:
    return plain(db.retrieve(name, body["ids"], **outputs(body, True)))


def one_point(name: str, body: Body, ident: str) -> Any:
    key = int(ident) if ident.isdigit() else ident
    found = db.retrieve(name, [key], with_payload=True, with_vectors=True)
    if not found:
        raise Refused(404, f"Not found: Point with id {ident} does not exists!")
    return plain(found[0])


def scroll(name: str, body: Body) -> Body:
    points, after = db.scroll(
        name,
        scroll_filter=parse(models.Filter, body.get("filter")),
        limit=body.get("limit") or 10,
        offset=body.get("offset"),
        order_by=parse(models.OrderByInterface, body.get("order_by")),
        **outputs(body, True),
    )
    return {"points": plain(points), "next_page_offset": after}


def upsert(name: str, body: Body) -> Body:
    points = (
        models.Batch(**body["batch"])
        if "batch" in body
        else [models.PointStruct(**p) for p in body["points"]]
    )
    db.upsert(name, points, update_filter=parse(models.Filter, body.get("update_filter")))
    return DONE


def selector(body: Body) -> Any:
    if body.get("filter") is not None:
        return models.FilterSelector(filter=body["filter"])
    return models.PointIdsList(points=body["points"])


def change(act: Callable[..., Any], name: str, *args: Any, **more: Any) -> Body:
    act(name, *args, **more)
    return DONE


def update_vectors(name: str, body: Body) -> Body:
    return change(db.update_vectors, name, parse(list[models.PointVectors], body["points"]))


def batch_update(name: str, body: Body) -> list[Body]:
    kind = TypeAdapter(models.UpdateOperation)
    db.batch_update_points(name, [kind.validate_python(operation) for operation in body["operations"]])
    return [DONE for _ in body["operations"]]


def create(name: str, body: Body) -> bool:
    request = models.CreateCollection(**body)
    return bool(
        db.create_collection(
            name, vectors_config=request.vectors or {}, sparse_vectors_config=request.sparse_vectors
        )
    )


def aliases(body: Body) -> bool:
    kind = TypeAdapter(models.AliasOperations)
    return bool(db.update_collection_aliases([kind.validate_python(action) for action in body["actions"]]))


def count(name: str, body: Body) -> Any:
    return plain(db.count(name, count_filter=parse(models.Filter, body.get("filter")), exact=True))


def facet(name: str, body: Body) -> Any:
    wanted = parse(models.Filter, body.get("filter"))
    return plain(db.facet(name, key=body["key"], facet_filter=wanted, limit=body.get("limit") or 10))


def matrix(act: Callable[..., Any], name: str, body: Body) -> Any:
    wanted = parse(models.Filter, body.get("filter"))
    size = {"limit": body.get("limit") or 3, "sample": body.get("sample") or 10}
    return plain(act(name, query_filter=wanted, using=body.get("using"), **size))


C = "/collections/{c}"
P = C + "/points"
SERVED: dict[str, Callable[..., Any]] = {
    "GET /collections": lambda b: plain(db.get_collections()),
    "GET /aliases": lambda b: plain(db.get_aliases()),
    "POST /collections/aliases": aliases,
    f"PUT {C}": lambda b, c: create(c, b),
    f"GET {C}": lambda b, c: plain(db.get_collection(c)),
    f"DELETE {C}": lambda b, c: db.delete_collection(c),
    f"GET {C}/exists": lambda b, c: {"exists": db.collection_exists(c)},
    f"GET {C}/aliases": lambda b, c: plain(db.get_collection_aliases(c)),
    f"PUT {C}/index": lambda b, c: DONE,
    f"POST {P}": lambda b, c: retrieve(c, b),
    f"GET {P}/{{id}}": lambda b, c, i: one_point(c, b, i),
    f"PUT {P}": lambda b, c: upsert(c, b),
    f"POST {P}/query": lambda b, c: {"points": run_query(c, b)},
    f"POST {P}/query/batch": lambda b, c: [{"points": run_query(c, s)} for s in b["searches"]],
    f"POST {P}/query/groups": lambda b, c: run_groups(c, b),
    f"POST {P}/search": lambda b, c: run_query(c, from_search(b)),
    f"POST {P}/search/batch": lambda b, c: [run_query(c, from_search(s)) for s in b["searches"]],
    f"POST {P}/search/groups": lambda b, c: run_groups(c, from_search(b)),
    f"POST {P}/recommend": lambda b, c: run_query(c, from_search(b)),
    f"POST {P}/recommend/batch": lambda b, c: [run_query(c, from_search(s)) for s in b["searches"]],
    f"POST {P}/recommend/groups": lambda b, c: run_groups(c, from_search(b)),
    f"POST {P}/discover": lambda b, c: run_query(c, from_search(b)),
    f"POST {P}/discover/batch": lambda b, c: [run_query(c, from_search(s)) for s in b["searches"]],
    f"POST {P}/search/matrix/pairs": lambda b, c: matrix(db.search_matrix_pairs, c, b),
    f"POST {P}/search/matrix/offsets": lambda b, c: matrix(db.search_matrix_offsets, c, b),
    f"POST {C}/facet": lambda b, c: facet(c, b),
    f"POST {P}/scroll": lambda b, c: scroll(c, b),
    f"POST {P}/count": lambda b, c: count(c, b),
    f"POST {P}/delete": lambda b, c: change(db.delete, c, selector(b)),
    f"POST {P}/payload": lambda b, c: change(db.set_payload, c, b["payload"], selector(b), key=b.get("key")),
    f"PUT {P}/payload": lambda b, c: change(db.overwrite_payload, c, b["payload"], selector(b)),
    f"POST {P}/payload/delete": lambda b, c: change(db.delete_payload, c, b["keys"], selector(b)),
    f"POST {P}/payload/clear": lambda b, c: change(db.clear_payload, c, selector(b)),
    f"PUT {P}/vectors": lambda b, c: update_vectors(c, b),
    f"POST {P}/vectors/delete": lambda b, c: change(db.delete_vectors, c, b["vector"], selector(b)),
    f"POST {P}/batch": lambda b, c: batch_update(c, b),
}  # fmt: skip


# What is answered from a response model.


def example(kind: Any, depth: int = 0) -> Any:
    """The least value of a type of the official models."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if type(None) in args else example(args[0], depth)
    if origin is typing.Annotated:
        return example(args[0], depth)
    if origin is typing.Literal:
        return args[0]
    if origin in (list, set, tuple) or kind in (list, tuple):
        return []
    if origin is dict or kind in (dict, Any):
        return {}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind)).value
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if depth > 12:
            return {}
        fields = kind.model_fields.items()
        return {f.alias or name: example(f.annotation, depth + 1) for name, f in fields if f.is_required()}
    return {str: "", int: 0, float: 0.0, bool: True}.get(kind, "")


ROUTED = re.compile(r"type_=(?:m\.)?([\w.\[\], ]+),\s*method=\"(\w+)\",\s*url=\"([^\"]+)\"")
LISTED = re.compile(r"(\w+)\(\"([^\"]+)\"\)")


def modelled() -> dict[str, Any]:
    """``GET /collections/{collection_name}/cluster`` to its response model, of the generated API."""
    found: dict[str, Any] = {}
    for path in Path(generated.__path__[0]).glob("*_api.py"):
        for name, verb, url in ROUTED.findall(path.read_text()):
            found[f"{verb} {url}"] = getattr(models, name, None) or getattr(generated_models(), name, None)
    for verb, url in LISTED.findall(DATA.read_text()) if DATA.exists() else ():
        found.setdefault(f"{verb.upper()} {url}", None)
    return found


def generated_models() -> Any:
    import qdrant_client.http.models as module

    return module


def answer_of(model: Any) -> Body:
    result: Any = True
    if model is not None and "result" in model.model_fields:
        kind = model.model_fields["result"].annotation
        kinds = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        result = example(kinds[0] if type(None) in typing.get_args(kind) else kind)
    return {"result": result, "status": "ok", "time": 0.0}


def compiled(routes: dict[str, Any]) -> list[tuple[str, re.Pattern[str], Any]]:
    """Literal paths first."""
    out = []
    for route, act in sorted(routes.items(), key=lambda item: item[0].count("{")):
        verb, path = route.split(" ", 1)
        out.append((verb, re.compile(re.sub(r"\{\w+\}", "([^/]+)", path)), act))
    return out


SERVERS = compiled(SERVED)
MODELLED = compiled(modelled())


def respond(verb: str, path: str, body: Body) -> tuple[int, Any]:
    if verb == "GET" and path == "/":
        return 200, TITLE
    for method, pattern, act in SERVERS:
        if method == verb and (match := pattern.fullmatch(path)):
            with lock:
                result = act(body, *map(unquote, match.groups()))
            return 200, {"result": result, "status": "ok", "time": 0.0}
    for method, pattern, model in MODELLED:
        if method == verb and pattern.fullmatch(path):
            return 200, answer_of(model)
    raise Refused(404, "Not found")


class Tee:
    """A connection's input that keeps what was read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.read_bytes = b""

    def read(self, size: int = -1) -> bytes:
        return self._keep(self._file.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._keep(self._file.readline(size))

    def close(self) -> None:
        self._file.close()

    def _keep(self, data: bytes) -> bytes:
        self.read_bytes += data
        return data


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log: Path | None = None
    raw: Path | None = None
    key: str | None = None
    answers = "plain"

    def setup(self) -> None:
        super().setup()
        if self.raw is not None:
            self.rfile = Tee(self.rfile)  # type: ignore[assignment]  # it has what the handler calls

    def finish(self) -> None:
        if self.raw is not None and isinstance(self.rfile, Tee):
            with lock, self.raw.open("a") as out:
                out.write(json.dumps(self.rfile.read_bytes.decode("latin-1")) + "\n")
        super().finish()

    def serve(self) -> None:
        raw = self.read_body()
        if self.log is not None:
            seen = {"method": self.command, "path": self.path, "headers": list(self.headers.items())}
            with lock, self.log.open("a") as out:
                out.write(json.dumps({**seen, "body": raw.decode("latin-1")}) + "\n")
        path = urlsplit(self.path).path
        try:
            open_path = path in ("/", "/healthz", "/livez", "/readyz")
            if self.key is not None and self.headers.get("api-key") != self.key and not open_path:
                raise Refused(401, "Must provide an API key or an Authorization bearer token")
            self.send(*respond(self.command, path, json.loads(raw) if raw else {}))
        except Refused as refused:
            self.send(refused.status, {"status": {"error": str(refused)}, "time": 0.0})
        except Exception as error:  # the local engine raises ValueError and much else for bad requests
            missing = "not found" in str(error)
            self.send(404 if missing else 400, {"status": {"error": str(error)}, "time": 0.0})

    def read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if self.answers.startswith("gzip"):
            data = gzip.compress(data)
            self.send_header("content-encoding", "gzip")
        elif self.answers == "deflate":
            data = zlib.compress(data)
            self.send_header("content-encoding", "deflate")
        if self.answers.endswith("chunked"):
            self.send_header("transfer-encoding", "chunked")
            sizes = [7, 1, 300, len(data)]  # cut where no JSON token ends
            pieces = []
            for size in sizes:
                piece, data = data[:size], data[size:]
                pieces += [b"%x\r\n%s\r\n" % (len(piece), piece)] if piece else []
            data = b"".join(pieces) + b"0\r\n\r\n"
        else:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = serve

    def log_message(self, *args: Any) -> None:
        """Nothing: what it saw goes to --log."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--raw", type=Path)
    parser.add_argument(
        "--answers", default="plain", choices=["plain", "chunked", "gzip", "deflate", "gzip-chunked"]
    )
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--cert-key", type=Path)
    given = parser.parse_args()
    Handler.log, Handler.raw, Handler.answers = given.log, given.raw, given.answers
    Handler.key = given.key_file.read_text().strip() if given.key_file else None
    server = http.server.ThreadingHTTPServer((given.host, given.port), Handler)
    server.daemon_threads = True
    if given.cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.cert, given.cert_key)
        # The handshake is made by the connection's own thread, at its first read.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(f"ready {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
