# SPDX-License-Identifier: Apache-2.0
"""Events for the operator: the journal's own form, and a line on stderr unless the journal is stderr."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.journal import DENY_EVERY, GAP_EVERY, MAX_VALUE, Growth, announce, encode
from agent.journal_ids import EVENTS


@pytest.fixture
def journal() -> Iterator[tuple[Path, socket.socket]]:
    """A socket where journald's would be."""
    with (
        tempfile.TemporaryDirectory(prefix="vwtest-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.bind(f"{folder}/socket")
        sock.setblocking(False)
        yield Path(folder) / "socket", sock


def test_an_event_is_one_datagram_of_fields(
    journal: tuple[Path, socket.socket], capsys: pytest.CaptureFixture[str]
) -> None:
    path, sock = journal
    fields = {"client": ["10.0.0.9", 51234], "pid": None, "guard": "docs"}
    announce("bypass", "bypass: x", fields, path)
    lines = sock.recv(65536).decode().splitlines()
    assert lines == [
        "MESSAGE=vecward: bypass: x", f"MESSAGE_ID={EVENTS['bypass'].message_id}", "PRIORITY=2",
        "SYSLOG_IDENTIFIER=vecward", "VECWARD_EVENT=bypass", "VECWARD_CLIENT=10.0.0.9:51234",
        "VECWARD_GUARD=docs",
    ]  # fmt: skip
    assert capsys.readouterr().err == "vecward: bypass: x\n"


def test_a_line_break_in_a_value_makes_no_field_of_its_own() -> None:
    data = encode({"VECWARD_REASON": "x\nMESSAGE_ID=forged", "bad name": "y", "MESSAGE": "z"})
    assert data == b"VECWARD_REASON\n" + (19).to_bytes(8, "little") + b"x\nMESSAGE_ID=forged\nMESSAGE=z\n"


def test_a_value_is_cut_and_the_datagram_bounded() -> None:
    assert len(encode({"A": "x" * 10**6})) == MAX_VALUE + 3


def test_without_a_journal_it_is_a_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announce("off", "off: docs", {"guard": "docs"}, tmp_path / "none")
    assert capsys.readouterr().err == "vecward: off: docs\n"


def test_where_stderr_is_the_journal_it_is_not_said_twice(
    journal: tuple[Path, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        announce("on", "on: docs", {}, journal[0])
    assert (tmp_path / "stderr").read_text() == ""
    assert journal[1].recv(65536)


def test_a_journal_that_takes_nothing_more_costs_a_line_and_no_wait(
    journal: tuple[Path, socket.socket], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5000):
        announce("on", "on", {}, journal[0])
    assert capsys.readouterr().err.count("\n") == 5000


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def __call__(self, event: str, text: str, fields: dict[str, object]) -> None:
        self.events.append((event, fields["count"]))


def test_denials_are_told_at_once_and_then_once_a_minute_with_how_many() -> None:
    told, now = Told(), [0.0]
    growth = Growth(told, lambda: now[0])
    growth.note({})
    assert told.events == []
    for count in (1, 2, 40):
        growth.note({"proxy_requests_deny": count})
    now[0] = DENY_EVERY
    growth.note({"proxy_requests_deny": 41})
    growth.note({"proxy_requests_deny": 41})
    now[0] = 3 * DENY_EVERY
    growth.note({"proxy_requests_deny": 41})
    assert told.events == [("deny", 1), ("deny", 40)]


def test_a_gap_is_told_within_seconds() -> None:
    told, now = Told(), [100.0]
    growth = Growth(told, lambda: now[0])
    growth.note({"proxy_evidence_dropped": 7})
    now[0] += GAP_EVERY
    growth.note({"proxy_evidence_dropped": 9})
    assert told.events == [("gap", 7), ("gap", 2)]
