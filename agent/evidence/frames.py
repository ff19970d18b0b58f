# SPDX-License-Identifier: Apache-2.0
"""The frames of evidence: every struct that a stream or the ledger consists of.

Values only: ``blocks`` turns them into bytes and back. docs/evidence-format.md is both in prose. Fields are
added, never renamed or given a new meaning; a reader must take what it does not know in its stride.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from policy.model import Scalar

VERSION = 1
LEDGER = "ledger"  # the stream id of the agent's own stream
Blob = bytes  # structs may have a field named "bytes"


class Frame(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="t"):
    """Every frame: a msgpack map with its type in "t"; fields at their default are left out.

    `at` is wall time and `up` CLOCK_BOOTTIME, both in nanoseconds.
    """

    at: int
    up: int


class SegmentFrame(Frame, tag="segment"):
    """The first frame of every segment: where it stands in its stream."""

    stream: str
    number: int
    prev: Blob  # chain value before this block (genesis for the first segment)
    first: int  # its own seq
    host: str
    boot: str
    reason: Literal["start", "rotate", "recovered"]
    version: int = VERSION


class RecoveredFrame(Frame, tag="recovered"):
    """A segment ended in a torn tail. In the next segment's first block, or in the ledger (dead stream)."""

    stream: str
    number: int
    torn_at: int  # offset of the first byte that is not part of a whole block
    size: int  # of the file when this was written
    seq: int  # last whole frame before it
    reason: str
    sha256: Blob = b""  # of the torn bytes, where they were copied aside


class LostRange(msgspec.Struct, omit_defaults=True, array_like=True):
    """Records of one session that were not written: exchanges `first` to `last`."""

    session: str
    first: int
    last: int
    frames: int


class GapFrame(Frame, tag="gap"):
    """What is missing, written as soon as writing works again."""

    reason: str
    frames: int
    bytes: int
    since: int  # wall ns of the first and last loss
    until: int
    lost: list[LostRange] = []
    unnamed: int = 0  # lost frames of sessions beyond those that `lost` names
    released: int = 0  # of `frames`, those let pass unrecorded (observe, best-effort)


class CloseFrame(Frame, tag="close"):
    """A stream or the ledger ends on purpose: silence after it is no loss."""

    reason: str
    counters: dict[str, int] = {}


class SessionFrame(Frame, tag="session"):
    """One client connection begins. `card` is its identity card (docs, session fields)."""

    session: str
    card: dict[str, Any]
    again: bool = False  # repeated at the start of a segment: the session began in an earlier one


class SessionEndFrame(Frame, tag="end"):
    session: str
    summary: dict[str, Any]


class LimitPart(msgspec.Struct, omit_defaults=True):
    name: str
    value: int
    over: str
    rule: str


class MaskPart(msgspec.Struct, omit_defaults=True):
    rule: str
    field: str | None = None
    pii: tuple[str, ...] = ()
    scores: int | None = None
    how: str = "redact"


class NearPart(msgspec.Struct):
    rule: str
    condition: str
    wanted: str
    got: str


class HitPart(msgspec.Struct):
    rule: str
    mode: str
    would: str
    message: str


class OperationPart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`policy.operation.Operation`, field by field; sets are sorted lists."""

    engine: str
    guard: str
    method: str
    actions: list[str]
    collections: list[str] = []
    top_k: int | None = None
    unbounded: bool = False
    offset: int | None = None
    vectors: bool = False
    fields: list[str] | None = None
    probed: list[str] = []
    thresholds: bool = False
    filtered: bool = False
    carries_filter: bool = False
    queries: int = 0
    rows: int = 0
    bytes: int = 0
    partial: bool = False


class VerdictPart(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`policy.model.Verdict`, field by field."""

    outcome: str
    rule: str | None = None
    where: str | None = None
    message: str = ""
    policy: str = ""
    limits: list[LimitPart] = []
    clamps: list[LimitPart] = []
    vectors: bool = True
    vectors_rule: str | None = None
    fields: list[str] | None = None
    fields_rule: str | None = None
    filters: list[tuple[str, Scalar]] = []
    filter_rules: tuple[str, ...] = ()
    masks: list[MaskPart] = []
    level: str = "masked"
    mode: str = "strict"
    nearest: NearPart | None = None
    would: str | None = None
    hits: list[HitPart] = []


class IntentFrame(Frame, tag="intent"):
    """Before an exchange is forwarded or refused. `part` is (offset, length) among the block's parts."""

    session: str
    n: int
    op: OperationPart
    verdict: VerdictPart
    sha256: Blob = b""
    bytes: int = 0
    head: dict[str, str] = {}
    body: Blob | None = None
    part: tuple[int, int] | None = None
    vectors_cut: int = 0
    cut: str | None = None  # why a body that the level keeps is not there ("disk")


