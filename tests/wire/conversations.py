# SPDX-License-Identifier: Apache-2.0
"""Recorded conversations, and a relay of no sockets that plays them into a session.

A conversation is a text file: ``>>> client`` and ``<<< server`` begin what a side sends, ``>>> eof`` and
``<<< eof`` are closes. Lines end with CRLF, except one that ends with a backslash, which has no end.
``@`` in a content-length line stands for the size of what follows the first empty line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent.protocols.session import Abort, Chunk, Intent, Opaque, Output, Record, Result, Session

DATA = Path(__file__).parent.parent / "data" / "http1"
Step = tuple[Literal["client", "server", "client-eof", "server-eof"], bytes]
_MARKS: dict[str, Literal["client", "server", "client-eof", "server-eof"]] = {
    ">>> client": "client",
    "<<< server": "server",
    ">>> eof": "client-eof",
    "<<< eof": "server-eof",
}


def names() -> list[str]:
    return sorted(path.stem for path in DATA.glob("*.http"))


def load(name: str) -> list[Step]:
    steps: list[Step] = []
    lines: list[str] = []
    for line in [*(DATA / f"{name}.http").read_text(encoding="utf-8").splitlines(), ">>> eof"]:
        if line in _MARKS:
            if steps:
                steps[-1] = (steps[-1][0], _bytes(lines))
            lines = []
            steps.append((_MARKS[line], b""))
        else:
            lines.append(line)
    return steps[:-1]


def _bytes(lines: list[str]) -> bytes:
    text = "".join(line[:-1] if line.endswith("\\") else line + "\r\n" for line in lines)
    data = text.encode("utf-8")
    head, empty, body = data.partition(b"\r\n\r\n")
    return head.replace(b": @", b": %d" % len(body)) + empty + body


@dataclass
class Played:
    """All that came out of a session, merged."""

    to_server: bytes = b""
    to_client: bytes = b""
    records: list[Record] = field(default_factory=list)
    closes: list[str] = field(default_factory=list)

    def add(self, out: Output) -> None:
        self.to_server += b"".join(out.to_server)
        self.to_client += b"".join(out.to_client)
        self.records += out.records
        if out.close != "no":
            self.closes.append(out.close)

    def merged(self) -> list[Any]:
        """The records with adjacent chunks made one, without the hashes of the pieces."""
        merged: list[Any] = []
        for record in self.records:
            if isinstance(record, Chunk):
                last = merged[-1] if merged else None
                if isinstance(last, list) and last[:2] == [record.n, record.side]:
                    last[2] += record.bytes
                    last[3] += record.data or b""
                else:
                    merged.append([record.n, record.side, record.bytes, record.data or b""])
            else:
                merged.append(record)
        return merged

    def of(self, kind: type) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


def feed(session: Session, side: str, data: bytes) -> Output:
    match side:
        case "client":
            return session.client_data(data)
        case "server":
            return session.server_data(data)
        case "client-eof":
            return session.client_eof()
        case _:
            return session.server_eof()


def play(session: Session, steps: list[Step], played: Played | None = None) -> Played:
    """Feed the steps until the session closes. A record is checked to stand before its bytes."""
    played = played if played is not None else Played()
    known = {record.n for record in played.of(Intent)}
    for side, data in steps:
        if played.closes and played.closes[-1] in ("both", "reset"):
            break
        out = feed(session, side, data)
        known |= {record.n for record in out.records if isinstance(record, Intent)}
        for record in out.records:
            if isinstance(record, Result | Chunk | Abort):
                assert record.n in known, "a record of an exchange that has no intent"
        played.add(out)
    return played


def cuts(steps: list[Step]) -> Iterator[list[Step]]:
    """The conversation with one step cut in two, at every byte of every step."""
    for index, (side, data) in enumerate(steps):
        for at in range(1, len(data)):
            yield [*steps[:index], (side, data[:at]), (side, data[at:]), *steps[index + 1 :]]


def bytewise(steps: list[Step]) -> list[Step]:
    small: list[Step] = []
    for side, data in steps:
        small += [(side, data[at : at + 1]) for at in range(len(data))] if data else [(side, data)]
    return small


def is_opaque(played: Played) -> bool:
    return bool(played.of(Opaque))


def outcomes(played: Played) -> list[str]:
    return [result.outcome for result in played.of(Result)]
