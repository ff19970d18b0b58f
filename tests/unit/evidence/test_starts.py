# SPDX-License-Identifier: Apache-2.0
"""What a crash or a full disk at the worst moment may leave, and what a later start makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.config import Evidence
from agent.evidence.keys import KeyFolder
from agent.evidence.ledger import Ledger, PresentError
from agent.evidence.recovery import recover_streams
from agent.evidence.segment import create_segment, new_stream_id
from agent.notary import Notary


@pytest.mark.parametrize("which", ["mask", "host"])
def test_a_key_that_could_not_be_written_whole_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    def make() -> object:
        if which == "mask":
            return Notary(Evidence(dir=tmp_path)).masking_key()
        return KeyFolder(tmp_path).host()[0].public

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            make()
    made = make()
    assert make() == made


@pytest.mark.parametrize(
    "blocks",
    [
        [(1, 2**32, b"d" * 32)],
        [(1, 65_537, b"d" * 32)],
        [(2**64, 1, b"d" * 32)],
        [(-5, 1, b"d" * 32)],
    ],
)
def test_numbers_that_no_honest_worker_presents_stop_nobody_elses_signing(
    tmp_path: Path, blocks: list[tuple[int, int, bytes]]
) -> None:
    ledger = Ledger(tmp_path, host="host-1", boot="boot-1")
    liar, honest = new_stream_id(), new_stream_id()
    ledger.start_stream(liar)
    ledger.start_stream(honest)
    with pytest.raises(PresentError):
        ledger.present(liar, blocks)
    ledger.present(honest, [(1, 3, b"h" * 32)])
    assert ledger.checkpoint({}) == {liar: 0, honest: 3}
    ledger.abandon()


def test_the_tail_of_one_stream_is_looked_at_without_reading_all_others(tmp_path: Path) -> None:
    names = [new_stream_id(), new_stream_id()]
    for name in names:
        segment = create_segment(tmp_path / "streams" / name, 1)
        os.write(segment.fd, b"VWB2 torn")
        segment.close()
    found = recover_streams(tmp_path, (), 0, 0, only=names[0])
    assert [frame.stream for frame in found] == [names[0]]
    assert [frame.stream for frame in recover_streams(tmp_path, (), 0, 0)] == [names[1]]
