# SPDX-License-Identifier: Apache-2.0
"""A session of which more became known: index and segments say the newest, from the session's start."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.evidence.archive import Archive
from agent.evidence.frames import SessionFrame
from agent.evidence.index import Index
from agent.evidence.query import Query
from tests.unit.evidence.sample import SECOND, START, Stream, answered, asked, card, opened

NAME = "5e55100a"


def amended() -> SessionFrame:
    at = START + SECOND
    known = card(tls=True, tls_subject="CN=etl-1")
    return SessionFrame(at=at, up=at, session=NAME, card=known, again=True)


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])
def test_the_newest_card_counts_and_the_first_frame_tells_when_it_began(
    tmp_path: Path, together: bool
) -> None:
    stream = Stream(tmp_path)
    stream.block(opened(NAME))
    with Index.open(tmp_path) as index:
        if not together:
            index.catch_up()
        stream.block(amended(), asked(NAME, 1), answered(NAME, 1))
        stream.rotate()
        stream.block(amended())
        index.catch_up()
        found = Query(index).session(NAME)
    read = Archive(tmp_path).session(NAME)
    assert found == read
    assert (found.tls, found.tls_subject, found.requests) == (True, "CN=etl-1", 1)
    assert found.started == Archive(tmp_path).session(NAME).started == START
    assert found.evidence is not None
    assert (found.evidence.first, found.evidence.last) == (2, 7)
