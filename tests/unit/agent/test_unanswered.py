# SPDX-License-Identifier: Apache-2.0
"""Who was gone before a worker asked: counted each, written within a bound."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from agent.kernel.records import IDENTITY, Flow, Identity, IdentityFlag
from agent.unanswered import MAX_WRITTEN, Unanswered

FLOW = Flow(7, ip_address("127.0.0.1"), 40_000, ip_address("127.0.0.1"), 6333)
CALLER = replace(
    Identity.unpack(bytes(IDENTITY.size)), tgid=4242, uid=65534, comm="scan", netns=7, accepted=9, exe_ino=3
)


def noted(*swept: tuple[Flow, Identity]) -> tuple[int, list[dict[str, Any]]]:
    written: list[dict[str, Any]] = []
    unanswered = Unanswered(written.append, {6333: "qdrant"}.get)
    unanswered.note(swept)
    return unanswered.count, written


def test_a_caller_that_reset_its_connection_is_written_as_the_kernel_knew_it() -> None:
    count, (written,) = noted((FLOW, CALLER))
    assert count == 1
    assert (written["kind"], written["guard"], written["client"]) == (
        "unanswered", "qdrant", ["127.0.0.1", 40_000],
    )  # fmt: skip
    assert (written["pid"], written["uid"], written["comm"], written["proven"]) == (4242, 65534, "scan", True)


def test_a_name_from_another_namespace_is_not_called_proven() -> None:
    _, (written,) = noted((FLOW, replace(CALLER, netns=8)))
    assert written["proven"] is False


def test_handshakes_that_never_ended_and_the_proxy_itself_are_nobody() -> None:
    refused = replace(CALLER, accepted=0)
    proxy = replace(CALLER, flags=IdentityFlag.PROXY)
    assert noted((FLOW, refused), (FLOW, proxy)) == (0, [])


def test_a_flood_is_counted_whole_and_written_within_the_bound() -> None:
    count, written = noted(*[(FLOW, CALLER)] * (MAX_WRITTEN + 100))
    assert count == MAX_WRITTEN + 100
    assert len(written) == MAX_WRITTEN + 1
    assert written[-1] == {"kind": "unanswered", "more": 100}
