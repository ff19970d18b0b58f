# SPDX-License-Identifier: Apache-2.0
"""What is explained is what happened: of a process that still lives, and of what it did."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from tests.kernel.arena import ROOT
from tests.servers.stage import Stage

POLICY = """\
version: 1
rules:
  - id: searchers
    who: {user: nobody, exe: "/usr/**"}
    what: {guard: docs, collection: papers, action: [search, write, schema]}
    allow: true
    limit: {top_k: 5, over: clamp}
    mask: [{pii: [email], as: redact}]
  - id: hello
    what: {guard: docs, action: session}
    allow: true
"""
CLIENT = """
import contextlib, time, chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
papers = client.create_collection("papers", embedding_function=None)
papers.add(ids=["a"], embeddings=[[1, 0, 0]], documents=["write to ada@example.org"])
papers.query(query_embeddings=[[1, 0, 0]], n_results=9)
with contextlib.suppress(Exception):
    papers.get()
print("done", flush=True)
time.sleep(280)
"""
SAME = (
    "pid", "uid", "euid", "gid", "user", "groups", "login_uid", "comm", "exe", "argv", "unit", "user_unit",
    "slice", "container", "cgroup", "user_ns", "mnt_ns", "net_ns", "parents",
)  # fmt: skip


def test_a_living_process_and_what_it_did_are_explained_as_they_were_judged() -> None:
    with Stage("chroma") as stage:
        stage.start_database()
        stage.vecward(POLICY)
        script = stage.folder / "client.py"
        script.write_text(CLIENT)
        client = stage.start_client(script, user="nobody")
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"done\n", stage.tail()
            found = wait_for_denial(stage)
            live = by_pid(stage, found["pid"])
        finally:
            client.kill()
            client.communicate()
        assert {key: live[key] for key in SAME} == {key: found[key] for key in SAME}
        words = set()
        for n in range(1, found["requests"] + 1):
            made = stage.json("policy", "explain", "--session", found["session"], "--exchange", str(n))
            was = made["recorded"]
            assert [made[key] for key in ("verdict", "rule", "message")] == [
                was[key] for key in ("verdict", "rule", "message")
            ]
            assert was["same_policy"]
            words |= {made["verdict"], "clamp" if made["clamps"] else "", "mask" if made["masks"] else ""}
        assert words == {"allow", "deny", "clamp", "mask", ""}


def wait_for_denial(stage: Stage) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while not (found := stage.json("sessions", "--verdict", "deny")):
        assert time.monotonic() < deadline, stage.tail()
        time.sleep(0.1)
    first: dict[str, Any] = found[0]
    return first


def by_pid(stage: Stage, pid: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "agent", "-c", str(stage.config), "policy", "explain", "--pid", str(pid)]
    command += ["--what", "guard=docs", "--what", "action=scan", "--what", "collection=papers", "--json"]
    made = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert made["verdict"] == "deny"
    subject: dict[str, Any] = made["subject"]
    return subject
