# SPDX-License-Identifier: Apache-2.0
"""Every smuggling and duplicate-key case through the real steering: the database saw normal form alone.

The tables are those of tests/wire, written for a real engine's paths. Each attack comes on a connection that
had one good exchange, and whose marker header names it in the bytes that the stub kept.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.servers.raw import say, wait_until
from tests.servers.stage import Stage
from tests.wire import strict_server
from tests.wire.test_attacks import HIDDEN, NORMALISED, REFUSED

POLICY = """\
version: 1
rules:
  - id: all-of-kb
    what: {guard: docs}
    allow: true
  - id: few
    what: {action: search}
    limit: {top_k: 5}
    vectors: false
  - id: not-hidden
    what: {collection: secret}
    deny: "secret is secret"
"""
DEEP = b"[" * 200 + b"]" * 200
BODIES: dict[str, bytes] = {
    "limit-twice": b'{"query":[1,0],"limit":1,"limit":1000}',
    "limit-twice-escaped": b'{"query":[1,0],"limit":1,"\\u006cimit":1000}',
    "limit-escaped": b'{"query":[1,0],"\\u006cimit":1000}',
    "limit-and-its-old-name": b'{"vector":[1,0],"limit":1,"top":1000}',
    "vector-two-names": b'{"query":[1,0],"with_vector":false,"with_vectors":true}',
    "filter-twice": b'{"query":[1,0],"filter":{"must":[]},"filter":{}}',
    "deep-twice": b'{"query":[1,0],"filter":{"must":[{"key":"a","key":"b","match":{"value":1}}]}}',
    "prefetch-twice": b'{"prefetch":{"query":[1,0],"limit":1,"limit":9},"query":[1,0]}',
    "a-float-limit": b'{"query":[1,0],"limit":1e3}',
    "a-negative-limit": b'{"query":[1,0],"limit":-1}',
    "a-huge-limit": b'{"query":[1,0],"limit":18446744073709551616}',
    "a-limit-of-text": b'{"query":[1,0],"limit":"1"}',
    "two-documents": b'{"query":[1,0]}{"query":[1,0],"limit":1000}',
    "a-document-and-more": b'{"query":[1,0]} x',
    "a-byte-order-mark": b'\xef\xbb\xbf{"query":[1,0]}',
    "utf-16": '{"query":[1,0]}'.encode("utf-16"),
    "not-utf-8": b'{"query":[1,0],"using":"\xff"}',
    "half-a-surrogate": b'{"query":[1,0],"using":"\\ud800"}',
    "a-comment": b'{"query":[1,0]/*,"limit":1000*/}',
    "a-trailing-comma": b'{"query":[1,0],}',
    "single-quotes": b"{'query':[1,0]}",
    "not-a-number": b'{"query":[NaN,0]}',
    "a-control-character": b'{"query":[1,0],"using":"\x01"}',
    "no-object": b"[1,0]",
    "nothing": b" ",
    "deep": b'{"query":[1,0],"filter":' + DEEP + b"}",
    "too-many-by-a-batch": b'{"searches":[{"query":[1,0],"limit":3},{"query":[1,0],"limit":3}]}',
}
NORMAL_BODIES: dict[str, tuple[bytes, bytes]] = {
    "spaces": (b' {\n"query" : [ 1 , 0 ] ,\t"limit":2}\r\n', b'{"query":[1,0],"limit":2}'),
    "vectors-asked-for": (b'{"query":[1,0],"limit":2,"with_vector":true}', b"with_vector"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    statuses: list[int]
    answer: bytes
    ended: str


def adapt(data: bytes) -> bytes:
    """A case of the tables with Qdrant's paths."""
    return data.replace(b"/c/kb/search", b"/collections/kb/points/query").replace(b"/c/", b"/collections/")


def post(body: bytes, path: str = "/collections/kb/points/query") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: db\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def attack(port: int, name: str, data: bytes) -> Outcome:
    """One good exchange and then the attack; reads to the end, or to the end of a second answer."""
    good = f"GET /collections/first HTTP/1.1\r\nHost: db\r\nX-Case: {name}\r\n\r\n".encode()
    got, ended = b"", "eof"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(good)
        while b"}" not in got:
            got += sock.recv(65536)
        first = len(got)
        try:
            sock.sendall(data)
            while (data := sock.recv(65536)) != b"":
                got += data
                if is_whole(got[first:]):
                    ended = "open"
                    break
        except TimeoutError:
            ended = "timeout"
        except OSError as error:
            ended = type(error).__name__
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", got)]
    return Outcome(statuses, got[first:], ended)


def arrived(data: bytes) -> list[strict_server.Seen]:
    """The requests that reached the database, but for the proxy's own question about aliases."""
    return [request for request in strict_server.read(data) if request.path != b"/aliases"]


def posts(data: bytes) -> list[strict_server.Seen]:
    return [request for request in arrived(data) if request.first.startswith(b"POST ")]


def is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    size = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return bool(end) and size is not None and len(body) >= int(size[1])


CASES: dict[str, bytes] = {
    **{f"refused {name}": adapt(data) for name, data in REFUSED.items()},
    **{f"normal {name}": adapt(data) for name, (data, _) in NORMALISED.items()},
    **{
        f"body {name}": post(body, "/collections/kb/points/query" + ("/batch" if "batch" in name else ""))
        for name, body in BODIES.items()
    },
    **{f"normal-body {name}": post(body) for name, (body, _) in NORMAL_BODIES.items()},
    "denied": post(b'{"query":[1,0]}', "/collections/secret/points/query"),
    "denied and allowed": post(b'{"query":[1,0]}', "/collections/secret/points/query")
    + post(b'{"query":[1,0]}'),
    "body of a request": post(
        b'{"x":"' + adapt(HIDDEN).replace(b"\r\n", b"\\r\\n") + b'"}', "/collections/kb/points/count"
    ),
}


