# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - tables of expected words
"""The evidence commands, in process: what people and programs read."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli.main import main
from agent.evidence.frames import LimitPart
from tests.unit.evidence.sample import Stream, answered, asked, ended, opened, story

EVIL = "\x1b[2J\x1b]0;pwned\x07\u202e[red]evil[/]"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "120")
    story(tmp_path / "evidence")
    return tmp_path / "evidence"


def call(folder: Path, *args: str, **more: Any) -> Result:
    return CliRunner().invoke(main, ["--dir", str(folder), *args], **more)


def good(folder: Path, *args: str, **more: Any) -> str:
    result = call(folder, *args, **more)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def data(folder: Path, *args: str) -> Any:
    return json.loads(good(folder, *args, "--json"))


def test_sessions_is_a_table_of_who_asked(folder: Path) -> None:
    out = good(folder, "sessions")
    assert "rag (ada)" in out
    assert "curl" in out
    assert out.index("5e551001") < out.index("5e551002")
    assert max(len(line) for line in out.splitlines()) <= 120


def test_sessions_in_json_are_objects_with_the_promised_fields(folder: Path) -> None:
    made = data(folder, "sessions", "--user", "eve")
    assert [s["session"] for s in made] == ["5e551002"]
    assert made[0]["started"].endswith("Z")


def test_no_match_says_so_and_json_is_an_empty_list(folder: Path) -> None:
    assert good(folder, "sessions", "--pid", "1") == "no session matches\n"
    assert data(folder, "sessions", "--pid", "1") == []


def test_the_dir_and_json_options_may_stand_after_the_command(folder: Path) -> None:
    result = CliRunner().invoke(main, ["sessions", "--json", "--dir", str(folder)])
    assert len(json.loads(result.stdout)) == 2


def test_show_tells_the_identity_and_the_exchanges(folder: Path) -> None:
    out = good(folder, "show", "5e551001")
    for word in ("rag (uid 1000)", "ada from 10.1.2.3 at pts/3", "rag.service", "pid 4711 (python3)", "127.0.0.1:50000",
                 "unknown, may", "have executed", "refused 403", "2× pii:email", "no-bulk-read"):  # fmt: skip
        assert word in out


def test_show_in_json_has_session_exchanges_and_gaps(folder: Path) -> None:
    made = data(folder, "show", "5e551001")
    assert sorted(made) == ["exchanges", "gaps", "session"]
    assert [e["outcome"] for e in made["exchanges"]] == ["answered", "refused", "unknown, may have executed"]


def test_one_exchange_whole_has_request_decision_and_answer(folder: Path) -> None:
    out = good(folder, "show", "5e551001", "--exchange", "2")
    for word in ('"n_results": 3', "no-bulk-read (policy.d/10-rag.yaml:12)", "bulk read is for backup.service only",
                 "top_k ≤ 20, over: deny, by rag-app", "humans-ask: who.group wants analysts, got rag",
                 "soon would deny: not yet", '"error": "denied"', "intent 6, result 7"):  # fmt: skip
        assert word in out
    made = data(folder, "show", "5e551001", "--exchange", "2")
    assert made["trace"]["nearest"]["rule"] == "humans-ask"


def test_an_exchange_that_is_not_there_is_exit_1(folder: Path) -> None:
    result = call(folder, "show", "5e551001", "-n", "9")
    assert result.exit_code == 1
    assert "it has 3" in result.stderr


def test_what_was_cut_and_left_out_is_told_like_what_was_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    stream = Stream(tmp_path / "evidence")
    cut = asked("s1cut0001", 1, clamps=[LimitPart("top_k", 5, "clamp", "rag-app")], vectors=False)
    cut.op.vectors = True
    stream.block(opened("s1cut0001"), cut, answered("s1cut0001", 1), ended("s1cut0001"))
    for command in (("tail",), ("replay", "s1cut0001")):
        out = good(tmp_path / "evidence", *command)
        assert "masked: 2× pii:email" in out
        assert "; top_k cut to 5; no embeddings" in out
    assert "2× pii:email; top_k" in good(tmp_path / "evidence", "show", "s1cut0001")


def test_replay_tells_the_session_as_it_happened(folder: Path) -> None:
    out = good(folder, "replay", "5e551001")
    order = ["1. search in contracts", "answered 200", "masked: 2× pii:email (redact)", "2. scan", "refused 403",
             "3. delete", "unknown, may have executed", "the connection ended"]  # fmt: skip
    assert sorted(order, key=out.index) == order


def test_replay_steps_on_enter_and_ends_on_q(folder: Path) -> None:
    out = good(folder, "replay", "5e551001", "--step", input="\n\nq\n")
    assert "answered 200" in out
    assert "2. scan" not in out


def test_replay_waits_as_the_session_did(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    good(folder, "replay", "5e551001", "--speed", "2")
    assert slept == [0.0, 0.5, 0.5, 0.5, 2.5, 0.0, 0.5]


def test_replay_against_a_database_is_refused_clearly(folder: Path) -> None:
    result = call(folder, "replay", "5e551001", "--against", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "not in this build" in result.stderr


def test_tail_prints_the_newest_exchanges_in_order(folder: Path) -> None:
    lines = good(folder, "tail", "-n", "2").splitlines()
    assert ["5e551002#1" in lines[0], "5e551001#3" in lines[1]] == [True, True]
    made = [json.loads(line) for line in good(folder, "tail", "--json", "--verdict", "deny").splitlines()]
    assert [(x["session"], x["n"]) for x in made] == [("5e551001", 2)]


def test_tail_follows_what_is_recorded_until_interrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream.resume(folder)
    naps = iter(
        [
            [opened("f1", user="zoe"), asked("f1", 1), answered("f1", 1)],
            [asked("f1", 2, outcome="deny"), answered("f1", 2, outcome="refused", ids=())],
        ]
    )

    def nap(_: float) -> None:
        frames = next(naps, None)
        if frames is None:
            raise KeyboardInterrupt
        stream.block(*frames)

    monkeypatch.setattr(time, "sleep", nap)
    result = call(folder, "tail", "-f", "-n", "1", "--json")
    assert result.exit_code == 130
    made = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(x["session"], x["n"]) for x in made] == [("5e551001", 3), ("f1", 1), ("f1", 2)]


def test_seen_lists_every_subject_that_got_the_id(folder: Path) -> None:
    out = good(folder, "seen", "b")
    assert "rag (ada)" in out
    assert "eve" in out
    assert "2 subjects, 2 sessions, 2 answers held b" in out
    made = data(folder, "seen", "c")
    assert [(x["session"]["user"], x["count"], x["first"]["exchange"]) for x in made] == [("eve", 1, 1)]
    assert good(folder, "seen", "zzz") == "no recorded answer held zzz\n"


def test_export_writes_json_lines_and_pages(folder: Path, tmp_path: Path) -> None:
    lines = good(folder, "export", "--verdict", "deny").splitlines()
    assert [json.loads(line)["n"] for line in lines] == [2]
    out = good(
        folder, "export", "--format", "html", "-s", "5e551001", "-o", str(tmp_path / "x.html"), "--no-verify"
    )
    assert "1 session, 3 exchanges" in out
    assert "not verified" in (tmp_path / "x.html").read_text()
    again = call(folder, "export", "-o", str(tmp_path / "x.html"))
    assert (again.exit_code, "is there already" in again.stderr) == (1, True)


@pytest.mark.parametrize("form", ["parquet", "ocsf"])
def test_formats_that_are_not_there_say_so(folder: Path, form: str) -> None:
    result = call(folder, "export", "--format", form)
    assert (result.exit_code, "not in this build" in result.stderr) == (1, True)


def test_export_of_nothing_is_an_error_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    result = call(folder, "export", "--pid", "1", "-o", str(tmp_path / "x"))
    assert result.exit_code == 1
    assert not (tmp_path / "x").exists()


def test_the_index_is_disposable(folder: Path) -> None:
    assert data(folder, "index", "info")["exchanges"] == 4
    (folder / "index.sqlite").unlink()
    made = data(folder, "index", "rebuild")
    assert (made["sessions"], made["exchanges"], made["behind"]) == (2, 4, 0)


def test_damage_is_said_on_stderr_and_the_rest_is_shown(folder: Path) -> None:
    stream = Stream.resume(folder)
    bad = stream.path
    stream.rotate()
    stream.block(opened("s9"), asked("s9", 1), answered("s9", 1))
    bytes_ = bytearray(bad.read_bytes())
    bytes_[300:304] = b"\xff" * 4
    bad.write_bytes(bytes_)
    result = call(folder, "sessions")
    assert result.exit_code == 0
    assert "s9" in result.stdout
    assert "damaged" in result.stderr
    assert "vecward verify" in result.stderr


@pytest.mark.parametrize(
    "args",
    [("sessions",), ("show", "evil1"), ("show", "evil1", "-n", "1"), ("replay", "evil1", "--bodies"), ("tail",), ("seen", EVIL),
     ("sessions", "--json"), ("show", "evil1", "--json"), ("export",)],
)  # fmt: skip
def test_a_payload_cannot_command_the_terminal(tmp_path: Path, args: tuple[str, ...]) -> None:
    stream = Stream(tmp_path)
    question = asked("evil1", 1, body=EVIL.encode(), collections=(EVIL,), actions=("search",))
    question.op.method = question.verdict.message = question.verdict.rule = question.verdict.would = EVIL
    question.head = {EVIL: EVIL}
    body = json.dumps({"ids": [[EVIL]], "documents": [[EVIL]]}).encode()
    reply = answered("evil1", 1, body=body, ids=(EVIL,), masks=((EVIL, EVIL, 1),), reason=EVIL)
    stream.block(
        opened("evil1", user=EVIL, exe=EVIL, comm=EVIL, unit=EVIL, argv=[EVIL], guard=EVIL),
        question,
        reply,
        ended("evil1"),
    )
    out = good(tmp_path, *args)
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\x07" not in out


def test_verify_of_a_folder_without_a_ledger_is_an_error_and_not_whole(folder: Path) -> None:
    shutil.rmtree(folder / "ledger", ignore_errors=True)
    result = call(folder, "verify")
    assert result.exit_code != 0
