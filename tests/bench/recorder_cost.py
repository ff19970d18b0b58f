# SPDX-License-Identifier: Apache-2.0
"""What recording one exchange costs: ``python tests/bench/recorder_cost.py [sizing]``.

INTENT and RESULT of one search, each flushed in its own loop turn (the worst case: nothing is shared), then
sixteen exchanges a turn. Bodies are generated once with a fixed seed. Median of five runs, process CPU time
(kernel included), writing to a real file under the temporary directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agent.evidence.recorder import Recorder
from agent.evidence.segment import create_segment, new_stream_id
from agent.protocols.session import Intent, Masked, Record, Result
from policy.model import Action, Limit, Verdict
from policy.operation import Operation

CHANCE = random.Random(1)
WORDS = ["".join(CHANCE.choices("etaoinshrdlu", k=CHANCE.randint(2, 9))) for _ in range(3000)]


def text(length: int) -> str:
    return " ".join(CHANCE.choices(WORDS, k=length // 5))[:length]


def answer(hits: int, characters: int, dimension: int = 0) -> bytes:
    """A search answer in Qdrant's form."""
    rows = []
    for _ in range(hits):
        row: dict[str, object] = {
            "id": CHANCE.randint(1, 10**7),
            "version": 3,
            "score": CHANCE.random(),
            "payload": {"title": text(40), "text": text(characters), "tenant": "acme"},
        }
        if dimension:
            row["vector"] = [CHANCE.gauss(0, 0.03) for _ in range(dimension)]
        rows.append(row)
    return json.dumps({"result": rows, "status": "ok", "time": 0.001}).encode()


def exchange(n: int, request: bytes, body: bytes, level: str) -> list[Record]:
    operation = Operation(
        engine="qdrant",
        guard="qdrant-prod",
        method="POST /collections/{c}/points/query",
        actions=frozenset({Action.SEARCH}),
        collections=frozenset({"contracts"}),
        top_k=10,
        fields=frozenset({"title", "text"}),
        queries=1,
        bytes=len(request),
    )
    verdict = Verdict(
        "allow", "rag-app", "10-rag.yaml:3", "", "9f86d081884c7d659a2feaa0c55ad015",
        limits=(Limit("top_k", 20, "deny", "rag-app"),), vectors=False, vectors_rule="rag-app",
    )  # fmt: skip
    keep = level in ("masked", "full")
    head = {"host": "db:6333", "content-type": "application/json", "user-agent": "python-client/1.9"}
    digest = hashlib.sha256(body).digest()
    ids = () if level == "meta" else tuple(str(i) for i in range(10))
    return [
        Intent(n, operation, verdict, head, request if keep else None, digest, len(request), 1),
        Result(
            n, "answered", 200, {"content-type": "application/json"}, body if keep else None,
            digest, len(body), digest, len(body), ids, 10, 0, (Masked("vectors", "drop", 10),),
        ),
    ]  # fmt: skip


def recorder(folder: Path) -> Recorder:
    stream = new_stream_id()
    number = 0

    def spare() -> None:
        nonlocal number
        number += 1
        made.give_spare(create_segment(folder / stream, number))

    made = Recorder(
        stream, create_segment(folder / stream, 0), None, host="bench", boot="bench",
        schedule=lambda call: None, need_spare=spare,
    )  # fmt: skip
    spare()
    made.open_session("s", {"pid": 1, "exe": "/usr/bin/python3", "unit": "rag.service"})
    made.flush()
    return made


def measure(request: bytes, body: bytes, level: str, per_turn: int, rounds: int) -> tuple[float, float]:
    """(CPU us, bytes on disk) per exchange."""
    costs, size = [], 0.0
    done: Callable[[bool], None] = lambda ok: None if ok else sys.exit("a write failed")  # noqa: E731
    for _run in range(5):
        with tempfile.TemporaryDirectory() as folder:
            made = recorder(Path(folder))
            records = [exchange(n, request, body, level) for n in range(per_turn)]
            before, begun = made.counters()["bytes"], time.process_time()
            for _ in range(rounds):
                for half in (0, 1):
                    for pair in records:
                        made.put("s", pair[half : half + 1], "strict", done)
                    made.flush()
                made.signed(made.seq)
            costs.append((time.process_time() - begun) / rounds / per_turn * 1e6)
            size = (made.counters()["bytes"] - before) / rounds / per_turn
            made.release_files()
    return statistics.median(costs), size