@pytest.fixture(scope="module")
def seen() -> Iterator[tuple[dict[str, Outcome], dict[str, bytes]]]:
    """What came of every case, and the bytes that the stub got on each one's connection."""
    with Stage("qdrant") as stage:
        raw = stage.folder / "raw.jsonl"
        stage.start_database("127.0.0.1", "--raw", str(raw))
        stage.vecward(POLICY)
        outcomes = stage.arena.run(
            lambda: {name: attack(stage.port, name, data) for name, data in CASES.items()},
            user="nobody",
            timeout=280,
        )
        reached: dict[str, bytes] = {}

        def read() -> bool:
            for line in raw.read_text().splitlines():
                data = json.loads(line).encode("latin-1")
                if found := re.search(rb"x-case: ([^\r\n]+)", data):
                    reached[found[1].decode()] = data
            return reached.keys() >= CASES.keys()

        wait_until(read, what="the stub's connections are closed")
        assert stage.status["coverage"]["bypass"] == 0
        yield outcomes, reached
        assert "Traceback" not in stage.log.read_text()
        assert "bug" not in stage.log.read_text()


Both = tuple[dict[str, Outcome], dict[str, bytes]]


def test_no_connection_brought_anything_but_normal_form_to_the_database(seen: Both) -> None:
    for name, data in seen[1].items():
        requests = arrived(data)
        assert requests[0].path == b"/collections/first", name
        assert all(request.whole for request in requests), name
        assert not any(b"hidden" in request.path or b"secret" in request.path for request in requests), name


@pytest.mark.parametrize("name", REFUSED)
def test_a_smuggling_shape_is_refused_and_nothing_of_it_arrives(seen: Both, name: str) -> None:
    outcome, data = seen[0][f"refused {name}"], seen[1][f"refused {name}"]
    assert [request.path for request in arrived(data)] == [b"/collections/first"]
    assert len(outcome.statuses) == 2
    assert 400 <= outcome.statuses[1] <= 505
    assert b'"error"' in outcome.answer  # the engine's own form


@pytest.mark.parametrize("name", NORMALISED)
def test_an_unusual_shape_arrives_in_normal_form(seen: Both, name: str) -> None:
    data = seen[1][f"normal {name}"]
    requests = arrived(data)
    assert len(requests) == 2
    assert requests[1].first.startswith(adapt(NORMALISED[name][1])) or adapt(NORMALISED[name][1]) in data


@pytest.mark.parametrize("name", BODIES)
def test_an_ambiguous_body_is_refused_and_does_not_arrive(seen: Both, name: str) -> None:
    outcome, data = seen[0][f"body {name}"], seen[1][f"body {name}"]
    assert outcome.statuses[1] in (400, 403), outcome
    assert not posts(data)


def test_an_accepted_body_arrives_as_it_was_judged(seen: Both) -> None:
    for name, (_, expected) in NORMAL_BODIES.items():
        sent = posts(seen[1][f"normal-body {name}"])
        assert len(sent) == 1, seen[0][f"normal-body {name}"]
        if name == "vectors-asked-for":  # the rule asks for none
            assert json.loads(sent[0].body).get("with_vector", False) is False
        else:
            assert json.loads(sent[0].body) == json.loads(expected)


def test_what_is_denied_does_not_arrive_and_what_stands_behind_it_is_judged_by_itself(seen: Both) -> None:
    outcomes, reached = seen
    assert outcomes["denied"].statuses[1] == 403
    assert b"secret is secret" in outcomes["denied"].answer
    assert not posts(reached["denied"])
    sent = posts(reached["denied and allowed"])
    assert {request.path for request in sent} <= {b"/collections/kb/points/query"}


def test_a_request_inside_a_body_stays_a_body(seen: Both) -> None:
    sent = posts(seen[1]["body of a request"])
    assert all(request.path == b"/collections/kb/points/count" for request in sent)


def test_what_is_not_http_1_is_refused_in_its_own_protocol_and_counted() -> None:
    hello = bytes.fromhex("1603010200010001fc0303") + b"\x11" * 300
    http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
    with Stage("qdrant") as stage:
        raw = stage.folder / "raw.jsonl"
        stage.start_database("127.0.0.1", "--raw", str(raw))
        stage.vecward(POLICY)
        tls, h2, rubbish = (say(stage, data) for data in (hello, http2, b"\x00\xff" * 20))
        assert tls.got[:1] == b"\x15"  # an alert
        assert b"HTTP/2 is not spoken here" in h2.got
        assert rubbish.status == 403
        assert b"no protocol that this guard speaks" in rubbish.body
        # Workers tell what they counted once a second; the agent takes these names and goes on with them.
        for name in ("tls-without-key", "unknown-protocol"):
            wait_until(
                lambda name=name: stage.status["proxy"].get(f"protocol_client_{name}") == 1,
                what="it is counted",
            )
        assert len(stage.status["workers"]) == 2
        assert "Traceback" not in stage.log.read_text()
        assert {json.loads(line) for line in raw.read_text().splitlines()} <= {""}  # nothing was forwarded
