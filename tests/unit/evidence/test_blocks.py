# SPDX-License-Identifier: Apache-2.0
"""Frames and blocks: what goes in comes out, and nothing hostile gets further than FormatError."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import struct

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agent.evidence import frames as vocabulary
from agent.evidence.blocks import (
    HEADER,
    FormatError,
    covered_header,
    decode_frames,
    encode_control,
    genesis,
    read_blocks,
    read_frames,
)
from agent.evidence.frames import (
    KNOWN,
    AdminFrame,
    Frame,
    IntentFrame,
    ResultFrame,
    UnknownFrame,
)
from agent.evidence.framing import frame_of
from agent.evidence.pack import pack
from agent.evidence.parts import operation_part, verdict_part
from agent.evidence.standalone import Damage, read_block, unpack
from policy.model import Action, Limit, Mask, NearMiss, Verdict
from policy.operation import FIELDS as OPERATION_FIELDS
from policy.operation import Operation
from tests.unit.evidence.host import intent, result


def block_of(frames: list[Frame]) -> bytes:
    buffers, _digest, _value = pack(frames).place(1, genesis("a" * 16))
    return b"".join(buffers)


def raw_block(head: bytes, *, codec: int = 0, raw: int | None = None, count: int = 1) -> bytes:
    raw = len(head) if raw is None else raw
    return covered_header(1, codec, 0, len(head), len(head), raw, count, 1) + bytes(32) + head


def operation_of(part: vocabulary.OperationPart) -> Operation:
    values = {name: getattr(part, name) for name in part.__struct_fields__}
    values["actions"] = frozenset(Action(action) for action in part.actions)
    for name in ("collections", "fields", "probed"):
        values[name] = None if values[name] is None else frozenset(values[name])
    return Operation(**values)


def test_no_field_of_an_operation_or_a_verdict_is_left_out_of_the_record() -> None:
    assert set(vocabulary.OperationPart.__struct_fields__) == set(OPERATION_FIELDS)
    assert set(vocabulary.VerdictPart.__struct_fields__) == {
        x.name for x in dataclasses.fields(Verdict) if x.init
    }
    assert set(vocabulary.LimitPart.__struct_fields__) == {x.name for x in dataclasses.fields(Limit)}
    assert set(vocabulary.MaskPart.__struct_fields__) == {x.name for x in dataclasses.fields(Mask)}
    assert set(vocabulary.NearPart.__struct_fields__) == {x.name for x in dataclasses.fields(NearMiss)}


def test_defaults_of_the_record_are_the_defaults_of_the_vocabulary() -> None:
    part = vocabulary.OperationPart(engine="e", guard="g", method="m", actions=["search"])
    assert operation_of(part) == Operation("e", "g", "m", frozenset({Action.SEARCH}))
    assert verdict_part(Verdict("allow", None, None, "", "")) == vocabulary.VerdictPart(outcome="allow")


def test_an_operation_comes_back_equal() -> None:
    operation = Operation(
        "qdrant", "q", "m", frozenset({Action.READ, Action.SCAN}), frozenset({"b", "a"}), 5, True, 1, True,
        frozenset({"x"}), frozenset({"y"}), True, True, True, 2, 3, 4, True,
    )  # fmt: skip
    part = msgspec.msgpack.decode(
        msgspec.msgpack.encode(operation_part(operation)), type=vocabulary.OperationPart
    )
    assert operation_of(part) == operation


@pytest.mark.parametrize("size", [0, 10, 20_000])
def test_records_come_back_with_their_bodies(size: int) -> None:
    body = b"b" * size
    frames = [frame_of(record, "s", 1, 2) for record in (intent(1, body), result(1, body))]
    asked, answered = (located.frame for located in read_frames(io.BytesIO(block_of(frames))))
    assert isinstance(asked, IntentFrame)
    assert isinstance(answered, ResultFrame)
    assert (asked.body, answered.body, asked.part) == (body, body, None)


def test_a_frame_type_of_a_newer_build_hides_neither_itself_nor_its_neighbours() -> None:
    known = {"t": "abort", "at": 1, "up": 1, "session": "s", "n": 1, "reason": "r", "extra": 2}
    head = msgspec.msgpack.encode([{"t": "novel", "x": 1}, known])
    first, second = (x.frame for x in read_frames(io.BytesIO(raw_block(head, count=2))))
    assert first == UnknownFrame("novel", {"x": 1})
    assert isinstance(second, vocabulary.AbortFrame)


def test_a_compressed_head_may_not_be_larger_than_its_header_says() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(10_000_000))
    (block,) = read_blocks(io.BytesIO(raw_block(bomb, codec=1, raw=100)))
    with pytest.raises(FormatError):
        decode_frames(block)


def test_a_body_outside_its_block_is_refused() -> None:
    head = msgspec.msgpack.encode(
        [
            {
                "t": "chunk",
                "at": 1,
                "up": 1,
                "session": "s",
                "n": 1,
                "side": "request",
                "sha256": b"",
                "bytes": 1,
                "part": [0, 99],
            }
        ]
    )
    (block,) = read_blocks(io.BytesIO(raw_block(head)))
    with pytest.raises(FormatError, match="outside"):
        decode_frames(block)


@pytest.mark.parametrize("size", [1, 3, 20, 63, 64, 70])
def test_the_beginning_of_a_block_is_torn_wherever_it_ends(size: int) -> None:
    data, _digest, _value = encode_control([AdminFrame(at=1, up=1, act="off", who={})], 1, genesis("x"))
    with pytest.raises(FormatError) as caught:
        list(read_blocks(io.BytesIO(data + data[:size])))
    assert caught.value.torn
    assert caught.value.offset == len(data)


@given(st.binary(max_size=300))
def test_no_bytes_make_a_reader_raise_anything_but_its_own_error(data: bytes) -> None:
    header = HEADER.pack(b"VWB2", 1, 0, 0, *[len(data)] * 3, 1, 1, b"")
    for stored in (data, raw_block(data), raw_block(data, codec=1, raw=50), header + data):
        try:
            for block in read_blocks(io.BytesIO(stored)):
                decode_frames(block)
        except FormatError:
            continue


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=20,
)


@given(VALUES)
def test_the_standalone_reader_reads_msgpack_as_the_library_does(value: object) -> None:
    assert unpack(msgspec.msgpack.encode(value)) == value


@given(st.binary(max_size=100))
def test_the_standalone_reader_refuses_garbage_with_one_kind_of_error(data: bytes) -> None:
    with contextlib.suppress(ValueError, TypeError):
        unpack(data)


def test_every_frame_type_has_its_own_tag() -> None:
    tags = [kind.__struct_config__.tag for kind in KNOWN]
    assert len(set(tags)) == len(tags)


def test_a_digest_that_the_session_told_is_the_one_a_reader_computes() -> None:
    body, other = b"b" * 20_000, b"c" * 30_000
    frames = [frame_of(record, "s", 1, 2) for record in (intent(1, body), result(1, other))]
    known = {id(body): hashlib.sha256(body).digest()}
    buffers, digest, _value = pack(frames, known=known).place(1, genesis("a" * 16))
    (block,) = read_blocks(io.BytesIO(b"".join(buffers)))
    assert block.lengths() == (20_000, 30_000)
    assert block.digest() == digest


def test_a_wrong_digest_of_a_body_does_not_stand() -> None:
    body = b"b" * 20_000
    frames = [frame_of(intent(1, body), "s", 1, 2)]
    buffers, digest, _value = pack(frames, known={id(body): bytes(32)}).place(1, genesis("a" * 16))
    (block,) = read_blocks(io.BytesIO(b"".join(buffers)))
    assert block.digest() != digest


@pytest.mark.parametrize("lengths", [(19_999,), (20_001,), (2**32 - 1,), (20_000, 0), (10_000, 10_000), ()])
def test_parts_that_their_table_does_not_fill_are_no_block(lengths: tuple[int, ...]) -> None:
    head = msgspec.msgpack.encode([{"t": "novel"}])
    payload = head + struct.pack(f">{len(lengths)}I", *lengths) + b"b" * 20_000
    covered = covered_header(1, 0, len(lengths), len(head) + 20_004, len(head), len(head), 1, 1)
    data = covered + bytes(32) + payload[: len(head) + 20_004]
    with pytest.raises(FormatError):
        list(read_blocks(io.BytesIO(data)))
    with pytest.raises(Damage):
        read_block(io.BytesIO(data), 0, len(data))


def test_the_same_bytes_in_other_parts_are_another_digest() -> None:
    digests = []
    for lengths in ((20_000, 30_000), (30_000, 20_000)):
        frames = [frame_of(intent(n, b"b" * length), "s", 1, 2) for n, length in enumerate(lengths)]
        digests.append(pack(frames).place(1, genesis("a" * 16))[1])
    assert digests[0] != digests[1]
