# SPDX-License-Identifier: Apache-2.0
"""From a session's records to evidence frames.

Owns which field goes where and when a body is cut for want of disk. Bodies are passed through by reference:
a large one becomes a part of its block and is never copied. Decides nothing about what may be recorded: the
session made `body` by the level of the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.evidence.frames import (
    AbortFrame,
    ChunkFrame,
    Frame,
    IntentFrame,
    MaskedPart,
    OpaqueFrame,
    OperationPart,
    ResultFrame,
    VerdictPart,
)
from agent.evidence.parts import operation_part, verdict_part
from agent.protocols.session import Abort, Chunk, Intent, Opaque, Record, Result
from policy.model import Verdict
from policy.operation import Operation

PART_BYTES: Final = 16 * 1024
"""Bodies from here on are stored raw beside the head, smaller ones compressed in it. Measured: zstd costs
3 us per KB, hashing and writing 0.8; a 150 KB body through zstd would cost twice its whole budget."""

_WITH_BODY: Final = (IntentFrame, ResultFrame, ChunkFrame)  # tuples: a union is made anew at each call
_RECORD_WITH_BODY: Final = (Intent, Result)
MAX_VERDICTS: Final = 256
_verdicts: dict[int, tuple[Verdict, VerdictPart]] = {}
"""By the identity of the verdict, which is held: the policy gives all that a rule permits one verdict."""


def _verdict_part(verdict: Verdict) -> VerdictPart:
    known = _verdicts.get(id(verdict))
    if known is None:
        if len(_verdicts) >= MAX_VERDICTS:
            _verdicts.clear()
        known = _verdicts[id(verdict)] = (verdict, verdict_part(verdict))
    return known[1]


MAX_OPERATIONS: Final = 64
_operations: dict[int, tuple[Operation, OperationPart]] = {}
"""The same: a statement that is executed again is the very same operation."""


def _operation_part(operation: Operation) -> OperationPart:
    known = _operations.get(id(operation))
    if known is None:
        if len(_operations) >= MAX_OPERATIONS:
            _operations.clear()
        known = _operations[id(operation)] = (operation, operation_part(operation))
    return known[1]


def frame_of(record: Record, session: str, at: int, up: int) -> Frame:
    """The frame of one record, its body still in place."""
    match record:
        case Intent():
            return IntentFrame(
                at=at,
                up=up,
                session=session,
                n=record.n,
                op=_operation_part(record.operation),
                verdict=_verdict_part(record.verdict),
                sha256=record.sha256,
                bytes=record.bytes,
                head=_head(record.head),
                body=record.body,
                vectors_cut=record.vectors_cut,
            )
        case Result():
            return ResultFrame(
                at=at,
                up=up,
                session=session,
                n=record.n,
                outcome=record.outcome,
                status=record.status,
                sha256=record.sha256,
                bytes=record.bytes,
                released_sha256=record.released_sha256,
                released_bytes=record.released_bytes,
                ids=record.ids,
                rows=record.rows,
                head=_head(record.head),
                body=record.body,
                vectors_cut=record.vectors_cut,
                masks=[MaskedPart(x.what, x.how, x.count) for x in record.masks],
                reason=record.reason,
            )
        case Chunk():
            return ChunkFrame(
                at=at,
                up=up,
                session=session,
                n=record.n,
                side=record.side,
                sha256=record.sha256,
                bytes=record.bytes,
                body=record.data,
            )
        case Abort():
            return AbortFrame(at=at, up=up, session=session, n=record.n, reason=record.reason)
        case Opaque():
            return OpaqueFrame(at=at, up=up, session=session, reason=record.reason, protocol=record.protocol)


def cut_body(frame: Frame, why: str) -> None:
    """Leave the body out, and say so. Hashes and counts stay."""
    if isinstance(frame, IntentFrame | ChunkFrame | ResultFrame) and frame.body is not None:
        frame.body = None
        frame.cut = why


def take_part(frame: Frame, offset: int) -> bytes | None:
    """Move a large body out of its frame; it will stand at `offset` among the block's parts."""
    if isinstance(frame, _WITH_BODY):
        body = frame.body
        if body is not None and len(body) >= PART_BYTES:
            frame.body = None
            frame.part = (offset, len(body))
            return body
    return None


def restore_part(frame: Frame, body: bytes) -> None:
    """Undo `take_part`."""
    if isinstance(frame, IntentFrame | ChunkFrame | ResultFrame):
        frame.body = body
        frame.part = None


def _head(head: Mapping[str, str]) -> dict[str, str]:
    return head if type(head) is dict else dict(head)


def body_bytes(records: list[Record]) -> int:
    """Bytes of recorded bodies among these records."""
    size = 0
    for record in records:
        if isinstance(record, _RECORD_WITH_BODY):
            body = record.body
        elif isinstance(record, Chunk):
            body = record.data
        else:
            continue
        if body is not None:
            size += len(body)
    return size


def known_digest(record: Record) -> tuple[bytes, bytes] | None:
    """A body that is long enough to be a part, and its SHA-256, where the session told it."""
    if isinstance(record, Chunk):
        body, digest = record.data, record.sha256 if record.whole else b""
    elif isinstance(record, Intent):
        body, digest = record.body, record.sha256 if record.whole else b""
    elif isinstance(record, Result):
        body, digest = record.body, record.released_sha256 if record.whole else b""
    else:
        return None
    return (body, digest) if body is not None and len(body) >= PART_BYTES and digest else None
