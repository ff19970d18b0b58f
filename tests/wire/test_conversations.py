# SPDX-License-Identifier: Apache-2.0
"""Recorded conversations come out the same, however the network cuts them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from agent.protocols.choose import Sniffing, open_session
from agent.protocols.session import Bounds, Intent
from policy.model import Limit, Mask
from tests.unit.protocols.fake_engine import ALLOW, FakeEngine, FakeJudge
from tests.wire.conversations import Played, Step, bytewise, cuts, load, names, outcomes, play

VERDICTS = {
    "plain": ALLOW,
    "masked": replace(ALLOW, masks=(Mask("r", field="payload.ssn"),)),
    "clamped": replace(ALLOW, clamps=(Limit("top_k", 20, "clamp", "r"),), level="full"),
}
SMALL = Bounds(stream_above=8)  # so that bodies of a few bytes are streamed


def session(kind: str, mode: str = "enforce", bounds: Bounds | None = None) -> Sniffing:
    judge = FakeJudge(VERDICTS[kind], needs_body=False)
    return open_session(
        FakeEngine(),
        judge,
        "g",
        "observe" if mode == "observe" else "enforce",
        bounds,
        (("api-key", "ours"),),
    )


def same(whole: Played, cut: Played, steps: list[Step]) -> None:
    assert cut.to_server == whole.to_server, steps
    assert cut.to_client == whole.to_client, steps
    assert cut.merged() == whole.merged(), steps
    assert cut.closes == whole.closes, steps


@pytest.mark.parametrize("kind", VERDICTS)
@pytest.mark.parametrize("name", names())
def test_an_enforced_conversation_is_the_same_at_every_cut(name: str, kind: str) -> None:
    steps = load(name)
    whole = play(session(kind), steps)
    assert whole.records
    for cut in cuts(steps):
        same(whole, play(session(kind), cut), cut)
    same(whole, play(session(kind), bytewise(steps)), steps)


@pytest.mark.parametrize("bounds", [Bounds(), SMALL], ids=["held", "streamed"])
@pytest.mark.parametrize("name", names())
def test_an_observed_conversation_passes_verbatim_at_every_cut(name: str, bounds: Bounds) -> None:
    steps = load(name)
    sent = b"".join(data for side, data in steps if side == "client")
    answered = b"".join(data for side, data in steps if side == "server")
    for cut in [steps, bytewise(steps), *cuts(steps)]:
        played = play(session("plain", "observe", bounds), cut)
        assert played.to_server == sent
        assert played.to_client == answered
        assert "reset" not in played.closes


@pytest.mark.parametrize("name", ["keepalive", "chroma_client", "qdrant_client", "half_close", "closed"])
def test_an_observed_conversation_leaves_the_same_results_at_every_cut(name: str) -> None:
    steps = load(name)
    whole = play(session("plain", "observe"), steps)
    for cut in [bytewise(steps), *cuts(steps)]:
        played = play(session("plain", "observe"), cut)
        assert [r for r in played.merged() if not isinstance(r, list)] == [
            r for r in whole.merged() if not isinstance(r, list)
        ]


@pytest.mark.parametrize("name", ["chroma_client", "qdrant_client"])
def test_the_official_clients_requests_pass_in_enforce_with_the_guards_credential(name: str) -> None:
    steps = load(name)
    played = play(session("plain"), steps)
    requests = sum(side == "client" for side, _ in steps)
    assert outcomes(played) == ["answered"] * requests
    assert played.to_server.count(b"\r\napi-key: ours\r\n") == requests
    assert b"sek" not in played.to_server
    for intent in played.of(Intent):
        assert "api-key" not in intent.head


def test_refusals_come_in_the_order_of_the_requests() -> None:
    played = play(session("plain"), load("refused"))
    assert outcomes(played) == ["refused", "answered", "refused", "refused"]
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", played.to_client)
    assert statuses == [b"403", b"200", b"403", b"400"]
    assert b"forbidden" not in played.to_server
    assert b"/other" not in played.to_server


def test_a_malformed_request_ends_the_connection_and_nothing_behind_it_is_read() -> None:
    played = play(session("plain"), load("malformed"))
    assert played.to_server.count(b"HTTP/1.1\r\n") == 1
    assert played.closes == ["both"]
    assert outcomes(played) == ["answered", "refused"]


def test_an_answer_that_is_torn_is_not_released() -> None:
    played = play(session("plain"), load("torn_answer"))
    assert played.to_client == b""
    assert played.closes == ["both"]
    assert [type(record).__name__ for record in played.records] == ["Intent", "Abort"]
