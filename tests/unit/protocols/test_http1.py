# SPDX-License-Identifier: Apache-2.0
"""One connection in enforce: order, records, masks, streaming, look-ups, ends."""

from __future__ import annotations

import gzip
from dataclasses import replace
from hashlib import sha256

import pytest

from agent.protocols.http1 import Http1Session
from agent.protocols.session import Abort, Bounds, Chunk, Intent, Output, Result
from policy.model import Hit, Limit, Mask, RecordLevel, Verdict
from tests.unit.protocols.fake_engine import ALLOW, FakeEngine, FakeJudge

MASKED = replace(ALLOW, masks=(Mask("r", field="payload.ssn"),))
SMALL = Bounds(stream_above=10, body=40)


def opened(
    verdict: Verdict = ALLOW, bounds: Bounds | None = None, needs_body: bool = False, key: str | None = None
) -> Http1Session:
    credential = (("api-key", key),) if key is not None else None
    return Http1Session(FakeEngine(), FakeJudge(verdict, needs_body=needs_body), "g", bounds, credential)


def search(body: bytes = b"{}", extra: bytes = b"", name: bytes = b"kb") -> bytes:
    return b"POST /c/%b/search HTTP/1.1\r\nHost: db\r\n%bContent-Length: %d\r\n\r\n%b" % (
        name,
        extra,
        len(body),
        body,
    )


def answer(body: bytes, extra: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, extra, len(body), body)


def client(out: Output) -> bytes:
    return b"".join(out.to_client)


def server(out: Output) -> bytes:
    return b"".join(out.to_server)


def one(out: Output, kind: type) -> object:
    found = [record for record in out.records if isinstance(record, kind)]
    assert len(found) == 1, out.records
    return found[0]


def result(out: Output) -> Result:
    found = one(out, Result)
    assert isinstance(found, Result)
    return found


def intent(out: Output) -> Intent:
    found = one(out, Intent)
    assert isinstance(found, Intent)
    return found


def test_a_request_is_under_way_from_its_first_byte_to_the_last_of_its_answer() -> None:
    session = opened()
    assert not session.is_reading
    whole = search(b"{VECTOR}")
    for at in range(len(whole)):
        session.client_data(whole[at : at + 1])
        assert session.is_reading
    session.server_data(answer(b"[VECTOR]"))
    assert not session.is_reading


def test_an_intent_stands_beside_the_forwarded_request_and_a_result_beside_the_answer() -> None:
    session = opened()
    asked = session.client_data(search(b"{VECTOR}"))
    assert intent(asked).body == b"{<3:digest>}"
    assert intent(asked).vectors_cut == 1
    assert intent(asked).sha256 == sha256(b"{VECTOR}").digest()
    assert server(asked).endswith(b"\r\n\r\n{VECTOR}")
    got = session.server_data(answer(b"[VECTOR]"))
    assert result(got).body == b"[<3:digest>]"
    assert result(got).released_sha256 == sha256(b"[VECTOR]").digest()
    assert (result(got).ids, result(got).rows) == (("1", "2"), 2)


def test_the_engine_sees_answers_without_rows_too_because_they_tell_names() -> None:
    engine = FakeEngine()
    session = Http1Session(engine, FakeJudge(), "g")
    session.client_data(b"POST /c HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n\r\n{}")
    session.server_data(answer(b'{"id":"u"}'))
    assert [response.body for response in engine.watched] == [b'{"id":"u"}']


def test_credentials_are_replaced_on_the_way_and_never_recorded() -> None:
    session = opened(key="ours")
    out = session.client_data(
        search(extra=b"Api-Key: theirs\r\nAuthorization: Bearer theirs\r\nCookie: c\r\n")
    )
    assert b"api-key: ours\r\n" in server(out)
    assert b"theirs" not in server(out)
    assert not {"api-key", "authorization", "cookie"} & intent(out).head.keys()
    got = session.server_data(answer(b"{}", b"Set-Cookie: s=1\r\n"))
    assert "set-cookie" not in result(got).head


