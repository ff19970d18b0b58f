# SPDX-License-Identifier: Apache-2.0
"""``vecward policy explain``: a recorded exchange is judged again as it was, by the whole card."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.card import session_card
from agent.cli.main import main
from agent.cli.policy import operation_of, subject_of
from agent.evidence.frames import IntentFrame, SessionFrame
from agent.evidence.index import Index
from agent.evidence.parts import operation_part, verdict_part
from agent.evidence.query import Query
from agent.messages import GuardSettings
from policy.compile import Policy
from policy.context import GuardContext
from policy.decide import decide, observed
from policy.document import load_policy
from policy.model import Action, Attribution, Parent, Subject, Verdict
from policy.operation import Operation
from tests.unit.evidence.sample import START, Stream, answered, ended

SESSION = "5e55a1b2c3d4"
RULES = """\
version: 1
rules:
  - id: no-threshold
    who: {script: /srv/etl.py, parent_exe: /usr/bin/make}
    what: {collection: kb, action: search}
    limit: {top_k: 5, over: clamp}
  - id: at-home
    who: {cwd: /srv, image: "rag:*", group: analysts, login_session: true}
    what: {action: [search, scan, write]}
    allow: true
  - id: own
    who: {self: true}
    what: {action: count}
    allow: true
  - id: masked
    what: {collection: people, action: search}
    mask: [{field: payload.ssn, as: hmac}]
  - id: few-rows
    what: {action: write}
    limit: {rows: 2}
  - id: no-script
    who: {exe_sha256: "0000000000000000000000000000000000000000000000000000000000000000"}
    what: {collection: secret}
    deny: "not with this program"
