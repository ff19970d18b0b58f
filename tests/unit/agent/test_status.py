# SPDX-License-Identifier: Apache-2.0
"""The status document: what it sums, and what it must not show."""

from __future__ import annotations

import json
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

from agent.config import Guard
from agent.counts import Counts
from agent.guards import FOREVER, Watched
from agent.held import Held
from agent.kernel.records import STATS
from agent.kernel.steering import Listening
from agent.messages import TlsSettings
from agent.metrics import metrics_text
from agent.status import coverage, status_document

EVIDENCE = {"unsigned": 0, "key_break": False, "free": 1}
SECRET = Held((("api-key", "s3cr3t"),), TlsSettings(cert=b"s3cr3t"))


def keeper() -> Any:
    kernel = dict.fromkeys(STATS, 0) | {
        "established_steered": 10, "established_upstream": 9, "established_unobserved": 1,
        "established_off": 2, "established_remote": 4, "established_bypass": 8,
    }  # fmt: skip
    watched = [
        Watched(0, Guard(name="q", engine="qdrant", ports=(6333,), mode="enforce"), SECRET),
        Watched(1, Guard(name="o", engine="chroma", ports=(8000,)), Held(), FOREVER, "maintenance"),
        Watched(2, Guard(name="t", engine="chroma", ports=(8001,)), Held(), 1_000_000.0, "a while"),
    ]
    counts = Counts()
    counts.end({"accepted": 5})  # of a worker that was replaced
    members = [
        SimpleNamespace(
            pid=n, slot=n, generation="g", stream=f"s{n}", sessions=n, draining=False, listening=listening,
            counters={"accepted": n, "bugs": 1},
        )
        for n, listening in enumerate([{"q", "o"}, {"q"}])
    ]  # fmt: skip
    return SimpleNamespace(
        steering=SimpleNamespace(
            stats=lambda: kernel, up=lambda: [Listening(ip_address("::1"), 6333, 1, False)]
        ),
        crew=SimpleNamespace(
            members=dict(enumerate(members)), counters=lambda: counts.total(m.counters for m in members)
        ),
        notary=SimpleNamespace(host="h", boot="b", document=lambda: EVIDENCE),
        guards=watched,
        unanswered=SimpleNamespace(count=6),
        losses=SimpleNamespace(lost={"steer-1": "detached"}),
        started=0.0,
        rulebook=SimpleNamespace(hash="hash", document=SimpleNamespace(rules=[1, 2]), files=(), warnings=()),
        rule_problem="rules.yaml:3: no",
    )


def test_every_connection_is_counted_by_one_way() -> None:
    ways = coverage(keeper().steering.stats())
    assert ways == {"connects": 25, "steered": 10, "unobserved": 7, "bypass": 8, "ticketed": 9}


def test_the_document_says_what_holds_now() -> None:
    document = status_document(keeper())
    q, o, t = document["guards"]
    assert (q["mode"], q["workers"], q["up"], q["on_failure"], q["remote"], q["off"]) == (
        "enforce", 2, True, "refuse", "judge", None,
    )  # fmt: skip
    assert (o["workers"], o["up"], o["off"]) == (1, False, {"until": None, "reason": "maintenance"})
    assert t["off"]["until"] == "1970-01-12T13:46:40Z"
    assert document["proxy"] == {"accepted": 6, "bugs": 2}
    assert document["started"] == "1970-01-01T00:00:00Z"
    assert document["policy"]["problem"] == "rules.yaml:3: no"


def test_it_is_json_for_scripts_and_numbers_for_prometheus_and_holds_no_credential() -> None:
    document = status_document(keeper())
    assert "s3cr3t" not in json.dumps(document)
    assert "vecward_policy_broken 1.0" in metrics_text(document)
