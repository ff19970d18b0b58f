# SPDX-License-Identifier: Apache-2.0
"""An evidence folder, read: its streams and segments, block by block, and the sessions in them.

Opens files for reading only and needs no key. It proves nothing: hashes and signatures are ``verify``'s.
Tolerant where a night's work needs it: a segment that still grows ends where it ends, a torn or damaged
one is read up to that point, said in `problems`, and the next one is read. What a worker wrote counts for
its own stream only: a session is known by (stream, id).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.evidence.assemble import Assembler, Tally, session_of
from agent.evidence.blocks import Block, FormatError, Located, decode_checkpoint, located, read_blocks
from agent.evidence.frames import (
    LEDGER,
    CheckpointFrame,
    OpaqueFrame,
    SegmentFrame,
    SessionEndFrame,
    SessionFrame,
)
from agent.evidence.segment import is_stream_id, list_segments, segment_name
from agent.evidence.views import Exchange, Session


class ArchiveError(Exception):
    """The folder cannot be read as evidence, or what was asked for is not in it. `hint` says what to try."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a block stands; as a position, where to read on."""

    stream: str
    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Where a segment could not be read on. `torn`: a write that did not end, as after a crash."""

    place: Place
    message: str
    torn: bool

    def __str__(self) -> str:
        what = "torn tail" if self.torn else "damaged"
        return (
            f"{self.place.stream}/{self.place.segment:06d}.seg at {self.place.offset}: {what}: {self.message}"
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """The frames of one block, and where the next begins."""

    place: Place
    end: int
    frames: list[Located]


class Archive:
    """One evidence folder. Cheap to make: nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: dict[Place, Problem] = {}

    def streams(self) -> list[str]:
        """Ids of the streams there are, the ledger last. Raises ArchiveError."""
        try:
            entries = set(os.listdir(self.folder))
            names = os.listdir(self.folder / "streams") if "streams" in entries else []
        except OSError as error:
            hint = (
                "run as root, or as a member of the group that may read evidence"
                if isinstance(error, PermissionError)
                else None
            )
            raise ArchiveError(f"{self.folder}: {error.strerror}", hint) from None
        if not entries & {"streams", LEDGER}:
            raise ArchiveError(
                f"{self.folder}: is no evidence folder (no streams and no ledger in it)",
                "name it with --dir DIR",
            )
        return sorted(n for n in names if is_stream_id(n)) + ([LEDGER] if LEDGER in entries else [])

    def path(self, stream: str) -> Path:
        """The folder of a stream's segments."""
        return self.folder / LEDGER if stream == LEDGER else self.folder / "streams" / stream

    def segments(self, stream: str) -> list[tuple[int, Path]]:
        return list_segments(self.path(stream))

    def size(self) -> int:
        """Bytes in all readable segments."""
        return sum(_size(p) for s in self.streams() for _, p in self.segments_or_none(s))

    def segments_or_none(self, stream: str) -> list[tuple[int, Path]]:
        try:
            return self.segments(stream)
        except PermissionError:  # the ledger may be closed to readers of sessions
            place = Place(stream, 0, 0)
            self.problems[place] = Problem(place, "may not be read by this user", False)
            return []

    def scan(self, stream: str, after: Place | None = None, *, bodies: bool = True) -> Iterator[Batch]:
        """The blocks of a stream in order, from `after` (a block boundary) or from its beginning.

        Ends at the end of what is written now; call again with the last Batch's end to read on.
        """
        segments = self.segments_or_none(stream)
        # Sizes are taken before reading: what stands before a segment that is in use is done. A spare is
        # empty and says nothing of the one before it.
        in_use = max((number for number, path in segments if _size(path)), default=-1)
        for number, path in segments:
            if after is not None and number < after.segment:
                continue
            start = after.offset if after is not None and number == after.segment else 0
            yield from self._scan_segment(Place(stream, number, start), path, number >= in_use, bodies)

    def _scan_segment(self, at: Place, path: Path, newest: bool, bodies: bool) -> Iterator[Batch]:
        end = at.offset
        try:
            with open(path, "rb") as file:
                for block in read_blocks(file, at.offset):
                    place, end = Place(at.stream, at.segment, block.offset), block.end
                    yield Batch(place, end, self._decoded(place, block, bodies))
        except FormatError as error:
            if not (newest and error.torn):  # else it may still be being written
                place = Place(at.stream, at.segment, error.offset)
                self.problems[place] = Problem(place, error.message, error.torn)
        except FileNotFoundError:  # retention removed it since it was listed
            return
        except OSError as error:
            place = Place(at.stream, at.segment, end)
            self.problems[place] = Problem(place, str(error.strerror), False)

    def _decoded(self, place: Place, block: Block, bodies: bool) -> list[Located]:
        """A block whose frames cannot be decoded is a problem, its neighbours are none."""
        try:
            return located(block, bodies=bodies)
        except FormatError as error:
            self.problems[place] = Problem(place, error.message, False)
            return []

    def signed(self) -> dict[str, tuple[int, str]]:
        """By the ledger's checkpoints: each stream's last signed seq, and the chain value there (hex)."""
        heads: dict[str, tuple[int, str]] = {}
        for batch in self.scan(LEDGER, bodies=False):
            for item in batch.frames:
                if isinstance(item.frame, CheckpointFrame):
                    with suppress(msgspec.MsgspecError):
                        for known in decode_checkpoint(item.frame.body).streams:
                            heads[known.stream] = (known.seq, known.head.hex())
        return heads

    def read(self, place: Place) -> list[Located]:
        """The frames of the block at `place`. Raises ArchiveError where it is gone or damaged."""
        path = self.path(place.stream) / segment_name(place.segment)
        try:
            with open(path, "rb") as file:
                for block in read_blocks(file, place.offset):
                    return located(block)
        except FormatError as error:
            raise ArchiveError(f"{path}: {error}", "run vecward verify") from None
        except FileNotFoundError:
            raise ArchiveError(f"{path}: is gone", "retention removes the oldest segments") from None
        except OSError as error:
            raise ArchiveError(f"{path}: {error.strerror}") from None
        raise ArchiveError(f"{path}: ends before offset {place.offset}", "run vecward verify")

    # Without an index: whole streams are read. Right for a copied folder, slow for a large one.

    def session(self, session: str, stream: str | None = None) -> Session:
        """The session's view, its numbers counted from its exchanges. Raises ArchiveError."""
        for name in self._candidates(stream):
            found = self._session_in(name, session)
            if found is not None:
                return found
        raise ArchiveError(f"no session {session}", "vecward sessions lists them")

    def _session_in(self, stream: str, session: str) -> Session | None:
        card: Located | None = None
        end: SessionEndFrame | None = None
        tally, last, segment, protocol = Tally(), 0, None, None
        assembler = Assembler(stream)
        for batch in self.scan(stream, bodies=False):
            for item in batch.frames:
                frame = item.frame
                if isinstance(frame, SegmentFrame) and card is None:
                    segment = frame
                if getattr(frame, "session", None) != session:
                    continue
                last = item.seq
                if isinstance(frame, SessionFrame):
                    card = item if card is None else _amended(card, frame)
                elif isinstance(frame, SessionEndFrame):
                    end = frame
                elif isinstance(frame, OpaqueFrame):
                    protocol = frame.protocol
                for exchange in assembler.take(item):
                    tally.add(exchange)
        for exchange in assembler.rest():
            tally.add(exchange)
        return (
            None if card is None else session_of(stream, card, segment, tally, end, last, protocol=protocol)
        )

    def exchanges(
        self, session: str, stream: str | None = None, places: Iterable[Place] | None = None
    ) -> Iterator[Exchange]:
        """A session's exchanges by the order of their ends, those without one last.

        With `places` (from an index) only those blocks are read.
        """
        if places is not None:
            yield from self._assembled(session, ((p.stream, self.read(p)) for p in places))
            return
        for name in self._candidates(stream):
            yield from self._assembled(session, ((name, b.frames) for b in self.scan(name)))

    def _assembled(self, session: str, blocks: Iterable[tuple[str, list[Located]]]) -> Iterator[Exchange]:
        assembler: Assembler | None = None
        for stream, frames in blocks:
            if assembler is None:
                assembler = Assembler(stream)
            for item in frames:
                if assembler.concerns(item, session):
                    yield from (e for e in assembler.take(item) if e.session == session)
        if assembler is not None:
            yield from assembler.rest()

    def exchange(
        self, session: str, n: int, stream: str | None = None, places: Iterable[Place] | None = None
    ) -> Exchange:
        """One exchange whole. Raises ArchiveError."""
        for exchange in self.exchanges(session, stream, places):
            if exchange.n == n:
                return exchange
        raise ArchiveError(f"session {session} has no exchange {n}", f"vecward show {session} lists them")

    def _candidates(self, stream: str | None) -> list[str]:
        return [stream] if stream is not None else [s for s in self.streams() if s != LEDGER]

    def follow(
        self,
        after: dict[str, Place] | None = None,
        lookup: Callable[[str, str], Session | None] | None = None,
    ) -> Follower:
        """What is recorded from now on (or from `after`): call `poll` on it again and again."""
        return Follower(self, after, lookup)


