# SPDX-License-Identifier: Apache-2.0
"""Evidence for the reader's tests, written with the writer's own packing: no clock, no keys, no agent."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from agent.evidence.blocks import encode_control, genesis, read_blocks
from agent.evidence.frames import (
    Frame,
    HitPart,
    IntentFrame,
    LimitPart,
    MaskedPart,
    MaskPart,
    NearPart,
    OperationPart,
    ResultFrame,
    SegmentFrame,
    SessionEndFrame,
    SessionFrame,
    VerdictPart,
)
from agent.evidence.pack import pack
from agent.evidence.segment import list_segments, segment_name

START = 1_795_459_066_000_000_000  # 2026-11-23T18:37:46Z
SECOND = 10**9
STREAM = "00aa11bb22cc33dd"
OTHER = "ffeeddccbbaa9988"


class Stream:
    """Appends blocks to a stream's segments."""

    def __init__(self, folder: Path, stream: str = STREAM) -> None:
        self.folder, self.stream = folder / "streams" / stream, stream
        self.folder.mkdir(parents=True, exist_ok=True)
        self.number, self.seq, self.chain = -1, 0, genesis(stream)
        self.rotate("start")

    @classmethod
    def resume(cls, folder: Path, stream: str = STREAM) -> Stream:
        """Go on where the newest segment ends."""
        made = cls.__new__(cls)
        made.folder, made.stream = folder / "streams" / stream, stream
        made.number, path = list_segments(made.folder)[-1]
        with open(path, "rb") as file:
            last = list(read_blocks(file))[-1].header
        made.seq, made.chain = last.last, last.chain
        return made

    @property
    def path(self) -> Path:
        return self.folder / segment_name(self.number)

    def rotate(self, reason: Literal["start", "rotate", "recovered"] = "rotate", at: int = START) -> None:
        self.number += 1
        frame = SegmentFrame(
            at=at,
            up=at,
            stream=self.stream,
            number=self.number,
            prev=self.chain,
            first=self.seq + 1,
            host="db1",
            boot="b00t",
            reason=reason,
        )
        self.control(frame)

    def control(self, *frames: Frame) -> None:
        data, _, self.chain = encode_control(list(frames), self.seq + 1, self.chain)
        self._append(data, len(frames))

    def block(self, *frames: Frame) -> None:
        buffers, _, self.chain = pack(list(frames)).place(self.seq + 1, self.chain)
        self._append(b"".join(buffers), len(frames))

    def _append(self, data: bytes, count: int) -> None:
        with open(self.path, "ab") as file:
            file.write(data)
        self.seq += count


def card(**fields: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "host": "db1",
        "boot": "b00t",
        "guard": "chroma-prod",
        "engine": "chroma",
        "attribution": "kernel",
        "pid": 4711,
        "start_time": 99,
        "comm": "python3",
        "exe": "/srv/rag/.venv/bin/python3",
        "exe_sha256": None,
        "argv": ["python3", "app.py"],
        "uid": 1000,
        "euid": 1000,
        "user": "rag",
        "gid": 1000,
        "groups": ["rag"],
        "login_uid": 1001,
        "login_user": "ada",
        "audit_session": 3,
        "unit": "rag.service",
        "user_unit": None,
        "slice": "system.slice",
        "container": None,
        "cgroup": "/system.slice/rag.service",
        "user_ns": 1,
        "mnt_ns": 2,
        "net_ns": 3,
        "parents": [{"pid": 1, "exe": "/usr/lib/systemd/systemd"}],
        "login_from": {"tty": "pts/3", "peer": "10.1.2.3"},
        "client_addr": "127.0.0.1",
        "client_port": 50000,
        "server_addr": "127.0.0.1",
        "server_port": 8000,
        "null_reason": {"container": "not in a container", "exe_sha256": "no rule asked for it"},
    }
    return known | fields


def opened(session: str, at: int = START, **fields: Any) -> SessionFrame:
    return SessionFrame(at=at, up=at, session=session, card=card(**fields))