def sizes(request: bytes, bodies: list[bytes], level: str, per_turn: int) -> float:
    """Bytes on disk per exchange, every body another one."""
    with tempfile.TemporaryDirectory() as folder:
        made = recorder(Path(folder))
        before = made.counters()["bytes"]
        for start in range(0, len(bodies), per_turn):
            time.sleep(0.002 if per_turn == 1 else 0)  # an idle worker compresses small blocks too
            turn = [
                exchange(n, request, body, level) for n, body in enumerate(bodies[start : start + per_turn])
            ]
            for half in (0, 1):
                time.sleep(0.002 if per_turn == 1 else 0)
                for pair in turn:
                    made.put("s", pair[half : half + 1], "strict", lambda ok: None)
                made.flush()
            made.signed(made.seq)
        size = made.counters()["bytes"] - before
        made.release_files()
    return size / len(bodies)


def sizing() -> None:
    """GB a day by rate and level, for the table in docs/evidence-format.md."""
    vector = [CHANCE.gauss(0, 0.03) for _ in range(768)]
    search = json.dumps({"query": vector, "limit": 10, "with_payload": True}).encode()
    cut = json.dumps({"query": {"dim": 768, "sha256": os.urandom(32).hex()}, "limit": 10}).encode()
    small = [answer(7, 110) for _ in range(128)]
    large = [answer(95, 1400) for _ in range(8)]
    print("| answer | level | bytes, alone in its turn | bytes, 16 a turn | GB/day at 1/s | 100/s | 1000/s |")
    print("|---|---|---|---|---|---|---|")
    for name, bodies in (("2 KB", small), ("150 KB", large)):
        for level in ("meta", "hashes", "masked", "full"):
            request = search if level == "full" else cut
            alone, shared = (sizes(request, bodies, level, turn) for turn in (1, 16))
            days = [rate * 86400 * size / 1e9 for rate, size in ((1, alone), (100, alone), (1000, shared))]
            row = " | ".join(f"{day:.2f}" if day < 10 else f"{day:.0f}" for day in days)
            print(f"| {name} | {level} | {alone:.0f} | {shared:.0f} | {row} |")


def main() -> None:
    if "sizing" in sys.argv[1:]:
        sizing()
        return
    vector = [CHANCE.gauss(0, 0.03) for _ in range(768)]
    search = json.dumps({"query": vector, "limit": 10, "with_payload": True}).encode()
    cut = json.dumps({"query": {"dim": 768, "sha256": os.urandom(32).hex()}, "limit": 10}).encode()
    bodies = {"2 KB": answer(7, 110), "150 KB": answer(95, 1400), "150 KB vectors": answer(9, 110, 768)}
    print(
        "| answer | level | request stored | us, one exchange a turn | us, 16 a turn | bytes per exchange |"
    )
    print("|---|---|---|---|---|---|")
    for name, body in bodies.items():
        for level in ("meta", "hashes", "masked", "full"):
            request = search if level == "full" else cut
            shown = answer(9, 110) if level == "masked" and "vectors" in name else body
            rounds = 2000 if len(shown) < 10_000 or level in ("meta", "hashes") else 300
            one, size = measure(request, shown, level, 1, rounds)
            many, _ = measure(request, shown, level, 16, max(20, rounds // 16))
            stored = len(request) if level in ("masked", "full") else 0
            print(f"| {name} ({len(body)}) | {level} | {stored} | {one:.1f} | {many:.1f} | {size:.0f} |")


if __name__ == "__main__":
    main()