class Follower:
    """Reads on in every stream, new ones included. `lookup` finds sessions that began before."""

    def __init__(
        self,
        archive: Archive,
        after: dict[str, Place] | None,
        lookup: Callable[[str, str], Session | None] | None,
    ) -> None:
        self._archive = archive
        self._positions = dict(after) if after is not None else self._ends()
        self._assemblers: dict[str, Assembler] = {}
        self._sessions: dict[tuple[str, str], Session] = {}
        self._lookup = lookup

    def _ends(self) -> dict[str, Place]:
        """The end of each stream, by reading its newest segment: a block boundary, not a file size."""
        ends: dict[str, Place] = {}
        for stream in self._archive.streams():
            used = [n for n, path in self._archive.segments_or_none(stream) if _size(path)]
            if used:
                ends[stream] = Place(stream, used[-1], 0)
                for batch in self._archive.scan(stream, ends[stream], bodies=False):
                    ends[stream] = Place(stream, batch.place.segment, batch.end)
        return ends

    def poll(self) -> Iterator[tuple[Session | None, Exchange]]:
        """The exchanges that ended since the last call, with their sessions."""
        for stream in self._archive.streams():
            if stream == LEDGER:
                continue
            assembler = self._assemblers.setdefault(stream, Assembler(stream))
            for batch in self._archive.scan(stream, self._positions.get(stream)):
                self._positions[stream] = Place(stream, batch.place.segment, batch.end)
                for item in batch.frames:
                    if isinstance(item.frame, SessionFrame):
                        self._sessions[stream, item.frame.session] = session_of(
                            stream, item, None, Tally(), None, item.seq
                        )
                    for exchange in assembler.take(item):
                        yield self._session(stream, exchange.session), exchange
                    if isinstance(item.frame, SessionEndFrame):
                        self._sessions.pop((stream, item.frame.session), None)

    def _session(self, stream: str, session: str) -> Session | None:
        key = (stream, session)
        if key not in self._sessions and self._lookup is not None:
            found = self._lookup(stream, session)
            if found is not None:
                self._sessions[key] = found
        return self._sessions.get(key)


def _amended(card: Located, later: SessionFrame) -> Located:
    """Where and when a session began, and the newest that is known of it."""
    first = card.frame
    if not isinstance(first, SessionFrame):
        return card
    frame = SessionFrame(at=first.at, up=first.up, session=later.session, card=later.card)
    return Located(card.seq, card.offset, frame)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
