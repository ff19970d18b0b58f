# SPDX-License-Identifier: Apache-2.0
"""CPU and latency of a nearest-neighbour transaction: direct, through PgBouncer, through Vecward, in one run.

All three stand all the time, one is loaded at a time, runs alternate. Asserts no time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from tests.bench.course import cpu
from tests.bench.memory import used_memory
from tests.bench.peers import found
from tests.bench.report import FULL, machine, spread, table, write_section
from tests.kernel.arena import PATIENCE
from tests.servers.postgres import OWNER, SECRET, PostgresStage

POOLER = 6432
ROUNDS, SECONDS, CLIENTS = (5, 4, 8) if FULL else (1, 1, 8)
TABLE = """
CREATE EXTENSION vector;
CREATE TABLE papers (id bigint PRIMARY KEY, title text, embedding vector(128));
INSERT INTO papers SELECT n, 'title ' || n,
  (SELECT array_agg(sin(n * 131 + d))::vector FROM generate_series(1, 128) AS d)
  FROM generate_series(1, 5000) AS n;
CREATE INDEX ON papers USING hnsw (embedding vector_cosine_ops);
ANALYZE papers;
"""
POLICY = """\
version: 1
rules:
  - {id: searches, what: {guard: pg, collection: papers, action: search}, limit: {top_k: 20}, allow: true}
  - {id: connects, what: {guard: pg, action: session}, allow: true}
"""


class Lap(NamedTuple):
    cpu: float  # us a transaction, of the proxy
    agent: float
    p50: float  # us
    p99: float
    rate: float


def pooler(stage: PostgresStage) -> subprocess.Popen[bytes]:
    """PgBouncer in session mode, as nobody: it refuses root."""
    folder = stage.folder / "pooler"
    folder.mkdir()
    folder.chmod(0o777)
    config = folder / "pgbouncer.ini"
    config.write_text(
        "[databases]\n"
        f"postgres = host=127.0.0.1 port={stage.port} user={OWNER} password={SECRET}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {POOLER}\nauth_type = any\npool_mode = session\n"
        f"unix_socket_dir =\nlogfile = {folder}/log\nignore_startup_parameters = extra_float_digits\n"
        "max_client_conn = 100\ndefault_pool_size = 50\n"
    )
    config.chmod(0o644)
    return stage.arena.popen(
        [found("pgbouncer"), str(config)], user="nobody", group="database", stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd=folder, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip


def lap(stage: PostgresStage, name: str, pids: list[int], agents: list[int]) -> Lap:
    logs = stage.folder / "laps"
    logs.mkdir(exist_ok=True)
    logs.chmod(0o777)
    for old in logs.iterdir():
        old.unlink()
    before, before_agent = cpu(pids), cpu(agents)
    stage.program(
        "pgbench", "-n", "-c", str(CLIENTS), "-j", "1", "-T", str(SECONDS), "-M", "prepared", "-l",
        f"--log-prefix={logs}/lap", "-f", str(stage.folder / "search.sql"),
        password=None if name == "Vecward" else SECRET, direct=name != "Vecward",
        environment={"PGPORT": str(POOLER if name == "PgBouncer" else stage.port)},
    )  # fmt: skip
    took = sorted(int(line.split()[2]) for file in logs.iterdir() for line in file.read_text().splitlines())
    count = len(took)
    return Lap(
        (cpu(pids) - before) / count,
        (cpu(agents) - before_agent) / count,
        took[count // 2],
        took[count * 99 // 100],
        count / SECONDS,
    )


def search(script: Path) -> None:
    """One statement with its query vector in the text: pgbench has no parameter of that size."""
    numbers = ",".join(f"{(n * 37 % 100) / 100:.2f}" for n in range(128))
    script.write_text(f"SELECT id, title FROM papers ORDER BY embedding <=> '[{numbers}]' LIMIT 10;\n")
    script.chmod(0o644)


def test_a_search_beside_pgbouncer() -> None:
    with used_memory() if FULL else nullcontext(), PostgresStage() as stage:
        stage.start_postgres()
        try:
            stage.program("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", stdin=TABLE)
            search(stage.folder / "search.sql")
            stage.vecward(POLICY, workers=1, credential={"user": OWNER, "password": stage.hold("pg", SECRET)})
            bouncer = pooler(stage)
            stage._wait(lambda: (stage.folder / "pooler" / "log").exists(), PATIENCE, "PgBouncer")
            laps: dict[str, list[Lap]] = defaultdict(list)
            children = stage.children()
            pids = {"direct": [], "PgBouncer": [bouncer.pid], "Vecward": children["proxy"]}
            for name in pids:
                lap(stage, name, pids[name], [])  # warm
            for turn in range(ROUNDS):
                for name in list(pids) if turn % 2 else list(pids)[::-1]:
                    agents = children["agent"] if name == "Vecward" else []
                    laps[name].append(lap(stage, name, pids[name], agents))
            bouncer.terminate()
            bouncer.wait(PATIENCE)
            report(laps)
        finally:
            stage.stop()
            stage.stop_database()


def report(laps: dict[str, list[Lap]]) -> None:
    ratios = [
        (ours.cpu + ours.agent) / theirs.cpu
        for ours, theirs in zip(laps["Vecward"], laps["PgBouncer"], strict=True)
    ]
    added = statistics.median(x.p50 for x in laps["Vecward"]) - statistics.median(
        x.p50 for x in laps["direct"]
    )
    rows = [
        [
            name,
            "-" if name == "direct" else spread([x.cpu + x.agent for x in found_]),
            spread([x.p50 / 1000 for x in found_], 2),
            spread([x.p99 / 1000 for x in found_], 2),
            spread([x.rate for x in found_]),
        ]
        for name, found_ in laps.items()
    ]
    text = (
        f"{machine()}. {ROUNDS} alternating runs of {SECONDS} s, pgbench, {CLIENTS} clients, prepared.\n\n"
        f"CPU of Vecward (worker and agent) ÷ PgBouncer: {spread(ratios, 2)}; target ≤ 3 (2). "
        f"Added p50 over direct: {added / 1000:.2f} ms; target ≤ 0.3.\n\n"
        + table(["", "CPU µs per transaction", "p50 ms", "p99 ms", "transactions/s"], rows)
    )
    write_section("postgres", text)
