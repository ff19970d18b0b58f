# SPDX-License-Identifier: Apache-2.0
"""Damaged conversations: no exception but `ProtocolError`, and no unjudged byte to the database."""

from __future__ import annotations

from dataclasses import replace

import httptools
from hypothesis import given
from hypothesis import strategies as st

from agent.protocols.choose import open_session
from agent.protocols.http import Lookup, Request, Route
from agent.protocols.http1_head import request_heads
from agent.protocols.session import Bounds, Intent, Opaque, ProtocolError
from agent.protocols.target import parse_target
from policy.model import Mask
from policy.operation import Operation
from tests.unit.protocols.fake_engine import ALLOW, FakeEngine, FakeJudge
from tests.wire import strict_server
from tests.wire.conversations import Played, Step, load, names, play
from tests.wire.test_attacks import BROKEN_ANSWERS, NORMALISED, REFUSED

CONVERSATIONS = [load(name) for name in names()]
SPLICES = [
    *(data for data in REFUSED.values() if len(data) < 400),
    *(data for data, _ in NORMALISED.values()),
    *(data for data in BROKEN_ANSWERS.values() if len(data) < 400),
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 1\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"\x00",
    b"\x16\x03\x01",
]


@st.composite
def damaged(draw: st.DrawFn) -> list[Step]:
    steps = list(draw(st.sampled_from(CONVERSATIONS)))
    for _ in range(draw(st.integers(1, 5))):
        index = draw(st.integers(0, len(steps) - 1))
        side, data = steps[index]
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 5)):
            case 0:
                steps[index] = (side, data[:at] + draw(st.sampled_from(SPLICES)) + data[at:])
            case 1:
                steps[index] = (side, data[:at] + data[draw(st.integers(at, len(data))) :])
            case 2:
                steps[index] = (side, data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :])
            case 3:
                steps[index : index + 1] = [(side, data[:at]), (side, data[at:])]
            case 4:
                steps.insert(index, draw(st.sampled_from(steps)))
            case _:
                steps.insert(index, (draw(st.sampled_from(["client-eof", "server-eof"])), b""))
    return [(side, data) for side, data in steps if data or side.endswith("eof")]


@given(damaged(), st.sampled_from([Bounds(), Bounds(stream_above=8, body=64)]), st.booleans(), st.booleans())
def test_no_damage_forwards_an_unjudged_request(
    steps: list[Step], bounds: Bounds, masked: bool, needs_body: bool
) -> None:
    engine = FakeEngine()
    verdict = replace(ALLOW, masks=(Mask("r", field="payload.ssn"),)) if masked else ALLOW
    session = open_session(engine, FakeJudge(verdict, needs_body=needs_body), "g", "enforce", bounds)
    played = Played()
    try:
        play(session, steps, played)
    except ProtocolError as error:
        played.add(session.refuse_all(error.message))
        assert played.closes
    played.add(session.abandon("the end"))
    allowed = [i for i in played.of(Intent) if i.verdict.outcome == "allow"]
    judged = [f"{i.head['method']} {i.head['path']}" for i in allowed]
    forwarded = strict_server.read(played.to_server)
    seen = [f"{r.method.decode() or _method(r)} {r.path.decode().split('?')[0]}" for r in forwarded]
    lookups = [path for path in seen if path.split(" ")[1].startswith("/names/")]
    assert [path for path in seen if path not in lookups] == judged
    if masked:
        assert b"secret" not in played.to_client


def _method(request: strict_server.Seen) -> str:
    return request.first.split(b" ")[0].decode()


@given(damaged(), st.sampled_from([Bounds(), Bounds(stream_above=8, body=64, head=200)]))
def test_no_damage_is_noticed_in_observe(steps: list[Step], bounds: Bounds) -> None:
    session = open_session(FakeEngine(), FakeJudge(needs_body=False), "g", "observe", bounds)
    played = play(session, steps)
    ended = next((i for i, step in enumerate(steps) if step[0] == "client-eof"), None)
    sent = b"".join(data for side, data in steps if side == "client")
    answered = b"".join(data for side, data in steps if side == "server")
    assert answered.startswith(played.to_client)
    assert sent.startswith(played.to_server)
    if "both" not in played.closes:
        assert played.to_client == answered
        if played.of(Opaque) or ended is not None:
            assert played.to_server == sent


class _BrokenEngine(FakeEngine):
    def operation(self, request: Request, route: Route) -> Operation | Lookup:
        raise ZeroDivisionError


@given(damaged())
def test_a_bug_in_an_engine_is_not_noticed_in_observe(steps: list[Step]) -> None:
    session = open_session(_BrokenEngine(), FakeJudge(), "g", "observe")
    played = play(session, steps)
    assert b"".join(data for side, data in steps if side == "client").startswith(played.to_server)
    assert b"".join(data for side, data in steps if side == "server").startswith(played.to_client)


@given(damaged())
def test_what_the_strict_parser_accepts_llhttp_reads_the_same(steps: list[Step]) -> None:
    parser = request_heads(Bounds())
    for side, data in steps:
        end = data.find(b"\r\n\r\n") + 4
        if side != "client" or end < 4:
            continue
        try:
            head, length = parser.parse(data[:end])
            parse_target(head.target, head.host, head.method)
        except ProtocolError:
            continue
        if head.upgrade is not None or head.method == "CONNECT":
            continue
        framed = data[:end] + (b"0\r\n\r\n" if head.chunked else b"x" * min(length or 0, 10_000))
        if (length or 0) > 10_000:
            continue
        try:
            requests = strict_server.parse(framed)
        except httptools.HttpParserInvalidMethodError:  # it knows a list of methods, engines know theirs
            continue
        assert len(requests) == 1
        request = requests[0]
        assert request.whole
        assert request.path.decode() == head.target
        assert len(request.body) == (length or 0)
        names = [(n.lower().decode("latin-1"), v.decode("latin-1").strip(" \t")) for n, v in request.headers]
        assert [pair for pair in names if pair[0] != "content-length"] == list(head.headers)
