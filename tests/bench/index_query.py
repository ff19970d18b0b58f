# SPDX-License-Identifier: Apache-2.0
"""How fast the index is made of a million exchanges, and how fast it answers (no root, no kernel part).

``python -m tests.bench.index_query [EXCHANGES] [FOLDER]``. The evidence is synthetic: the writer's own
packing, 50 exchanges a session, 10 hits an answer of 200,000 ids, 2 frames an exchange, 32 exchanges a block.
FOLDER is kept when it is given.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.evidence.filter import Filter
from agent.evidence.frames import Frame
from agent.evidence.index import Index
from agent.evidence.query import Query
from tests.unit.evidence.sample import SECOND, START, Stream, answered, asked, ended, opened

PER_SESSION, PER_BLOCK, HITS, IDS = 50, 32, 10, 200_000
USERS = [(f"user{i}", 1000 + i) for i in range(40)]
ROUNDS = 7


def write(folder: Path, exchanges: int) -> None:
    """Four processes' sessions at a time, interleaved in their blocks as a worker's are."""
    dice = random.Random(7)
    stream = Stream(folder)
    for group in range(0, exchanges // PER_SESSION, 4):
        names = [f"{group + k:016x}" for k in range(4)]
        for k, name in enumerate(names):
            user, uid = USERS[(group + k) % len(USERS)]
            exe = f"/srv/app{(group + k) % 25}/bin/python3"
            at = START + (group + k) * SECOND
            stream.block(opened(name, at, pid=2000 + (group + k) % 30_000, user=user, uid=uid, exe=exe))
        frames: list[Frame] = []
        for n in range(1, PER_SESSION + 1):
            for k, name in enumerate(names):
                at = START + (group + k) * SECOND + n * SECOND // 100
                denied = dice.random() < 0.02
                where = (f"kb_{dice.randrange(60)}",)
                verdict = "deny" if denied else "allow"
                frames.append(asked(name, n, at, outcome=verdict, collections=where))
                ids = () if denied else tuple(str(dice.randrange(IDS)) for _ in range(HITS))
                frames.append(
                    answered(name, n, at + 10**6, ids=ids, outcome="refused" if denied else "answered")
                )
                if len(frames) >= 2 * PER_BLOCK:
                    stream.block(*frames)
                    frames = []
        stream.block(*frames, *(ended(name, START + (group + 5) * SECOND) for name in names))
        if stream.path.stat().st_size > 64 * 2**20:
            stream.rotate()


def timed(what: str, ask: Callable[[], object]) -> None:
    took = []
    found: object = None
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = ask()
        took.append((time.perf_counter() - began) * 1e3)
    size = len(found) if isinstance(found, list) else 1
    print(f"{what:58} {statistics.median(took):9.2f} ms  ({min(took):.2f} to {max(took):.2f}; {size})")


def main() -> None:
    exchanges = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="vecward-bench-") as made:
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(made)
        if not any(folder.glob("streams/*/*.seg")):
            began = time.perf_counter()
            write(folder, exchanges)
            print(f"written in {time.perf_counter() - began:.1f} s")
        with Index.open(folder) as index:
            size = index.archive.size()
            began, cpu = time.perf_counter(), time.process_time()
            index.rebuild()
            took, cpu = time.perf_counter() - began, time.process_time() - cpu
            known = index.info()
            print(f"{known.exchanges} exchanges of {known.sessions} sessions in {size / 2**20:.0f} MiB")
            print(
                f"index: {took:.1f} s ({cpu:.1f} s CPU), {known.exchanges / took:.0f} exchanges/s, "
                f"{known.bytes / 2**20:.0f} MiB, {known.bytes / known.exchanges:.0f} B/exchange, "
                f"{known.ids} (id, session) pairs"
            )
        ask(folder)


def ask(folder: Path) -> None:
    with Index.open(folder) as index:
        query = Query(index)
        timed("catch up with nothing new", index.catch_up)
        timed("sessions --limit 50", lambda: query.sessions(Filter(), 50))
        timed("sessions --pid 2345", lambda: query.sessions(Filter(pid=2345)))
        timed("sessions --user user7 --limit 50", lambda: query.sessions(Filter(user="user7"), 50))
        timed(
            "sessions --exe '/srv/app1*' --verdict deny --limit 50",
            lambda: query.sessions(Filter(exe="/srv/app1*", verdict="deny"), 50),
        )
        timed(
            "sessions --pid 2345 --collection 'kb_1*' --verdict deny",
            lambda: query.sessions(Filter(pid=2345, collection="kb_1*", verdict="deny")),
        )
        timed(
            "sessions --action search --since --until (10 min)",
            lambda: query.sessions(
                Filter(action="search", since=START + 600 * SECOND, until=START + 1200 * SECOND)
            ),
        )
        timed(
            "sessions --client 10.0.0.0/8 (no match, all looked at)",
            lambda: query.sessions(Filter(client="10.0.0.0/8")),
        )
        one = query.sessions(Filter(pid=2345))[-1]
        timed("show SESSION (50 exchanges, read and assembled)", lambda: list(query.exchanges(one)))
        timed("show SESSION --exchange 25", lambda: query.exchange(one, 25).n)
        timed("tail -n 20 --verdict deny", lambda: query.recent(Filter(verdict="deny"), 20))
        timed("seen 12345 (every sighting read and checked)", lambda: query.seen("12345"))


if __name__ == "__main__":
    main()
