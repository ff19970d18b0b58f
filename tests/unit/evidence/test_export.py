# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - hostile values and expected words
"""What leaves the host: whole files, every field, and nothing that a browser would run or fetch."""

from __future__ import annotations

import html.parser
import json
import stat
from pathlib import Path

import pytest

from agent.cli.output import clean, json_text
from agent.evidence.archive import ArchiveError
from agent.evidence.export import json_lines, page_name, whole_file, write_pages
from agent.evidence.filter import ANYTHING, Filter
from agent.evidence.index import Index
from agent.evidence.page import MAX_BODY, Proof
from agent.evidence.query import Query
from agent.evidence.views import Session, Span
from tests.unit.evidence.sample import STREAM, Stream, answered, asked, ended, opened, story

HOSTILE = "</td></pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[2J\u202e"

WHOLE = Proof("whole", ("ok",), 99, "ab")


def pages(folder: Path, target: Path, wanted: Filter = ANYTHING, proof: Proof = WHOLE) -> list[Path]:
    with Index.open(folder) as index:
        index.catch_up()
        query = Query(index)
        sessions = query.sessions(wanted)
        return write_pages(
            query,
            sessions,
            wanted,
            target,
            lambda s: proof,
            "2026-11-23T19:00:00Z",
            clean,
            False,
            lambda by: None,
        )


class Reader(html.parser.HTMLParser):
    """What a browser would see: tags, attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_page(folder: Path) -> str:
    stream = Stream(folder / "evidence")
    hostile = opened("s1", user=HOSTILE, exe=HOSTILE, argv=[HOSTILE], unit=HOSTILE, null_reason={HOSTILE: HOSTILE},
                     parents=[{"pid": 1, "exe": HOSTILE}], login_from={"tty": HOSTILE, "peer": HOSTILE}, guard=HOSTILE)  # fmt: skip
    body = json.dumps({"ids": [[HOSTILE]], "documents": [[HOSTILE]]}).encode()
    question = asked("s1", 1, body=HOSTILE.encode(), collections=(HOSTILE,), actions=(HOSTILE,))
    question.op.method = question.verdict.message = question.verdict.rule = question.verdict.where = HOSTILE
    question.verdict.outcome = question.verdict.would = HOSTILE
    question.head = {HOSTILE: HOSTILE}
    reply = answered(
        "s1",
        1,
        body=body,
        ids=(HOSTILE,),
        masks=((HOSTILE, HOSTILE, 1),),
        head={HOSTILE: HOSTILE},
        reason=HOSTILE,
    )
    stream.block(hostile, question, reply, ended("s1"))
    target = folder / "page.html"
    pages(folder / "evidence", target, proof=Proof(HOSTILE, (HOSTILE,), 1, HOSTILE))
    return target.read_text()


def test_nothing_in_a_page_can_run_or_be_fetched(tmp_path: Path) -> None:
    raw = hostile_page(tmp_path)
    seen = Reader(raw)
    assert not {"script", "img", "iframe", "link", "object", "form", "base", "svg", "video", "input"} & set(
        seen.tags
    )
    for name, value in seen.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "background")
        if name == "href":
            assert value is not None
            assert value.startswith("#x")
    assert "url(" not in raw
    assert "@import" not in raw
    assert "default-src 'none'" in raw
    assert "\x1b" not in raw
    assert "\u202e" not in raw
    assert seen.text.count("<script>alert(1)</script>") >= 20


def test_a_page_says_who_what_by_which_rule_and_how_it_ended(tmp_path: Path) -> None:
    story(tmp_path / "evidence")
    made = pages(tmp_path / "evidence", tmp_path / "one.html", Filter(user="rag"))
    text = Reader(made[0].read_text()).text
    for word in ("ada", "10.1.2.3", "rag.service", "/srv/rag/.venv/bin/python3", "no rule asked for it", "no-bulk-read",
                 "policy.d/10-rag.yaml:12", "bulk read is for backup.service only", "2× pii:email (redact)",
                 "unknown, may have executed", "n_results", "who.group wants analysts, got rag", "whole"):  # fmt: skip
        assert word in text
    assert made[0].read_text().count("<article") == 3


def test_exchanges_beyond_the_signed_frames_are_not_called_signed(tmp_path: Path) -> None:
    story(tmp_path / "evidence")
    (made,) = pages(tmp_path / "evidence", tmp_path / "one.html", Filter(user="rag"), Proof("whole", (), 7))
    assert made.read_text().count("<th>Signed</th><td>yes</td>") == 2
    assert made.read_text().count("<th>Signed</th><td>not yet</td>") == 1


def test_several_sessions_become_a_folder_with_a_list(tmp_path: Path) -> None:
    story(tmp_path / "evidence")
    made = pages(tmp_path / "evidence", tmp_path / "out")
    assert [p.name for p in made] == ["index.html", "5e551001-00aa11.html", "5e551002-00aa11.html"]
    links = [v for k, v in Reader(made[0].read_text()).attributes if k == "href"]
    assert links == ["5e551001-00aa11.html", "5e551002-00aa11.html"]


def test_a_page_of_a_large_body_is_bounded_and_says_so(tmp_path: Path) -> None:
    stream = Stream(tmp_path / "evidence")
    stream.block(opened("s1"), asked("s1", 1), answered("s1", 1, body=b"y" * (MAX_BODY + 10)))
    (made,) = pages(tmp_path / "evidence", tmp_path / "one.html")
    assert "10 more characters" in made.read_text()
    assert made.stat().st_size < 2 * MAX_BODY


def test_a_file_name_is_made_of_harmless_characters(tmp_path: Path) -> None:
    session = Session(session="../../etc/passwd\0", evidence=Span(STREAM, 1, 2))
    assert page_name(session) == "______etc_passwd_-00aa11.html"


def test_a_file_appears_whole_private_and_never_over_another(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"

    def break_off() -> None:
        with whole_file(target, False) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert list(tmp_path.iterdir()) == []
    with whole_file(target, False) as file:
        file.write("all")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(ArchiveError, match="is there already"), whole_file(target, False):
        pass
    with whole_file(target, True) as file:
        file.write("new")
    assert target.read_text() == "new"


def test_json_lines_hold_every_exchange_and_survive_what_is_not_utf8(tmp_path: Path) -> None:
    stream = story(tmp_path)
    stream.block(asked("5e551002", 2, body=b"\xff\x00\x1b[2J"), answered("5e551002", 2, body=b"\x1b[31m"))
    with Index.open(tmp_path) as index:
        index.catch_up()
        query = Query(index)
        lines = list(json_lines(query, query.sessions(ANYTHING), ANYTHING, json_text, lambda by: None))
    made = [json.loads(line) for line in lines]
    assert [(x["session"], x["n"]) for x in made] == [
        ("5e551001", 1),
        ("5e551001", 2),
        ("5e551001", 3),
        ("5e551002", 1),
        ("5e551002", 2),
    ]
    assert made[-1]["request"]["body"] == {"base64": "/wAbWzJK"}
    assert made[-1]["response"]["body"] == "\x1b[31m"
    assert "\x1b" not in "".join(lines)
