# SPDX-License-Identifier: Apache-2.0
"""The course that everything is measured on: database, peers and Vecward in one namespace, on two cores.

Owns starting, pinning, loading with wrk, and reading what a process spent from /proc. The proxy under load
has one core for itself; the database and wrk share the other. Only one proxy is loaded at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import peers
from tests.servers.stage import Stage

TICK = 1e6 / os.sysconf("SC_CLK_TCK")  # microseconds of CPU a tick in /proc/PID/stat
LOAD = """\
local body
function init(args)
  if args[1] and args[1] ~= '' then
    local file = io.open(args[1]); body = file:read("*a"); file:close()
    wrk.method, wrk.body = "POST", body
    wrk.headers["Content-Type"] = "application/json"
  end
  if args[2] then wrk.headers["Connection"] = "close" end
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format("\\nresult %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Lap(NamedTuple):
    """One run: requests/s, latencies in us, CPU in us of the proxy (and of Vecward's agent) per request."""

    rate: float
    p50: float
    p99: float
    cpu: float
    agent: float


class Course(Stage):
    """A stage whose database is nginx with canned answers, with peers beside it."""

    def __init__(self, guards: dict[str, tuple[int, str]], policy: str) -> None:
        """`guards`: name to port and mode."""
        super().__init__("chroma")
        self.guards, self.policy = guards, policy
        self.peers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Course:
        super().__enter__()
        with contextlib.suppress(ValueError):  # thousands of idle connections, at both ends
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2
            )
        (self.folder / "load.lua").write_text(LOAD)
        return self

    def start_nginx(self) -> None:
        config = peers.write_database(self.folder, [port for port, _ in self.guards.values()])
        log = (self.folder / "nginx.out").open("ab")
        with log:
            self.database = self.arena.popen(
                self._pinned(peers.DATABASE_CPU, [peers.found("nginx"), "-c", str(config)]),
                group="database", stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_for(peers.DATABASE)

    def start_peers(self, names: Sequence[str]) -> None:
        for name in names:
            port, command = peers.PEERS[name]
            log = (self.folder / f"peer-{port}.log").open("ab")
            with log:
                self.peers[name] = self.arena.popen(
                    self._pinned(peers.PROXY_CPU, command(self.folder, port)), group="peers",
                    stdout=log, stderr=log,
                    env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
                )  # fmt: skip
        for name in names:
            self.wait_for(peers.PEERS[name][0])

    def start_vecward(self) -> float:
        """Start with one worker, pinned; returns the seconds until it was ready."""
        config = self.write_config(self.policy, workers=1)
        settings: dict[str, Any] = json.loads(config.read_text())
        settings["guards"] = [
            {"name": name, "engine": "chroma", "ports": [port], "mode": mode}
            for name, (port, mode) in self.guards.items()
        ]
        settings["evidence"]["max_size"] = "40GiB"
        config.write_text(json.dumps(settings))
        began = time.perf_counter()
        self.start()
        ready = time.perf_counter() - began
        for cpu, pids in ((peers.PROXY_CPU, self.workers), (peers.DATABASE_CPU, self.agents)):
            for pid in pids:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), {cpu})
        return ready

    @property
    def workers(self) -> list[int]:
        return self.children()["proxy"]

    @property
    def agents(self) -> list[int]:
        return self.children()["agent"]

    def load(self, port: int, size: str, connections: int, seconds: float, pids: Sequence[int]) -> Lap:
        """Post the query of `size` for a while; CPU is counted of `pids`, and of the agent if it runs."""
        path = f"{peers.API}/{peers.UUID % (1 if size == 'small' else 2)}/query"
        agents = self.agents if self._run is not None else []
        before, before_agent = cpu(pids), cpu(agents)
        rate, p50, p99, requests = self.wrk(
            port, path, connections, seconds, str(self.folder / f"ask-{size}.json")
        )
        spent, spent_agent = cpu(pids) - before, cpu(agents) - before_agent
        return Lap(rate, p50, p99, spent / requests, spent_agent / requests)

    def wrk(
        self, port: int, path: str, connections: int, seconds: float, *arguments: str
    ) -> tuple[float, float, float, int]:
        """(requests/s, p50 us, p99 us, requests). AssertionError when a request failed."""
        whole = max(1, round(seconds))
        command = [
            peers.found("wrk"), "-t1", f"-c{connections}", f"-d{whole}", "-s", str(self.folder / "load.lua"),
            f"http://127.0.0.1:{port}{path}", "--", *arguments,
        ]  # fmt: skip
        process = self.arena.popen(
            self._pinned(peers.DATABASE_CPU, command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said = process.communicate(timeout=whole + 60)[0].decode()
        line = next((line for line in said.splitlines() if line.startswith("result ")), None)
        if line is None:
            raise AssertionError(f"wrk: {said}")
        requests, micros, p50, p99, errors = map(int, line.split()[1:])
        if errors or not requests:
            raise AssertionError(
                f"{errors} errors in {requests} requests of port {port}:\n{said}\n{self.tail()}"
            )
        return requests / micros * 1e6, p50, p99, requests

    def wait_for(self, port: int) -> None:
        """Until something listens there."""
        self._wait(lambda: self.arena.inside(lambda: accepts(port)), 30, f"port {port}")

    @staticmethod
    def _pinned(core: int, command: list[str]) -> list[str]:
        return ["taskset", "-c", str(core), *command] if (os.cpu_count() or 1) > 1 else command


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cpu(pids: Sequence[int]) -> float:
    """User and system time of processes so far, in microseconds (all threads, no children)."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * TICK


def resident(pids: Sequence[int]) -> float:
    """Memory of processes in KiB: the sum of their VmRSS."""
    total = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.partition("VmRSS:")[2].split()[0])
    return float(total)
