# SPDX-License-Identifier: Apache-2.0
"""What could not be recorded: counted exactly until a GAP frame can say so, or kept to be written later."""

from __future__ import annotations

from collections.abc import Sequence

from agent.evidence.frames import GapFrame, LostRange, SessionEndFrame
from agent.protocols.session import Opaque, Record

MAX_NAMED = 4096  # ranges that one GAP names; frames of further sessions are counted in `unnamed`
MAX_ENDS = 4096  # ends of sessions that are kept; without its end a session looks open for ever


class Losses:
    """Losses since the last GAP that was written. Bounded: one range per session, `MAX_NAMED` of them."""

    def __init__(self) -> None:
        self._ranges: dict[str, LostRange] = {}
        self._reasons: dict[str, int] = {}
        self._unnamed = 0
        self._since = self._until = 0
        self.frames = 0
        self.bytes = 0
        self.released = 0

    def __bool__(self) -> bool:
        return self.frames > 0

    def add(self, session: str, records: Sequence[Record], reason: str, at: int, *, released: bool) -> None:
        """Records of one put. `released`: the bytes they stand for passed all the same."""
        numbers = [0 if isinstance(record, Opaque) else record.n for record in records] or [0]
        size = sum(0 if isinstance(x, Opaque) else getattr(x, "bytes", 0) for x in records)
        self.count(session, min(numbers), max(numbers), max(1, len(records)), size, reason, at)
        if released:
            self.released += max(1, len(records))

    def count(
        self, session: str, first: int, last: int, frames: int, size: int, reason: str, at: int
    ) -> None:
        known = self._ranges.get(session)
        if known is not None:
            known.first = min(known.first, first)
            known.last = max(known.last, last)
            known.frames += frames
        elif len(self._ranges) < MAX_NAMED:
            self._ranges[session] = LostRange(session, first, last, frames)
        else:
            self._unnamed += frames
        self._since = self._since or at
        self._until = at
        self._reasons[reason] = self._reasons.get(reason, 0) + frames
        self.frames += frames
        self.bytes += size

    def frame(self, at: int, up: int) -> GapFrame:
        """The GAP frame for all of it. `clear` once it is written."""
        return GapFrame(
            at=at,
            up=up,
            reason=", ".join(sorted(self._reasons, key=lambda reason: -self._reasons[reason])),
            frames=self.frames,
            bytes=self.bytes,
            since=self._since,
            until=self._until,
            lost=list(self._ranges.values()),
            unnamed=self._unnamed,
            released=self.released,
        )

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]


class Owed:
    """What is written when writing works again: cards of open sessions, and ends of those on record."""

    def __init__(self) -> None:
        self.cards: set[str] = set()  # sessions whose card is lost; it is repeated if they are open then
        self.ends: list[SessionEndFrame] = []

    def __bool__(self) -> bool:
        return bool(self.cards or self.ends)

    def keep_end(self, frame: SessionEndFrame) -> bool:
        """False where it has to count as lost: of the session nothing is on record, or too many are kept."""
        if frame.session in self.cards:
            self.cards.discard(frame.session)
            return False
        if len(self.ends) >= MAX_ENDS:
            return False
        self.ends.append(frame)
        return True
