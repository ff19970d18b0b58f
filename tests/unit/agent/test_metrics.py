# SPDX-License-Identifier: Apache-2.0
"""Prometheus' text: the promised names, and a socket that answers nothing but it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import MAX_HEAD, NAMES, MetricsServer, metrics_text
from tests.unit.agent.turning import run

STATUS: dict[str, Any] = {
    "guards": [
        {"name": "q", "mode": "enforce", "off": None, "pre_existing": 0},
        {"name": "o", "mode": "enforce", "off": {"until": None}, "pre_existing": 3},
        {"name": 'odd"\n', "mode": "observe", "off": None, "pre_existing": 0},
    ],
    "workers": [{"sessions": 2}, {"sessions": 5}],
    "unanswered": 1,
    "steering_lost": {},
    "kernel": {"established_steered": 7},
    "proxy": {"accepted": 9, "evidence_dropped": 4, "requests_deny": 3},
    "evidence": {"unsigned": 11, "free": 77, "key_break": True},
    "policy": {"problem": None},
}


def values(status: dict[str, Any]) -> dict[tuple[str, str], float]:
    """By name and the one label there is."""
    found = {}
    for family in text_string_to_metric_families(metrics_text(status)):
        for sample in family.samples:
            found[sample.name, "".join(sample.labels.values())] = sample.value
    return found


def test_every_promised_name_is_there_and_no_other() -> None:
    assert {name for name, _ in values(STATUS)} == set(NAMES)


def test_the_numbers_are_those_of_the_status() -> None:
    found = values(STATUS)
    assert found["vecward_workers", ""] == 2
    assert found["vecward_sessions", ""] == 7
    assert found["vecward_kernel_total", "established_steered"] == 7
    assert found["vecward_proxy_total", "accepted"] == 9
    assert found["vecward_evidence_unsigned_frames", ""] == 11
    assert found["vecward_evidence_free_bytes", ""] == 77
    assert found["vecward_evidence_key_break", ""] == 1
    assert found["vecward_evidence_lost_frames_total", ""] == 4
    assert found["vecward_policy_broken", ""] == 0
    assert values({**STATUS, "policy": {"problem": "x"}})["vecward_policy_broken", ""] == 1


def test_a_guard_that_is_off_does_not_count_as_enforcing() -> None:
    found = values(STATUS)
    assert [found["vecward_guard_enforcing", name] for name in ("q", "o", 'odd"\n')] == [1, 0, 0]
    assert [found["vecward_guard_off", name] for name in ("q", "o")] == [0, 1]
    assert found["vecward_guard_pre_existing", "o"] == 3


async def ask(path: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(os.fspath(path))
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_the_socket_answers_http_and_gives_nothing_to_what_is_none(tmp_path: Path) -> None:
    async def story() -> None:
        path = tmp_path / "metrics.sock"
        server = MetricsServer(f"unix:{path}", lambda: "vecward_up 1.0\n")
        await server.start()
        assert path.stat().st_mode & 0o777 == 0o660
        answer = await ask(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nvecward_up 1.0\n")
        assert await ask(path, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * MAX_HEAD) == b""
        await server.close()
        assert not path.exists()

    run(story)


def test_without_a_socket_nothing_is_served() -> None:
    async def story() -> None:
        server = MetricsServer(None, str)
        await server.start()
        await server.close()

    run(story)


def test_requests_are_counted_by_verdict_and_not_among_the_workers_events() -> None:
    found = values(STATUS)
    assert [found["vecward_requests_total", verdict] for verdict in ("allow", "deny", "would")] == [0, 3, 0]
    assert ("vecward_proxy_total", "requests_deny") not in found
