# SPDX-License-Identifier: Apache-2.0
"""Killed in the middle: nothing was released without its frame, nobody went past, nothing looks tampered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.servers.stage import Stage

ROUNDS = 20 if FULL else 2
CLIENTS = 4
EXCHANGES = 250 if FULL else 100  # of each client, in each round
# Counts what it was really given: a whole 200. Connects again after a cut, as a service would; a number that
# was sent is not sent again, for it may have been answered.
SCRIPT = """
import http.client, os, sys, time
first, count, go_on = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
end, connection = time.monotonic() + 240, None

def connect():
    while time.monotonic() < end:
        made = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
        try:
            made.connect()
            return made
        except OSError:
            time.sleep(0.02)
    sys.exit("nobody listens")

for n in range(first, first + count):
    while n == first + count // 2 and not os.path.exists(go_on):
        time.sleep(0.001)  # nobody is done before the kill, however the processes are scheduled
    connection = connection or connect()
    try:
        connection.request("GET", "/api/v2/heartbeat", headers={"x-claim": str(n)})
        answer = connection.getresponse()
        if answer.status == 200 and b"heartbeat" in answer.read():
            print(n, flush=True)
        else:
            answer.read()
    except (OSError, http.client.HTTPException):
        connection = None
"""


def _round(stage: Stage, file: Path, first: int, victims: str) -> list[int]:
    """One round: clients, a kill in the middle, and the numbers that were answered."""
    killed = stage.folder / f"killed-{first}"
    clients = [
        stage.start_client(
            file, str(first + i * EXCHANGES), str(EXCHANGES), str(killed), user="nobody",
            python=Path("/usr/bin/python3"),
        )
        for i in range(CLIENTS)
    ]  # fmt: skip
    given = [_first_answers(clients[0], EXCHANGES // 10)]
    before = stage.children()
    for name in victims.split("+"):
        for pid in before["proxy" if name == "worker" else "agent"]:
            os.kill(pid, signal.SIGKILL)
    killed.touch()
    for client in clients:
        with client:  # closes its pipes
            assert client.stdout is not None
            assert client.stderr is not None
            given.append([int(line) for line in client.stdout.read().split()])  # after what readline buffered
            assert client.wait(280) == 0, client.stderr.read().decode()
    return [number for some in given for number in some]


def _first_answers(client: subprocess.Popen[bytes], count: int) -> list[int]:
    """Wait until a client is well under way."""
    assert client.stdout is not None
    return [int(client.stdout.readline()) for _ in range(count)]


@pytest.mark.parametrize("victims", ["worker", "agent", "worker+agent"])
def test_after_a_kill_everything_released_is_recorded_and_nobody_went_past(victims: str) -> None:
    with Stage("chroma") as stage:
        stage.start_database()
        stage.vecward()
        file = stage.folder / "count.py"
        file.write_text(SCRIPT)
        file.chmod(0o644)
        answered: list[int] = []
        for number in range(ROUNDS):
            answered += _round(stage, file, number * CLIENTS * EXCHANGES, victims)
            _wait_until_served(stage)
        kernel = stage.status["kernel"]
        assert kernel["established_bypass"] == kernel["established_unobserved"] == 0
        assert kernel["lookup_unobserved"] == 0
        assert stage.stop() == 0, stage.tail()
        _check_recorded(stage, answered)
        _check_proof(stage)
    asked = ROUNDS * CLIENTS * EXCHANGES
    assert len(answered) > asked // 2, "too few answers to say anything"
    if "worker" in victims:
        assert len(answered) < asked, "no exchange was under way when the workers were killed"


def _wait_until_served(stage: Stage) -> None:
    """Both workers are back, so that the next round starts from rest."""
    deadline = time.monotonic() + 120
    while True:
        try:
            if all(guard["workers"] == 2 for guard in stage.status["guards"]):
                return
        except AssertionError:
            pass  # the agent is starting
        assert time.monotonic() < deadline, stage.tail()
        time.sleep(0.1)


def _check_recorded(stage: Stage, answered: list[int]) -> None:
    exported = stage.folder / "all.jsonl"
    stage.cli("export", "--format", "jsonl", "--output", str(exported))
    recorded = set()
    for line in exported.read_text().splitlines():
        exchange = json.loads(line)
        if exchange["outcome"] == "answered":
            recorded.add(int(exchange["request"]["head"]["x-claim"]))
    missing = set(answered) - recorded
    assert not missing, f"{len(missing)} answers were released without their frame, like {min(missing)}"


def _check_proof(stage: Stage) -> None:
    done = stage.cli("verify", str(stage.folder / "evidence"), "--json", check=False)
    report = json.loads(done.stdout)
    kinds = {finding["kind"] for finding in report["findings"]}
    assert kinds <= {"torn", "recovered", "unproven", "gap"}, report["findings"][:5]
