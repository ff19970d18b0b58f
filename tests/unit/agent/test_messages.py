# SPDX-License-Identifier: Apache-2.0
"""Messages between agent and worker: each is understood by the other side alone, older ones too."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent import messages
from agent.messages import (
    Adopt,
    Counters,
    Drain,
    Ended,
    Hello,
    Identified,
    Identify,
    Kill,
    Listener,
    NeedSegment,
    Present,
    Pressure,
    Refused,
    Segment,
    Settings,
    Signed,
    Snapshot,
    Welcome,
)
from policy.model import Attribution, Parent, Subject
from tests.unit.agent.side import guard

SUBJECT = Subject(
    Attribution.KERNEL, pid=1, groups=("adm", "x"), argv=("a", "b"), parents=(Parent(1, None),),
    unobtained=frozenset({"cwd"}), null_reason={"container": "none"},
)  # fmt: skip
LIMITS = Settings(1, 2, 3, 4.0, 5.0, "strict", "masked")
WORKER: list[Any] = [
    Hello(1, 2, "g", "s", 3), Listener("q"), Identify(1, "q", 2, ("10.0.0.1", 5), ("::1", 6), True, 7),
    Present(((1, 2, b"digest"),)), NeedSegment(), Counters({"accepted": 1}, 2), Ended("s1", True),
]  # fmt: skip
AGENT: list[Any] = [
    Snapshot("1", (guard(credential=(("api-key", "x"),)),), b"rules", LIMITS, b"k" * 32),
    Segment("s", 1), Welcome("s", "h", "b", 2), Identified(1, SUBJECT), Signed(5), Pressure("meta"),
    Kill("s1"), Drain(5.0), Adopt("q"), Refused("because"),
]  # fmt: skip


def test_every_message_arrives_as_it_was_sent() -> None:
    assert [messages.decode_worker(messages.encode(m)) for m in WORKER] == WORKER
    assert [messages.decode_agent(messages.encode(m)) for m in AGENT] == AGENT


def test_no_side_takes_the_other_sides_messages() -> None:
    for message in AGENT:
        with pytest.raises(msgspec.DecodeError):
            messages.decode_worker(messages.encode(message))
    for message in WORKER:
        with pytest.raises(msgspec.DecodeError):
            messages.decode_agent(messages.encode(message))


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa5hello", b"\xff" * 100])
def test_what_is_no_message_is_an_error(garbage: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        messages.decode_worker(garbage)


def test_a_worker_of_the_version_before_is_understood() -> None:
    """Fields are only added: what the oldest version sent, and what a newer one adds, both decode."""
    old = {"type": "hello", "version": 1, "pid": 2, "generation": "g"}
    assert messages.decode_worker(msgspec.msgpack.encode(old)) == Hello(1, 2, "g", None, -1)
    asked = {
        "type": "identify",
        "id": 1,
        "guard": "q",
        "netns": 2,
        "client": ["10.0.0.1", 5],
        "server": ["::1", 6],
    }
    assert messages.decode_worker(msgspec.msgpack.encode({**asked, "later": 1})).sha256 is False
