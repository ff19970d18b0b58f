# SPDX-License-Identifier: Apache-2.0
"""The worker's own rules: who may connect, what is counted, and what a change of policy ends."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.host import Refuse
from agent.link import AgentGone
from agent.messages import Settings, Snapshot
from agent.session_id import ALPHABET, new_session_id
from agent.worker import Worker
from policy.compile import encode_rules
from policy.model import Attribution, Subject
from tests.unit.agent.side import SUBJECT, guard
from tests.unit.agent.turning import pass_time, run, run_still, turns
from tests.unit.policy.tables import load

NOBODY = Subject(Attribution.UNATTRIBUTED, null_reason={"pid": "no record"})
REMOTE = Subject(Attribution.REMOTE, remote="192.0.2.7")


class Connection:
    """A relay as the worker sees it."""

    def __init__(
        self, subject: Subject | None, mode: Any = "enforce", name: str = "s1", **changes: Any
    ) -> None:
        self.id = name
        self.subject = subject
        self.guard = guard(mode, **changes)
        self.enforcing = mode == "enforce"
        self.admitted = False
        self.tunnelled = False
        self.judge: Any = None
        self.client_addr, self.server_addr = ("127.0.0.1", 5), ("127.0.0.1", 6333)
        self.accepted: int | None = 1
        self.ended: list[str] = []

    def end(self, reason: str) -> None:
        self.ended.append(reason)


def snapshot(**changes: Any) -> Snapshot:
    settings = Settings(1024, 2, 2, 60.0, 60.0, "strict", "masked")
    values = {
        "version": "1",
        "guards": (),
        "policy": encode_rules(()),
        "settings": settings,
        "hmac_key": b"k" * 32,
    }
    return Snapshot(**{**values, **changes})


def worker() -> Any:
    """A worker with a snapshot, as its agent gave it; it is not connected to anything."""
    made: Any = Worker(Path("/nonexistent/worker.sock"), "g")
    made._take_snapshot(snapshot())
    return made


def refused(made: Any, connection: Connection) -> str:
    with pytest.raises(Refuse) as found:
        made.admit(connection)
    return found.value.reason


def test_session_ids_sort_by_time_and_have_nothing_to_misread() -> None:
    ids = [new_session_id(ms, rest) for ms, rest in ((1, 2**32 - 1), (2, 0), (2**48 - 1, 5))]
    assert ids == sorted(ids)
    assert all(len(name) == 16 and set(name) <= set(ALPHABET) for name in ids)
    assert not set("ilou") & set(ALPHABET)


def test_who_has_no_name_is_refused_in_enforce_and_passes_in_observe_and_off() -> None:
    async def story() -> None:
        made = worker()
        assert refused(made, Connection(NOBODY)) == "unattributed"
        assert refused(made, Connection(None, "observe")) == "unattributed"
        made.admit(Connection(NOBODY, "observe"))
        made.admit(Connection(NOBODY, off=True))

    run(story)


def test_a_caller_of_another_host_is_refused_where_the_guard_says_so() -> None:
    async def story() -> None:
        made = worker()
        assert refused(made, Connection(REMOTE, "observe", remote="refuse")) == "remote"
        made.admit(Connection(REMOTE, remote="judge"))

    run(story)


def test_the_proxys_own_connection_is_never_relayed() -> None:
    async def story() -> None:
        own = replace(SUBJECT, pid=os.getpid())
        for mode in ("observe", "enforce"):
            assert refused(worker(), Connection(own, mode)) == "loop"

    run(story)


def test_connections_of_one_process_are_bounded_and_counted_until_they_end() -> None:
    async def story() -> None:
        made = worker()
        relays = [Connection(SUBJECT, name=f"s{n}") for n in range(3)]
        for one in relays[:2]:
            made.admit(one)
            one.admitted = True
            made._relays[one.id] = one
        assert refused(made, relays[2]) == "too-many-connections"
        made.admit(Connection(SUBJECT, "observe"))  # counted, and never refused
        made.admit(Connection(replace(SUBJECT, start_time=8)))  # another process of that pid
        made.forget(relays[0])
        made.forget(relays[0])
        assert made._subjects[SUBJECT.pid, SUBJECT.start_time, None] == 2, "an end counts once"

    run(story)


def test_a_connection_that_was_refused_gives_no_place_back() -> None:
    async def story() -> None:
        made = worker()
        one = Connection(SUBJECT)
        made.admit(one)
        late = Connection(SUBJECT, name="s2")
        made._relays["s2"] = late
        made.forget(late)
        assert made._subjects[SUBJECT.pid, SUBJECT.start_time, None] == 1

    run(story)


@pytest.mark.parametrize(("mode", "passes"), [("observe", True), ("enforce", False)])
def test_without_an_agent_enforce_refuses_and_observe_goes_on_without_a_name(
    monkeypatch: pytest.MonkeyPatch, mode: str, passes: bool
) -> None:
    async def gone(question: Any, seconds: float, away: float) -> Subject:
        assert (seconds, away) == ((1, 0) if passes else (5, 20)), "a client in observe is not kept waiting"
        raise AgentGone(f"the agent did not say within {seconds:g} s who connected")

    async def story() -> None:
        made = worker()
        monkeypatch.setattr(made._link, "identify", gone)
        if passes:
            subject = await made.identify(Connection(None, mode))
            assert subject.attribution is Attribution.UNATTRIBUTED
            assert made._counters["unattributed_agent_unreachable"] == 1
        else:
            with pytest.raises(Refuse) as found:
                await made.identify(Connection(None, mode))
            assert found.value.reason == "agent-unreachable"

    run(story)


@pytest.mark.parametrize(
    ("before", "now", "ended"),
    [
        (guard("observe"), guard("enforce"), ["guard-changed"]),
        (guard("observe"), None, ["guard-changed"]),
        (guard("observe"), guard("observe", engine="chroma"), ["guard-changed"]),
        (guard("observe"), guard("observe"), []),
        (guard("enforce"), guard("enforce"), ["no-rights-left"]),
        (guard("enforce"), guard("enforce", off=True), []),
    ],
)
def test_a_change_ends_sessions_it_leaves_no_ground_for(
    monkeypatch: pytest.MonkeyPatch, before: Any, now: Any, ended: list[str]
) -> None:
    async def story() -> None:
        made = worker()
        held = None if now is None else SimpleNamespace(settings=now)
        monkeypatch.setattr(made._server, "find", lambda name: held)
        one = Connection(SUBJECT, before.mode)
        made._recheck(one)
        assert one.ended == ended

    run(story)


UNTIL = """
  - {id: own, who: {self: true}, what: {guard: q}, tunnel: true}
  - {id: not-any-more, who: {self: true}, deny: "moved", mode: shadow, until: 2100-01-01}
