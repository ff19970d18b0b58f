# SPDX-License-Identifier: Apache-2.0
"""A reader meets bytes that somebody changed: it says so, and never anything else."""

from __future__ import annotations

import io

from agent.evidence.blocks import FormatError, decode_frames, encode_control, genesis, read_blocks
from agent.evidence.frames import AdminFrame, SessionFrame


def _block() -> bytes:
    frames = [
        AdminFrame(at=1, up=2, act="off", who={"uid": 0, "name": "grüße"}, detail={"reason": "ünïcode"}),
        SessionFrame(at=1, up=2, session="06h0", card={"user": "ada", "argv": ["é", "ß"], "pid": 7}),
    ]
    return encode_control(frames, 1, genesis("ledger"))[0]


def test_any_changed_bit_of_a_block_is_read_or_refused_with_its_place() -> None:
    block = _block()
    refused = 0
    for position in range(len(block)):
        for bit in (0x01, 0x10, 0x80):
            changed = bytearray(block)
            changed[position] ^= bit
            try:
                for found in read_blocks(io.BytesIO(bytes(changed))):
                    decode_frames(found)
            except FormatError as error:
                refused += error.offset == 0
    assert refused > len(block) // 4