def test_a_repeated_head_with_another_length_is_judged_anew() -> None:
    session = opened()
    for body in (b"{}", b"{1}", b"{22}"):
        out = session.client_data(search(body))
        assert server(out).endswith(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert intent(out).head["content-length"] == str(len(body))
        session.server_data(answer(b"{}"))


def test_a_remembered_head_does_not_hide_a_second_framing() -> None:
    session = opened()
    chunked = (
        b"POST /c/kb/search HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    session.client_data(chunked)
    session.server_data(answer(b"{}"))
    out = session.client_data(chunked.replace(b"Host", b"Content-Length: 2\r\nHost"))
    assert server(out) == b""
    assert result(out).reason == "length-and-chunked"


def test_a_mask_is_applied_to_a_compressed_answer_and_to_an_error() -> None:
    session = opened(MASKED)
    out = session.client_data(
        search(extra=b"Accept-Encoding: gzip\r\nRange: bytes=0-5\r\nIf-None-Match: x\r\n")
    )
    assert b"accept-encoding: identity\r\n" in server(out)
    assert b"range" not in server(out)
    assert b"if-none-match" not in server(out)
    packed = gzip.compress(b'{"a":"secret"}')
    got = session.server_data(answer(packed, b"Content-Encoding: gzip\r\nETag: x\r\n"))
    assert client(got) == b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"a":"***"}'
    assert result(got).sha256 == sha256(packed).digest()
    assert result(got).released_sha256 == sha256(b'{"a":"***"}').digest()
    assert result(got).masks[0].count == 1
    session.client_data(search())
    got = session.server_data(answer(b'{"error":"secret"}', status=b"500 Oops"))
    assert b"secret" not in client(got)


@pytest.mark.parametrize(("size", "hashed"), [(16 * 1024, True), (16 * 1024 + 1, False)])
def test_a_long_answer_that_no_client_gets_is_not_hashed(size: int, hashed: bool) -> None:
    session = opened(MASKED)
    session.client_data(search())
    body = b'{"a":"secret%s"}' % (b" " * (size - 14))
    got = result(session.server_data(answer(body)))
    assert got.sha256 == (sha256(body).digest() if hashed else b"")
    assert got.bytes == size
    assert b"secret" not in (got.body or b"")
    assert got.released_sha256 == sha256(got.body or b"").digest()


@pytest.mark.parametrize("level", ["masked", "full"])
def test_a_record_says_that_a_body_is_whole_only_where_its_hash_is_of_it(level: RecordLevel) -> None:
    for verdict in (replace(ALLOW, level=level), replace(MASKED, level=level)):
        session = opened(verdict)
        asked = intent(session.client_data(search(b'{"v":[VECTOR]}')))
        got = result(session.server_data(answer(b'{"v":[VECTOR],"a":"secret"}')))
        assert asked.whole == (asked.sha256 == sha256(asked.body or b"").digest())
        assert got.whole == (got.released_sha256 == sha256(got.body or b"").digest())
        assert asked.whole == (level == "full")


def test_an_answer_that_the_engine_cannot_mask_is_replaced() -> None:
    session = opened(MASKED)
    session.client_data(search())
    got = session.server_data(answer(b"plain text"))
    assert client(got).startswith(b"HTTP/1.1 502 ")
    assert result(got).outcome == "failed"


def test_a_masked_answer_over_the_bound_is_not_released() -> None:
    session = opened(MASKED, SMALL)
    session.client_data(search())
    got = session.server_data(answer(b"{" + b"x" * 50 + b"}"))
    assert client(got).startswith(b"HTTP/1.1 502 ")
    assert result(got).reason == "answer-too-large"


def test_clamps_and_warnings_are_told_in_headers() -> None:
    hit = Hit("soon", "warn", "deny", "this will\r\nend")
    session = opened(replace(ALLOW, clamps=(Limit("top_k", 20, "clamp", "r"),), hits=(hit,)))
    out = session.client_data(search(b'{"limit":100}'))
    assert server(out).endswith(b'content-length: 12\r\n\r\n{"limit":20}')
    got = session.server_data(answer(b"{}"))
    assert b"x-vecward-clamped: top_k=20\r\n" in client(got)
    assert b"x-vecward-warning: soon: this will??end\r\n" in client(got)


def test_a_denial_names_its_rule_and_the_connection_goes_on() -> None:
    session = opened()
    out = session.client_data(search(name=b"forbidden") + search())
    assert b"no-bulk" in client(out)
    assert out.close == "no"
    assert server(out).count(b"POST /c/kb/search") == 1


def test_a_hold_that_nobody_can_resume_is_a_refusal() -> None:
    out = opened(replace(ALLOW, outcome="hold")).client_data(search())
    assert server(out) == b""
    assert result(out).outcome == "refused"


def test_a_large_upload_that_no_rule_reads_is_streamed_with_its_chunks_recorded_first() -> None:
    session = opened(bounds=SMALL)
    head = b"PUT /c/kb/upload HTTP/1.1\r\nHost: db\r\nContent-Length: 100\r\n\r\n"
    out = session.client_data(head)
    assert intent(out).body is None
    assert server(out).startswith(b"PUT /c/kb/upload HTTP/1.1\r\n")
    out = session.client_data(b"x" * 60)
    assert server(out) == b"x" * 60
    chunk = one(out, Chunk)
    assert isinstance(chunk, Chunk)
    assert (chunk.bytes, chunk.data) == (60, None)
    session.client_data(b"x" * 40)
    assert result(session.server_data(answer(b"{}"))).outcome == "answered"


def test_a_chunked_upload_is_streamed_in_chunks_of_ours() -> None:
    session = opened(bounds=SMALL)
    head = b"PUT /c/kb/upload HTTP/1.1\r\nHost: db\r\nTransfer-Encoding: chunked\r\n\r\n"
    out = session.client_data(head + b"14\r\n" + b"x" * 20 + b"\r\n")
    assert b"transfer-encoding: chunked\r\n" in server(out)
    assert server(out).endswith(b"\r\n\r\n14\r\n" + b"x" * 20 + b"\r\n")
    out = session.client_data(b"1\r\ny\r\n0\r\n\r\n")
    assert server(out) == b"1\r\ny\r\n0\r\n\r\n"


def test_an_upload_that_a_rule_reads_is_collected_and_bounded() -> None:
    session = opened(bounds=SMALL, needs_body=True)
    out = session.client_data(b"PUT /c/kb/upload HTTP/1.1\r\nHost: db\r\nContent-Length: 100\r\n\r\n")
    assert client(out).startswith(b"HTTP/1.1 413 ")
    assert server(out) == b""


def test_a_denied_upload_is_refused_before_it_is_sent_and_read_to_its_end() -> None:
    session = opened(bounds=Bounds(stream_above=10))
    out = session.client_data(b"PUT /c/forbidden/upload HTTP/1.1\r\nHost: db\r\nContent-Length: 100\r\n\r\n")
    assert client(out).startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in client(out)
    assert out.close == "no"
    assert session.client_data(b"x" * 99) == Output()
    assert session.client_data(b"x") == Output(close="both")


def test_a_client_that_closes_inside_an_upload_aborts_it_upstream() -> None:
    session = opened(bounds=SMALL)
    session.client_data(b"PUT /c/kb/upload HTTP/1.1\r\nHost: db\r\nContent-Length: 100\r\n\r\n")
    out = session.client_eof()
    assert out.close == "reset"
    assert isinstance(out.records[0], Abort)


def test_an_answer_before_the_end_of_the_request_ends_the_connection() -> None:
    session = opened(bounds=SMALL)
    session.client_data(b"PUT /c/kb/upload HTTP/1.1\r\nHost: db\r\nContent-Length: 100\r\n\r\n" + b"x" * 20)
    out = session.server_data(answer(b"too big", status=b"413 Too Large"))
    assert b"connection: close" in client(out)
    assert out.close == "both"


def test_a_large_answer_that_nothing_reads_passes_in_pieces() -> None:
    session = opened(replace(ALLOW, level="full"), SMALL)
    session.client_data(b"GET /c/kb HTTP/1.1\r\nHost: db\r\n\r\n")
    whole = b"x" * 100
    out = session.server_data(answer(whole)[:-60])
    assert client(out).endswith(b"x" * 40)
    chunk = one(out, Chunk)
    assert isinstance(chunk, Chunk)
    assert chunk.data == b"x" * 40
    out = session.server_data(b"x" * 60)
    assert result(out).released_sha256 == sha256(whole).digest()
    assert out.close == "no"


def test_a_large_answer_that_is_torn_after_its_release_is_cut_by_a_reset() -> None:
    session = opened(bounds=SMALL)
    session.client_data(b"GET /c/kb HTTP/1.1\r\nHost: db\r\n\r\n")
    session.server_data(answer(b"x" * 100)[:-60])
    out = session.server_eof()
    assert out.close == "reset"
    assert isinstance(out.records[0], Abort)


def test_events_pass_as_they_come() -> None:
    session = opened()
    session.client_data(b"GET /c/kb HTTP/1.1\r\nHost: db\r\n\r\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    session.server_data(head)
    out = session.server_data(b"4\r\ntick\r\n")
    assert client(out) == b"4\r\ntick\r\n"


def test_a_lookup_goes_with_the_clients_own_credential_when_the_guard_holds_none() -> None:
    session = opened()
    out = session.client_data(
        b"POST /id/u/search HTTP/1.1\r\nHost: db\r\nApi-Key: theirs\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert server(out).startswith(b"GET /names/u HTTP/1.1\r\nhost: db\r\n")
    assert b"api-key: theirs\r\n" in server(out)
    assert out.records == []
    out = session.server_data(answer(b'{"name":"forbidden"}'))
    assert result(out).outcome == "refused"
    assert server(out) == b""


def test_a_name_that_no_lookup_tells_is_refused_after_four() -> None:
    session = opened()
    session.client_data(b"POST /id/u/search HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n\r\n{}")
    for _ in range(3):
        out = session.server_data(answer(b"?", status=b"500 Oops"))
        assert server(out).startswith(b"GET /names/u ")
    out = session.server_data(answer(b"?", status=b"500 Oops"))
    assert client(out).startswith(b"HTTP/1.1 502 ")
    assert result(out).reason == "lookups"


def test_a_database_that_closes_after_a_lookup_is_an_error_for_the_client() -> None:
    session = opened()
    session.client_data(b"POST /id/u/search HTTP/1.1\r\nHost: db\r\nContent-Length: 2\r\n\r\n{}")
    out = session.server_data(answer(b'{"name":"kb"}', b"Connection: close\r\n"))
    assert client(out).startswith(b"HTTP/1.1 502 ")
    assert out.close == "both"


def test_continue_is_said_by_us_and_not_asked_upstream() -> None:
    session = opened()
    out = session.client_data(search(extra=b"Expect: 100-continue\r\n")[:-2])
    assert client(out) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert server(out) == b""
    assert b"expect" not in server(session.client_data(b"{}"))


def test_an_http_1_0_client_is_answered_and_closed() -> None:
    session = opened()
    session.client_data(b"GET /c/kb HTTP/1.0\r\n\r\n")
    out = session.server_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert client(out) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
    assert out.close == "both"


def test_an_http_1_0_client_may_keep_its_connection() -> None:
    session = opened()
    session.client_data(b"GET /c/kb HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    out = session.server_data(answer(b"{}"))
    assert b"connection: keep-alive\r\n" in client(out)
    assert out.close == "no"


def test_a_half_closed_client_gets_its_answer() -> None:
    session = opened()
    session.client_data(search())
    assert session.client_eof() == Output()
    assert session.server_data(answer(b"{}")).close == "both"


def test_an_exchange_that_is_abandoned_is_aborted_once() -> None:
    session = opened()
    session.client_data(search())
    assert session.abandon("client reset").records == [Abort(1, "client reset")]
    assert session.abandon("again").records == []


def test_a_connection_that_must_end_gets_one_error_and_no_more_is_read() -> None:
    session = opened()
    out = session.refuse_all("no identity")
    assert b"no identity" in client(out)
    assert session.client_data(search()) == Output()


def test_levels_meta_and_hashes_keep_bodies_out() -> None:
    for level in ("meta", "hashes"):
        session = opened(replace(ALLOW, level=level))
        assert intent(session.client_data(search())).body is None
        got = result(session.server_data(answer(b"{}")))
        assert got.body is None
        assert got.released_sha256 == sha256(b"{}").digest()


def test_an_untouched_answer_in_an_unknown_coding_passes_and_stays_out_of_the_record() -> None:
    session = opened()
    session.client_data(search())
    out = session.server_data(answer(b"VECTOR", b"Content-Encoding: br\r\n"))
    assert client(out).endswith(b"VECTOR")
    assert result(out).body is None


def test_keys_of_other_services_are_passed_on_and_not_recorded() -> None:
    extra = b"X-OpenAI-Api-Key: secret-1\r\nX-Auth-Token: secret-2\r\nX-Amz-Security-Token: secret-3\r\n"
    request = b"POST /c/kb/search?%61pi_key=secret-4&wait=true HTTP/1.1\r\nHost: db\r\n" + extra
    out = opened().client_data(request + b"Content-Length: 2\r\n\r\n{}")
    assert server(out).count(b"secret-") == 4
    head = intent(out).head
    assert "secret-" not in str(head)
    assert head["query"] == "api_key=removed&wait=true"


def test_a_credential_of_the_guard_replaces_the_clients_under_whatever_name() -> None:
    held = (("x-database-key", "held"),)
    session = Http1Session(FakeEngine(), FakeJudge(ALLOW), "g", None, held)
    forwarded = server(session.client_data(search(extra=b"X-Database-Key: clients\r\n")))
    assert forwarded.count(b"x-database-key") == 1
    assert b"x-database-key: held" in forwarded
