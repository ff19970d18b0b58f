# SPDX-License-Identifier: Apache-2.0
"""Every way to damage evidence that we could think of, and the name `verify` has for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from agent.evidence import standalone
from agent.evidence.blocks import (
    Block,
    chain,
    covered_header,
    decode_checkpoint,
    decode_frames,
    encode_checkpoint,
    encode_control,
    read_blocks,
)
from agent.evidence.frames import CheckpointFrame, KeyFrame
from agent.evidence.keys import CHECKPOINT_CONTEXT
from agent.evidence.segment import list_segments
from agent.evidence.verify import verify
from tests.unit.evidence.host import Host

HEADER_REGIONS = {
    "magic": 0, "kind": 4, "codec": 5, "parts": 6, "stored": 8, "head_stored": 12, "head_raw": 16,
    "count": 20, "first": 24, "chain": 32, "payload": 64,
}  # fmt: skip


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def stream_segments(root: Path) -> list[Path]:
    (folder,) = (root / "streams").iterdir()
    return [path for _number, path in list_segments(folder) if path.stat().st_size]


def ledger_segments(root: Path) -> list[Path]:
    return [path for _number, path in list_segments(root / "ledger") if path.stat().st_size]


def blocks_of(path: Path) -> list[Block]:
    with path.open("rb") as file:
        return list(read_blocks(file))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def kinds(root: Path) -> set[str]:
    return {finding.kind for finding in verify(root).findings}


def failing(root: Path) -> set[str]:
    report = verify(root)
    found = {finding.kind for finding in report.findings if finding.kind in standalone.FAILING}
    assert bool(found) == (report.exit_code == 4)
    return found


def test_an_undamaged_folder_is_whole_without_a_single_finding(finished: Path) -> None:
    report = verify(finished, (finished / "host.pub").read_bytes())
    assert report.findings == []
    assert report.exit_code == 0
    assert report.proof.unsigned == 0
    assert report.audit.exchanges == 9
    assert report.audit.unknown == []
    assert report.audit.missing == []


def test_progress_ends_at_the_size_of_all_segments(finished: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(finished, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 20_000


@pytest.mark.parametrize("region", HEADER_REGIONS)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_in_a_stream_is_tampering_and_its_frame_is_named(
    copy: Path, region: str, where: str
) -> None:
    path = stream_segments(copy)[0]
    blocks = blocks_of(path)
    block = {"first": blocks[0], "middle": blocks[len(blocks) // 2], "last": blocks[-1]}[where]
    flip(path, block.offset + HEADER_REGIONS[region])
    found = [finding for finding in verify(copy).findings if finding.kind == "tampered"]
    assert found
    assert found[0].file.endswith(path.name)
    assert found[0].offset == block.offset
    assert found[0].first <= block.header.last


@pytest.mark.parametrize("region", HEADER_REGIONS)
def test_a_flipped_byte_in_the_ledger_is_tampering(copy: Path, region: str) -> None:
    path = ledger_segments(copy)[0]
    block = blocks_of(path)[1]
    flip(path, block.offset + HEADER_REGIONS[region])
    assert "tampered" in failing(copy)


def test_a_bit_flipped_anywhere_in_a_segment_is_found(copy: Path) -> None:
    path = stream_segments(copy)[1]
    whole = path.read_bytes()
    for offset in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x80
        path.write_bytes(damaged)
        assert standalone.prove(copy).exit_code == 4, offset


def test_a_dropped_block_is_named_by_its_frames(copy: Path) -> None:
    path = stream_segments(copy)[0]
    gone = blocks_of(path)[3]
    data = path.read_bytes()
    path.write_bytes(data[: gone.offset] + data[gone.end :])
    found = [finding for finding in verify(copy).findings if finding.kind == "tampered"]
    assert (found[0].first, found[0].last) == (gone.header.first, gone.header.last)


def test_reordered_blocks_are_tampering(copy: Path) -> None:
    path = stream_segments(copy)[0]
    data, (a, b) = path.read_bytes(), blocks_of(path)[2:4]
    path.write_bytes(data[: a.offset] + data[b.offset : b.end] + data[a.offset : a.end] + data[b.end :])
    assert failing(copy) == {"tampered"}


def test_a_repeated_block_is_tampering(copy: Path) -> None:
    path = stream_segments(copy)[0]
    data, block = path.read_bytes(), blocks_of(path)[2]
    path.write_bytes(data[: block.end] + data[block.offset :])
    assert failing(copy) == {"tampered"}


def test_a_stream_cut_at_any_block_boundary_is_truncated(copy: Path) -> None:
    path = stream_segments(copy)[-1]
    whole = path.read_bytes()
    for block in blocks_of(path):
        path.write_bytes(whole[: block.offset])
        assert failing(copy) == {"truncated"}, block.offset


def test_a_stream_cut_inside_a_block_is_truncated_when_it_was_signed(copy: Path) -> None:
    path = stream_segments(copy)[-1]
    block = blocks_of(path)[-1]
    for size in (block.offset + 1, block.offset + 40, block.offset + 64, block.end - 1):
        whole = path.read_bytes()
        cut(path, size)
        assert failing(copy) == {"truncated"}, size
        path.write_bytes(whole)


def test_a_stream_cut_in_an_earlier_segment_is_seen(copy: Path) -> None:
    path = stream_segments(copy)[0]
    cut(path, blocks_of(path)[-2].offset)
    assert failing(copy)


def test_a_missing_segment_without_a_tombstone_is_truncated(copy: Path) -> None:
    stream_segments(copy)[0].unlink()
    assert failing(copy) == {"truncated"}


def test_a_missing_last_segment_is_truncated(copy: Path) -> None:
    stream_segments(copy)[-1].unlink()
    assert failing(copy) == {"truncated"}


def test_a_missing_stream_is_truncated(copy: Path) -> None:
    shutil.rmtree(copy / "streams")
    assert failing(copy) == {"truncated"}


def test_a_missing_ledger_is_truncated(copy: Path) -> None:
    shutil.rmtree(copy / "ledger")
    assert "truncated" in failing(copy)


def test_a_ledger_replaced_by_an_older_copy_of_itself_is_truncated_by_the_key_that_is_there(
    copy: Path,
) -> None:
    path = ledger_segments(copy)[0]
    cut(path, blocks_of(path)[2].offset)
    assert "truncated" in failing(copy)


def test_an_anchor_kept_elsewhere_unmasks_a_ledger_and_streams_cut_together(copy: Path) -> None:
    anchor = verify(copy).proof.anchor
    path = ledger_segments(copy)[0]
    cut(path, blocks_of(path)[2].offset)
    shutil.rmtree(copy / "keys")
    stream_segments(copy)[-1].unlink()
    assert any("anchor" in finding.message for finding in verify(copy, anchor=anchor).findings)
    assert verify(copy, anchor=anchor).exit_code == 4


def test_a_segment_of_another_stream_in_its_place_is_tampering(copy: Path, tmp_path: Path) -> None:
    first, second = stream_segments(copy)[:2]
    second.write_bytes(first.read_bytes())
    assert "tampered" in failing(copy)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change payloads and recompute every hash after them, as a forger would."""
    out, previous = b"", b""
    for block in blocks_of(path):
        header, payload = block.header, block.payload
        if not previous:
            frame = decode_frames(block)[0]
            previous = frame.prev  # type: ignore[union-attr]
        payload = change(payload)
        covered = covered_header(
            header.kind, header.codec, header.parts, header.stored, header.head_stored, header.head_raw,
            header.count, header.first,
        )  # fmt: skip
        changed = Block(block.offset, header, covered, payload)
        value = chain(previous, header.first, header.count, changed.digest())
        out += covered + value + payload
        previous = value
    path.write_bytes(out)


