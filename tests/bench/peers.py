# SPDX-License-Identifier: Apache-2.0
"""What Vecward is measured against, each with one worker, in front of one nginx that plays the database.

Owns the bodies that are asked and answered, and how every peer is configured and started. HAProxy, nginx and
wrk come by apt (``packaging/dev/setup bench``), Envoy and mitmproxy by requirements/bench.txt. Measures
nothing.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests import venvs

DATABASE, DATABASE_CPU, PROXY_CPU = 8000, 0, 1  # the database's unsteered port; wrk shares its core
UUID = "00000000-0000-0000-0000-00000000000%d"
API = "/api/v2/tenants/default_tenant/databases/default_database/collections"
DIMENSION = 768
LUA_REQUEST = """
function envoy_on_request(handle)
  local size = handle:body():length()
  local text = handle:body():getBytes(0, size)
  local many = tonumber(string.match(text, '"n_results"%s*:%s*(%d+)'))
  if string.find(text, '"where_document"', 1, true) or many == nil or many > 100 then
    handle:respond({[":status"] = "403"}, '{"error":"denied"}')
  end
end
"""
LUA_ANSWER = """
function envoy_on_response(handle)
  local body = handle:body()
  local text, masked = string.gsub(body:getBytes(0, body:length()), "[%w.]+@[%w.]+%.%a+", "[email]")
  if masked > 0 then
    body:setBytes(text)
  end
end
"""


def vector(dice: random.Random) -> list[float]:
    """One embedding, its numbers as a server writes 32-bit floats: "-0.0341192"."""
    return [round(dice.gauss(0, 0.036), 7) for _ in range(DIMENSION)]


def answer(hits: int, characters: int, embeddings: bool) -> bytes:
    """A Chroma query answer; one of its metadata fields is an e-mail address."""
    dice = random.Random(hits)
    words = ["".join(dice.choices("etaoinshrdlu", k=dice.randint(2, 9))) for _ in range(3000)]
    columns = ["distances", "documents", "metadatas"] + ["embeddings"] * embeddings
    texts = [" ".join(dice.choices(words, k=characters // 4))[:characters] for _ in range(hits)]
    rows = range(hits)
    body = {
        "ids": [[f"paper-{dice.randint(1, 10**7)}" for _ in rows]],
        "embeddings": [[vector(dice) for _ in rows]] if embeddings else None,
        "documents": [texts],
        "uris": None,
        "metadatas": [
            [{"title": t[:24], "mail": f"user{i}@example.com", "n": i} for i, t in enumerate(texts)]
        ],
        "distances": [[dice.random() for _ in rows]],
        "include": columns,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def question(embeddings: bool) -> bytes:
    """The body of a query: 768 numbers as a client writes them."""
    columns = ["documents", "metadatas", "distances"] + ["embeddings"] * embeddings
    numbers = [round(number, 6) for number in vector(random.Random(1))]
    return json.dumps(
        {"query_embeddings": [numbers], "n_results": 10, "include": columns}, separators=(",", ":")
    ).encode()


def write_database(folder: Path, ports: list[int]) -> Path:
    """Bodies, and nginx's configuration; 2.4 KB answers under the UUID that ends in 1, 150 KB under 2."""
    bodies = {"small": answer(10, 118, False), "large": answer(18, 230, True)}
    for name, body in bodies.items():
        (folder / f"{name}.json").write_bytes(body)
        (folder / f"ask-{name}.json").write_bytes(question(name == "large"))
    places = []
    for number, name in enumerate(bodies, 1):
        known: dict[str, object] = {
            "id": UUID % number, "name": f"papers{number}", "tenant": "default_tenant",
            "database": "default_database", "metadata": None, "dimension": DIMENSION,
        }  # fmt: skip
        told = f"default_type application/json; return 200 '{json.dumps(known)}';"
        places.append(
            f"location = {API}/{UUID % number}/query {{ default_type application/json; root {folder};"
            f" error_page 405 =200 /{name}.json; try_files /{name}.json =404; }}"
            f"location = /{name}.json {{ default_type application/json; root {folder}; }}"
            f"location = {API}/by-id/{UUID % number} {{ {told} }}"
            f"location = {API}/{UUID % number} {{ {told} }}"
        )
    listens = "".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in [DATABASE, *ports])
    config = folder / "nginx.conf"
    config.write_text(
        f"worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log; user root;"
        "worker_rlimit_nofile 20000; events { worker_connections 10000; } http { access_log off;"
        "keepalive_requests 1000000000; keepalive_timeout 1h; client_max_body_size 10m;"
        "client_body_buffer_size 1m;"
        f"server {{ {listens} location = /api/v2/heartbeat {{ default_type application/json;"
        f" return 200 '{{\"nanosecond heartbeat\":1}}'; }} {''.join(places)} }} }}"
    )
    return config