"""


def test_a_tunnel_ends_when_the_until_of_a_rule_against_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: 1e9, monotonic=lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr("agent.worker.time", clock)

    async def story() -> None:
        made = worker()
        made._take_snapshot(snapshot(policy=encode_rules(load(UNTIL).rules)))
        monkeypatch.setattr(made._server, "find", lambda name: SimpleNamespace(settings=guard()))
        one = Connection(replace(SUBJECT, is_self=True))
        one.tunnelled = True
        made._relays[one.id] = one
        ticking = asyncio.get_running_loop().create_task(made._tick())
        await turns()
        for _ in range(8):
            await pass_time(0.25)
        assert one.ended == []
        clock.time = lambda: 5e9
        for _ in range(8):
            await pass_time(0.25)
        assert one.ended[:1] == ["tunnel-withdrawn"]
        ticking.cancel()
        await turns()

    run_still(story)


def test_connections_are_refused_before_the_stream_stands_and_above_the_bound() -> None:
    async def story() -> None:
        made = worker()
        served = SimpleNamespace(settings=guard())
        transport = SimpleNamespace(get_extra_info=lambda name: ("127.0.0.1", 40000))
        assert made._accept(served, transport) is None
        made._stream = SimpleNamespace(is_begun=True)
        assert made._accept(served, transport) is None, "dialled at the listener itself"
        made._relays = {"a": 1, "b": 2}
        assert made._accept(served, transport) is None
        assert dict(made._counters) == {
            "accepted": 3, "refused_no_evidence": 1, "refused_not_steered": 1,
            "refused_too_many_connections": 1,
        }  # fmt: skip

    run(story)


def test_a_bug_is_told_without_a_word_of_what_was_sent(capsys: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        made = worker()
        try:
            raise ValueError("api-key: s3cr3t")
        except ValueError as error:
            made.report_bug(error)
        assert made._counters["bugs"] == 1

    run(story)
    said = capsys.readouterr().err
    assert "ValueError" in said
    assert "test_worker.py" in said
    assert "s3cr3t" not in said


def test_only_an_agents_messages_are_taken() -> None:
    async def story() -> None:
        made = worker()
        with pytest.raises(TypeError, match="not for a worker"):
            made._take(SimpleNamespace(), [])
        await asyncio.sleep(0)

    run(story)