def test_history_rewritten_with_every_hash_recomputed_is_not_what_was_signed(copy: Path) -> None:
    path = stream_segments(copy)[-1]
    rewrite(path, lambda payload: payload.replace(b"xxxx", b"yyyy"))
    assert blocks_of(path)
    assert failing(copy) == {"tampered"}


def resign(path: Path, key: Ed25519PrivateKey, which: int) -> None:
    """Sign one checkpoint anew with a key of one's own and recompute the chain."""
    out, previous, seen = b"", b"", 0
    for block in blocks_of(path):
        frames = decode_frames(block)
        previous = previous or frames[0].prev  # type: ignore[union-attr]
        frame = frames[0]
        if isinstance(frame, CheckpointFrame):
            if seen == which:
                frame.signature = key.sign(CHECKPOINT_CONTEXT + frame.body)
                frame.key = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            seen += 1
        data, _digest, previous = encode_control(frames, block.header.first, previous)  # type: ignore[arg-type]
        out += data
    path.write_bytes(out)


def test_a_checkpoint_signed_by_another_key_is_a_key_break(copy: Path) -> None:
    resign(ledger_segments(copy)[0], Ed25519PrivateKey.generate(), 1)
    assert "key-break" in failing(copy)


def test_a_checkpoint_with_a_changed_body_is_tampering(copy: Path) -> None:
    path = ledger_segments(copy)[0]
    out, previous = b"", b""
    for block in blocks_of(path):
        frames = decode_frames(block)
        previous = previous or frames[0].prev  # type: ignore[union-attr]
        frame = frames[0]
        if isinstance(frame, CheckpointFrame):
            body = decode_checkpoint(frame.body)
            body.counters["recorded"] = 10**6
            frame.body = encode_checkpoint(body)
        data, _digest, previous = encode_control(frames, block.header.first, previous)  # type: ignore[arg-type]
        out += data
    path.write_bytes(out)
    assert "tampered" in failing(copy)


