# SPDX-License-Identifier: Apache-2.0
"""What a crash leaves, what retention takes, and what a full disk still lets us say."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from agent.evidence.ledger import LedgerError
from agent.evidence.recovery import recover_streams
from agent.evidence.retention import Reserve, disk_pressure, read_holds, retain
from agent.evidence.segment import list_segments
from agent.evidence.thresholds import Thresholds
from agent.evidence.verify import verify
from tests.unit.evidence.host import Host, Worker

DAY = 86_400
NOW = 1_800_000_000.0


def filled(host: Host, segments: int = 4) -> Worker:
    """A stream of several segments, each a day older than the next."""
    worker = host.worker(Thresholds(segment_bytes=3000))
    n = 0
    while worker.number < segments + 1:
        n += 1
        worker.exchange(n, body=os.urandom(1500))
    worker.sign()
    paths = [path for _n, path in list_segments(worker.folder) if path.stat().st_size]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (NOW - age * DAY, NOW - age * DAY))
    return worker


def names(worker: Worker) -> list[str]:
    return [path.name for _n, path in list_segments(worker.folder) if path.stat().st_size]


def test_segments_older_than_keep_go_and_the_chain_stays_provable(host: Host) -> None:
    worker = filled(host)
    before = names(worker)
    done = retain(host.root, host.ledger, counters={}, keep_ns=int(1.5 * DAY * 1e9), now=NOW)
    assert done.removed == len(before) - 2
    assert names(worker) == before[-2:]
    assert verify(host.root).findings == []
    host.clock.sleep(1)
    retain(host.root, host.ledger, counters={}, keep_ns=int(0.5 * DAY * 1e9), now=NOW)
    assert names(worker) == before[-1:]
    assert verify(host.root).findings == []


def test_the_oldest_go_first_when_the_folder_is_too_large_and_the_open_one_never(host: Host) -> None:
    worker = filled(host)
    before = names(worker)
    retain(host.root, host.ledger, counters={}, max_size=1, now=NOW)
    assert names(worker) == before[-1:]
    worker.exchange(999)
    worker.sign()
    assert verify(host.root).findings == []


def test_removing_a_segment_without_retention_is_still_seen(host: Host) -> None:
    worker = filled(host)
    retain(host.root, host.ledger, counters={}, keep_ns=int(2.5 * DAY * 1e9), now=NOW)
    (worker.folder / names(worker)[0]).unlink()
    assert verify(host.root).exit_code == 4


def test_a_crash_after_the_tombstone_and_before_the_last_unlink_leaves_it_provable(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = filled(host)
    first = names(worker)[1]
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name >= first and path.suffix == ".seg":
            raise PermissionError(1, "Operation not permitted")
        real(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        done = retain(host.root, host.ledger, counters={}, keep_ns=0, now=NOW + 1)
    assert (done.removed, len(done.blocked)) == (1, 1)
    assert verify(host.root).findings == []


def test_unsigned_segments_of_a_live_stream_stay(host: Host) -> None:
    worker = host.worker(Thresholds(segment_bytes=1000))
    for n in range(1, 4):
        worker.exchange(n, body=os.urandom(900))
    before = names(worker)
    assert retain(host.root, host.ledger, counters={}, keep_ns=0, now=NOW * 2).removed == 0
    assert names(worker) == before


def test_a_ledger_that_cannot_be_written_removes_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = filled(host)
    before = names(worker)

    def full(fd: int, buffers: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.evidence.segment.os.writev", full)
        with pytest.raises(LedgerError):
            retain(host.root, host.ledger, counters={}, keep_ns=0, now=NOW + 1)
    assert names(worker) == before


def test_old_ledger_segments_go_and_what_remains_is_provable_without_them(tmp_path: Path) -> None:
    host = Host(tmp_path, segment_bytes=3000)
    try:
        worker = filled(host)
        retain(tmp_path, host.ledger, counters={}, keep_ns=int(1.5 * DAY * 1e9), now=NOW)
        for _ in range(12):
            host.clock.sleep(1)
            host.ledger.checkpoint({})
        segments = [path for _n, path in list_segments(tmp_path / "ledger") if path.stat().st_size]
        for path in segments[:-1]:
            os.utime(path, (NOW - 50 * DAY, NOW - 50 * DAY))
        done = retain(tmp_path, host.ledger, counters={}, keep_ns=10 * DAY * 10**9, now=NOW)
        assert done.removed == len(segments) - 1
        worker.exchange(500)
        worker.sign()
        report = verify(tmp_path)
        assert report.findings == [], report.findings
    finally:
        host.release()


def test_a_legal_hold_keeps_what_its_time_covers_and_an_unreadable_one_everything(host: Host) -> None:
    worker = filled(host)
    before = names(worker)
    holds = host.root / "holds"
    holds.mkdir()
    (holds / "case-7.json").write_text(json.dumps({"reason": "court", "since": "2020-01-01T00:00:00+00:00"}))
    done = retain(host.root, host.ledger, counters={}, keep_ns=0, now=NOW + 1)
    assert (done.removed, done.held) == (0, ("case-7",))
    (holds / "case-7.json").write_text("{")
    assert retain(host.root, host.ledger, counters={}, keep_ns=0, now=NOW + 1).removed == 0
    (holds / "case-7.json").write_text(json.dumps({"streams": ["0" * 16]}))
    assert retain(host.root, host.ledger, counters={}, keep_ns=0, now=NOW + 1).removed == len(before) - 1


def test_a_hold_needs_a_time_zone(host: Host) -> None:
    (host.root / "holds").mkdir()
    (host.root / "holds" / "x.json").write_text('{"since": "2026-01-01T00:00:00"}')
    (hold,) = read_holds(host.root)
    assert hold.covers("0" * 16, 0, 1)


def test_torn_tails_of_dead_streams_are_copied_aside_once_and_noted(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.sign()
    worker.exchange(2)
    path = worker.folder / names(worker)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert [finding.kind for finding in verify(host.root).findings] == ["unproven", "torn"] or [
        finding.kind for finding in verify(host.root).findings
    ] == ["torn", "unproven"]
    assert recover_streams(host.root, {worker.stream}, 1, 1) == []
    (noted,) = recover_streams(host.root, set(), *host.ledger.now())
    assert (noted.stream, noted.number) == (worker.stream, 0)
    assert path.read_bytes() == whole[:-20]
    assert path.with_suffix(".torn").read_bytes() == whole[noted.torn_at : -20]
    host.ledger.append(noted)
    host.ledger.checkpoint({})
    assert recover_streams(host.root, set(), 1, 1) == []
    report = verify(host.root)
    assert report.exit_code == 0
    assert sorted(finding.kind for finding in report.findings) == ["recovered", "unproven"]


def test_a_recovered_note_does_not_excuse_what_was_signed(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.exchange(2)
    worker.sign()
    path = worker.folder / names(worker)[0]
    path.write_bytes(path.read_bytes()[:-20])
    host.ledger.append(*recover_streams(host.root, set(), *host.ledger.now()))
    host.ledger.checkpoint({})
    assert "truncated" in {finding.kind for finding in verify(host.root).findings}


def test_the_reserve_gives_back_in_steps(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, 3 * 1024 * 1024)
    assert reserve.fill()
    assert os.stat(tmp_path / "reserve").st_blocks * 512 >= 3 * 1024 * 1024
    assert reserve.release()
    assert reserve.size == 2 * 1024 * 1024
    assert reserve.release()
    assert reserve.release()
    assert not reserve.release()
    assert reserve.fill()


def test_pressure_rises_as_the_disk_fills() -> None:
    mib = 1024 * 1024
    assert [disk_pressure(free * mib) for free in (600, 500, 120, 10)] == ["ok", "alert", "meta", "full"]
