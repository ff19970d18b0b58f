# SPDX-License-Identifier: Apache-2.0

"""Reading an evidence folder: torn, growing, damaged, and what is shown of an exchange."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from agent.evidence.archive import Archive, ArchiveError, Place
from agent.evidence.cards import read_card
from agent.evidence.frames import AbortFrame, ChunkFrame, GapFrame, LostRange, OpaqueFrame
from agent.evidence.verify import audit_exchanges
from agent.evidence.views import UNKNOWN_OUTCOME, Exchange, Session
from tests.unit.evidence.sample import (
    OTHER,
    SECOND,
    START,
    STREAM,
    Stream,
    answered,
    asked,
    ended,
    opened,
    story,
)

SESSION_FIELDS = [
    "session",
    "host",
    "boot",
    "started",
    "ended",
    "guard",
    "engine",
    "attribution",
    "pid",
    "start_time",
    "comm",
    "exe",
    "exe_sha256",
    "argv",
    "uid",
    "euid",
    "user",
    "gid",
    "groups",
    "login_uid",
    "login_user",
    "audit_session",
    "login_from",
    "unit",
    "user_unit",
    "slice",
    "container",
    "cgroup",
    "user_ns",
    "mnt_ns",
    "net_ns",
    "parents",
    "client_addr",
    "client_port",
    "server_addr",
    "server_port",
    "protocol",
    "tls",
    "tls_subject",
    "requests",
    "allowed",
    "denied",
    "held",
    "masked",
    "would",
    "rows",
    "bytes_in",
    "bytes_out",
    "null_reason",
    "evidence",
]
EXCHANGE_FIELDS = [
    "session",
    "n",
    "at",
    "took",
    "actions",
    "method",
    "guard",
    "engine",
    "collections",
    "top_k",
    "offset",
    "vectors",
    "queries",
    "rows",
    "verdict",
    "would",
    "rule",
    "message",
    "policy",
    "limits",
    "masks",
    "grant",
    "sender",
    "outcome",
    "request",
    "response",
    "released_sha256",
    "seq",
]


def exchanges(folder: Path, session: str) -> list[Exchange]:
    return list(Archive(folder).exchanges(session))


def test_a_session_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    story(tmp_path)
    made = Archive(tmp_path).session("5e551001").as_dict()
    assert sorted(made) == sorted(SESSION_FIELDS)
    assert made["started"] == "2026-11-23T18:37:46.000000Z"
    assert made["login_from"] == {"tty": "pts/3", "peer": "10.1.2.3"}
    assert made["evidence"] == {"stream": STREAM, "first": 2, "last": 11}


def test_an_exchange_has_exactly_the_promised_fields(tmp_path: Path) -> None:
    story(tmp_path)
    made = exchanges(tmp_path, "5e551001")[0].as_dict()
    assert list(made) == EXCHANGE_FIELDS
    assert sorted(made["request"]) == ["body", "bytes", "head", "sha256"]
    assert sorted(made["response"]) == ["body", "bytes", "head", "ids", "sha256", "status"]
    assert made["masks"] == [{"what": "pii:email", "as": "redact", "count": 2}]
    assert made["seq"] == {"intent": 3, "result": 4}
    assert made["took"] == 1.0


def test_an_intent_without_a_result_may_have_executed(tmp_path: Path) -> None:
    story(tmp_path)
    last = exchanges(tmp_path, "5e551001")[-1]
    assert (last.n, last.outcome) == (3, "unknown, may have executed")
    assert last.as_dict()["seq"] == {"intent": 10, "result": None}


def test_what_was_denied_is_never_called_executed(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1, outcome="deny"), asked("s1", 2, outcome="deny"))
    stream.block(asked("s1", 3, outcome="hold"), asked("s1", 4, would="deny"))
    stream.block(
        AbortFrame(at=START + SECOND, up=START + SECOND, session="s1", n=2, reason="client went away")
    )
    made = exchanges(tmp_path, "s1")
    by_number = {each.n: (each.outcome, each.trace["reason"]) for each in made}
    assert by_number == {
        1: ("refused", "no result recorded"),
        2: ("refused", "no result recorded; client went away"),
        3: (UNKNOWN_OUTCOME, None),
        4: (UNKNOWN_OUTCOME, None),
    }
    assert made[0].as_dict()["seq"]["result"] is None
    assert [each.n for each in audit_exchanges(tmp_path).unknown] == [3, 4]


def test_an_abort_is_no_result(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1))
    stream.block(
        AbortFrame(at=START + SECOND, up=START + SECOND, session="s1", n=1, reason="client went away")
    )
    (made,) = exchanges(tmp_path, "s1")
    assert made.outcome == UNKNOWN_OUTCOME
    assert made.trace["reason"] == "client went away"


def test_a_gap_over_an_open_exchange_is_named(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1))
    lost = [LostRange("s1", 1, 4, 5)]
    gap = GapFrame(
        at=START, up=START, reason="disk full", frames=5, bytes=9, since=START, until=START, lost=lost
    )
    stream.control(gap)
    stream.block(ended("s1"))
    (made,) = exchanges(tmp_path, "s1")
    assert made.outcome == UNKNOWN_OUTCOME
    assert made.trace["reason"] == "record lost: disk full"


def test_chunks_are_joined_into_the_body_they_were(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1, body=None))
    sides: tuple[tuple[Literal["request", "response"], bytes], ...] = (
        ("request", b"ab"), ("request", b"cd"), ("response", b"x" * 20_000), ("response", b"yz"),
    )  # fmt: skip
    for side, data in sides:
        chunk = ChunkFrame(
            at=START, up=START, session="s1", n=1, side=side, sha256=b"", bytes=len(data), body=data
        )
        stream.block(chunk)
    stream.block(answered("s1", 1, body=None, bytes=20_002, sha256=b""))
    (made,) = exchanges(tmp_path, "s1")
    assert made.request.body == b"abcd"
    assert made.request.bytes == 4
    assert made.response.body == b"x" * 20_000 + b"yz"
    assert made.response.sha256 is not None


def test_a_torn_tail_of_the_newest_segment_is_only_not_yet(tmp_path: Path) -> None:
    stream = story(tmp_path)
    with open(stream.path, "ab") as file:
        file.write(b"VWB2\x01")
    archive = Archive(tmp_path)
    assert len(list(archive.exchanges("5e551001"))) == 3
    assert not archive.problems


def test_an_empty_spare_segment_does_not_make_the_one_before_it_done(tmp_path: Path) -> None:
    stream = story(tmp_path)
    (stream.folder / "000001.seg").touch()
    archive = Archive(tmp_path)
    follower = archive.follow()
    with open(stream.path, "ab") as file:
        file.write(b"VWB2\x01")
    assert list(follower.poll()) == []
    assert not archive.problems
    data = stream.path.read_bytes()
    stream.path.write_bytes(data[:-5])
    stream.block(opened("s7"), asked("s7", 1), answered("s7", 1))
    assert [e.session for _, e in follower.poll()] == ["s7"]


def test_a_torn_tail_of_an_older_segment_is_a_problem_and_the_next_is_read(tmp_path: Path) -> None:
    stream = story(tmp_path)
    with open(stream.path, "ab") as file:
        file.write(b"VWB2\x01")
    stream.rotate("recovered")
    stream.block(opened("s9"), asked("s9", 1), answered("s9", 1))
    archive = Archive(tmp_path)
    assert [e.n for e in archive.exchanges("s9")] == [1]
    (problem,) = archive.problems.values()
    assert problem.torn
    assert "torn tail" in str(problem)


def test_damage_in_a_segment_does_not_hide_the_next_segment(tmp_path: Path) -> None:
    stream = story(tmp_path)
    data = bytearray(stream.path.read_bytes())
    data[200:204] = b"\xff\xff\xff\xff"
    stream.path.write_bytes(data)
    stream.rotate()
    stream.block(opened("s9"), asked("s9", 1), answered("s9", 1))
    archive = Archive(tmp_path)
    assert [e.n for e in archive.exchanges("s9")] == [1]
    assert any(not p.torn for p in archive.problems.values())


def test_a_card_is_repeated_in_later_segments_and_begins_the_session_once(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1), answered("s1", 1))
    stream.rotate()
    stream.block(opened("s1", START + 100 * SECOND), asked("s1", 2), answered("s1", 2))
    made = Archive(tmp_path).session("s1")
    assert (made.started, made.requests) == (START, 2)


def test_a_worker_cannot_add_to_the_session_of_another_stream(tmp_path: Path) -> None:
    story(tmp_path)
    forger = Stream(tmp_path, OTHER)
    forger.block(opened("5e551001", user="mallory"), asked("5e551001", 99), answered("5e551001", 99))
    archive = Archive(tmp_path)
    assert [e.n for e in archive.exchanges("5e551001", STREAM)] == [1, 2, 3]
    assert archive.session("5e551001", STREAM).user == "rag"
    assert archive.session("5e551001", OTHER).user == "mallory"


def test_an_opaque_connection_says_its_protocol(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), OpaqueFrame(at=START, up=START, session="s1", reason="no key", protocol="tls"))
    stream.block(ended("s1", bytes_in=10, bytes_out=20))
    made = Archive(tmp_path).session("s1")
    assert (made.protocol, made.tls, made.bytes_in, made.bytes_out) == ("tls", True, 10, 20)


def test_a_card_field_of_a_wrong_type_is_left_out_and_said() -> None:
    known, reasons = read_card(
        {"pid": "4711", "uid": True, "exe": 5, "argv": "x", "parents": 3, "user": "rag"}
    )
    assert known == {"user": "rag"}
    assert set(reasons) == {"pid", "uid", "exe", "argv"}
    assert Session(session="s", **known).pid is None


def test_following_yields_what_ends_after_and_nothing_twice(tmp_path: Path) -> None:
    stream = story(tmp_path)
    follower = Archive(tmp_path).follow()
    assert list(follower.poll()) == []
    stream.block(opened("s7", user="zoe"), asked("s7", 1))
    assert list(follower.poll()) == []
    stream.rotate()
    stream.block(answered("s7", 1))
    other = Stream(tmp_path, OTHER)
    other.block(opened("s8"), asked("s8", 1), answered("s8", 1))
    found = [(session.user if session else None, e.session, e.n) for session, e in follower.poll()]
    assert found == [("zoe", "s7", 1), ("rag", "s8", 1)]
    assert list(follower.poll()) == []


def test_a_block_that_is_gone_says_so(tmp_path: Path) -> None:
    story(tmp_path)
    with pytest.raises(ArchiveError, match="is gone"):
        Archive(tmp_path).read(Place(STREAM, 7, 0))
    with pytest.raises(ArchiveError, match="no exchange 9"):
        Archive(tmp_path).exchange("5e551001", 9)
    with pytest.raises(ArchiveError, match="No such file"):
        Archive(tmp_path / "nothing").streams()
