# SPDX-License-Identifier: Apache-2.0
"""The ledger: what it signs, what it refuses to sign, and how keys survive a crash at every point."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.evidence.frames import AdminFrame
from agent.evidence.keys import KeyFolder
from agent.evidence.ledger import LedgerError, PresentError
from agent.evidence.segment import list_segments
from agent.evidence.verify import verify
from tests.unit.evidence.host import Host


def epoch_keys(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "keys").glob("epoch-*"))


def kinds(root: Path) -> list[str]:
    return sorted({finding.kind for finding in verify(root).findings})


def test_keys_are_private_and_only_one_epoch_key_is_left_after_a_checkpoint(host: Host) -> None:
    host.ledger.checkpoint({})
    assert epoch_keys(host.root) == ["epoch-1.key"]
    assert stat.S_IMODE((host.root / "keys").stat().st_mode) == 0o700
    for path in (host.root / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_next_key_is_durable_before_the_checkpoint_and_the_old_one_dies_after_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_sync, real_unlink, real_writev = os.fdatasync, Path.unlink, os.writev

    def name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def fdatasync(fd: int) -> None:
        order.append(f"sync {name(fd)}")
        real_sync(fd)

    def writev(fd: int, buffers: Any) -> int:
        order.append(f"write {name(fd)}")
        return real_writev(fd, buffers)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            order.append(f"unlink {path.name}")
        real_unlink(path, missing_ok)

    host.ledger.append(AdminFrame(at=1, up=1, act="off", who={}))
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(os, "writev", writev)
    monkeypatch.setattr(Path, "unlink", unlink)
    host.ledger.checkpoint({})
    assert order == ["sync epoch-1.key", "write 000000.seg", "sync 000000.seg", "unlink epoch-0.key"]


def test_a_block_that_does_not_follow_is_not_signed(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    blocks: list[Any] = []
    worker.recorder.present(lambda found: blocks.extend((b.first, b.frames, b.digest) for b in found))
    with pytest.raises(PresentError):
        host.ledger.present(worker.stream, [blocks[1]])
    with pytest.raises(PresentError):
        host.ledger.present(worker.stream, [(1, 0, b"x" * 32)])
    with pytest.raises(PresentError):
        host.ledger.present("0" * 16, [blocks[0]])


def test_a_rewritten_past_is_passed_over_and_shows_as_tampering(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.sign()
    signed = host.ledger.last
    assert signed is not None
    assert host.ledger.present(worker.stream, [(1, 1, b"y" * 32)]) == signed.streams[0].seq
    host.ledger.checkpoint({})
    assert host.ledger.last is not None
    assert host.ledger.last.streams == signed.streams


def test_a_stream_id_is_used_once(host: Host) -> None:
    worker = host.worker()
    with pytest.raises(PresentError):
        host.ledger.start_stream(worker.stream)
    for name in ("ledger", "../x", "ABCDEF0123456789", ""):
        with pytest.raises(PresentError):
            host.ledger.start_stream(name)


def test_an_epoch_ends_after_a_second_256_frames_or_ten_idle_seconds(host: Host) -> None:
    frame = AdminFrame(at=1, up=1, act="on", who={})
    host.ledger.checkpoint({})
    host.clock.sleep(9)
    assert not host.ledger.due()
    host.ledger.append(frame)
    assert host.ledger.due()
    host.ledger.checkpoint({})
    host.clock.sleep(10)
    assert host.ledger.due()
    host.ledger.checkpoint({})
    for _ in range(255):
        host.ledger.append(frame)
    assert not host.ledger.due()
    host.ledger.append(frame)
    assert host.ledger.due()


def test_a_restarted_agent_goes_on_with_the_announced_key(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.sign()
    host.kill_agent()
    ledger = host.start_agent()
    assert not ledger.key_break
    assert ledger.adopt_stream(worker.stream) == worker.recorder.seq
    worker.exchange(2)
    worker.sign()
    report = verify(host.root)
    assert report.exit_code == 0
    assert [finding.message for finding in report.findings] == ["the agent stopped without CLOSE"]


def test_a_worker_that_returns_after_the_new_agents_first_checkpoint_goes_on_where_it_was(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.sign()
    worker.exchange(2)
    host.kill_agent()
    ledger = host.start_agent()
    ledger.checkpoint({})
    ledger.checkpoint({})
    assert ledger.adopt_stream(worker.stream) < worker.recorder.seq
    worker.sign()
    assert verify(host.root).exit_code == 0
    assert verify(host.root).proof.unsigned == 0


def test_streams_whose_workers_did_not_survive_the_agent_are_retired(host: Host) -> None:
    gone, live = host.worker(), host.worker()
    gone.exchange(1)
    live.exchange(1)
    gone.sign()
    live.sign()
    host.kill_agent()
    ledger = host.start_agent()
    ledger.retire_absent({live.stream})
    ledger.checkpoint({})
    assert set(ledger.signed()) == {live.stream}
    assert verify(host.root).exit_code == 0


def test_a_retired_stream_is_named_once_more_and_then_no_longer(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.sign()
    host.ledger.retire_stream(worker.stream)
    assert worker.stream in host.ledger.checkpoint({})
    assert worker.stream not in host.ledger.checkpoint({})
    worker.exchange(2)
    assert host.ledger.adopt_stream(worker.stream) > 0
    worker.sign()
    assert verify(host.root).findings == []


def test_a_clean_stop_leaves_no_unproven_interval(host: Host) -> None:
    host.ledger.close("stop", {})
    host.clock.boot = "boot-2"
    host.clock.now = 0
    host.start_agent()
    host.ledger.checkpoint({})
    assert verify(host.root).findings == []


def test_suspend_and_reboot_are_unproven_and_no_tampering(host: Host) -> None:
    host.ledger.checkpoint({})
    host.clock.sleep(3600)
    host.ledger.checkpoint({})
    host.kill_agent()
    host.clock.boot = "boot-2"
    host.start_agent()
    host.ledger.checkpoint({})
    report = verify(host.root)
    assert report.exit_code == 0
    assert kinds(host.root) == ["unproven"]
    assert {finding.message for finding in report.findings} == {
        "no checkpoint for 3600 s",
        "the agent stopped without CLOSE",
        "the host restarted without CLOSE",
    }


def test_a_crash_between_the_next_key_and_the_checkpoint_costs_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ledger.checkpoint({})
    with monkeypatch.context() as patch:
        patch.setattr(host.ledger, "_write_signed", lambda body: False)
        with pytest.raises(LedgerError):
            host.ledger.checkpoint({})
    assert epoch_keys(host.root) == ["epoch-1.key", "epoch-2.key"]
    host.kill_agent()
    assert not host.start_agent().key_break
    host.ledger.checkpoint({})
    assert verify(host.root).exit_code == 0


def test_a_crash_between_the_checkpoint_and_the_unlink_costs_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(host.ledger._keys, "keep_only", lambda *epochs: None)
        host.ledger.checkpoint({})
    assert epoch_keys(host.root) == ["epoch-0.key", "epoch-1.key"]
    host.kill_agent()
    assert not host.start_agent().key_break
    assert epoch_keys(host.root) == ["epoch-1.key"]
    host.ledger.checkpoint({})
    assert verify(host.root).exit_code == 0


def test_a_torn_checkpoint_is_set_aside_and_the_old_key_goes_on(host: Host) -> None:
    host.ledger.checkpoint({})
    host.kill_agent()
    path = list_segments(host.root / "ledger")[0][1]
    torn = b"VWB2" + b"\x02\x00\x00\x00" + b"\x00\x00\x03\xe8" * 3 + b"\x00\x00\x00\x01" + bytes(7) + b"\x09"
    path.write_bytes(path.read_bytes() + torn + bytes(range(60)))
    size = path.stat().st_size
    ledger = host.start_agent()
    assert not ledger.key_break
    ledger.checkpoint({})
    assert path.stat().st_size == size
    assert path.with_suffix(".torn").read_bytes().startswith(torn)
    report = verify(host.root)
    assert report.exit_code == 0
    assert kinds(host.root) == ["recovered", "unproven"]


def test_a_lost_key_is_a_key_break_and_everything_after_it_still_verifies(host: Host) -> None:
    host.ledger.checkpoint({})
    host.kill_agent()
    for path in (host.root / "keys").glob("epoch-*"):
        path.unlink()
    assert host.start_agent().key_break
    host.ledger.checkpoint({})
    report = verify(host.root)
    assert report.exit_code == 4
    assert {finding.kind for finding in report.findings} == {"key-break", "unproven"}


def test_a_ledger_that_was_deleted_does_not_begin_again_unseen(host: Host) -> None:
    host.ledger.checkpoint({})
    host.kill_agent()
    shutil.rmtree(host.root / "ledger")
    assert host.start_agent().key_break
    host.ledger.checkpoint({})
    assert verify(host.root).exit_code == 4


def test_a_first_start_that_died_before_its_first_block_is_no_key_break(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    keys.make_epoch(0)
    keys.host()
    host = Host(tmp_path)
    try:
        assert not host.ledger.key_break
        host.ledger.checkpoint({})
        assert verify(tmp_path).findings == []
    finally:
        host.release()


def test_the_ledger_rotates_and_each_segment_certifies_its_key(tmp_path: Path) -> None:
    host = Host(tmp_path, segment_bytes=3000)
    try:
        for _ in range(12):
            host.ledger.checkpoint({"a": 1})
            host.clock.sleep(1)
        segments = [path for _n, path in list_segments(tmp_path / "ledger") if path.stat().st_size]
        assert len(segments) > 2
        assert verify(tmp_path).findings == []
        segments[0].unlink()
        assert kinds(tmp_path) == ["truncated"]
    finally:
        host.release()


def test_a_full_disk_is_told_and_the_next_checkpoint_heals(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.sign()

    def full(fd: int, buffers: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent.evidence.segment.os.writev", full)
        with pytest.raises(LedgerError):
            host.ledger.checkpoint({})
        with pytest.raises(LedgerError):
            host.ledger.append(AdminFrame(at=1, up=1, act="on", who={}))
    worker.exchange(2)
    worker.sign()
    assert verify(host.root).findings == []


def test_a_checkpoint_written_in_halves_is_torn_and_the_next_one_says_so(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.ledger.checkpoint({})
    real = os.writev

    def short(fd: int, buffers: Any) -> int:
        return real(fd, [b"".join(buffers)[:100]])

    with monkeypatch.context() as patch:
        patch.setattr("agent.evidence.segment.os.writev", short)
        with pytest.raises(LedgerError):
            host.ledger.checkpoint({})
    host.ledger.checkpoint({})
    report = verify(host.root)
    assert report.exit_code == 0
    assert [finding.kind for finding in report.findings] == ["recovered"]
