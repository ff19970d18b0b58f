# SPDX-License-Identifier: Apache-2.0
"""Every smuggling shape is refused, or reaches the database in normal form only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.protocols.choose import open_session
from agent.protocols.session import Bounds, Intent, Output, ProtocolError, Result
from policy.model import Mask
from tests.unit.protocols.fake_engine import ALLOW, FakeEngine, FakeJudge
from tests.wire import strict_server
from tests.wire.conversations import Played, bytewise, play

HIDDEN = b"GET /c/hidden HTTP/1.1\r\nHost: db\r\n\r\n"


def post(
    lines: bytes, body: bytes = b"", target: bytes = b"/c/kb/search", version: bytes = b"HTTP/1.1"
) -> bytes:
    return b"POST " + target + b" " + version + b"\r\nHost: db\r\n" + lines + b"\r\n" + body


def get(target: bytes, extra: bytes = b"", host: bytes = b"Host: db\r\n") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + host + extra + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n"
REFUSED: dict[str, bytes] = {
    # two framings
    "cl-te": post(b"Content-Length: 6\r\n" + CHUNKED, b"0\r\n\r\n" + HIDDEN),
    "te-cl": post(CHUNKED + b"Content-Length: 4\r\n", b"5c\r\n" + HIDDEN + b"\r\n0\r\n\r\n"),
    "te-list": post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "te-gzip": post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "te-identity": post(b"Transfer-Encoding: identity\r\n"),
    "te-case": post(b"Transfer-Encoding: Chunked\r\n", b"0\r\n\r\n"),
    "te-quoted": post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n"),
    "te-vertical-tab": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "te-x": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "te-empty": post(b"Transfer-Encoding:\r\n"),
    "te-twice": post(CHUNKED + CHUNKED, b"0\r\n\r\n"),
    "te-then-identity": post(CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"),
    "te-underscore": post(b"Transfer_Encoding: chunked\r\n", b"0\r\n\r\n"),
    "te-in-1.0": post(CHUNKED, b"0\r\n\r\n", version=b"HTTP/1.0"),
    "cl-twice": post(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}"),
    "cl-differ": post(b"Content-Length: 0\r\nContent-Length: 44\r\n", HIDDEN),
    "cl-list": post(b"Content-Length: 5,5\r\n", b"{    "),
    "cl-plus": post(b"Content-Length: +5\r\n", b"{    "),
    "cl-minus": post(b"Content-Length: -1\r\n"),
    "cl-hex": post(b"Content-Length: 0x5\r\n", b"{    "),
    "cl-zero-led": post(b"Content-Length: 05\r\n", b"{    "),
    "cl-empty": post(b"Content-Length:\r\n"),
    "cl-space-inside": post(b"Content-Length: 1 0\r\n", b"{" * 10),
    "cl-huge": post(b"Content-Length: 99999999999999999999\r\n"),
    "cl-underscore": post(b"Content_Length: 5\r\n", b"{    "),
    "cl-folded": post(b"Content-Length:\r\n 5\r\n", b"{    "),
    "cl-then-fold": post(b"Content-Length: 5\r\n 0\r\n", b"{    "),
    # line ends
    "bare-lf": b"POST /c/kb/search HTTP/1.1\nHost: db\nContent-Length: 0\n\n" + HIDDEN,
    "bare-lf-one": post(b"X: a\nContent-Length: 44\r\n", HIDDEN),
    "bare-cr": post(b"X: a\rContent-Length: 44\r\n", HIDDEN),
    "cr-cr-lf": post(b"X: a\r\r\n"),
    "obs-fold": post(b"X: a\r\n b\r\n"),
    "obs-fold-tab": post(b"X: a\r\n\tTransfer-Encoding: chunked\r\n"),
    "fold-first": b"GET /c/kb HTTP/1.1\r\n Host: db\r\n\r\n",
    "leading-crlf": b"\r\n" + get(b"/c/kb"),
    # names and values
    "space-before-colon": post(b"Content-Length : 5\r\n", b"{    "),
    "tab-before-colon": post(b"Transfer-Encoding\t: chunked\r\n", b"0\r\n\r\n"),
    "no-colon": post(b"Content-Length 5\r\n"),
    "empty-name": post(b": x\r\n"),
    "nul-in-name": post(b"X\x00: a\r\n"),
    "nul-in-value": post(b"X: a\x00b\r\n"),
    "high-bytes-in-name": post(b"X\xc3\xa4: a\r\n"),
    "two-hosts": get(b"/c/kb", b"Host: other\r\n"),
    "no-host": get(b"/c/kb", host=b""),
    "host-userinfo": get(b"/c/kb", host=b"Host: a@db\r\n"),
    "host-path": get(b"/c/kb", host=b"Host: db/x\r\n"),
    "host-space": get(b"/c/kb", host=b"Host: db x\r\n"),
    "two-content-types": post(b"Content-Type: application/json\r\nContent-Type: text/plain\r\n"),
    "two-keys": post(b"api-key: a\r\nAPI-KEY: b\r\n"),
    "nominates-host": get(b"/c/kb", b"Connection: close, host\r\n"),
    "nominates-credential": get(b"/c/kb", b"Connection: api-key\r\n"),
    "encoded-body": post(b"Content-Encoding: gzip\r\nContent-Length: 2\r\n", b"{}"),
    "upgrade": get(b"/c/kb", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    "expect-other": post(b"Expect: 200-ok\r\nContent-Length: 2\r\n", b"{}"),
    # chunks
    "chunk-extension": post(CHUNKED, b"2;a=b\r\n{}\r\n0\r\n\r\n"),
    "chunk-extension-quoted": post(CHUNKED, b'2;a="\r\n"\r\n{}\r\n0\r\n\r\n'),
    "chunk-huge": post(CHUNKED, b"ffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    "chunk-overflow": post(CHUNKED, b"100000002\r\n{}\r\n0\r\n\r\n"),
    "chunk-negative": post(CHUNKED, b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunk-plus": post(CHUNKED, b"+2\r\n{}\r\n0\r\n\r\n"),
    "chunk-0x": post(CHUNKED, b"0x2\r\n{}\r\n0\r\n\r\n"),
    "chunk-zero-led": post(CHUNKED, b"02\r\n{}\r\n0\r\n\r\n"),
    "chunk-last-zeros": post(CHUNKED, b"2\r\n{}\r\n00\r\n\r\n"),
    "chunk-space": post(CHUNKED, b"2 \r\n{}\r\n0\r\n\r\n"),
    "chunk-lf": post(CHUNKED, b"2\n{}\r\n0\r\n\r\n"),
    "chunk-empty-size": post(CHUNKED, b"\r\n{}\r\n0\r\n\r\n"),
    "chunk-too-long": post(CHUNKED, b"2\r\n{}X\r\n0\r\n\r\n"),
    "chunk-no-end": post(CHUNKED, b"2\r\n{}0\r\n\r\n"),
    "trailers": post(CHUNKED, b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n"),
    # targets
    "absolute-other-host": get(b"http://evil/c/kb"),
    "absolute-userinfo": get(b"http://u:p@db/c/kb"),
    "absolute-https": get(b"https://db/c/kb"),
    "absolute-ftp": get(b"ftp://db/c/kb"),
    "authority": get(b"db:80"),
    "asterisk": get(b"*"),
    "no-slash": get(b"c/kb"),
    "dot": get(b"/c/./kb"),
    "dots": get(b"/c/x/../hidden"),
    "dots-end": get(b"/c/kb/.."),
    "dots-encoded": get(b"/c/x/%2e%2e/hidden"),
    "dots-half-encoded": get(b"/c/x/.%2E/hidden"),
    "slash-encoded": get(b"/c/a%2fb"),
    "slash-encoded-upper": get(b"/c/a%2Fb"),
    "backslash": get(b"/c\\kb"),
    "backslash-encoded": get(b"/c/a%5cb"),
    "nul-encoded": get(b"/c/kb%00"),
    "cr-lf-encoded": get(b"/c/kb%0d%0aX:y"),
    "overlong": get(b"/c/%c0%ae%c0%ae/x"),
    "overlong-slash": get(b"/c/%e0%80%af"),
    "surrogate": get(b"/c/%ed%a0%80"),
    "not-utf8": get(b"/c/%ff"),
    "raw-utf8": get("/c/ü".encode()),
    "raw-nul": get(b"/c/k\x00b"),
    "double-encoded": get(b"/c/%252e%252e/x"),
    "double-encoded-slash": get(b"/c/a%252fb"),
    "percent-cut": get(b"/c/a%2"),
    "percent-not-hex": get(b"/c/a%zz"),
    "percent-u": get(b"/c/%u002e"),
    "fragment": get(b"/c/kb#x"),
    "query-nul": get(b"/c/kb?a=%00"),
    "query-not-utf8": get(b"/c/kb?a=%ff"),
    "space-in-target": get(b"/c/kb x"),
    # request lines
    "http-0.9": b"GET /c/kb\r\n\r\n",
    "http-1.2": b"GET /c/kb HTTP/1.2\r\nHost: db\r\n\r\n",
    "http-2.0": b"GET /c/kb HTTP/2.0\r\nHost: db\r\n\r\n",
    "http-11": b"GET /c/kb HTTP/11\r\nHost: db\r\n\r\n",
    "http-lower": b"GET /c/kb http/1.1\r\nHost: db\r\n\r\n",
    "version-space": b"GET /c/kb HTTP/1.1 \r\nHost: db\r\n\r\n",
    "two-spaces": b"GET  /c/kb HTTP/1.1\r\nHost: db\r\n\r\n",
    "tab-separators": b"GET\t/c/kb\tHTTP/1.1\r\nHost: db\r\n\r\n",
    "lower-method": b"get /c/kb HTTP/1.1\r\nHost: db\r\n\r\n",
    "connect": b"CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\n\r\n",
    "trace": b"TRACE /c/kb HTTP/1.1\r\nHost: db\r\n\r\n",
    "h2-preface-inside": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    # bounds
    "head-large": get(b"/c/kb", b"X: " + b"a" * 70_000 + b"\r\n"),
    "headers-many": get(b"/c/kb", b"X: a\r\n" * 200),
    "target-long": get(b"/c/" + b"a" * 20_000),
}

NORMALISED: dict[str, tuple[bytes, bytes]] = {
    "double-slash": (get(b"//c///kb"), b"GET /c/kb "),
    "trailing-slash": (get(b"/c/kb/"), b"GET /c/kb "),
    "absolute": (get(b"http://db/c/kb?x=1"), b"GET /c/kb?x=1 "),
    "absolute-case": (get(b"HTTP://DB/c/kb"), b"GET /c/kb "),
    "percent-case": (get(b"/c/%c3%bc"), b"GET /c/%C3%BC "),
    "unreserved-encoded": (get(b"/c/%6b%62"), b"GET /c/kb "),
    "semicolon": (get(b"/c/kb;x=1"), b"GET /c/kb%3Bx=1 "),
    "plus-in-path": (get(b"/c/a+b"), b"GET /c/a%2Bb "),
    "query-plus": (get(b"/c/kb?a=b+c&&d"), b"GET /c/kb?a=b%20c&d= "),
    "query-semicolon": (get(b"/c/kb?a=1;b=2"), b"GET /c/kb?a=1%3Bb%3D2 "),
    "query-slash": (get(b"/c/kb?a=/../x%2f"), b"GET /c/kb?a=/../x/ "),
    "host-1.0": (b"GET /c/kb HTTP/1.0\r\n\r\n", b"GET /c/kb HTTP/1.1\r\nhost: \r\n"),
    "hop-by-hop": (get(b"/c/kb", b"Connection: close, x-a\r\nX-A: 1\r\nTE: trailers\r\n"), b"GET /c/kb "),
    "override": (get(b"/c/kb", b"X-HTTP-Method-Override: DELETE\r\n"), b"GET /c/kb "),
    "h2c": (
        get(b"/c/kb", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"),
        b"GET",
    ),
    "te-tab": (post(b"Transfer-Encoding:\tchunked \r\n", b"2\r\n{}\r\n0\r\n\r\n"), b"POST /c/kb/search "),
    "te-space": (post(b"Transfer-Encoding:  chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"), b"POST /c/kb/search "),
}


def attack(data: bytes, judge: FakeJudge | None = None) -> Played:
    """What an attack does on a connection that had one good exchange before it."""
    session = open_session(FakeEngine(), judge if judge is not None else FakeJudge(), "g", "enforce")
    played = Played()
    play(session, [("client", get(b"/c/first"))], played)
    play(session, [("server", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")], played)
    return play(session, [("client", data)], played)


@pytest.mark.parametrize("name", REFUSED)
def test_an_ambiguous_request_is_refused_and_nothing_of_it_is_forwarded(name: str) -> None:
    played = attack(REFUSED[name])
    requests = strict_server.read(played.to_server)
    assert [request.path for request in requests] == [b"/c/first"]
    results = played.of(Result)
    assert [result.outcome for result in results] == ["answered", "refused"]
    assert 400 <= (results[1].status or 0) <= 505
    assert results[1].reason
    assert b'"error"' in played.to_client
    assert played.closes == ["both"]
    assert played.of(Intent)[1].verdict.outcome == "deny"


@pytest.mark.parametrize("name", [name for name in REFUSED if len(REFUSED[name]) < 1000])
def test_an_ambiguous_request_is_refused_byte_by_byte_too(name: str) -> None:
    session = open_session(FakeEngine(), FakeJudge(), "g", "enforce")
    played = Played()
    try:
        play(session, bytewise([("client", REFUSED[name] + HIDDEN)]), played)
    except ProtocolError as error:  # the first bytes of the connection are already no HTTP
        played.add(session.refuse_all(error.message))
    assert played.to_server == b""
    assert played.closes == ["both"]


@pytest.mark.parametrize("name", NORMALISED)
def test_an_unusual_request_reaches_the_database_in_normal_form(name: str) -> None:
    sent, expected = NORMALISED[name]
    played = attack(sent)
    request = strict_server.read(played.to_server)[1]
    second = played.to_server[played.to_server.rindex(expected) :]
    assert second.startswith(expected)
    assert request.whole
    for header in (b"x-a:", b"x-http-method-override:", b"http2-settings:"):
        assert header not in second


def test_a_body_that_looks_like_a_request_stays_a_body() -> None:
    played = attack(post(b"Content-Length: %d\r\n" % (len(HIDDEN) + 1), b"{" + HIDDEN))
    request = strict_server.read(played.to_server)[1]
    assert request.body == b"{" + HIDDEN


BROKEN_ANSWERS: dict[str, bytes] = {
    "cl-te": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two-cl": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "cl-list": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n{}",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "bare-cr": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\n{}",
    "fold": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "status": b"HTTP/1.1 2x0 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status-600": b"HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\n{}",
    "version": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "nul": b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 2\r\n\r\n{}",
    "switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x00",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n",
    "1xx-flood": b"HTTP/1.1 102 Processing\r\n\r\n" * 9 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "1xx-body": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\n{}",
    "head-large": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN_ANSWERS)
def test_a_broken_answer_is_replaced_by_an_error_and_ends_the_connection(name: str) -> None:
    session = open_session(FakeEngine(), FakeJudge(), "g", "enforce")
    played = play(
        session, [("client", post(b"Content-Length: 2\r\n", b"{}")), ("server", BROKEN_ANSWERS[name])]
    )
    assert played.to_client.startswith(b"HTTP/1.1 502 ")
    assert played.to_client.count(b"HTTP/1.1 ") == 1
    assert played.closes == ["both"]
    assert [result.outcome for result in played.of(Result)] == ["failed"]


def test_two_answers_to_one_request_release_only_the_first() -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    session = open_session(FakeEngine(), FakeJudge(), "g", "enforce")
    played = play(session, [("client", get(b"/c/kb")), ("server", one + one.replace(b"{}", b"!!"))])
    assert played.to_client.count(b"HTTP/1.1 ") == 1
    assert b"!!" not in played.to_client
    assert b"connection: close" in played.to_client
    assert played.closes == ["both"]


def test_a_header_of_the_answer_cannot_start_a_second_answer() -> None:
    answer = b"HTTP/1.1 200 OK\r\nLocation: /x\r\nX-Y: a\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    session = open_session(FakeEngine(), FakeJudge(), "g", "enforce")
    played = play(session, [("client", get(b"/c/kb")), ("server", answer)])
    assert played.to_client.count(b"HTTP/1.1 ") == 1


def test_an_idle_database_that_speaks_is_cut_off_and_its_bytes_are_not_released() -> None:
    session = open_session(FakeEngine(), FakeJudge(), "g", "enforce")
    play(session, [("client", get(b"/c/kb")), ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")])
    with pytest.raises(ProtocolError) as raised:
        session.server_data(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert raised.value.side == "server"
    assert session.refuse_all("x") == Output(close="both")


def test_too_many_pipelined_bytes_end_the_connection() -> None:
    session = open_session(FakeEngine(), FakeJudge(), "g", "enforce", Bounds(pipelined=100))
    session.client_data(get(b"/c/kb"))
    with pytest.raises(ProtocolError) as raised:
        session.client_data(get(b"/c/kb") * 10)
    assert raised.value.reason == "pipelined"
    out = session.refuse_all("too much")
    assert out.close == "both"
    assert [type(record).__name__ for record in out.records] == ["Abort"]


def test_a_masked_answer_in_an_unknown_coding_is_not_released() -> None:
    judge = FakeJudge(replace(ALLOW, masks=(Mask("r", field="payload.ssn"),)))
    session = open_session(FakeEngine(), judge, "g", "enforce")
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 6\r\n\r\nsecret"
    played = play(session, [("client", post(b"Content-Length: 2\r\n", b"{}")), ("server", answer)])
    assert b"secret" not in played.to_client
    assert played.to_client.startswith(b"HTTP/1.1 502 ")
