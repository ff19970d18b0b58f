# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - tables of cases
"""A session as steps in time, and the hits of recorded answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evidence.archive import Archive
from agent.evidence.assemble import Pieces, exchange_of
from agent.evidence.query import Gap
from agent.evidence.replay import Hit, Step, hits, pause, steps
from agent.evidence.views import Exchange
from tests.unit.evidence.sample import SECOND, START, Stream, answered, asked, ended, opened, story


def answer(document: Any) -> Exchange:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return exchange_of("s", "s1", 1, Pieces(asked("s1", 1), 1), answered("s1", 1, body=body), 2)


def test_the_story_is_told_in_the_order_in_which_it_happened(tmp_path: Path) -> None:
    story(tmp_path)
    archive = Archive(tmp_path)
    made = list(steps(archive.session("5e551001"), archive.exchanges("5e551001")))
    assert [(s.kind, s.exchange.n if s.exchange else 0) for s in made] == [
        ("connected", 0), ("asked", 1), ("answered", 1), ("asked", 2), ("answered", 2), ("asked", 3), ("lost", 3), ("gone", 0),
    ]  # fmt: skip


def test_pipelined_answers_come_after_the_questions_they_overlapped(tmp_path: Path) -> None:
    stream = Stream(tmp_path)
    stream.block(opened("s1"), asked("s1", 1), asked("s1", 2, START + SECOND))
    stream.block(answered("s1", 1, START + 2 * SECOND), answered("s1", 2, START + 3 * SECOND), ended("s1"))
    archive = Archive(tmp_path)
    gaps = [Gap(3, 4, 4, "disk full", START + 4 * SECOND)]
    made = [s.kind for s in steps(archive.session("s1"), archive.exchanges("s1"), gaps)]
    assert made == ["connected", "asked", "asked", "answered", "answered", "gap", "gone"]


def test_pauses_are_the_sessions_own_at_the_speed_asked_for() -> None:
    first, second = Step("asked", START), Step("answered", START + 10 * SECOND)
    assert pause(first, second, 20.0, 5.0) == pytest.approx(0.5)
    assert pause(first, second, 1.0, 5.0) == 5.0
    assert pause(second, first, 1.0, 5.0) == 0.0
    assert pause(Step("asked", None), second, 1.0, 5.0) == 0.0


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"ids": [["a", "b"]], "distances": [[0.5, 1]], "documents": [["one", None]], "metadatas": [[{"k": 1}, None]]},
         [Hit("a", 0.5, 'one  {"k":1}'), Hit("b", 1.0, "")]),
        ({"ids": ["a"], "documents": ["one"]}, [Hit("a", None, "one")]),
        ({"result": [{"id": 7, "score": 0.25, "payload": {"t": "x"}}]}, [Hit("7", 0.25, '{"t":"x"}')]),
        ({"result": {"points": [{"id": "u", "score": 1}]}}, [Hit("u", 1.0, "")]),
        ({"result": [[{"id": 1}], [{"id": 2}]]}, [Hit("1", None, ""), Hit("2", None, "")]),
        ({"result": {"groups": [{"id": "g", "hits": [{"id": 3, "score": 2}]}]}}, [Hit("3", 2.0, "")]),
        ({"result": {"id": 5, "payload": {}}}, [Hit("5", None, "{}")]),
        ({"ids": "no list"}, []),
        ({"result": True}, []),
        ([1, 2], []),
        (b"not json", []),
        (b"[" * 100_000, []),
    ],
)  # fmt: skip
def test_hits_are_taken_out_of_the_answers_of_each_engine(document: Any, expected: list[Hit]) -> None:
    assert hits(answer(document)) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ids", "result", "id", "points", "hits", "distances", "payload"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(json_values)
def test_no_answer_of_a_hostile_database_breaks_the_replay(document: Any) -> None:
    assert isinstance(hits(answer(document)), list)
