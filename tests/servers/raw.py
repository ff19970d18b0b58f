# SPDX-License-Identifier: Apache-2.0
"""Clients of raw bytes, for what no client library would send; they run as any user in a stage's arena."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.evidence.archive import Archive
from agent.evidence.frames import Frame, OpaqueFrame, SessionEndFrame, SessionFrame, UnknownFrame
from tests.kernel.arena import PATIENCE
from tests.servers.stage import Stage

TALK = 30.0  # seconds without a byte after which a connection counts as one that nobody answers
Ending = Literal["eof", "reset", "refused", "timeout", "open"]


@dataclass(frozen=True, slots=True)
class Talk:
    """What one connection got, and how it ended ("open": enough came)."""

    got: bytes
    ended: Ending
    took: float

    @property
    def status(self) -> int | None:
        """Of the first HTTP/1.1 answer."""
        return int(self.got[9:12]) if self.got.startswith(b"HTTP/1.") else None

    @property
    def body(self) -> bytes:
        return self.got.partition(b"\r\n\r\n")[2]


def request(
    path: str, body: bytes = b"", method: str = "", headers: Sequence[str] = ("connection: close",)
) -> bytes:
    """One HTTP/1.1 request as plain clients write it."""
    lines = [f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1", "host: 127.0.0.1", *headers]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def talk(
    port: int,
    *pieces: bytes,
    pause: float = 0.0,
    half_close: bool = False,
    until: bytes | None = None,
    timeout: float = TALK,
    host: str = "127.0.0.1",
) -> Talk:
    """Connect, send the pieces with pauses between, read to the end (or until some bytes came)."""
    began = time.monotonic()
    got = b""
    ended: Ending = "timeout"
    try:
        with socket.create_connection((host, port), timeout=timeout) as sock:
            for number, piece in enumerate(pieces):
                if number and pause:
                    time.sleep(pause)
                sock.sendall(piece)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while until is None or until not in got:
                data = sock.recv(1 << 16)
                if not data:
                    return Talk(got, "eof", time.monotonic() - began)
                got += data
            ended = "open"
    except TimeoutError:
        ended = "timeout"
    except ConnectionRefusedError:
        ended = "refused"
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
            raise
        ended = "reset"
    return Talk(got, ended, time.monotonic() - began)


def say(stage: Stage, *pieces: bytes, user: str | int | None = "nobody", **how: Any) -> Talk:
    """`talk` with the stage's database port, as a client of the stage."""
    found: Talk = stage.arena.run(
        lambda: talk(stage.port, *pieces, **how), user=user, timeout=how.get("timeout", TALK) + PATIENCE
    )
    return found


def opaque_reasons(stage: Stage) -> dict[str, set[str]]:
    """What the evidence says of connections that were passed on unread: protocol to reasons."""
    found: dict[str, set[str]] = {}
    for frame in frames(stage):
        if isinstance(frame, OpaqueFrame):
            found.setdefault(frame.protocol, set()).add(frame.reason)
    return found


def endings(stage: Stage) -> Counter[str]:
    """Why sessions of the evidence ended, and how many for each reason; "" for those that have not."""
    found = list(frames(stage))
    ended = Counter(frame.summary["reason"] for frame in found if isinstance(frame, SessionEndFrame))
    begun = {frame.session for frame in found if isinstance(frame, SessionFrame)}
    return ended + Counter({"": len(begun) - ended.total()})


def frames(stage: Stage) -> Iterator[Frame | UnknownFrame]:
    """Every frame of every stream of the stage's evidence, the ledger last."""
    archive = Archive(stage.folder / "evidence")
    for stream in archive.streams():
        for batch in archive.scan(stream):
            for item in batch.frames:
                yield item.frame


def wait_until(holds: Any, seconds: float = PATIENCE, what: str = "") -> None:
    """Until `holds()` is true. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.05)


def is_dead(pid: int) -> bool:
    """Every thread of it has ended: nothing of it is open any more, though nobody may have buried it."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return len(threads) == 1 and state in "ZX"


def exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
