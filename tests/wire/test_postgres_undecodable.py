# SPDX-License-Identifier: Apache-2.0
"""Texts that are not UTF-8, through the real engine: recorded, and the connection goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

import pytest

from agent.engines.pgvector import PgvectorEngine
from agent.protocols.postgres_forms import (
    Bind,
    Execute,
    Parse,
    write_bind,
    write_execute,
    write_parse,
    write_query,
)
from agent.protocols.postgres_messages import message, startup_message
from agent.protocols.postgres_query import QueryPhase
from agent.protocols.postgres_tap import PostgresTap
from agent.protocols.session import Bounds, Intent, Record, Result
from agent.protocols.sql import Where
from policy.model import RecordLevel, Verdict
from policy.operation import Operation
from tests.unit.engines.test_pgvector_conversation import Place
from tests.unit.protocols.fake_sql import SpyJudge
from tests.unit.protocols.test_postgres_query import letters
from tests.wire.conversations import Played, is_opaque
from tests.wire.postgres_server import Server

SYNC = message(ord("S"))
LET_IN = b"R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I"
VECTOR = b"[1,2,3,4,5,6,7,8]"
CUT = f'{{"dim":8,"sha256":"{sha256(VECTOR).hexdigest()}"}}'.encode()
# client_encoding, a text in it (or in none), and what is kept of it.
TEXTS = [("UTF8", b"\xff", r"\udcff"), ("LATIN1", b"\xe9", r"\udce9"), ("LATIN1", b"\xc3\xa9", "\u00e9")]
EXTENDED = pytest.mark.parametrize("extended", [False, True])
LEVELS = pytest.mark.parametrize("level", ["full", "masked", "hashes"])


class Levelled(SpyJudge):
    """Its verdicts are recorded at a level."""

    def __init__(self, level: RecordLevel) -> None:
        super().__init__()
        self.level = level

    def __call__(self, operation: Operation) -> Verdict:
        return replace(super().__call__(operation), level=self.level)


def ask(extended: bool, text: bytes, *values: bytes) -> bytes:
    if not extended:
        return write_query(text)
    return (
        write_parse(Parse(b"", text, ()))
        + write_bind(Bind(b"", b"", (), values, ()))
        + write_execute(Execute(b"", 0))
        + SYNC
    )


class Talk:
    """A client in enforce, the session with the real engine, and a server."""

    def __init__(self, encoding: str, level: RecordLevel) -> None:
        place = Place()
        place.settings = ("on", encoding)
        conversation = place.converse()
        place.learn(conversation)
        where, judge = Where("rag", "corpus"), Levelled(level)
        self.session = QueryPhase(place.engine, conversation, judge, "pg", where, Bounds(), 1)
        self.server, self.played = Server(), Played()

    def say(self, data: bytes) -> str:
        before = len(self.played.to_client)
        out = self.session.client_data(data)
        while True:
            self.played.add(out)
            answer = self.server.feed(b"".join(out.to_server)) if out.to_server else b""
            if not answer:
                return letters(self.played.to_client[before:])
            out = self.session.server_data(answer)


def assert_kept(record: Record, level: RecordLevel, data: bytes, kept: str) -> None:
    """A record of `text_with(data)`."""
    assert isinstance(record, Intent)
    assert record.sha256 == sha256(b'{"statement":"' + text_with(data) + b'"}').digest()
    shown = text_with(kept.encode())
    if level == "masked":
        shown = shown.replace(VECTOR, CUT)
    assert record.vectors_cut == (level == "masked")
    assert (record.body is None) == (level == "hashes")
    assert record.body is None or json.loads(record.body) == {"statement": shown.decode()}


def text_with(data: bytes) -> bytes:
    return b"SELECT '" + VECTOR + b"', '" + data + b"'"


@EXTENDED
@LEVELS
@pytest.mark.parametrize(("encoding", "data", "kept"), TEXTS)
def test_a_text_that_cannot_be_read_is_refused_on_the_record(
    encoding: str, data: bytes, kept: str, level: RecordLevel, extended: bool
) -> None:
    talk = Talk(encoding, level)
    for _ in range(2):  # what is kept of it tells the same
        talk.played.records.clear()
        assert talk.say(ask(extended, text_with(data))) == "E42501 ZI"
        intent, result = talk.played.records
        assert_kept(intent, level, data, kept)
        assert isinstance(result, Result)
        assert result.outcome == "refused"
    assert talk.server.parsed == [text for text, _, _ in talk.server.ran] == []
    assert talk.say(ask(extended, b"SELECT 1")).endswith("C ZI")
    assert [ran for ran, _, _ in talk.server.ran] == ["SELECT 1"]


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1"])
def test_a_bound_text_that_is_not_utf8_is_kept_as_base64(encoding: str) -> None:
    talk = Talk(encoding, "full")
    assert talk.say(ask(True, b"SELECT $1", b"caf\xe9")).endswith("C ZI")
    intent, result = talk.played.records
    assert isinstance(intent, Intent)
    assert isinstance(result, Result)
    assert intent.body is not None
    assert json.loads(intent.body)["parameters"] == [{"base64": "Y2Fm6Q==", "type": 0}]
    assert intent.sha256 == sha256(intent.body).digest()
    assert result.outcome == "answered"


@EXTENDED
@LEVELS
@pytest.mark.parametrize(("encoding", "data", "kept"), TEXTS)
def test_observe_goes_on_behind_a_text_that_cannot_be_read(
    encoding: str, data: bytes, kept: str, level: RecordLevel, extended: bool
) -> None:
    engine = PgvectorEngine("pg", hmac_key=b"k" * 32, clock=lambda: 0.0)
    tap, played, server = PostgresTap(engine, Levelled(level), "pg"), Played(), Server()
    login = {b"user": b"rag", b"database": b"corpus", b"client_encoding": encoding.encode()}
    played.add(tap.client_data(startup_message(0, login)))
    played.add(tap.server_data(LET_IN))
    for asked in (text_with(data), b"SELECT 1"):
        words = ask(extended, asked)
        played.add(tap.client_data(words))
        # PostgreSQL refuses what is not in the client's encoding; here it runs, which a tap sees no less of.
        played.add(tap.server_data(server.feed(words.replace(data, b"?" * len(data)))))
    assert not is_opaque(played)
    assert [type(r) for r in played.records] == [Intent, Result] * 2
    assert_kept(played.records[0], level, data, kept)


def test_a_statement_with_parameters_is_told_from_one_that_spells_the_bytes_out() -> None:
    engine = PgvectorEngine("pg", hmac_key=b"k" * 32, clock=lambda: 0.0)
    described = []
    for text in (b"SELECT $1, '\xff'", rb"SELECT $1, '\udcff'"):
        tap, played = PostgresTap(engine, Levelled("full"), "pg"), Played()
        for data in (startup_message(0, {b"user": b"rag"}), ask(True, text, b"x")):
            played.add(tap.client_data(data))
            played.add(tap.server_data(LET_IN) if data[4:8] == b"\0\3\0\0" else tap.server_data(b""))
        assert not is_opaque(played)
        described.append(played.of(Intent)[0])
    assert described[0].body == described[1].body
    assert described[0].sha256 != described[1].sha256
    assert described[0].sha256 == sha256(b'{"statement":"SELECT $1, \'\xff\'","parameters":["x"]}').digest()