def test_a_replayed_checkpoint_is_tampering_even_with_the_chain_recomputed(copy: Path) -> None:
    path = ledger_segments(copy)[0]
    blocks = blocks_of(path)
    out, previous, seq = b"", b"", 1
    for block in [*blocks, blocks[1]]:
        frames = decode_frames(block)
        previous = previous or frames[0].prev  # type: ignore[union-attr]
        data, _digest, previous = encode_control(frames, seq, previous)  # type: ignore[arg-type]
        seq += len(frames)
        out += data
    path.write_bytes(out)
    assert failing(copy)


def test_a_forged_ledger_under_another_host_identity_is_a_key_break(finished: Path) -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    report = verify(finished, other)
    assert {finding.kind for finding in report.findings} == {"key-break"}
    assert report.exit_code == 4


def test_a_certificate_moved_to_another_ledger_position_is_not_valid(copy: Path) -> None:
    path = ledger_segments(copy)[0]
    out, previous = b"", b""
    for block in blocks_of(path):
        frames = decode_frames(block)
        if isinstance(frames[-1], KeyFrame):
            previous = b"\x01" * 32
            frames[0].prev = previous  # type: ignore[union-attr]
        data, _digest, previous = encode_control(frames, block.header.first, previous)  # type: ignore[arg-type]
        out += data
    path.write_bytes(out)
    assert "tampered" in failing(copy)


def test_zeros_after_the_last_block_are_torn_and_anything_else_is_tampering(copy: Path) -> None:
    path = stream_segments(copy)[-1]
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(5000))
    assert kinds(copy) == {"torn"}
    path.write_bytes(whole + b"x" * 5000)
    assert failing(copy) == {"tampered"}


def test_a_body_that_imitates_blocks_cannot_make_a_torn_tail_look_like_tampering(copy: Path) -> None:
    path = stream_segments(copy)[-1]
    whole, blocks = path.read_bytes(), blocks_of(path)
    fake = whole[blocks[1].offset : blocks[1].end]
    first = blocks[-1].header.last + 1
    header = covered_header(1, 0, 1, 100_000, 10, 10, 1, first) + bytes(32)
    path.write_bytes(whole + header + b"0123456789" + fake * 20)
    assert kinds(copy) == {"torn"}


def test_a_length_flipped_in_the_unsigned_tail_is_tampering_not_torn(host: Host) -> None:
    worker = host.worker()
    worker.exchange(1)
    worker.sign()
    for n in range(2, 6):
        worker.exchange(n)
    (path,) = stream_segments(host.root)
    block = blocks_of(path)[-3]
    flip(path, block.offset + 9)  # the payload's length grows by 65,536
    assert "tampered" in failing(host.root)


@pytest.mark.parametrize("damage", ["flip", "cut", "torn"])
def test_the_shipped_file_alone_finds_the_same_as_the_command(
    copy: Path, damage: str, tmp_path: Path
) -> None:
    path = stream_segments(copy)[-1]
    match damage:
        case "flip":
            flip(path, 100)
        case "cut":
            cut(path, path.stat().st_size - 10)
        case "torn":
            path.write_bytes(path.read_bytes() + b"VWB2")
    alone = Path(shutil.copy(standalone.__file__, tmp_path / "verify.py"))
    done = subprocess.run(
        [sys.executable, "-I", str(alone), str(copy), "--json"], capture_output=True, text=True, check=False
    )
    shown, report = json.loads(done.stdout), verify(copy)
    assert done.returncode == report.exit_code
    assert [(f["kind"], f["file"], f["offset"], f["first"], f["last"]) for f in shown["findings"]] == [
        (f.kind, f.file, f.offset, f.first, f.last) for f in report.findings
    ]


def test_an_old_key_put_back_in_its_place_does_not_sign_again(copy: Path) -> None:
    for path in (copy / "keys").glob("epoch-*.key"):
        path.unlink()
    raw = Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    (copy / "keys" / "epoch-1.key").write_bytes(raw)
    again = Host(copy, boot="boot-2")
    try:
        assert again.ledger.key_break
        again.ledger.checkpoint({})
    finally:
        again.release()
    assert failing(copy) == {"key-break"}


def test_a_block_that_its_writer_finishes_meanwhile_is_no_damage(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stream_segments(copy)[-1]
    data, blocks = path.read_bytes(), blocks_of(path)
    unfinished = blocks[len(blocks) // 2]
    cut(path, unfinished.offset + 80)
    read = standalone.read_block

    def read_beside_a_writer(file: BinaryIO, offset: int, limit: int) -> standalone.Block | None:
        try:
            return read(file, offset, limit)
        except standalone.Damage:
            path.write_bytes(data)  # the writer's turn, just after the reader met the end
            raise

    monkeypatch.setattr(standalone, "read_block", read_beside_a_writer)
    report = verify(copy)
    assert (report.exit_code, path.read_bytes() == data) == (0, True), report.findings
