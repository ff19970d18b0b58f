# SPDX-License-Identifier: Apache-2.0
"""CPU per request, latency and throughput: Vecward and its peers on the same work in one run.

Every proxy and every guard stands in front of the same nginx all the time; only one is under load. Runs
alternate over all of them, so that what the machine does meanwhile falls on all alike. Never asserts a time.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from tests.bench import peers
from tests.bench.course import Course, Lap
from tests.bench.memory import used_memory
from tests.bench.report import FULL, machine, spread, table, write_section

GUARDS = {
    "observe": (8001, "observe"),
    "masked": (8002, "enforce"),
    "full": (8003, "enforce"),
    "cut": (8004, "enforce"),
    "stripped": (8005, "enforce"),
}
POLICY = """\
version: 1
rules:
  - {id: observed, who: {user: root}, what: {guard: observe}, allow: true}
  - {id: masked, who: {user: root}, what: {guard: masked, collection: "papers*", action: [search, count]},
     allow: true, limit: {top_k: 100}, record: {level: masked, mode: strict}}
  - {id: full, who: {user: root}, what: {guard: full, collection: "papers*", action: [search, count]},
     allow: true, limit: {top_k: 100}, record: {level: full, mode: strict}}
  - {id: cut, who: {user: root}, what: {guard: cut, collection: "papers*", action: [search, count]},
     allow: true, limit: {top_k: 100}, vectors: false, mask: [{pii: [email], as: redact}],
     record: {level: masked, mode: strict}}
  - {id: stripped, who: {user: root}, what: {guard: stripped, collection: "papers*", action: [search, count]},
     allow: true, limit: {top_k: 100}, vectors: false, record: {level: masked, mode: strict}}
  - {id: hello, what: {action: session}, allow: true}
"""
NAMES = {
    "observe": "Vecward, observe",
    "masked": "**Vecward, enforce, strict, masked record**",
    "full": "**Vecward, enforce, strict, full record**",
    "stripped": "**Vecward, enforce, strict, vectors cut**",
    "cut": "**Vecward, enforce, strict, vectors cut, e-mail masked**",
}
SIZES = {"small": "2.4 KB", "large": "150 KB"}
Laps = dict[tuple[str, int, str], list[Lap]]


def measure(course: Course, connections: list[int], runs: int, seconds: float) -> Laps:
    laps: Laps = defaultdict(list)
    runners: dict[str, tuple[int, list[int]]] = {"direct": (peers.DATABASE, [])}
    runners |= {name: (peers.PEERS[name][0], [process.pid]) for name, process in course.peers.items()}
    runners |= {name: (port, course.workers) for name, (port, _) in course.guards.items()}
    for size in SIZES:
        for port, pids in runners.values():
            course.load(port, size, 8, 1, pids)  # warm
    for run in range(runs):
        for size in SIZES:
            for many in connections:
                order = list(runners)
                for name in order[run % len(order) :] + order[: run % len(order)]:
                    port, pids = runners[name]
                    laps[size, many, name].append(course.load(port, size, many, seconds, pids))
    return laps


def tables(laps: Laps) -> str:
    text = []
    for size, many in dict.fromkeys((size, many) for size, many, _ in laps):
        rows = []
        for (a, b, name), runs in laps.items():
            if (a, b) == (size, many):
                rate, p50, p99, cpu, agent = ([lap[i] for lap in runs] for i in range(5))
                own = spread(cpu) if name != "direct" else "-"
                extra = f" + {statistics.median(agent):.0f}" if name in GUARDS else ""
                rows.append(
                    [NAMES.get(name, name), own + extra, spread([p / 1000 for p in p50], 2),
                     spread([p / 1000 for p in p99], 2), spread(rate)]
                )  # fmt: skip
        text.append(f"**{SIZES[size]} answers, {many} connection{'s' * (many > 1)}**\n")
        text.append(table(["", "CPU µs per request", "p50 ms", "p99 ms", "requests/s"], rows) + "\n")
    return "\n".join(text)


def ratios(laps: Laps) -> str:
    """What the targets are stated in: CPU per request over Envoy's of the same run."""

    def over(one: str, other: str, size: str, many: int) -> str:
        pairs = zip(laps[size, many, one], laps[size, many, other], strict=True)
        return spread([(a.cpu + a.agent) / b.cpu for a, b in pairs], 2)

    numbers = sorted({many for _, many, _ in laps})
    rows = []
    for what, one, other, size, target in (
        ("masked record ÷ Envoy", "masked", "Envoy", "small", "≤ 1.5 (1.0)"),
        (
            "masked record ÷ Envoy + Lua, request body",
            "masked",
            "Envoy + Lua, request",
            "small",
            "≤ 0.8 (0.5)",
        ),
        ("masked record ÷ Envoy + Lua, both bodies", "masked", "Envoy + Lua, both bodies", "small", ""),
        ("full record ÷ Envoy", "full", "Envoy", "large", "≤ 4"),
        ("vectors cut ÷ Envoy", "stripped", "Envoy", "large", "≤ 1.5"),
        ("vectors digested in the record ÷ Envoy", "masked", "Envoy", "large", "≤ 1.5"),
        ("vectors cut, e-mail masked ÷ Envoy", "cut", "Envoy", "large", ""),
        (
            "vectors cut, e-mail masked ÷ Envoy + Lua, both bodies",
            "cut",
            "Envoy + Lua, both bodies",
            "large",
            "",
        ),
        ("full record ÷ mitmproxy", "full", "mitmproxy", "large", ""),
    ):
        if (size, numbers[0], other) in laps:
            rows.append([what, SIZES[size], *(over(one, other, size, many) for many in numbers), target])
    heads = [f"{many} connection{'s' * (many > 1)}" for many in numbers]
    return table(["CPU per request (worker and agent)", "answer", *heads, "target"], rows)


@pytest.mark.limit(3500)
def test_cpu_latency_and_throughput_beside_the_peers(sized: Callable[[int, int], int]) -> None:
    runs, seconds = sized(1, 5), sized(1, 2)
    names = list(peers.PEERS) if FULL else ["HAProxy", "Envoy"]
    with used_memory() if FULL else nullcontext(), Course(GUARDS, POLICY) as course:
        course.start_nginx()
        course.start_peers(names)
        course.start_vecward()
        laps = measure(course, [1, 64] if FULL else [8], runs, seconds)
        verified = course.cli("verify", str(course.folder / "evidence")) if not FULL else None
    assert verified is None or "whole" in verified.stdout
    text = (
        f"{machine()}. {peers.versions()}. {runs} alternating runs of {seconds} s: median (least-greatest). "
        "CPU: user + system time of the proxy; of Vecward, worker + agent.\n\n"
    )
    write_section("proxies", text + ratios(laps) + "\n\n" + tables(laps))
