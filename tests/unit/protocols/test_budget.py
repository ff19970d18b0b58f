# SPDX-License-Identifier: Apache-2.0
"""What all connections of a worker hold together is bounded, and every way out gives it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.protocols.budget import FREE, Budget
from agent.protocols.http1 import Http1Session
from agent.protocols.http1_tap import Http1Tap
from agent.protocols.session import Bounds, Chunk, Intent, Output, ProtocolError, Result
from policy.model import Mask, Verdict
from tests.unit.protocols.fake_engine import ALLOW, FakeEngine, FakeJudge

MASKED = replace(ALLOW, masks=(Mask("r", field="payload.ssn"),))
BIG = 3 * FREE
HEAD = b"POST /c/kb/search HTTP/1.1\r\nHost: db\r\nContent-Length: %d\r\n\r\n"
BODY = b"{" + b" " * (BIG - 2) + b"}"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG


def opened(budget: Budget, verdict: Verdict = ALLOW) -> Http1Session:
    return Http1Session(FakeEngine(), FakeJudge(verdict), "g", Bounds(budget=budget))


def observed(budget: Budget) -> Http1Tap:
    return Http1Tap(FakeEngine(), FakeJudge(needs_body=False), "g", Bounds(budget=budget))


def client(out: Output) -> bytes:
    return b"".join(out.to_client)


def begin(session: Http1Session | Http1Tap, size: int) -> Output:
    """A request of which so many body bytes have come."""
    session.client_data(HEAD % BIG)
    return session.client_data(BODY[:size])


def result(out: Output) -> Result:
    found = out.records[-1]
    assert isinstance(found, Result)
    return found


def test_what_several_connections_collect_is_one_sum() -> None:
    budget = Budget(5 * FREE)
    first, second = opened(budget), opened(budget)
    begin(first, 2 * FREE)
    assert budget.held == 2 * FREE
    begin(second, FREE)  # as small as that is not counted
    assert budget.held == 2 * FREE
    second.client_data(BODY[FREE : FREE + 1])
    assert budget.held == 3 * FREE + 1


def test_a_body_without_room_is_refused_by_its_name_and_recorded_and_drained() -> None:
    refused: list[int] = []
    budget = Budget(4 * FREE, lambda: refused.append(1))
    first, second = opened(budget), opened(budget)
    begin(first, 2 * FREE + 1)
    out = begin(second, 2 * FREE)
    assert client(out).startswith(b"HTTP/1.1 503 ")
    assert str(budget.limit).encode() in client(out)
    assert b"proxy.max_held" in client(out)
    assert isinstance(out.records[0], Intent)
    assert out.records[0].verdict.outcome == "deny"
    assert (result(out).outcome, result(out).reason) == ("refused", "held-bytes")
    assert out.to_server == []
    assert budget.held == 2 * FREE + 1  # the refused one holds nothing, also while the rest of it comes
    assert refused == [1]
    assert second.client_data(BODY[2 * FREE :]).close == "both"
    assert b"".join(first.client_data(BODY[2 * FREE + 1 :]).to_server).endswith(BODY)  # the other goes on


def test_a_whole_body_counts_until_its_answer_is_out() -> None:
    budget = Budget(5 * FREE)
    session, other = opened(budget), opened(budget)
    assert session.client_data(HEAD % BIG + BODY).to_server != []
    assert budget.held == BIG
    out = other.client_data(HEAD % BIG + BODY)
    assert client(out).startswith(b"HTTP/1.1 503 ")
    assert out.close == "no"  # it was whole: the connection goes on
    session.server_data(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert budget.held == 0
    assert other.client_data(HEAD % BIG + BODY).to_server != []


@pytest.mark.parametrize("way", ["abandon", "client_eof", "server_eof", "refuse_all", "forgotten", "broken"])
@pytest.mark.parametrize("make", [opened, observed])
def test_every_end_gives_back_what_was_held(
    make: Callable[[Budget], Http1Session | Http1Tap], way: str
) -> None:
    budget = Budget()
    session = make(budget)
    begin(session, 2 * FREE)
    assert budget.held >= 2 * FREE
    if way in ("abandon", "refuse_all"):
        getattr(session, way)("gone")
    elif way == "broken":
        session.client_data(BODY[2 * FREE :] + b"\0\r\n\r\n")
    elif way != "forgotten":
        getattr(session, way)()
    del session
    assert budget.held == 0


def test_a_small_body_has_room_when_there_is_none() -> None:
    budget = Budget(0)
    out = opened(budget).client_data(HEAD % 2 + b"{}")
    assert out.to_server != []


def test_requests_that_wait_behind_one_count_too() -> None:
    budget = Budget(2 * FREE)
    session = opened(budget)
    session.client_data(HEAD % 2 + b"{}")
    session.client_data(b"x" * (2 * FREE))
    assert budget.held == 2 * FREE
    with pytest.raises(ProtocolError) as caught:
        session.client_data(b"x")
    assert caught.value.reason == "held-bytes"
    session.refuse_all(caught.value.message)
    assert budget.held == 0


def test_an_answer_to_be_masked_is_refused_where_there_is_no_room() -> None:
    budget = Budget(FREE)
    session = opened(budget, MASKED)
    session.client_data(HEAD % 2 + b"{}")
    out = session.server_data(ANSWER + b"x" * (2 * FREE))
    assert client(out).startswith(b"HTTP/1.1 503 ")
    assert (result(out).outcome, result(out).reason) == ("failed", "held-bytes")
    assert out.close == "both"
    assert budget.held == 0


def test_an_answer_that_nothing_reads_passes_in_pieces_where_there_is_no_room() -> None:
    budget = Budget(FREE)
    session = opened(budget)
    session.client_data(HEAD % 2 + b"{}")
    out = session.server_data(ANSWER + b"x" * (2 * FREE))
    assert client(out).endswith(b"x" * (2 * FREE))
    out = session.server_data(b"x" * FREE)
    assert result(out).bytes == BIG
    assert budget.held == 0


def test_an_answer_that_is_whole_at_once_needs_no_room() -> None:
    session = opened(Budget(0), MASKED)
    session.client_data(HEAD % 2 + b"{}")
    assert b"proxy.max_held" not in client(session.server_data(ANSWER + b"x" * BIG))


def test_in_observe_a_body_without_room_passes_unread() -> None:
    budget = Budget(FREE)
    tap = observed(budget)
    out = begin(tap, 2 * FREE)
    assert b"".join(out.to_server).endswith(BODY[: 2 * FREE])
    intent = out.records[0]
    assert isinstance(intent, Intent)
    assert "proxy.max_held" in intent.verdict.message
    assert isinstance(out.records[1], Chunk)
    assert budget.held == 0
    out = tap.client_data(BODY[2 * FREE :])
    assert b"".join(out.to_server) == BODY[2 * FREE :]


def test_in_observe_an_answer_without_room_passes_and_only_the_record_is_shorter() -> None:
    budget = Budget(FREE)
    tap = observed(budget)
    tap.client_data(HEAD % 2 + b"{}")
    first = ANSWER + b"x" * (2 * FREE)
    assert client(tap.server_data(first)) == first
    out = tap.server_data(b"x" * FREE)
    assert client(out) == b"x" * FREE
    assert (result(out).bytes, result(out).body) == (BIG, None)
    assert budget.held == 0
