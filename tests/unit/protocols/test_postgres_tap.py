# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL in observe: nothing is held, what is not understood is relayed unread."""

from __future__ import annotations

import gc
import struct
from typing import Any

import pytest

from agent.protocols.budget import Budget
from agent.protocols.postgres_forms import write_query
from agent.protocols.postgres_messages import message, ready_for_query, startup_message
from agent.protocols.postgres_tap import PostgresTap
from agent.protocols.session import Abort, Bounds, Intent, Opaque
from policy.login import Login, recorded_login
from tests.unit.protocols.fake_sql import FakeSqlEngine, SpyJudge
from tests.wire.conversations import Played, Step, play

STARTUP = startup_message(0, {b"user": b"alice", b"database": b"shop"})
ASKED = message(ord("R"), struct.pack(">I", 3))
PASSWORD = message(ord("p"), b"hunter2\0")
LET_IN = message(ord("R"), bytes(4)) + ready_for_query("I")
SSL = struct.pack(">II", 8, 80877103)


def tap(*steps: Step) -> tuple[PostgresTap, Played]:
    session = PostgresTap(FakeSqlEngine(), SpyJudge(), "g")
    played = play(session, list(steps))
    assert played.to_server == b"".join(data for side, data in steps if side == "client")
    assert played.to_client == b"".join(data for side, data in steps if side == "server")
    return session, played


def test_a_password_passes_and_is_never_recorded() -> None:
    _, played = tap(
        ("client", STARTUP), ("server", ASKED), ("client", PASSWORD), ("server", LET_IN),
        ("client", write_query(b"SELECT 1")),
    )  # fmt: skip
    assert [type(record) for record in played.records] == [Intent]
    assert "hunter2" not in repr(played.records)
    assert played.of(Intent)[0].head["user"] == "alice"


@pytest.mark.parametrize(
    ("asked", "login"),
    [
        ({b"user": b"alice", b"database": b"shop"}, ("alice", "shop")),
        ({b"user": b"alice"}, ("alice", "alice")),
    ],
)
def test_observe_judges_by_what_the_client_named(asked: dict[bytes, bytes], login: tuple[str, str]) -> None:
    spy = SpyJudge()
    session = PostgresTap(FakeSqlEngine(), spy, "g")
    played = play(
        session,
        [("client", startup_message(0, asked)), ("server", LET_IN), ("client", write_query(b"SELECT 1"))],
    )
    assert spy.logins == [Login(*login)]
    assert recorded_login("pgvector", played.of(Intent)[0].head) == Login(*login)


def test_tls_that_the_database_answers_is_relayed_unread() -> None:
    session, played = tap(
        ("client", SSL), ("server", b"S"), ("client", b"\x16\x03\x01junk"), ("server", b"x")
    )
    assert played.of(Opaque)[0].protocol == "tls"
    assert session.tally is not None
    assert session.tally.client_bytes == 7  # from then on


def test_a_client_whose_tls_is_declined_goes_on_plain() -> None:
    _, played = tap(
        ("client", SSL), ("server", b"N"), ("client", STARTUP), ("server", LET_IN),
        ("client", write_query(b"SELECT forbidden")),
    )  # fmt: skip
    assert played.of(Intent)[0].verdict.outcome == "deny"  # what a judge in enforce says; nothing was held


@pytest.mark.parametrize(
    "steps",
    [
        [("client", b"GET / HTTP/1.1\r\n\r\n")],
        [("client", b"\x16\x03\x01\x00")],
        [("server", b"hello")],
        [("client", startup_message(0, {b"user": b"a", b"replication": b"true"}))],
        [("client", STARTUP), ("client", write_query(b"SELECT 1"))],
        [("client", STARTUP), ("server", LET_IN), ("client", b"y\0\0\0\4")],
        [("client", STARTUP), ("server", LET_IN), ("server", message(ord("D"), b"\0\0"))],
        [("client", STARTUP), ("server", LET_IN), ("client", message(ord("Q"), b"no end"))],
    ],
)
def test_what_is_not_understood_is_relayed_unread(steps: list[Step]) -> None:
    _, played = tap(*steps)
    assert len(played.of(Opaque)) == 1


def test_turning_opaque_ends_the_exchanges_under_way() -> None:
    _, played = tap(
        ("client", STARTUP),
        ("server", LET_IN),
        ("client", write_query(b"SELECT 1")),
        ("server", b"?\0\0\0\4"),
    )
    assert [type(record) for record in played.records] == [Intent, Abort, Opaque]


def test_a_bug_in_the_engine_is_not_noticed() -> None:
    engine = FakeSqlEngine()
    engine.conversation.read = None  # type: ignore[assignment,method-assign]
    session = PostgresTap(engine, SpyJudge(), "g")
    played = play(session, [("client", STARTUP), ("server", LET_IN), ("client", write_query(b"SELECT 1"))])
    assert played.of(Opaque)[0].reason == "tap failed: TypeError"
    assert played.to_server.endswith(write_query(b"SELECT 1"))


def test_a_drain_waits_for_what_is_under_way() -> None:
    session: Any = PostgresTap(FakeSqlEngine(), SpyJudge(), "g")
    assert not session.is_reading
    session.client_data(STARTUP)
    assert session.is_reading
    session.server_data(LET_IN)
    assert not session.is_reading
    session.client_data(write_query(b"BEGIN"))
    session.server_data(message(ord("C"), b"BEGIN\0") + ready_for_query("T"))
    assert session.is_reading
    session.client_data(write_query(b"COMMIT"))
    session.server_data(message(ord("C"), b"COMMIT\0") + ready_for_query("I"))
    assert not session.is_reading


def test_what_the_worker_has_no_room_for_is_relayed_unread() -> None:
    shared = Budget(limit=20_000)
    session = PostgresTap(FakeSqlEngine(), SpyJudge(), "g", Bounds(budget=shared))
    played = play(session, [("client", STARTUP), ("server", LET_IN)])
    part = write_query(b"SELECT " + b"1" * 50_000)[:40_000]
    out = session.client_data(part)
    assert out.to_server == [part]
    assert [r.reason for r in out.records if isinstance(r, Opaque)] == ["held-bytes"]
    assert played.of(Opaque) == []
    gc.collect()
    assert shared.held == 0
