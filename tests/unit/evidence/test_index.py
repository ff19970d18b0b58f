# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - tables of cases; the statements name our own tables
"""The index: it finds what a scan of the segments finds, catches up, and is disposable."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evidence.archive import Archive, ArchiveError
from agent.evidence.assemble import Tally
from agent.evidence.filter import Filter
from agent.evidence.frames import Frame, GapFrame, LostRange
from agent.evidence.index import Index
from agent.evidence.query import Query
from agent.evidence.schema import index_file
from agent.evidence.views import UNKNOWN_OUTCOME
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


@pytest.fixture
def query(tmp_path: Path) -> Iterator[Query]:
    story(tmp_path)
    with Index.open(tmp_path) as index:
        index.catch_up()
        yield Query(index)


def found(query: Query, wanted: Filter) -> list[str]:
    return [s.session for s in query.sessions(wanted)]


def test_it_says_the_same_as_reading_every_segment(query: Query, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    for name in ("5e551001", "5e551002"):
        session = query.session(name)
        assert session == archive.session(name)
        assert list(query.exchanges(session)) == list(archive.exchanges(name))


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (Filter(), ["5e551001", "5e551002"]),
        (Filter(pid=4812), ["5e551002"]),
        (Filter(user="rag"), ["5e551001"]),
        (Filter(user="1002"), ["5e551002"]),
        (Filter(login_user="a*"), ["5e551001"]),
        (Filter(exe="/srv/*/python[23]"), ["5e551001"]),
        (Filter(unit="rag.service"), ["5e551001"]),
        (Filter(client="10.0.0.0/8"), ["5e551002"]),
        (Filter(client="127.0.0.1:50000"), ["5e551001"]),
        (Filter(container="*"), []),
        (Filter(guard="chroma-*"), ["5e551001", "5e551002"]),
        (Filter(collection="kb_[!2]"), ["5e551002"]),
        (Filter(action="scan"), ["5e551001"]),
        (Filter(verdict="deny"), ["5e551001"]),
        (Filter(verdict="would"), ["5e551001"]),
        (Filter(verdict="masked"), ["5e551001"]),
        (Filter(action="search", verdict="deny"), []),  # no one request was both
        (Filter(action="delete", since=START + 8 * SECOND), ["5e551001"]),
        (Filter(action="delete", until=START + 7 * SECOND), []),
        (Filter(until=START + SECOND), ["5e551001"]),
        (Filter(since=START + 20 * SECOND), ["5e551002"]),  # it has not ended
        (
            Filter(user="rag", verdict="deny", action="scan", since=START, until=START + 60 * SECOND),
            ["5e551001"],
        ),
    ],
)
def test_filters_find_the_sessions_they_mean(query: Query, wanted: Filter, names: list[str]) -> None:
    assert found(query, wanted) == names


texts = st.none() | st.sampled_from(
    ["rag", "eve", "r*", "*", "1000", "/usr/*", "contracts", "kb_1", "chroma-prod"]
)
times = st.none() | st.integers(0, 12).map(lambda s: START + s * SECOND)


@given(
    wanted=st.builds(
        Filter, pid=st.sampled_from([None, 4711, 1]), user=texts, exe=texts, collection=texts, guard=texts,
        action=st.sampled_from([None, "search", "scan", "delete"]), since=times, until=times,
        verdict=st.sampled_from([None, "allow", "deny", "hold", "would", "masked"]),
    )
)  # fmt: skip
def test_the_index_and_a_scan_agree_on_every_filter(story_folder: Path, wanted: Filter) -> None:
    with Index.open(story_folder) as index:
        index.catch_up()
        query = Query(index)
        every = query.sessions(Filter())
        expected = []
        for session in every:
            mine = [e for e in Archive(story_folder).exchanges(session.session) if wanted.wants_exchange(e)]
            assert [e.n for e in query.exchanges(session, wanted)] == [e.n for e in mine]
            assert query.count(session, wanted) == len(mine)
            timely = (wanted.since is None or (session.ended or 2**63) >= wanted.since) and (
                wanted.until is None or (session.started or 0) <= wanted.until
            )
            if wanted.wants_session(session) and timely and (mine or not wanted.on_exchanges):
                expected.append(session.session)
        assert found(query, wanted) == expected


@pytest.fixture(scope="module")
def story_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    story(folder)
    return folder


def test_it_catches_up_over_a_result_that_came_later(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1))
    with Index.open(tmp_path) as index:
        index.catch_up()
        assert [e.outcome for e in Query(index).exchanges(Query(index).session("s1@" + STREAM))] == [
            UNKNOWN_OUTCOME
        ]
        stream.block(answered("s1", 1))
        assert index.behind() > 0
        index.catch_up()
        assert index.behind() == 0
        query = Query(index)
        session = query.session("s1@" + STREAM)
        assert [e.outcome for e in query.exchanges(session)] == ["answered"]
        assert (session.requests, session.allowed, session.masked, session.rows) == (1, 1, 1, 2)
        assert found(query, Filter(verdict="masked")) == ["s1"]


def test_catching_up_block_by_block_is_the_same_as_at_once(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "a")
    blocks: list[list[Frame]] = [
        [opened("s1"), asked("s1", 1)], [asked("s1", 2, outcome="deny"), answered("s1", 1)], [opened("s2", pid=9)],
        [answered("s1", 2, outcome="refused", ids=())], [asked("s2", 1, would="deny")], [ended("s1", bytes_in=3)],
    ]  # fmt: skip
    with (
        Index.open(tmp_path / "a") as steps,
        Index.open(tmp_path / "a", tmp_path / "b" / "other.sqlite") as once,
    ):
        for frames in blocks:
            stream.block(*frames)
            steps.catch_up()
        once.catch_up()
        tables = ("sessions", "exchanges")
        for table in tables:
            rows = [
                [tuple(r) for r in i.database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()]
                for i in (steps, once)
            ]
            columns = [d[0] for d in steps.database.execute(f"SELECT * FROM {table}").description]
            skip = columns.index("shape") if "shape" in columns else None
            plain = [[[v for k, v in enumerate(r) if k != skip] for r in side] for side in rows]
            assert plain[0] == plain[1]
        assert Query(steps).sessions(Filter()) == Query(once).sessions(Filter())


def test_ids_stand_in_it_only_as_keyed_hashes_and_are_found(query: Query) -> None:
    sightings = query.seen("b")
    assert [(s.session.user, s.count, s.first, s.collections) for s in sightings] == [
        ("rag", 1, 1, ("contracts",)), ("eve", 1, 1, ("kb_1",)),
    ]  # fmt: skip
    assert query.seen("nobody-saw-this") == []
    assert [s.session.user for s in query.seen("b", Filter(collection="kb_*"))] == ["eve"]


def test_the_index_file_and_its_key_are_private(query: Query, tmp_path: Path) -> None:
    for name in ("index.sqlite", "index.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_an_id_is_not_in_the_index_file(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1), answered("s1", 1, ids=("patient-4711-secret",)))
    with Index.open(tmp_path) as index:
        index.catch_up()
        assert len(Query(index).seen("patient-4711-secret")) == 1
    assert b"patient-4711-secret" not in (tmp_path / "index.sqlite").read_bytes()


def test_sightings_add_up_over_catch_ups(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1), answered("s1", 1))
    with Index.open(tmp_path) as index:
        index.catch_up()
        stream.block(asked("s1", 2), answered("s1", 2), asked("s1", 3), answered("s1", 3, ids=("z",)))
        index.catch_up()
        query = Query(index)
        (sighting,) = query.seen("a")
        assert (sighting.count, sighting.first, sighting.last) == (2, 1, 2)
        assert [e.n for e in query.holders(sighting, "a")] == [1, 2]


def test_another_key_or_version_or_a_broken_file_means_a_rebuild(tmp_path: Path) -> None:
    story(tmp_path)
    file = tmp_path / "index.sqlite"

    def sessions() -> int:
        with Index.open(tmp_path) as index:
            index.catch_up()
            assert Query(index).seen("b")
            return index.info().sessions

    assert sessions() == 2
    (tmp_path / "index.key").write_bytes(b"k" * 32)
    assert sessions() == 2
    file.write_bytes(b"this is no database" * 100)
    assert sessions() == 2
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version=77")
    database.close()
    assert sessions() == 2


def test_replaced_segments_mean_a_rebuild(tmp_path: Path) -> None:
    story(tmp_path)
    with Index.open(tmp_path) as index:
        index.catch_up()
    for path in (tmp_path / "streams" / STREAM).iterdir():
        path.unlink()
    stream = Stream(tmp_path)
    stream.block(*(opened(f"other{i}", user="zoe") for i in range(30)))
    with Index.open(tmp_path) as index:
        index.catch_up()
        assert {s.user for s in Query(index).sessions(Filter())} == {"zoe"}


def test_sessions_whose_segments_are_gone_are_forgotten(tmp_path: Path) -> None:
    stream = story(tmp_path)
    first = stream.path
    stream.rotate()
    stream.block(opened("s9"), asked("s9", 1), answered("s9", 1))
    with Index.open(tmp_path) as index:
        index.catch_up()
        assert len(Query(index).sessions(Filter())) == 3
        first.unlink()
        index.catch_up()
        query = Query(index)
        assert found(query, Filter()) == ["s9"]
        assert [s.session.session for s in query.seen("a")] == ["s9"]


def test_where_the_folder_cannot_be_written_the_index_is_in_the_callers_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story(tmp_path / "evidence")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    file = index_file(tmp_path / "evidence")
    assert file.is_relative_to(tmp_path / "cache" / "vecward")
    with Index.open(tmp_path / "evidence") as index:
        index.catch_up()
        assert len(Query(index).sessions(Filter())) == 2
    assert not (tmp_path / "evidence" / "index.sqlite").exists()


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story(tmp_path / "evidence")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "evidence" / "index.sqlite").symlink_to(tmp_path / "victim")
    assert index_file(tmp_path / "evidence").is_relative_to(tmp_path / "cache")


def test_a_session_is_found_by_the_beginning_or_end_of_its_id(query: Query) -> None:
    assert query.session("5e551002").session == "5e551002"
    assert query.session("1002").session == "5e551002"
    with pytest.raises(ArchiveError, match="2 sessions are meant"):
        query.session("5e55")
    with pytest.raises(ArchiveError, match="no session"):
        query.session("nope")


def test_the_same_id_in_two_streams_is_two_sessions(tmp_path: Path) -> None:
    story(tmp_path)
    Stream(tmp_path, OTHER).block(opened("5e551001", user="mallory"), asked("5e551001", 1))
    with Index.open(tmp_path) as index:
        index.catch_up()
        query = Query(index)
        with pytest.raises(ArchiveError, match="2 sessions"):
            query.session("5e551001")
        assert query.session(f"5e551001@{OTHER}").user == "mallory"
        assert query.session(f"5e551001@{STREAM[:4]}").user == "rag"


def test_numbers_no_honest_writer_makes_are_skipped(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(
        opened("s1", pid=2**63 + 5), asked("s1", 2**63 + 1), asked("s1", 1), answered("s1", 1, bytes=2**63)
    )
    with Index.open(tmp_path) as index:
        index.catch_up()
        assert index.skipped == 2
        (session,) = Query(index).sessions(Filter())
        assert session.requests == 1


def test_gaps_are_told_for_the_session_they_name(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1), answered("s1", 1))
    lost = [LostRange("s1", 2, 7, 12)]
    frame = GapFrame(
        at=START, up=START, reason="disk full", frames=12, bytes=9, since=START, until=START, lost=lost
    )
    stream.control(frame)
    with Index.open(tmp_path) as index:
        index.catch_up()
        query = Query(index)
        (gap,) = query.gaps(query.sessions(Filter())[0])
        assert (gap.first, gap.last, gap.frames, gap.reason) == (2, 7, 12, "disk full")


def test_the_newest_exchanges_come_with_their_sessions(query: Query) -> None:
    newest = query.recent(Filter(), 2)
    assert [(s.user, e.session, e.n) for s, e in newest] == [("eve", "5e551002", 1), ("rag", "5e551001", 3)]
    assert [e.n for _, e in query.recent(Filter(verdict="deny", user="rag"), 9)] == [2]


def test_an_exchange_whose_block_is_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    stream = story(tmp_path)
    with Index.open(tmp_path) as index:
        index.catch_up()
        data = bytearray(stream.path.read_bytes())
        place = index.database.execute("SELECT offset FROM exchanges WHERE n = 2").fetchone()[0]
        data[place : place + 4] = b"XXXX"
        stream.path.write_bytes(data)
        query = Query(index)
        assert [e.n for e in query.exchanges(query.session("5e551001"))] == [1, 3]
        assert any("exchange 2" in str(p) for p in index.archive.problems.values())


def test_a_tally_counts_what_the_index_counts(query: Query, tmp_path: Path) -> None:
    session = query.session("5e551001")
    tally = Tally()
    for exchange in query.exchanges(session):
        tally.add(exchange)
    assert replace(session, bytes_in=tally.bytes_in, bytes_out=tally.bytes_out) == replace(
        session, **{name: getattr(tally, name) for name in Tally.__dataclass_fields__}
    )
