# SPDX-License-Identifier: Apache-2.0
"""Every connection of many short-lived processes of several users is attributed to the right one."""

from __future__ import annotations

import json
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import FULL
from tests.servers.stage import Stage

PROCESSES = 200 if FULL else 25
CONNECTIONS = 50 if FULL else 8  # of each process
PARALLEL = 64 if FULL else 16
USERS = ("nobody", "daemon", "games", "mail", "www-data")
# Raw sockets: a client that ends at once after its answer, or (every second process) before it reads one.
SCRIPT = """
import os, socket, sys
count, user = int(sys.argv[1]), sys.argv[2]
for n in range(count):
    s = socket.create_connection(("127.0.0.1", 8000))
    claim = b"%d,%s,%d" % (os.getpid(), user.encode(), n)
    s.sendall(b"GET /api/v2/heartbeat HTTP/1.1\\r\\nhost: x\\r\\nx-claim: " + claim + b"\\r\\n\\r\\n")
    if s.recv(4096)[:12] != b"HTTP/1.1 200":
        sys.exit("no answer")
    s.close()
print(os.getpid())
"""


def _run(stage: Stage, file: Path, user: str) -> int:
    process = stage.start_client(file, str(CONNECTIONS), user, user=user, python=Path("/usr/bin/python3"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode() + stage.tail()
    return int(out)


def test_every_connection_of_short_lived_processes_is_attributed_to_its_own_process_and_user() -> None:
    with Stage("chroma") as stage:
        stage.start_database()
        stage.vecward()
        file = stage.folder / "claim.py"
        file.write_text(SCRIPT)
        file.chmod(0o644)
        users = [USERS[n % len(USERS)] for n in range(PROCESSES)]
        with ThreadPoolExecutor(PARALLEL) as pool:
            pids = list(pool.map(lambda user: _run(stage, file, user), users))
        assert stage.stop() == 0
        _check(stage, dict(zip(pids, users, strict=True)))


def _check(stage: Stage, made: dict[int, str]) -> None:
    sessions = {s["session"]: s for s in stage.json("sessions", "--limit", str(len(made) * CONNECTIONS * 2))}
    assert len(sessions) == len(made) * CONNECTIONS
    wrong, unattributed, seen = [], [], set()
    exported = stage.folder / "all.jsonl"
    stage.cli("export", "--format", "jsonl", "--output", str(exported))
    for line in exported.read_text().splitlines():
        exchange = json.loads(line)
        pid, user, n = exchange["request"]["head"]["x-claim"].split(",")
        session = sessions[exchange["session"]]
        if session["attribution"] != "kernel":
            unattributed.append(session)
        if (session["pid"], session["user"], session["uid"]) != (int(pid), user, pwd.getpwnam(user).pw_uid):
            wrong.append((exchange["request"]["head"], session))
        assert made[int(pid)] == user
        seen.add((pid, n))
    assert len(seen) == len(made) * CONNECTIONS
    assert not unattributed, unattributed[0]
    assert not wrong, wrong[0]
