# SPDX-License-Identifier: Apache-2.0
"""One connection in observe: verbatim, recorded, and never worse for our trouble."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from agent.protocols.http import Lookup, Request, Response, Route
from agent.protocols.http1_tap import Http1Tap
from agent.protocols.session import Abort, Bounds, Chunk, Intent, Opaque, Output, Result
from policy.model import Action, Verdict
from policy.operation import Operation
from tests.unit.protocols.fake_engine import ALLOW, FakeEngine, FakeJudge

WOULD = replace(ALLOW, would="deny")


class WouldJudge(FakeJudge):
    """A judge of a guard in observe: it always allows, and says what enforce would do."""

    def __call__(self, operation: Operation) -> Verdict:
        self.asked.append(operation)
        denied = operation.collections & self.denied or Action.UNKNOWN in operation.actions
        return WOULD if denied else ALLOW


def opened(bounds: Bounds | None = None, engine: FakeEngine | None = None) -> Http1Tap:
    return Http1Tap(engine or FakeEngine(), WouldJudge(needs_body=False), "g", bounds)


def kinds(out: Output) -> list[str]:
    return [type(record).__name__ for record in out.records]


def intent(out: Output) -> Intent:
    found = out.records[0]
    assert isinstance(found, Intent)
    return found


SEARCH = b"POST /c/kb/search HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n\r\n{}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nVECTOR"


def test_a_request_waits_for_its_intent_and_passes_as_it_came() -> None:
    tap = opened()
    assert tap.client_data(SEARCH[:-1]) == Output()
    out = tap.client_data(SEARCH[-1:])
    assert b"".join(out.to_server) == SEARCH
    assert kinds(out) == ["Intent"]
    out = tap.server_data(ANSWER)
    assert out.to_client == [ANSWER]
    result = out.records[0]
    assert isinstance(result, Result)
    assert result.body == b"<3:digest>"
    assert result.released_sha256 == sha256(b"VECTOR").digest()


def test_a_request_is_under_way_from_its_first_byte_to_the_last_of_its_answer() -> None:
    tap = opened()
    assert not tap.is_reading
    for at in range(len(SEARCH)):
        tap.client_data(SEARCH[at : at + 1])
        assert tap.is_reading
    tap.server_data(ANSWER)
    assert not tap.is_reading


def test_what_enforce_would_refuse_passes_with_the_reason() -> None:
    tap = opened()
    out = tap.client_data(SEARCH.replace(b"/kb/", b"/forbidden/"))
    assert intent(out).verdict.would == "deny"
    assert len(out.to_server) == 1


def test_an_ambiguous_path_or_body_passes_as_unknown() -> None:
    tap = opened()
    for request in (SEARCH.replace(b"/kb/", b"/a%2Fb/"), SEARCH.replace(b"{}", b"[]")):
        out = tap.client_data(request)
        assert b"".join(out.to_server) == request
        assert intent(out).operation.actions == frozenset({Action.UNKNOWN})
        assert intent(out).verdict.message
        assert kinds(tap.server_data(ANSWER)) == ["Result"]


def test_no_request_of_ours_is_sent_for_a_name() -> None:
    tap = opened()
    request = SEARCH.replace(b"/c/kb/", b"/id/u/")
    out = tap.client_data(request)
    assert b"".join(out.to_server) == request
    assert intent(out).operation.collections == frozenset({"*"})


class GuessingEngine(FakeEngine):
    def operation(self, request: Request, route: Route) -> Operation | Lookup:
        asked = super().operation(request, route)
        if not isinstance(asked, Lookup):
            return asked
        known = Operation("fake", "g", route.method, frozenset({Action.SEARCH}), frozenset({"u"}))
        return replace(asked, unresolved=known)


def test_a_name_that_is_not_looked_up_is_judged_by_what_the_engine_can_say_of_it() -> None:
    tap = opened(engine=GuessingEngine())
    out = tap.client_data(SEARCH.replace(b"/c/kb/", b"/id/u/"))
    assert intent(out).operation.collections == frozenset({"u"})
    assert intent(out).verdict.would is None


def test_pipelined_requests_pass_at_once_and_answers_find_theirs() -> None:
    tap = opened()
    out = tap.client_data(SEARCH + SEARCH)
    assert b"".join(out.to_server) == SEARCH + SEARCH
    out = tap.server_data(ANSWER + ANSWER)
    assert [r.n for r in out.records if isinstance(r, Result)] == [1, 2]


def test_an_answer_that_drips_is_not_held_and_leaves_its_hash_first() -> None:
    tap = opened()
    tap.client_data(SEARCH)
    out = tap.server_data(ANSWER[:-3])
    assert out.to_client == [ANSWER[:-3]]
    chunk = out.records[0]
    assert isinstance(chunk, Chunk)
    assert (chunk.data, chunk.sha256) == (None, sha256(b"VEC").digest())
    result = tap.server_data(ANSWER[-3:]).records[-1]
    assert isinstance(result, Result)
    assert result.body == b"<3:digest>"


def test_a_client_that_expects_continue_is_not_kept_waiting() -> None:
    tap = opened()
    head = SEARCH[:-2].replace(b"Host", b"Expect: 100-continue\r\nHost")
    out = tap.client_data(head)
    assert out.to_server == [head]
    assert intent(out).operation.partial
    assert tap.server_data(b"HTTP/1.1 100 Continue\r\n\r\n").records == []
    out = tap.client_data(b"{}")
    assert (kinds(out), out.to_server) == (["Chunk"], [b"{}"])


def test_an_upgrade_turns_the_connection_opaque() -> None:
    tap = opened()
    tap.client_data(b"GET /c/kb HTTP/1.1\r\nHost: db\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    out = tap.server_data(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x01")
    assert out.to_client == [b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x01"]
    assert kinds(out) == ["Abort", "Opaque"]
    assert tap.client_data(b"\x81\x00").to_server == [b"\x81\x00"]
    assert tap.tally is not None
    assert tap.tally.client_bytes == 2


def test_bytes_that_are_no_http_pass_with_all_that_was_held() -> None:
    tap = opened()
    assert tap.client_data(b"GET /c/kb HTTP/1.1\r\nHo").to_server == []
    out = tap.client_data(b"st : x\r\n\r\n")
    assert b"".join(out.to_server) == b"GET /c/kb HTTP/1.1\r\nHost : x\r\n\r\n"
    opaque = out.records[0]
    assert isinstance(opaque, Opaque)
    assert opaque.reason == "space-before-colon"


class FailingEngine(FakeEngine):
    def observe(self, request: Request, operation: Operation, response: Response) -> None:  # type: ignore[override]
        raise ValueError

    def route(self, request: Request) -> Route:
        if request.segments == ("boom",):
            raise KeyError
        return super().route(request)


def test_our_own_bugs_cost_the_record_and_not_the_client() -> None:
    tap = Http1Tap(FailingEngine(), WouldJudge(), "g")  # type: ignore[arg-type]
    out = tap.client_data(b"GET /boom HTTP/1.1\r\nHost: db\r\n\r\n")
    assert len(out.to_server) == 1
    assert kinds(out) == ["Opaque"]
    tap = Http1Tap(FailingEngine(), WouldJudge(), "g")  # type: ignore[arg-type]
    tap.client_data(SEARCH)
    out = tap.server_data(ANSWER)
    assert out.to_client == [ANSWER]
    assert kinds(out) == ["Abort", "Opaque"]


def test_a_close_passes_in_its_direction() -> None:
    tap = opened()
    tap.client_data(SEARCH)
    assert tap.client_eof().close == "server-eof"
    tap.server_data(ANSWER[:-1])
    out = tap.server_eof()
    assert out.close == "both"
    assert [type(r) for r in out.records] == [Abort]


def test_a_large_upload_is_recorded_in_pieces() -> None:
    tap = opened(Bounds(stream_above=10))
    out = tap.client_data(b"PUT /c/kb/upload HTTP/1.1\r\nHost: db\r\nContent-Length: 100\r\n\r\n" + b"x" * 20)
    assert kinds(out) == ["Intent", "Chunk"]
    assert (
        sum(map(len, out.to_server))
        == len(b"PUT /c/kb/upload HTTP/1.1\r\nHost: db\r\nContent-Length: 100\r\n\r\n") + 20
    )
    assert kinds(tap.client_data(b"x" * 80)) == ["Chunk"]
    assert kinds(tap.server_data(ANSWER)) == ["Result"]
