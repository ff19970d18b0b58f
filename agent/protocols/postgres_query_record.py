# SPDX-License-Identifier: Apache-2.0
"""One SQL exchange under way, and the records it leaves.

Owns what is known of an exchange (a simple Query, an Execute, or a message that was refused) from its Intent
to its Result, and the bytes of its answer that wait for their record. Decides nothing. Bias: nothing of an
answer is handed out before a record of it stands in the same `Output`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final, Literal

from agent.protocols.session import Abort, Chunk, Intent, Masked, Output, Result
from agent.protocols.sql import Conversation, Plan, Reading, Rewriting, SqlEngine, Where
from agent.protocols.sql_made import Described, Parameter, Released
from policy.model import ANY_COLLECTION, Action, Verdict
from policy.operation import Operation

MAX_SLICE: Final = 256 * 1024  # bytes of an answer in one record
RELEASE_AT: Final = 32 * 1024  # an answer that is not whole after a read is handed out above this
MAX_IDS: Final = 10_000  # identifiers of rows kept for one result
_NOTHING: Final = Described(b"", b"", 0)


class Exchange:
    """From the Intent to the Result."""

    __slots__ = (
        "_answered", "_recorded", "_released", "cut", "held", "ids", "limit", "masks", "n", "pieces", "plan",
        "rewriting", "rows", "size", "sqlstate", "streamed", "tag", "total", "verdict",
    )  # fmt: skip

    def __init__(self, n: int, verdict: Verdict, rewriting: Rewriting | None) -> None:
        self.n = n
        self.verdict = verdict
        self.rewriting = rewriting
        self.plan: Plan | None = None
        self.limit: int | None = None  # rows that the client may still get of a simple Query
        self.pieces: list[bytes] = []  # for the client, waiting for their record
        self._recorded: list[bytes] | None = None  # their recorded form, where it is another
        self.held = 0  # bytes in `pieces`
        self.streamed = False  # some of the answer was handed out before it was whole
        self.total = 0  # bytes the client gets
        self.size = 0  # bytes the database sent; counted from the first change on
        self._answered: object = None  # SHA-256 of what the database sent, once the client gets another
        self._released: object = None  # SHA-256 of what was handed out
        self.rows = self.cut = 0
        self.ids: tuple[str, ...] = ()
        self.masks: tuple[Masked, ...] = ()
        self.tag: str | None = None
        self.sqlstate: str | None = None

    def add(self, raw: bytes, shown: bytes | None = None, recorded: bytes | None = None) -> None:
        """Messages of the answer: as they came, as the client gets them, as they are recorded."""
        if shown is None:
            shown = raw
        if self._answered is not None:
            self._answered.update(raw)  # type: ignore[attr-defined]
            self.size += len(raw)
        elif shown is not raw:
            self._part(raw)
        if recorded is None or recorded == shown:
            recorded = shown
        if self._recorded is not None:
            self._recorded.append(recorded)
        elif recorded is not shown:
            self._recorded = [*self.pieces, recorded]
        self.pieces.append(shown)
        self.held += len(shown)

    def _part(self, raw: bytes) -> None:
        """From here on the client gets something else than the database sent."""
        digest = sha256() if self._released is None else self._released.copy()  # type: ignore[attr-defined]
        for piece in self.pieces:
            digest.update(piece)
        digest.update(raw)
        self._answered = digest
        self.size = self.total + self.held + len(raw)

    def add_released(self, run: bytes, released: Released, count: int) -> None:
        """A run of `count` rows, after masking."""
        self.add(run, released.released, released.recorded)
        self.rows += count if released.rows < 0 else released.rows
        self.cut += released.vectors_cut
        if released.ids and len(self.ids) < MAX_IDS:
            self.ids = (self.ids + released.ids)[:MAX_IDS]
        if released.masks:
            self.masks = _merged(self.masks, released.masks)

    def take(self) -> tuple[bytes, bytes]:
        """What waits, and its recorded form; both are gone from here afterwards."""
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        recorded = data if self._recorded is None else b"".join(self._recorded)
        self.pieces = []
        self._recorded = None
        self.held = 0
        self.total += len(data)
        return data, recorded

    def stream(self, out: Output) -> None:
        """Hand out what there is, its record first."""
        if not self.pieces:
            return
        data, recorded = self.take()
        if self._released is None:
            self._released = sha256()
        self._released.update(data)  # type: ignore[attr-defined]
        self.streamed = True
        body = data if self.verdict.level == "full" else recorded if self.verdict.level == "masked" else None
        digest = sha256(data).digest()
        out.records.append(Chunk(self.n, "response", body, digest, len(data), body is data))
        out.to_client.append(data)

    def finish(
        self, out: Output, outcome: Literal["answered", "refused", "failed"], reason: str | None = None
    ) -> None:
        """The Result, and the rest of the answer."""
        if self.streamed:
            self.stream(out)
        data, recorded = self.take()
        level = self.verdict.level
        body = None
        if not self.streamed and (data or outcome != "answered"):
            body = data if level == "full" else recorded if level == "masked" else None
        digest: bytes = sha256(data).digest() if self._released is None else self._released.digest()  # type: ignore[attr-defined]
        head: dict[str, str] = {}
        if self.tag is not None:
            head["tag"] = self.tag
        if self.sqlstate is not None:
            head["sqlstate"] = self.sqlstate
        out.records.append(
            Result(
                n=self.n,
                outcome=outcome,
                status=None,
                head=head,
                body=body,
                sha256=digest if self._answered is None else self._answered.digest(),  # type: ignore[attr-defined]
                bytes=self.total if self._answered is None else self.size,
                released_sha256=digest,
                released_bytes=self.total,
                ids=self.ids,
                rows=self.rows,
                vectors_cut=self.cut,
                masks=self.masks,
                reason=reason,
            )
        )
        if data:
            out.to_client.append(data)


def _merged(known: tuple[Masked, ...], more: tuple[Masked, ...]) -> tuple[Masked, ...]:
    counts = {(m.what, m.how): m.count for m in known}
    for m in more:
        counts[m.what, m.how] = counts.get((m.what, m.how), 0) + m.count
    return tuple(Masked(what, how, count) for (what, how), count in counts.items())


class Recorder:
    """Makes the exchanges of one connection and the records of what a client sends."""

    __slots__ = ("_conversation", "_engine", "_guard", "_head", "_merged", "n")

    def __init__(
        self, engine: SqlEngine, conversation: Conversation, guard: str, where: Where, n_from: int
    ) -> None:
        self._engine = engine
        self._conversation = conversation
        self._guard = guard
        self.n = n_from - 1  # of the last exchange
        named = where.user if where.named is None else where.named
        self._head = {"user": named, "database": where.database}
        self._merged: tuple[dict[str, str], Mapping[str, str], dict[str, str]] | None = None
        if named != where.user:
            self._head = {**self._head, "upstream-user": where.user}
        name = where.parameters.get("application_name")
        if name:
            self.rename(name)

    def rename(self, application: str) -> None:
        self._head = {**self._head, "application_name": application}

    def unknown(self, method: str, size: int) -> Operation:
        """The operation of a message that no engine reads."""
        return Operation(
            engine=self._engine.name,
            guard=self._guard,
            method=method,
            actions=frozenset({Action.UNKNOWN}),
            collections=frozenset({ANY_COLLECTION}),
            bytes=size,
        )

    def begin(
        self,
        out: Output,
        reading: Reading | None,
        parameters: Sequence[Parameter],
        operation: Operation,
        verdict: Verdict,
        rewriting: Rewriting | None,
        head: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Record that something is about to be forwarded, or refused."""
        self.n += 1
        exchange = Exchange(self.n, verdict, rewriting)
        level = verdict.level
        told = _NOTHING
        if reading is not None:
            told = self._conversation.describe(reading, parameters, level == "masked")
        recorded: bytes | None = None
        cut = 0
        if level == "masked":
            recorded, cut = told.recorded, told.cut
        elif level == "full":
            recorded = told.body
        out.records.append(
            Intent(
                self.n,
                operation,
                verdict,
                self._head if head is None else self._with_head(head),
                recorded,
                told.sha256,
                len(told.body),
                cut,
            )
        )
        return exchange

    def _with_head(self, head: Mapping[str, str]) -> dict[str, str]:
        """The connection's head with an exchange's own; a statement's is the very same one each time."""
        last = self._merged
        if last is not None and last[0] is self._head and last[1] is head:
            return last[2]
        made = {**self._head, **head}
        self._merged = (self._head, head, made)
        return made

    @staticmethod
    def piece(out: Output, exchange: Exchange, data: bytes) -> None:
        """CopyData of the client. Below level full it stays out: it may hold vectors that nothing cut."""
        body = data if exchange.verdict.level == "full" else None
        digest = sha256(data).digest()
        out.records.append(Chunk(exchange.n, "request", body, digest, len(data), body is data))

    @staticmethod
    def abort(out: Output, exchange: Exchange, reason: str) -> None:
        out.records.append(Abort(exchange.n, reason))


def denied(verdict: Verdict, message: str) -> Verdict:
    """`verdict` turned into a refusal that no rule of the policy made."""
    return replace(verdict, outcome="deny", rule=None, where=None, message=message)