class ChunkFrame(Frame, tag="chunk"):
    session: str
    n: int
    side: Literal["request", "response"]
    sha256: Blob
    bytes: int
    body: Blob | None = None
    part: tuple[int, int] | None = None
    cut: str | None = None


class MaskedPart(msgspec.Struct):
    what: str
    how: str
    count: int


class ResultFrame(Frame, tag="result"):
    """The end of an exchange, written before its last byte is released."""

    session: str
    n: int
    outcome: Literal["answered", "refused", "failed"]
    status: int | None = None
    sha256: Blob = b""
    bytes: int = 0
    released_sha256: Blob = b""
    released_bytes: int = 0
    ids: tuple[str, ...] = ()
    rows: int = 0
    head: dict[str, str] = {}
    body: Blob | None = None
    part: tuple[int, int] | None = None
    vectors_cut: int = 0
    masks: list[MaskedPart] = []
    reason: str | None = None
    cut: str | None = None


class AbortFrame(Frame, tag="abort"):
    session: str
    n: int
    reason: str


class OpaqueFrame(Frame, tag="opaque"):
    session: str
    reason: str
    protocol: str


class PolicyFrame(Frame, tag="policy"):
    """A policy came into force, or was refused (`problem`). `source` holds its files by name."""

    hash: str
    source: dict[str, str] = {}
    problem: str | None = None


class GrantFrame(Frame, tag="grant"):
    act: str  # "given", "used", "revoked", "expired"
    grant: dict[str, Any]


class AdminFrame(Frame, tag="admin"):
    act: str  # "off", "on", "reload", "kill", ...
    who: dict[str, Any]
    detail: dict[str, Any] = {}


class BypassFrame(Frame, tag="bypass"):
    detail: dict[str, Any]


class TombstoneFrame(Frame, tag="tombstone"):
    """Everything of `stream` up to and with segment `number` was removed by retention."""

    stream: str
    number: int
    last: int  # seq of the last removed frame
    head: Blob  # chain value after it: the next segment's `prev`
    bytes: int  # removed now
    reason: str  # "keep", "max_size", "carried" (repeated because an older ledger segment went)
    by: str = "retention"


class KeyFrame(Frame, tag="key"):
    """The host identity certifies the epoch key in force. Second frame of every ledger segment.

    `reason`: "first" (a new ledger), "resume" and "rotate" (the key the last checkpoint announced), or
    "break" (any other key: the chain of keys is interrupted).
    """

    epoch: int
    public: Blob
    host_public: Blob
    signature: Blob  # host key over KEY_CONTEXT + ledger chain before this block + epoch (8 bytes) + public
    reason: Literal["first", "resume", "rotate", "break"]


class CheckpointFrame(Frame, tag="checkpoint"):
    """A block of its own. `body` is a msgpack `Checkpoint`, signed by `key` after CHECKPOINT_CONTEXT."""

    body: Blob
    key: Blob
    signature: Blob


class StreamHead(msgspec.Struct, array_like=True, frozen=True):
    """How far a stream is proven: its last signed frame and the chain value after that block."""

    stream: str
    seq: int
    head: Blob


class Checkpoint(msgspec.Struct, kw_only=True):
    """What the agent signs once per epoch."""

    epoch: int  # n: counts up by one
    host: str
    boot: str
    wall: int  # ns
    boottime: int  # ns
    ledger_seq: int  # last ledger frame before this checkpoint's block, and the chain value after it
    ledger_head: Blob
    streams: list[StreamHead]
    counters: dict[str, int]
    policy: str
    next_key: Blob  # public key of epoch n + 1


@dataclass(frozen=True, slots=True)
class UnknownFrame:
    """A frame of a type this build does not know: kept, shown, never a reason to fail a proof."""

    t: str
    fields: Mapping[str, Any]


KNOWN: tuple[type[Frame], ...] = (
    SegmentFrame, RecoveredFrame, GapFrame, CloseFrame, SessionFrame, SessionEndFrame, IntentFrame,
    ChunkFrame, ResultFrame, AbortFrame, OpaqueFrame, PolicyFrame, GrantFrame, AdminFrame, BypassFrame,
    TombstoneFrame, KeyFrame, CheckpointFrame,
)  # fmt: skip
CONTROL_FRAMES = (
    SegmentFrame, RecoveredFrame, GapFrame, CloseFrame, PolicyFrame, GrantFrame, AdminFrame, BypassFrame,
    TombstoneFrame, KeyFrame, CheckpointFrame,
)  # fmt: skip
AnyFrame = Frame | UnknownFrame
