# SPDX-License-Identifier: Apache-2.0
"""A worker's recorder: what is written before a release, and what happens when writing fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import pytest

from agent.evidence.blocks import CODEC_ZSTD, FormatError, chain, read_blocks, read_frames
from agent.evidence.frames import (
    ChunkFrame,
    CloseFrame,
    GapFrame,
    IntentFrame,
    RecoveredFrame,
    ResultFrame,
    SegmentFrame,
    SessionEndFrame,
    SessionFrame,
)
from agent.evidence.losses import MAX_ENDS
from agent.evidence.segment import list_segments
from agent.evidence.thresholds import Thresholds
from agent.evidence.verify import verify
from agent.protocols.session import Chunk, Intent, Result
from tests.unit.evidence.host import Host, Worker, abort, chunk, intent, result


def frames(worker: Worker) -> list[Any]:
    found: list[Any] = []
    for _number, path in list_segments(worker.folder):
        with path.open("rb") as file, contextlib.suppress(FormatError):
            found.extend(located.frame for located in read_frames(file))
    return found


def of(worker: Worker, kind: type[Any]) -> list[Any]:
    return [frame for frame in frames(worker) if isinstance(frame, kind)]


class Disk:
    """writev that fails as told: 'full' writes nothing, 'short' half, 'error' is EIO."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan: list[str] = []
        self.always: str | None = None
        self._real = os.writev
        monkeypatch.setattr("agent.evidence.segment.os.writev", self.writev)

    def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        what = self.plan.pop(0) if self.plan else self.always
        if what == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if what == "error":
            raise OSError(errno.EIO, "Input/output error")
        if what == "short":
            data = b"".join(buffers)
            return self._real(fd, [data[: len(data) // 2]])
        return self._real(fd, buffers)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_nothing_is_released_before_its_frame_is_in_the_file(host: Host) -> None:
    worker = host.worker()
    seen: list[int] = []
    worker.recorder.put("s1", [intent(1)], "strict", lambda ok: seen.append(len(of(worker, IntentFrame))))
    assert seen == []
    worker.turn()
    assert seen == [1]


def test_one_loop_turn_is_one_block_of_contiguous_frames(host: Host) -> None:
    worker = host.worker()
    for n in range(1, 21):
        worker.put(intent(n), result(n))
    worker.turn()
    with list_segments(worker.folder)[0][1].open("rb") as file:
        first, second = read_blocks(file)
    assert (first.header.first, first.header.count) == (1, 1)
    assert (second.header.first, second.header.count) == (2, 40)
    assert second.header.codec == CODEC_ZSTD
    assert worker.answers == [True] * 20


def test_large_bodies_come_back_as_they_were_and_stand_raw_in_the_block(host: Host) -> None:
    worker = host.worker()
    big, small = os.urandom(150_000), b"s" * 100
    worker.put(intent(1, small), chunk(1, big), result(1, big[:20_000]))
    worker.turn()
    assert [frame.body for frame in frames(worker)[1:]] == [small, big, big[:20_000]]
    assert big in list_segments(worker.folder)[0][1].read_bytes()


def test_a_turn_of_more_bodies_than_one_writev_takes_becomes_several_blocks(host: Host) -> None:
    worker = host.worker()
    for n in range(1, 1201):
        worker.put(chunk(n, b"%016d" % n * 1024))
    worker.turn()
    assert [frame.body[:16] for frame in of(worker, ChunkFrame)] == [b"%016d" % n for n in range(1, 1201)]
    assert all(worker.answers)


def test_every_field_of_an_intent_and_a_result_is_recorded(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    (asked,), (answered,) = of(worker, IntentFrame), of(worker, ResultFrame)
    assert (asked.n, asked.op.method, asked.op.top_k) == (1, "POST /collections/{c}/points/query", 10)
    assert (asked.verdict.rule, asked.verdict.policy, asked.head) == ("rag-app", "policy-1", {"host": "db"})
    assert (answered.outcome, answered.status, answered.ids, answered.rows) == (
        "answered",
        200,
        ("7", "9"),
        2,
    )
    assert answered.released_sha256 == answered.sha256 != b""


def test_strict_sync_waits_for_one_shared_sync(host: Host) -> None:
    syncs: list[Any] = []
    worker = host.worker(sync=lambda fds, then: syncs.append(then))
    worker.put(intent(1), mode="strict-sync")
    worker.turn()
    for n in (2, 3):
        worker.put(intent(n), mode="strict-sync")
        worker.turn()
    assert (worker.answers, len(syncs)) == ([], 1)
    syncs.pop()(True)
    assert (worker.answers, len(syncs)) == ([True], 1)
    syncs.pop()(True)
    assert worker.answers == [True, True, True]


def test_a_failed_sync_refuses_strict_sync_and_presents_nothing(host: Host) -> None:
    syncs: list[Any] = []
    worker = host.worker(sync=lambda fds, then: syncs.append(then))
    worker.put(intent(1), mode="strict-sync")
    worker.turn()
    syncs.pop()(False)
    assert worker.answers == [False]
    assert worker.recorder.unsigned() == []
    assert worker.recorder.counters()["sync_failures"] == 1


@pytest.mark.parametrize("failure", ["full", "short", "error"])
def test_a_disk_that_fails_refuses_strict_passes_best_effort_and_names_both_in_a_gap(
    host: Host, disk: Disk, failure: str
) -> None:
    worker = host.worker()
    worker.recorder.open_session("s1", {"pid": 7})
    worker.exchange(1)
    disk.always = failure
    worker.put(intent(2), session="s1")
    worker.put(intent(1), result(1), session="s2", mode="best-effort")
    worker.turn()
    assert worker.answers[-2:] == [False, True]
    assert worker.recorder.lost == 3
    disk.always = None
    worker.exchange(3)
    (gap,) = of(worker, GapFrame)
    assert (gap.frames, gap.released) == (3, 2)
    assert [(x.session, x.first, x.last, x.frames) for x in gap.lost] == [("s1", 2, 2, 1), ("s2", 1, 1, 2)]
    assert worker.answers[-2:] == [True, True]
    worker.sign()
    report = verify(host.root)
    assert report.exit_code == 0
    assert "gap" in {finding.kind for finding in report.findings}
    assert report.audit.missing == []
    assert worker.recorder.counters()["dropped"] == 3


def test_a_short_write_leaves_the_segment_torn_and_the_block_goes_to_the_spare(
    host: Host, disk: Disk
) -> None:
    worker = host.worker()
    worker.exchange(1)
    before = list_segments(worker.folder)[0][1].stat().st_size
    disk.plan = ["short"]
    worker.exchange(2)
    assert worker.answers == [True] * 4
    assert worker.recorder.lost == 0
    (torn,) = of(worker, RecoveredFrame)
    assert (torn.number, torn.torn_at) == (0, before)
    assert torn.size == list_segments(worker.folder)[0][1].stat().st_size > before
    worker.sign()
    assert [finding.kind for finding in verify(host.root).findings] == ["recovered"]


def test_a_spare_that_tears_too_is_named_by_the_next(host: Host, disk: Disk) -> None:
    worker = host.worker()
    worker.exchange(1)
    disk.plan = ["short", "short"]
    worker.put(intent(2))
    worker.turn()
    assert worker.answers[-1] is False
    worker.exchange(3)
    worker.turn()
    worker.exchange(4)
    assert [frame.number for frame in of(worker, RecoveredFrame)] == [0, 1]
    worker.sign()
    report = verify(host.root)
    assert report.exit_code == 0, report.findings
    assert [finding.kind for finding in report.findings].count("recovered") == 2


def test_a_torn_rotation_goes_on_in_the_old_segment(host: Host, disk: Disk) -> None:
    worker = host.worker(Thresholds(segment_bytes=2000))
    worker.exchange(1, body=os.urandom(1500))
    disk.plan = ["short"]
    worker.exchange(2, body=os.urandom(1500))
    worker.exchange(3, body=os.urandom(1500))
    worker.exchange(4, body=os.urandom(1500))
    assert all(worker.answers)
    worker.sign()
    assert verify(host.root).exit_code == 0, verify(host.root).findings


def test_segments_rotate_by_size_and_by_age_and_repeat_the_cards_of_open_sessions(host: Host) -> None:
    worker = host.worker(Thresholds(segment_bytes=4000))
    worker.recorder.open_session("s1", {"pid": 7})
    for n in range(1, 5):
        worker.exchange(n, body=os.urandom(2000))
    assert worker.number > 3
    host.clock.sleep(3601)
    begun = worker.number
    worker.recorder.tick()
    worker.turn()
    assert worker.number == begun + 1
    cards = of(worker, SessionFrame)
    assert [card.again for card in cards] == [False] + [True] * (len(cards) - 1)
    assert len(of(worker, SegmentFrame)) == len(cards)
    worker.sign()
    assert verify(host.root).findings == []


def test_a_card_that_is_amended_is_the_one_that_is_repeated(host: Host) -> None:
    worker = host.worker(Thresholds(segment_bytes=4000))
    worker.recorder.open_session("s1", {"pid": 7})
    worker.recorder.amend_session("s1", {"pid": 7, "tls": True})
    worker.recorder.amend_session("gone", {"pid": 8})
    worker.turn()
    assert [(f.again, f.card) for f in of(worker, SessionFrame)] == [
        (False, {"pid": 7}), (True, {"pid": 7, "tls": True}),
    ]  # fmt: skip
    for n in range(1, 4):
        worker.exchange(n, body=os.urandom(2000))
    assert all(f.card == {"pid": 7, "tls": True} for f in of(worker, SessionFrame)[1:])
    worker.sign()
    assert verify(host.root).findings == []


def test_without_a_spare_the_segment_grows_instead_of_losing(host: Host) -> None:
    worker = host.worker(Thresholds(segment_bytes=1000))
    spare, worker.recorder._writer._spare = worker.recorder._writer._spare, None
    assert spare is not None
    spare.close()
    for n in range(1, 4):
        worker.put(intent(n), result(n, os.urandom(900)))
        for call in worker.turns[:]:
            worker.turns.remove(call)
            call()
    assert worker.answers == [True] * 3
    assert worker.spares_wanted > 0


def test_unsigned_beyond_the_bound_refuses_strict_until_the_agent_signs(host: Host) -> None:
    worker = host.worker(Thresholds(unsigned_frames=5))
    for n in range(1, 3):
        worker.exchange(n)
    assert worker.recorder.overdue
    worker.put(intent(3))
    worker.put(intent(4), mode="best-effort")
    worker.turn()
    assert worker.answers[-2:] == [False, True]
    worker.sign()
    worker.exchange(5)
    assert worker.answers[-2:] == [True, True]
    (gap,) = of(worker, GapFrame)
    assert (gap.reason, gap.frames) == ("unsigned", 2)


def test_unsigned_for_longer_than_a_minute_refuses_strict(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    host.clock.sleep(59)
    assert not worker.recorder.overdue
    host.clock.sleep(2)
    assert worker.recorder.overdue


def test_disk_pressure_leaves_bodies_out_and_then_refuses(host: Host) -> None:
    worker = host.worker()
    worker.recorder.pressure = "meta"
    worker.exchange(1)
    assert [frame.body for frame in of(worker, ResultFrame)] == [None]
    assert [frame.cut for frame in of(worker, ResultFrame)] == ["disk"]
    worker.recorder.pressure = "full"
    worker.put(intent(2))
    worker.turn()
    assert worker.answers[-1] is False
    host.clock.sleep(11)
    worker.recorder.tick()
    assert [gap.reason for gap in of(worker, GapFrame)] == ["disk full"]


def test_the_end_of_a_session_that_cannot_be_written_is_written_later_with_its_own_time(host: Host) -> None:
    worker = host.worker()
    worker.recorder.open_session("s1", {"pid": 7})
    worker.exchange(1)
    worker.recorder.pressure = "full"
    ended = host.clock.wall()
    worker.recorder.close_session("s1", {"reason": "closed"})
    worker.turn()
    host.clock.sleep(30)
    assert of(worker, SessionEndFrame) == []
    worker.recorder.pressure = "ok"
    worker.recorder.tick()
    worker.turn()
    (end,) = of(worker, SessionEndFrame)
    assert (end.session, end.at, end.summary["reason"]) == ("s1", ended, "closed")
    assert of(worker, GapFrame) == []
    counters = worker.recorder.counters()
    assert (counters["seen"], counters["dropped"]) == (counters["recorded"], 0)
    worker.sign()
    assert verify(host.root).findings == []


def test_an_end_that_a_failing_disk_took_is_written_when_it_works_again(host: Host, disk: Disk) -> None:
    worker = host.worker()
    worker.recorder.open_session("s1", {"pid": 7})
    worker.exchange(1)
    disk.always = "full"
    worker.recorder.close_session("s1", {"reason": "closed"})
    worker.turn()
    worker.turn()
    disk.always = None
    worker.recorder.tick()
    worker.turn()
    assert [end.session for end in of(worker, SessionEndFrame)] == ["s1"]


def test_a_session_of_which_nothing_is_on_record_has_no_end_there_either(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.recorder.pressure = "full"
    worker.recorder.open_session("s2", {"pid": 8})
    worker.recorder.close_session("s2", {"reason": "closed"})
    worker.turn()
    worker.recorder.pressure = "ok"
    worker.recorder.tick()
    worker.turn()
    assert of(worker, SessionEndFrame) == []
    (gap,) = of(worker, GapFrame)
    assert (gap.frames, [lost.session for lost in gap.lost]) == (2, ["s2"])


def test_ends_that_are_kept_are_bounded_and_lost_ones_are_named_at_the_stop(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.recorder.pressure = "full"
    for number in range(MAX_ENDS + 3):
        worker.recorder.close_session(f"t{number}", {"reason": "closed"})
    assert worker.recorder.lost == 3
    worker.recorder.close("stop")
    counters = worker.recorder.counters()
    assert counters["seen"] == counters["recorded"] + counters["dropped"]
    assert sum(gap.frames for gap in of(worker, GapFrame)) == MAX_ENDS + 3


def test_nothing_that_is_owed_follows_the_close_when_the_agent_signs_after_it(host: Host) -> None:
    worker = host.worker(Thresholds(unsigned_frames=4))
    worker.recorder.open_session("s1", {"pid": 7})
    worker.exchange(1)
    assert worker.recorder.refusing == "unsigned"
    worker.recorder.open_session("s2", {"pid": 8})
    worker.recorder.close_session("s1", {"reason": "closed"})
    worker.recorder.close("stop")
    worker.sign()
    worker.turn()
    assert isinstance(frames(worker)[-1], CloseFrame)
    assert sum(gap.frames for gap in of(worker, GapFrame)) == 2
    counters = worker.recorder.counters()
    assert counters["seen"] == counters["recorded"] + counters["dropped"]


def test_best_effort_is_bounded_by_bytes(host: Host) -> None:
    worker = host.worker(Thresholds(queue_bytes=10_000))
    for n in range(1, 5):
        worker.put(result(n, b"x" * 4000), mode="best-effort")
    worker.turn()
    worker.exchange(9)
    (gap,) = of(worker, GapFrame)
    assert (gap.reason, gap.frames, gap.released) == ("queue full", 2, 2)


def test_no_bytes_a_client_can_choose_keep_a_record_from_being_written(host: Host) -> None:
    worker = host.worker()
    worker.recorder.open_session("s1", {"argv": ["a\udcff"], "big": 2**70, "set": {1}})
    worker.put(intent(1, head={"x": "\ud800"}))
    worker.put(intent(2))
    worker.turn()
    assert worker.answers == [True, True]
    assert of(worker, SessionFrame)[0].card == {"argv": ["a\\udcff"], "big": str(2**70), "set": [1]}
    assert [frame.head for frame in of(worker, IntentFrame)] == [{"x": "\\ud800"}, {"host": "db"}]


def test_a_card_lost_on_a_full_disk_is_recorded_once_writing_works(host: Host, disk: Disk) -> None:
    worker = host.worker()
    worker.exchange(1, session="s0")
    disk.always = "full"
    worker.recorder.open_session("s1", {"pid": 8})
    worker.turn()
    disk.always = None
    worker.exchange(1)
    assert [(frame.session, frame.card) for frame in of(worker, SessionFrame)] == [("s1", {"pid": 8})]


def test_closing_writes_close_with_the_counters(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.recorder.close("stop")
    (closed,) = of(worker, CloseFrame)
    assert closed.counters["recorded"] == closed.counters["seen"] == 2


def test_an_exchange_without_a_result_is_reported_as_unknown(host: Host) -> None:
    worker = host.worker()
    worker.recorder.open_session("s1", {})
    worker.exchange(1)
    worker.put(intent(2))
    worker.put(intent(3), abort(3))
    worker.put(intent(5), result(5))
    worker.turn()
    worker.sign()
    report = verify(host.root)
    assert [(x.session, x.n) for x in report.audit.unknown] == [("s1", 2)]
    assert report.audit.missing == [("s1", 4, 4)]
    assert report.exit_code == 0


def test_cards_and_ends_leave_with_the_next_block_or_after_a_moment(host: Host) -> None:
    worker = host.worker()
    moments: list[Any] = []
    worker.recorder._later = moments.append
    worker.recorder.open_session("s1", {"session": "s1"})
    worker.recorder.open_session("s2", {"session": "s2"})
    worker.turn()
    assert (frames(worker), len(moments)) == ([], 1)
    worker.put(intent(1))
    worker.turn()
    assert [type(frame) for frame in frames(worker)[1:]] == [SessionFrame, SessionFrame, IntentFrame]
    written = len(frames(worker))
    moments.pop()()
    assert len(frames(worker)) == written, "no block of nothing"
    worker.recorder.close_session("s1", {})
    moments.pop()()
    assert type(frames(worker)[-1]) is SessionEndFrame
    worker.recorder.close_session("s2", {})
    worker.recorder.close("stop")
    assert [type(frame) for frame in frames(worker)[-2:]] == [SessionEndFrame, CloseFrame]
    moments.pop()()


def test_a_digest_of_other_bytes_than_are_recorded_does_not_stand_for_them(host: Host) -> None:
    """Below level full a piece or a body is recorded in a shorter form than it was passed on."""
    worker = host.worker()
    passed, recorded = b"p" * 40_000, b"r" * 20_000
    digest = hashlib.sha256(passed).digest()
    asked = Intent(1, intent(1).operation, intent(1).verdict, {}, recorded, digest, len(passed), 1)
    piece = Chunk(1, "response", recorded, digest, len(passed))
    got = Result(1, "answered", 200, {}, recorded, digest, len(passed), digest, len(passed))
    whole = hashlib.sha256(recorded).digest()
    for record in (asked, piece, got, Chunk(1, "request", recorded, whole, len(recorded), whole=True)):
        worker.put(record)
        worker.turn()
    worker.sign()
    found = verify(host.root)
    assert [finding.kind for finding in found.findings if finding.kind == "tampered"] == []
    for _number, path in list_segments(worker.folder):
        with path.open("rb") as file:
            value = None
            for block in read_blocks(file):
                header = block.header
                if value is not None:
                    assert header.chain == chain(value, header.first, header.count, block.digest())
                value = header.chain
