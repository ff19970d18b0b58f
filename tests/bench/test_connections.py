# SPDX-License-Identifier: Apache-2.0
"""Connections per second steered and not, memory of idle ones, start to `ready`. Asserts no time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bench import peers
from tests.bench.course import Course, resident
from tests.bench.report import machine, spread, table, write_section

GUARDS = {"observe": (8001, "observe"), "enforce": (8002, "enforce")}
POLICY = """\
version: 1
rules:
  - {id: everyone, what: {action: [session, search]}, allow: true}
"""
IDLE = """\
import socket, sys
port, many = int(sys.argv[1]), int(sys.argv[2])
held = []
for _ in range(many):
    one = socket.create_connection(("127.0.0.1", port))
    one.sendall(b"GET /api/v2/heartbeat HTTP/1.1\\r\\nHost: db\\r\\n\\r\\n")
    assert one.recv(4096).startswith(b"HTTP/1.1 200"), "refused"
    held.append(one)
print("held", flush=True)
sys.stdin.read()
"""


def connects(course: Course, port: int, seconds: float) -> float:
    """Connections per second, each with one small request, from 16 at a time."""
    return course.wrk(port, "/api/v2/heartbeat", 16, seconds, "", "close")[0]


def idle(course: Course, port: int, many: int, pids: list[int]) -> float:
    """KiB of memory that each of `many` idle connections keeps."""
    script = course.folder / "idle.py"
    script.write_text(IDLE)
    before = resident(pids)
    with open(course.folder / "idle.log", "ab") as log:
        process = course.arena.popen(
            ["/usr/bin/python3", str(script), str(port), str(many)], stdin=-1, stdout=-1, stderr=log
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n", (
            course.folder / "idle.log"
        ).read_text() + course.tail()
        return (resident(pids) - before) / many
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(60)


@pytest.mark.limit(1800)
def test_connections_memory_and_start(sized: Callable[[int, int], int]) -> None:
    runs, seconds, many = sized(1, 5), sized(1, 3), sized(100, 2000)
    rates: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    starts: list[float] = []
    sizes: list[float] = []
    with Course(GUARDS, POLICY) as course:
        course.start_nginx()
        before = [connects(course, peers.DATABASE, seconds) for _ in range(runs)]
        course.start_peers(["HAProxy", "Envoy"])
        for run in range(runs):
            if run:
                course.stop()
            starts.append(course.start_vecward())
            sizes.append(resident(course.workers) / 1024)
            for name, port in (
                ("another port, programs attached", peers.DATABASE),
                ("HAProxy", peers.PEERS["HAProxy"][0]),
                ("Envoy", peers.PEERS["Envoy"][0]),
                ("Vecward, observe", GUARDS["observe"][0]),
                ("Vecward, enforce", GUARDS["enforce"][0]),
            ):
                rates.setdefault(name, []).append(connects(course, port, seconds))
        for name, port, pids in (
            ("HAProxy", peers.PEERS["HAProxy"][0], [course.peers["HAProxy"].pid]),
            ("Envoy", peers.PEERS["Envoy"][0], [course.peers["Envoy"].pid]),
            ("Vecward, worker", GUARDS["enforce"][0], course.workers),
        ):
            memory[name] = [idle(course, port, many, pids)]
    rows = [[name, spread(found)] for name, found in ({"no program attached": before} | rates).items()]
    text = (
        f"{machine()}. Each connection makes one small request; 16 at a time, {runs} runs of {seconds} s.\n\n"
        + table(["database reached through", "connections/s"], rows)
        + f"\n\nKiB of a proxy per connection that made one request and idles (VmRSS, over {many}):\n\n"
        + table(["", "KiB"], [[name, spread(found, 1)] for name, found in memory.items()])
        + f"\n\n`vecward run` to `ready`: {spread(starts, 2)} s. A worker then holds {spread(sizes)} MiB"
        " (VmRSS), of which it shares most with the agent and the other workers."
    )
    write_section("connections", text)
    assert all(rate > 0 for rate in rates["Vecward, enforce"])
