# SPDX-License-Identifier: Apache-2.0
"""Recorded PostgreSQL conversations come out the same, however the network cuts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agent.protocols.postgres_forms import (
    read_ready,
    write_command_complete,
    write_data_row,
    write_query,
    write_row_description,
)
from agent.protocols.postgres_messages import ready_for_query, startup_message
from agent.protocols.postgres_tap import PostgresTap
from agent.protocols.session import Bounds, Chunk, Intent, ProtocolError, Result
from agent.protocols.sql import Column
from tests.unit.protocols.fake_sql import FakeSqlEngine, SpyJudge
from tests.wire.conversations import Played, Step, bytewise, is_opaque, play
from tests.wire.postgres_conversations import load, names, phase

STARTUP = (
    startup_message(0, {b"user": b"alice", b"database": b"shop"}),
    b"R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I",
)


def cuts(steps: list[Step], most: int) -> Iterator[list[Step]]:
    """One step cut in two: at every byte, or at `most` places over the whole conversation."""
    places = [(i, at) for i, (_, data) in enumerate(steps) for at in range(1, len(data))]
    for index, at in places[:: max(1, len(places) // most)]:
        side, data = steps[index]
        yield [*steps[:index], (side, data[:at]), (side, data[at:]), *steps[index + 1 :]]


def test_there_are_conversations_of_every_client() -> None:
    assert {"asyncpg", "psql", "psycopg", "psycopg_copy", "psycopg_cursor", "psycopg_pipeline"} <= set(
        names()
    )


@pytest.mark.parametrize("name", names())
def test_an_enforced_conversation_is_the_same_at_every_cut(
    name: str, sized: Callable[[int, int], int]
) -> None:
    steps = load(name)
    session, _, _ = phase()
    whole = play(session, steps)
    assert {r.n for r in whole.of(Intent)} == {r.n for r in whole.of(Result)}
    for cut in [*cuts(steps, sized(150, 100_000)), bytewise(steps)]:
        session, _, _ = phase()
        played = play(session, cut)
        assert played.to_server == whole.to_server
        assert played.to_client == whole.to_client
        assert played.merged() == whole.merged()


@pytest.mark.parametrize("name", names())
def test_the_client_of_an_enforced_conversation_gets_what_the_database_said(name: str) -> None:
    steps = load(name)
    session, _, _ = phase()
    played = play(session, steps)
    answered = b"".join(data for side, data in steps if side == "server")
    # Descriptions that the session asked for are in the recording too; everything else passes in order.
    assert read_ready(played.to_client[-1:]) == read_ready(answered[-1:])
    assert len(played.to_client) <= len(answered)


@pytest.mark.parametrize("name", names())
def test_an_observed_conversation_passes_verbatim_at_every_cut(
    name: str, sized: Callable[[int, int], int]
) -> None:
    first: list[Step] = [("client", STARTUP[0]), ("server", STARTUP[1])]
    # What the session asked of its own in the recording was no client's: the tap sees what was forwarded.
    steps = first + forwarded(load(name))
    sent = b"".join(data for side, data in steps if side == "client")
    answered = b"".join(data for side, data in steps if side == "server")
    whole: Played | None = None
    for cut in [steps, bytewise(steps), *cuts(steps, sized(100, 100_000))]:
        played = play(PostgresTap(FakeSqlEngine(), SpyJudge(), "g"), cut)
        assert played.to_server == sent
        assert played.to_client == answered
        assert not is_opaque(played)
        whole = whole or played
        assert played.merged() == whole.merged()
    assert whole is not None
    assert {r.n for r in whole.of(Intent)} == {r.n for r in whole.of(Result)}


def forwarded(steps: list[Step]) -> list[Step]:
    session, _, _ = phase()
    out: list[Step] = []
    for side, data in steps:
        if side == "client":
            sent = b"".join(session.client_data(data).to_server)
        else:
            out.append((side, data))
            sent = b"".join(session.server_data(data).to_server)
        if sent:
            out.append(("client", sent))
    return out


def test_a_large_answer_is_recorded_in_slices_before_they_are_released() -> None:
    session, _, _ = phase()
    played = Played()
    played.add(session.client_data(write_query(b"SELECT many")))
    row = write_data_row([b"x" * 1000])
    answer = write_row_description([Column("x", 1, 1, 25, -1, -1, 0)]) + row * 2000
    answer += write_command_complete("SELECT 2000") + ready_for_query("I")
    for at in range(0, len(answer), 8192):
        out = session.server_data(answer[at : at + 8192])
        assert (
            sum(map(len, out.to_client))
            <= sum(r.bytes for r in out.records if isinstance(r, Chunk))
            + sum(r.released_bytes for r in out.records if isinstance(r, Result))
            + 6
        )
        played.add(out)
    assert played.to_client == answer
    chunks, results = played.of(Chunk), played.of(Result)
    assert len(chunks) > 5
    assert max(chunk.bytes for chunk in chunks) <= 256 * 1024
    assert b"".join(chunk.data for chunk in chunks) == answer[:-6]
    assert results[0].rows == 2000
    assert results[0].body is None
    assert results[0].released_bytes == len(answer) - 6


def test_a_message_over_the_bound_ends_the_connection() -> None:
    session, _, _ = phase(bounds=Bounds(body=1000))
    with pytest.raises(ProtocolError, match="at most 1000"):
        session.client_data(b"Q" + (2000).to_bytes(4, "big"))