def haproxy(folder: Path, port: int) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode http\n  timeout connect 5s\n"
        "  timeout client 1h\n"
        f"  timeout server 1h\nfrontend f\n  bind 127.0.0.1:{port}\n  default_backend b\n"
        f"backend b\n  server s 127.0.0.1:{DATABASE}\n"
    )
    return [found("haproxy"), "-q", "-db", "-f", str(config)]


def envoy(folder: Path, port: int, lua: str = "") -> list[str]:
    kind = "type.googleapis.com/envoy.extensions.filters"
    filters = [{"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}]
    if lua:
        script = {"@type": f"{kind}.http.lua.v3.Lua", "default_source_code": {"inline_string": lua}}
        filters.insert(0, {"name": "lua", "typed_config": script})
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": filters,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "db"}}],
                }
            ]
        },
    }
    there = {"endpoint": {"address": _address(DATABASE)}}
    limits = {
        "thresholds": [{"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}]
    }
    cluster = {
        "name": "db", "type": "STATIC", "circuit_breakers": limits,
        "load_assignment": {"cluster_name": "db", "endpoints": [{"lb_endpoints": [there]}]},
    }  # fmt: skip
    listener = {
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    config = folder / f"envoy-{port}.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    return [
        str(envoy_binary()), "-c", str(config), "--concurrency", "1", "--base-id", str(port), "-l", "error",
    ]  # fmt: skip


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def mitmproxy(folder: Path, port: int) -> list[str]:
    # mitmdump imports pyperclip, which is published as source only and which a server has no clipboard for.
    stand_in = folder / "without-clipboard" / "pyperclip.py"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text("class PyperclipException(Exception): ...\n")
    start = (
        f"import sys; sys.path.insert(0, {str(stand_in.parent)!r});"
        "from mitmproxy.tools.main import mitmdump; mitmdump()"
    )
    return [
        str(bench_python()), "-c", start, "-q", "--mode", f"reverse:http://127.0.0.1:{DATABASE}",
        "--listen-host", "127.0.0.1", "-p", str(port), "--set", f"confdir={folder / 'mitmproxy'}",
        "--set", "keep_host_header=true", "--set", "connection_strategy=lazy",
    ]  # fmt: skip


PEERS: dict[str, tuple[int, Callable[[Path, int], list[str]]]] = {
    "HAProxy": (9001, haproxy),
    "Envoy": (9002, envoy),
    "Envoy + Lua, request": (9003, lambda folder, port: envoy(folder, port, LUA_REQUEST)),
    "Envoy + Lua, both bodies": (9004, lambda folder, port: envoy(folder, port, LUA_REQUEST + LUA_ANSWER)),
    "mitmproxy": (9005, mitmproxy),
}


def bench_python() -> Path:
    return venvs.python("bench", "--no-deps")


def envoy_binary() -> Path:
    return next(bench_python().parent.parent.glob("lib/python3*/site-packages/envoy/_bin/envoy"))


def found(program: str) -> str:
    """Its path. Raises FileNotFoundError with the way to get it."""
    path = shutil.which(program, path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin")
    if path is None:
        raise FileNotFoundError(
            f"{program} is not installed; `make bench` runs packaging/dev/setup bench for it"
        )
    return path


def versions() -> str:
    """One line that names every peer's version."""
    asked = {
        "nginx": [found("nginx"), "-v"], "HAProxy": [found("haproxy"), "-v"], "wrk": [found("wrk"), "-v"],
        "Envoy": [str(envoy_binary()), "--version"],
        "mitmproxy": [str(bench_python()), "-m", "pip", "show", "mitmproxy"],
    }  # fmt: skip
    said = []
    for name, command in asked.items():
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        match = re.search(
            r"(?:/|[Vv]ersion:? |^wrk |^)(\d+\.\d+\.\d+)", done.stdout + done.stderr, re.MULTILINE
        )
        said.append(f"{name} {match[1] if match else '(unknown version)'}")
    return ", ".join(said)
