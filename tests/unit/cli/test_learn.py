# SPDX-License-Identifier: Apache-2.0
"""``vecward policy learn``: from evidence on disk to a file that ``policy check`` and ``test`` take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.main import main
from agent.evidence.frames import IntentFrame, OpaqueFrame
from tests.unit.evidence.sample import SECOND, START, Stream, answered, asked, ended, opened, story


def run(folder: Path, *args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["--dir", str(folder), *args])
    return result.exit_code, result.stdout, result.stderr


def bare(frame: IntentFrame, **verdict: object) -> IntentFrame:
    """The request as one that no rule spoke about."""
    for name, value in {"outcome": "allow", "rule": None, "would": None, **verdict}.items():
        setattr(frame.verdict, name, value)
    return frame


@pytest.fixture
def told(tmp_path: Path) -> Path:
    story(tmp_path / "evidence")
    return tmp_path / "evidence"


def test_what_is_proposed_is_a_policy_that_check_and_test_take(told: Path, tmp_path: Path) -> None:
    file = tmp_path / "learned.yaml"
    code, out, err = run(told, "policy", "learn", "-o", str(file))
    assert (code, out) == (0, "")
    assert f"{file}: 2 rules" in err
    assert run(told, "policy", "check", str(file))[0] == 0
    assert run(told, "policy", "test", str(file))[1] == "2 passed, 0 failed\n"


def test_what_is_there_is_not_overwritten(told: Path, tmp_path: Path) -> None:
    file = tmp_path / "learned.yaml"
    file.write_text("mine")
    code, _, err = run(told, "policy", "learn", "-o", str(file))
    assert (code, file.read_text()) == (1, "mine")
    assert "is there already" in err


def test_each_caller_gets_what_it_did_and_what_a_rule_refused_is_only_told(told: Path) -> None:
    code, out, _ = run(told, "policy", "learn", "--json")
    found = json.loads(out)
    assert (code, found["sessions"], found["exchanges"]) == (0, 2, 4)
    rules = {rule["id"]: (rule["who"], rule["what"], rule["seen"]["count"]) for rule in found["rules"]}
    assert rules == {
        "learned-chroma-prod-eve-curl": (
            {"user": "eve", "exe": "/usr/bin/curl"},
            {"guard": "chroma-prod", "collection": "kb_1", "action": "search"},
            1,
        ),
        "learned-chroma-prod-rag": (
            {
                "unit": "rag.service",
                "user": "rag",
                "login_user": "ada",
                "exe": "/srv/rag/.venv/bin/python3",
            },
            {"guard": "chroma-prod", "collection": "contracts", "action": "search"},
            1,
        ),
    }
    left = {one["why"] for one in found["left"]}
    assert left == {"rule no-bulk-read refused it", "rule rag-app would refuse it"}


def test_the_same_evidence_gives_the_same_text(told: Path) -> None:
    first = run(told, "policy", "learn", "--until", "@1795459166")
    assert first == run(told, "policy", "learn", "--until", "@1795459166")
    assert first[0] == 0


def test_only_the_time_and_the_guard_that_are_asked_for_count(told: Path) -> None:
    since = f"@{START // SECOND + 6}"
    rules = json.loads(run(told, "policy", "learn", "--since", since, "--json")[1])["rules"]
    assert [rule["who"]["user"] for rule in rules] == ["eve"]
    assert json.loads(run(told, "policy", "learn", "--guard", "x*", "--json")[1])["rules"] == []


def test_since_reaches_into_later_segments(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "evidence")
    stream.block(opened("5e551001"), bare(asked("5e551001", 1, actions=("scan",))), answered("5e551001", 1))
    for n in range(2, 6):
        stream.rotate()
        at = START + n * SECOND
        stream.block(bare(asked("5e551001", n, at, actions=("count",))), answered("5e551001", n, at))
    since = f"@{START // SECOND + 4}"
    (rule,) = json.loads(run(tmp_path / "evidence", "policy", "learn", "--since", since, "--json")[1])[
        "rules"
    ]
    assert (rule["what"]["action"], rule["seen"]["count"]) == ("count", 2)


def test_what_enforce_refused_for_want_of_a_rule_is_proposed_only_on_request(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "evidence")
    stream.block(opened("5e551001"), bare(asked("5e551001", 1), outcome="deny"), ended("5e551001"))
    found = json.loads(run(tmp_path / "evidence", "policy", "learn", "--json")[1])
    assert (found["rules"], len(found["left"])) == ([], 1)
    assert (
        len(json.loads(run(tmp_path / "evidence", "policy", "learn", "--refused", "--json")[1])["rules"]) == 1
    )


def test_what_observe_would_refuse_for_want_of_a_rule_is_what_is_learnt(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "evidence")
    stream.block(opened("5e551001"), bare(asked("5e551001", 1), would="deny"), answered("5e551001", 1))
    assert len(json.loads(run(tmp_path / "evidence", "policy", "learn", "--json")[1])["rules"]) == 1


def test_unread_traffic_of_the_database_itself_and_of_a_listed_peer_becomes_a_tunnel(tmp_path: Path) -> None:
    config = tmp_path / "vecward.yaml"
    config.write_text(
        "guards: [{name: q, engine: qdrant, ports: [6333, 6335], peers: [{remote: 10.0.0.7, port: 6335}]}]\n"
        f"policy: [{tmp_path}]\n"
    )
    stream = Stream(tmp_path / "evidence")
    other: dict[str, Any] = dict.fromkeys(("pid", "unit", "user", "uid", "exe")) | {"attribution": "remote"}
    stream.block(
        opened("5e551001", guard="q", engine="qdrant", is_self=True, unobtained=[]),
        OpaqueFrame(at=START, up=START, session="5e551001", reason="not read", protocol="http2"),
        opened("5e551002", guard="q", engine="qdrant", remote="10.0.0.7", unobtained=[], **other),
        OpaqueFrame(at=START, up=START, session="5e551002", reason="not read", protocol="http2"),
        opened("5e551003", guard="q", engine="qdrant", remote="10.0.0.8", unobtained=[], **other),
        OpaqueFrame(at=START, up=START, session="5e551003", reason="not read", protocol="http2"),
    )
    folder, file = tmp_path / "evidence", tmp_path / "learned.yaml"
    assert run(folder, "-c", str(config), "policy", "learn", "-o", str(file))[0] == 0
    text = file.read_text()
    assert "who: {self: true}" in text
    assert 'who: {remote: "10.0.0.7/32"}' in text
    assert text.count("tunnel: true") == 2
    assert "not proposed: guard q, remote=10.0.0.8, unknown (http2), 1 time:" in text
    code, out, err = run(folder, "-c", str(config), "policy", "check", str(file))
    assert code == 0, out + err


def test_a_connection_that_said_nothing_is_nobody_to_learn_from(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "evidence")
    for n, said in (("1", 0), ("2", 9)):
        session = f"5e55100{n}"
        frame = OpaqueFrame(at=START, up=START, session=session, reason="not read", protocol="unknown")
        stream.block(opened(session), frame, ended(session, bytes_in=said, bytes_out=0))
    (left,) = json.loads(run(tmp_path / "evidence", "policy", "learn", "--json")[1])["left"]
    assert left["count"] == 1