def ended(session: str, at: int = START + 60 * SECOND, **summary: Any) -> SessionEndFrame:
    return SessionEndFrame(at=at, up=at, session=session, summary=summary)


def asked(
    session: str,
    n: int,
    at: int = START,
    *,
    body: bytes | None = b'{"n_results": 3}',
    outcome: str = "allow",
    actions: tuple[str, ...] = ("search",),
    collections: tuple[str, ...] = ("contracts",),
    **more: Any,
) -> IntentFrame:
    op = OperationPart(
        engine="chroma",
        guard="chroma-prod",
        method="POST /collections/{c}/query",
        actions=list(actions),
        collections=list(collections),
        top_k=3,
        queries=1,
        bytes=len(body or b""),
    )
    rule = {"allow": "rag-app", "deny": "no-bulk-read"}.get(outcome)
    verdict = VerdictPart(
        outcome=outcome,
        rule=rule,
        where=f"policy.d/10-rag.yaml:{3 if outcome == 'allow' else 12}",
        message="bulk read is for backup.service only" if outcome == "deny" else "",
        policy="ab" * 32,
        limits=[LimitPart("top_k", 20, "deny", "rag-app")],
        masks=[MaskPart("rag-app", pii=("email",))],
        nearest=NearPart("humans-ask", "who.group", "analysts", "rag") if outcome == "deny" else None,
        hits=[HitPart("soon", "shadow", "deny", "not yet")],
        **more,
    )
    return IntentFrame(
        at=at,
        up=at,
        session=session,
        n=n,
        op=op,
        verdict=verdict,
        body=body,
        bytes=len(body or b""),
        sha256=hashlib.sha256(body or b"").digest(),
        head={"method": "POST", "target": "/query"},
    )


def answered(
    session: str,
    n: int,
    at: int = START + SECOND,
    *,
    body: bytes | None = b'{"ids": [["a", "b"]]}',
    outcome: Literal["answered", "refused", "failed"] = "answered",
    ids: tuple[str, ...] = ("a", "b"),
    masks: tuple[tuple[str, str, int], ...] = (("pii:email", "redact", 2),),
    **more: Any,
) -> ResultFrame:
    digest = hashlib.sha256(body or b"").digest()
    fields: dict[str, Any] = {
        "status": 200 if outcome == "answered" else 403,
        "sha256": digest,
        "bytes": len(body or b""),
        "released_sha256": digest,
        "released_bytes": len(body or b""),
        "rows": len(ids),
        "head": {"content-type": "application/json"},
    }
    return ResultFrame(
        at=at,
        up=at,
        session=session,
        n=n,
        outcome=outcome,
        body=body,
        ids=ids,
        masks=[MaskedPart(*m) for m in masks],
        **(fields | more),
    )


def refused(session: str, n: int, at: int = START + SECOND) -> ResultFrame:
    return answered(
        session, n, at, outcome="refused", ids=(), masks=(), body=b'{"error": "denied"}', reason="denied"
    )


def story(folder: Path) -> Stream:
    """Two sessions: rag asks three times (masked, denied, never answered); eve of another program once."""
    stream = Stream(folder)
    stream.block(opened("5e551001"), asked("5e551001", 1), answered("5e551001", 1))
    stream.block(
        opened(
            "5e551002",
            START + 5 * SECOND,
            pid=4812,
            user="eve",
            uid=1002,
            exe="/usr/bin/curl",
            unit=None,
            login_user=None,
            login_uid=None,
            client_addr="10.0.0.9",
            guard="chroma-prod",
        )
    )
    stream.block(
        asked("5e551001", 2, START + 2 * SECOND, outcome="deny", actions=("scan",)),
        refused("5e551001", 2, START + 3 * SECOND),
    )
    stream.block(
        asked("5e551002", 1, START + 6 * SECOND, collections=("kb_1",)),
        answered("5e551002", 1, START + 7 * SECOND, ids=("b", "c"), masks=()),
    )
    stream.block(asked("5e551001", 3, START + 8 * SECOND, actions=("delete",), would="deny"))
    stream.block(ended("5e551001", START + 9 * SECOND, bytes_in=900, bytes_out=1200))
    return stream
