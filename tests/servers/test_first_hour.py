# SPDX-License-Identifier: Apache-2.0
"""The first hour of a sysadmin, as docs/howto/first-hour.md has it: from nothing to enforce, on a Chroma.

What `policy learn` proposes out of what was observed lets the application go on and nobody else; no client is
touched on the way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.arena import ROOT
from tests.servers.stage import Stage

APP, NOSY = "www-data", "games"
FILL = """\
import chromadb
client = chromadb.HttpClient(host="127.0.0.1", port=8000)
papers = client.create_collection("papers")
papers.add(ids=[str(n) for n in range(40)], embeddings=[[n, n % 7, 1.0] for n in range(40)],
           documents=[f"paper {n}" for n in range(40)])
"""
SEARCH = """\
import chromadb
papers = chromadb.HttpClient(host="127.0.0.1", port=8000).get_collection("papers")
for n in range(5):
    print(papers.query(query_embeddings=[[n, 1.0, 1.0]], n_results=5)["ids"][0])
print(papers.count())
"""
DUMP = """\
import chromadb
papers = chromadb.HttpClient(host="127.0.0.1", port=8000).get_collection("papers")
print(len(papers.get(include=["embeddings", "documents"])["ids"]), "papers with their embeddings")
"""


class Hour:
    """Commands as they are typed, in the namespace of the database; each is noted with what it printed."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.noted: list[str] = []

    def vecward(self, *arguments: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "agent", "-c", str(self.stage.config), *arguments]
        process = self.stage.arena.popen(
            command, group=None, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": "120"},
        )  # fmt: skip
        out, _ = process.communicate(timeout=120)
        text = out.decode()
        self.noted += [f"# vecward {' '.join(arguments)}", text.rstrip()]
        assert process.returncode == expect, text
        return text

    def client(self, script: str, user: str, expect: int = 0) -> str:
        """The client's output; its last line where it fails."""
        file = self.stage.folder / f"{re.sub('[^a-z]', '', script[-60:].lower())}.py"
        file.write_text(script)
        process = self.stage.start_client(file, user=user)
        out, err = process.communicate(timeout=180)
        assert process.returncode == expect, err.decode()[-3000:]
        said = out.decode() if not expect else err.decode().strip().splitlines()[-1]
        self.noted += [f"{user}$ python {'dump' if script == DUMP else 'search'}.py", said.rstrip()]
        return said


@pytest.fixture
def hour() -> Iterator[Hour]:
    """VECWARD_TRANSCRIPT=FILE keeps what was typed and printed, for the document."""
    with Stage("chroma") as stage:
        stage.start_database()
        config = stage.write_config(policy="version: 1\nrules: []\n")
        plain = config.read_text()
        # No guard yet: only where this stage has its own places.
        config.write_text(re.sub(r'"guards": \[.*?\}\], ', "", plain))
        assert "guards" not in config.read_text()
        (stage.folder / "policy.yaml").unlink()
        (stage.folder / "policy.d").mkdir()
        config.write_text(config.read_text().replace('["policy.yaml"]', '["policy.d"]'))
        made = Hour(stage)
        yield made
    if file := os.environ.get("VECWARD_TRANSCRIPT"):
        Path(file).write_text("\n".join(made.noted).replace(str(stage.folder), "/etc/vecward"))


def drop_rules_of(file: Path, user: str) -> None:
    """What the sysadmin does after reading: the rules and cases of somebody who has no business there."""
    lines = file.read_text().split("\n\n")
    kept = [block for block in lines if f"user: {user}" not in block or "tests:" in block]
    text = "\n\n".join(kept)
    cases = re.findall(r"^  - name: .*\n(?:    .*\n)+", text, re.MULTILINE)
    for case in cases:
        if f"user: {user}" in case:
            text = text.replace(case, "")
    file.write_text(text)


@pytest.mark.limit(600)
def test_from_discover_to_enforce_with_rules_that_were_learnt(hour: Hour) -> None:
    stage = hour.stage
    drop_in = stage.folder / "vecward.d" / "discovered-chroma-8000.yaml"
    learned = stage.folder / "policy.d" / "learned.yaml"
    stage.client(FILL)

    assert "chroma" in hour.vecward("discover")
    hour.vecward("discover", "--write")
    assert "mode: observe" in drop_in.read_text()
    stage.start()
    assert "observe" in hour.vecward("status")
    hour.vecward("doctor")

    before = hour.client(SEARCH, APP)
    assert "40 papers" in hour.client(DUMP, NOSY)
    hour.vecward("sessions")
    hour.vecward("policy", "learn", "-o", str(learned))
    hour.noted += [f"# cat {learned}", learned.read_text()]
    assert "limit: {top_k: 5}" in learned.read_text()
    drop_rules_of(learned, NOSY)
    hour.noted += [f"# cat {learned} (cut)", learned.read_text()]
    assert "usable" in hour.vecward("policy", "check")
    assert "0 failed" in hour.vecward("policy", "test")
    hour.vecward("reload")
    assert hour.client(SEARCH, APP) == before
    assert "40 papers" in hour.client(DUMP, NOSY)
    hour.vecward("sessions", "--verdict", "would")
    would = stage.json("sessions", "--verdict", "would")
    assert {session["user"] for session in would[-1:]} == {NOSY}

    drop_in.write_text(drop_in.read_text().replace("observe", "enforce"))
    hour.vecward("reload")
    assert hour.client(SEARCH, APP) == before
    assert "no rule allows it" in hour.client(DUMP, NOSY, expect=1)
    hour.vecward("sessions", "--verdict", "deny")
    assert {s["user"] for s in stage.json("sessions", "--verdict", "deny")} == {NOSY}
    hour.vecward("status")
    hour.vecward("off", "chroma-8000", "--for", "15m", "--reason", "CHG-1 searches are slow")
    assert "OFF" in hour.vecward("status")
    hour.vecward("on")
    assert "vecward_requests_total" in hour.vecward("metrics")
    denied = [line for line in stage.json("status")["proxy"].items() if line[0] == "requests_deny"]
    assert denied
    assert denied[0][1] >= 1
    hour.vecward("report", "-o", str(stage.folder / "report.tar.gz"))
    assert "deny: " in stage.log.read_text()