"""
SUBJECT = Subject(
    Attribution.KERNEL,
    pid=41, start_time=99, uid=1000, euid=1000, gid=1000, user="rag", group="analysts",
    groups=("analysts", "rag"), login_uid=1001, login_user="ada", audit_session=3, login_session=True,
    comm="python3",
    exe="/usr/bin/python3", parent_exe="/usr/bin/make",
    parents=(Parent(40, "/usr/bin/make"), Parent(1, None)), argv=("python3", "etl.py"), cwd="/srv",
    script="/srv/etl.py", cgroup="/x", slice="x.slice", container="c0ffee", image="rag:2", user_ns=1,
    mnt_ns=2, net_ns=3, is_self=True, login_tty="pts/3", unobtained=frozenset({"exe_sha256"}),
    null_reason={"exe_sha256": "no rule or record asked for it", "unit": "its cgroup belongs to no unit"},
)  # fmt: skip


def operation(*actions: Action, collection: str = "kb", **more: Any) -> Operation:
    return Operation("chroma", "docs", "POST /x", frozenset(actions), frozenset({collection}), **more)


OPERATIONS = {
    "allow": operation(Action.SEARCH, collection="other", top_k=3, fields=frozenset({"a"}), filtered=True),
    "clamp": operation(Action.SEARCH, top_k=9, queries=1, probed=frozenset({"n"}), carries_filter=True),
    "clamp of what names no limit": operation(Action.SEARCH, unbounded=True, vectors=True),
    "mask": operation(Action.SEARCH, collection="people", top_k=2),
    "deny of an oracle": operation(Action.SEARCH, collection="people", probed=frozenset({"payload.ssn"})),
    "deny of what was not obtained": operation(Action.SCAN, collection="secret"),
    "deny of nothing allowed": operation(Action.DELETE),
    "allow of itself": operation(Action.COUNT, bytes=7),
    "rows it writes": operation(Action.WRITE, rows=2, bytes=5, partial=False),
    "more rows than it may": operation(Action.WRITE, rows=3),
}


def judged(policy: Policy, asked: Operation) -> Verdict:
    return decide(policy, SUBJECT, asked, {}, 0.0)


def record(folder: Path, policy: Policy, mode: str = "enforce", subject: Subject = SUBJECT) -> None:
    """One session with every operation, as a worker writes it. Answers have rows of their own."""
    guard = GuardSettings("docs", 0, "chroma", (8000,), None, mode, "judge")  # type: ignore[arg-type]
    ends = (("127.0.0.1", 5), ("127.0.0.1", 8000))
    card = session_card(SESSION, "h", "b", guard, subject, *ends, policy.hash)
    stream = Stream(folder)
    stream.block(SessionFrame(at=START, up=START, session=SESSION, card=card))
    for n, asked in enumerate(OPERATIONS.values(), 1):
        verdict = judged(policy, asked)
        if mode == "observe":
            verdict = observed(verdict, asked)
        op, part = operation_part(asked), verdict_part(verdict)
        intent = IntentFrame(at=START, up=START, session=SESSION, n=n, op=op, verdict=part, bytes=asked.bytes)
        stream.block(intent, answered(SESSION, n, ids=("a",) * 7))
    stream.block(ended(SESSION))


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "rules.yaml").write_text(RULES)
    return Policy(load_policy([("rules.yaml", RULES)], GuardContext(None, 0.0)).rules)


def explain(tmp_path: Path, *args: str) -> str:
    files = ("--dir", str(tmp_path / "evidence"), "policy", "explain", *args, str(tmp_path / "rules.yaml"))
    result = CliRunner().invoke(main, files)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def test_the_whole_subject_and_operation_come_back_from_evidence(tmp_path: Path, policy: Policy) -> None:
    record(tmp_path / "evidence", policy)
    with Index.open(tmp_path / "evidence") as index:
        index.catch_up()
        query = Query(index)
        session = query.session(SESSION)
        assert subject_of(session) == SUBJECT
        got = [operation_of(exchange) for exchange in query.exchanges(session)]
    assert got == list(OPERATIONS.values())


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_recorded_exchange_is_judged_again_as_it_was(tmp_path: Path, policy: Policy, name: str) -> None:
    record(tmp_path / "evidence", policy)
    was = judged(policy, OPERATIONS[name])
    assert was.outcome == ("deny" if name.split()[0] in ("deny", "more") else "allow")
    assert bool(was.clamps) == name.startswith("clamp")
    assert bool(was.masks) == (OPERATIONS[name].collections == {"people"})
    number = str(list(OPERATIONS).index(name) + 1)
    now = json.loads(explain(tmp_path, "--session", SESSION, "--exchange", number, "--json"))
    assert (now["verdict"], now["rule"], now["message"]) == (was.outcome, was.rule, was.message)
    assert [(c["name"], c["value"], c["rule"]) for c in now["clamps"]] == [
        (c.name, c.value, c.rule) for c in was.clamps
    ]
    assert [m["rule"] for m in now["masks"]] == [m.rule for m in was.masks]
    recorded = now["recorded"]
    assert (recorded["verdict"], recorded["rule"], recorded["same_policy"]) == (was.outcome, was.rule, True)


def test_what_was_only_observed_is_explained_as_enforce_would_judge_it(
    tmp_path: Path, policy: Policy
) -> None:
    record(tmp_path / "evidence", policy, mode="observe")
    lines = explain(tmp_path, "--session", SESSION, "--exchange", "7").splitlines()
    assert lines[0].startswith("recorded: allow (observed: would deny), rule")
    assert lines[0].endswith("by this very policy")
    assert lines[1].startswith("verdict: deny")


def test_another_policy_than_the_recorded_one_is_said_so(tmp_path: Path, policy: Policy) -> None:
    record(tmp_path / "evidence", policy)
    (tmp_path / "rules.yaml").write_text(RULES.replace("top_k: 5", "top_k: 4"))
    out = explain(tmp_path, "--session", SESSION, "--exchange", "2")
    assert f"by policy {policy.hash}" in out.splitlines()[0]
    assert "cut: top_k to 4" in out


def test_what_no_rule_says_of_the_record_is_the_configurations(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    guards = "guards:\n  - {name: docs, engine: chroma, ports: [8000]}\n"
    (tmp_path / "v.yaml").write_text(f"{guards}evidence: {{level: hashes, mode: best-effort}}\n")
    asked = ["--who", "cwd=/srv", "--what", "action=search", "--what", "guard=docs", "--json"]
    command = ["-c", str(tmp_path / "v.yaml"), "policy", "explain", str(tmp_path / "rules.yaml"), *asked]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["record"] == {"level": "hashes", "mode": "best-effort"}


def test_a_remote_caller_is_judged_by_its_address(tmp_path: Path, policy: Policy) -> None:
    remote = Subject(
        Attribution.REMOTE, remote="10.0.0.9", null_reason={"pid": "the caller is on another host"}
    )
    record(tmp_path / "evidence", policy, subject=remote)
    with Index.open(tmp_path / "evidence") as index:
        index.catch_up()
        assert subject_of(Query(index).session(SESSION)) == remote


def test_a_card_that_does_not_say_what_was_not_obtained_counts_all_of_it_so(
    tmp_path: Path, policy: Policy
) -> None:
    record(tmp_path / "evidence", policy)
    with Index.open(tmp_path / "evidence") as index:
        index.catch_up()
        session = Query(index).session(SESSION)
    old = subject_of(replace(session, beside={}))
    assert old.unobtained >= {"cwd", "script", "image", "group"}
    assert (old.cwd, old.is_self) == (None, False)


def test_the_promised_fields_of_a_session_are_not_changed(tmp_path: Path, policy: Policy) -> None:
    record(tmp_path / "evidence", policy)
    with Index.open(tmp_path / "evidence") as index:
        index.catch_up()
        session = Query(index).session(SESSION)
    assert set(session.as_dict()) == {f.name for f in fields(session)} - {"beside"}
    assert session.beside["cwd"] == "/srv"


def test_a_living_process_is_a_caller(tmp_path: Path, policy: Policy) -> None:
    what = ("--what", "guard=docs", "--what", "action=count")
    pid = str(os.getpid())
    made = json.loads(explain(tmp_path, "--pid", pid, *what, "--json"))
    assert made["subject"]["pid"] == os.getpid()
    assert made["subject"]["exe"] == os.path.realpath(sys.executable)
    assert (made["verdict"], "is_self" in made["subject"]["unobtained"]) == ("deny", True)
    assert set(made["not_known"]) == {"connect", "exec", "self", "route"}
    out = explain(tmp_path, "--pid", pid, *what)
    assert out.startswith(f"subject: pid {pid} (")
    assert f"exe: {os.path.realpath(sys.executable)}" in out
    assert "not known here:" in out
    assert "failed who.self: wants True, got not obtained" in out


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--pid", "4194305", "--what", "guard=g", "--what", "action=count"), 1, "no process 4194305"),
        (("--pid", "1", "--who", "user=x"), 2, "all name the caller"),
        (("--pid", "1", "--session", "abcd"), 2, "all name the caller"),
        (("--pid", "1"), 2, "missing"),
        (("--pid", "0"), 2, "--pid"),
        ((), 2, "nothing to explain"),
    ],
)
def test_a_caller_that_cannot_be_told_is_an_error(
    tmp_path: Path, policy: Policy, args: tuple[str, ...], code: int, said: str
) -> None:
    result = CliRunner().invoke(main, ["policy", "explain", *args, str(tmp_path / "rules.yaml")])
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
