# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - only columns and terms of our own are put into statements, values are bound
"""Questions to a caught-up index; the answers' substance is read from the segments.

Sessions and places come from the index; exchanges are assembled from the blocks at those places, so that
what is shown is what the evidence holds. A block that is gone or damaged is left out and said in the
archive's problems.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.evidence.archive import ArchiveError, Place, Problem
from agent.evidence.assemble import Assembler, Tally, session_of
from agent.evidence.blocks import Located
from agent.evidence.filter import ANYTHING, Filter, address_matches
from agent.evidence.frames import SessionEndFrame, SessionFrame
from agent.evidence.index import Index
from agent.evidence.intake import id_hash
from agent.evidence.terms import exchange_terms, session_terms
from agent.evidence.views import Exchange, Session

_CACHED_BLOCKS = 4  # neighbours share blocks; a block may be large, so few are kept
_TALLY = tuple(Tally.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Gap:
    """Exchanges `first` to `last` of a session of which records are missing, and why (a signed GAP)."""

    first: int
    last: int
    frames: int
    reason: str
    at: int

    @property
    def text(self) -> str:
        which = (
            f"exchange {self.first}" if self.first == self.last else f"exchanges {self.first} to {self.last}"
        )
        return f"{self.frames} records of {which} are missing: {self.reason} (signed gap)"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A session that got an id back: in `count` answers, the first and last of them by number and time."""

    session: Session
    count: int
    first: int
    last: int
    first_at: int | None
    last_at: int | None
    collections: tuple[str, ...]


class Query:
    """Asks one open index."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.archive = index.archive
        self._db = index.database
        self._db.create_function(
            "client_is", 3, lambda p, a, n: int(address_matches(p, a, n)), deterministic=True
        )
        self._blocks: dict[Place, list[Located]] = {}
        self._streams: dict[int, str] = {}

    def sessions(self, wanted: Filter, limit: int | None = None) -> list[Session]:
        """The newest `limit` sessions that match, oldest first."""
        where, values = session_terms(wanted)
        rows = self._db.execute(
            f"SELECT s.* FROM sessions s {where} ORDER BY s.started DESC, s.id DESC LIMIT ?",
            (*values, -1 if limit is None else limit),
        ).fetchall()
        return [self._session(row) for row in reversed(rows)]

    def session(self, name: str) -> Session:
        """By id, the beginning or end of one (4 characters or more), or id@stream. Raises ArchiveError."""
        return self._session(self._row(name))

    def find(self, stream: str, session: str) -> Session | None:
        """The session of one stream by its whole id, or None."""
        row = self._db.execute(
            "SELECT s.* FROM sessions s JOIN streams t ON t.id = s.stream "
            "WHERE s.session = ? AND t.stream = ?",
            (session, stream),
        ).fetchone()
        return None if row is None else self._session(row)

    def _row(self, name: str) -> sqlite3.Row:
        session, _, stream = name.partition("@")
        base = "SELECT s.*, t.stream AS stream_name FROM sessions s JOIN streams t ON t.id = s.stream WHERE "
        rows = self._db.execute(base + "s.session = ?", (session,)).fetchall()
        if not rows and len(session) >= 4:
            top = session[:-1] + chr(min(ord(session[-1]) + 1, 0x10FFFF))
            rows = self._db.execute(
                base + "s.session >= ? AND s.session < ? LIMIT 20", (session, top)
            ).fetchall()
            rows = (
                rows
                or self._db.execute(
                    base + "substr(s.session, ?) = ? LIMIT 20", (-len(session), session)
                ).fetchall()
            )
        rows = [r for r in rows if not stream or r["stream_name"].startswith(stream)]
        if not rows:
            raise ArchiveError(f"no session {name}", "vecward sessions lists them")
        if len(rows) > 1:
            names = ", ".join(f"{r['session']}@{r['stream_name'][:6]}" for r in rows[:4])
            raise ArchiveError(f"{len(rows)} sessions are meant by {name}", f"name one: {names}")
        found: sqlite3.Row = rows[0]
        return found

    def _session(self, row: sqlite3.Row) -> Session:
        stream = self._stream(row["stream"])
        tally = Tally(**{name: row[name] for name in _TALLY})
        end = None
        if row["ended"] is not None:
            end = SessionEndFrame(
                at=row["ended"],
                up=0,
                session=row["session"],
                summary={"bytes_in": row["wire_in"], "bytes_out": row["wire_out"]},
            )
        if row["card"] is None:
            return session_of(stream, None, None, tally, end, row["last"], row["session"], row["protocol"])
        card = msgspec.msgpack.decode(row["card"], type=dict[str, Any])
        card.setdefault("host", row["host"])
        card.setdefault("boot", row["boot"])
        frame = SessionFrame(at=row["started"] or 0, up=0, session=row["session"], card=card)
        return session_of(
            stream, Located(row["first"], 0, frame), None, tally, end, row["last"], protocol=row["protocol"]
        )

    def _stream(self, number: int) -> str:
        if number not in self._streams:
            self._streams[number] = self._db.execute(
                "SELECT stream FROM streams WHERE id = ?", (number,)
            ).fetchone()[0]
        return self._streams[number]

    def count(self, session: Session, wanted: Filter = ANYTHING) -> int:
        """How many of its exchanges match."""
        where, values = exchange_terms(wanted)
        return int(
            self._db.execute(
                f"SELECT count(*) FROM exchanges e WHERE e.sid = ? {where}", (self._sid(session), *values)
            ).fetchone()[0]
        )

    def exchanges(
        self, session: Session, wanted: Filter = ANYTHING, *, after: int = 0, limit: int | None = None
    ) -> Iterator[Exchange]:
        """A session's exchanges that match, by number, those above `after`."""
        where, values = exchange_terms(wanted)
        rows = self._db.execute(
            f"SELECT e.* FROM exchanges e WHERE e.sid = ? AND e.n > ? {where} ORDER BY e.n LIMIT ?",
            (self._sid(session), after, *values, -1 if limit is None else limit),
        ).fetchall()
        for row in rows:
            found = self._exchange(session, row)
            if found is not None:
                yield found

    def marks(self, session: Session, wanted: Filter = ANYTHING) -> Iterator[tuple[int, int | None, str]]:
        """Number, time and verdict of each exchange that matches, from the index alone."""
        where, values = exchange_terms(wanted)
        rows = self._db.execute(
            f"SELECT e.n, e.at, h.verdict FROM exchanges e JOIN shapes h ON h.id = e.shape "
            f"WHERE e.sid = ? {where} "
            "ORDER BY e.n",
            (self._sid(session), *values),
        )
        yield from ((r[0], r[1], r[2]) for r in rows)

    def exchange(self, session: Session, n: int) -> Exchange:
        """One exchange. Raises ArchiveError, also where its blocks cannot be read."""
        row = self._db.execute(
            "SELECT * FROM exchanges WHERE sid = ? AND n = ?", (self._sid(session), n)
        ).fetchone()
        if row is None:
            total = session.requests
            raise ArchiveError(
                f"session {session.session} has no exchange {n}",
                f"it has {total}: vecward show {session.session}",
            )
        found = self._exchange(session, row)
        if found is None:
            raise ArchiveError(
                next(str(p) for p in reversed(self.archive.problems.values())),
                "vecward verify says what else is amiss",
            )
        return found

    def recent(self, wanted: Filter, limit: int) -> list[tuple[Session, Exchange]]:
        """The newest exchanges that match, oldest first, each with its session."""
        where, values = session_terms(wanted, times=False, exchanges=False)
        more, others = exchange_terms(wanted)
        rows = self._db.execute(
            f"SELECT e.* FROM exchanges e JOIN sessions s ON s.id = e.sid {where or 'WHERE 1'} {more} "
            "ORDER BY e.at DESC LIMIT ?",
            (*values, *others, limit),
        ).fetchall()
        made = []
        for row in reversed(rows):
            session = self._session(
                self._db.execute("SELECT * FROM sessions WHERE id = ?", (row["sid"],)).fetchone()
            )
            found = self._exchange(session, row)
            if found is not None:
                made.append((session, found))
        return made

    def gaps(self, session: Session) -> list[Gap]:
        """What signed GAP frames say is missing of a session."""
        rows = self._db.execute(
            "SELECT g.* FROM gaps g JOIN streams t ON t.id = g.stream WHERE g.session = ? AND t.stream = ? "
            "ORDER BY g.at",
            (session.session, _span(session).stream),
        ).fetchall()
        return [Gap(r["first"], r["last"], r["frames"], r["reason"], r["at"]) for r in rows]

    def seen(self, identifier: str, wanted: Filter = ANYTHING) -> list[Sighting]:
        """Every session whose recorded answers held this point or row id, oldest first."""
        where, values = session_terms(wanted, times=False, exchanges=False)
        rows = self._db.execute(
            f"SELECT s.*, x.first AS x_first, x.last AS x_last, x.count AS x_count FROM seen x "
            f"JOIN sessions s ON s.id = x.sid {where} {'AND' if where else 'WHERE'} x.key = ? "
            "ORDER BY s.started",
            (*values, id_hash(self.index.key, identifier)),
        ).fetchall()
        made = (self._sighting(row, identifier, wanted) for row in rows)
        return [sighting for sighting in made if sighting is not None]

    def _sighting(self, row: sqlite3.Row, identifier: str, wanted: Filter) -> Sighting | None:
        session = self._session(row)
        plain = wanted == Filter(pid=wanted.pid, exe=wanted.exe, user=wanted.user, guard=wanted.guard)
        numbers = {row["x_first"], row["x_last"]} if plain else None
        holders = [e for e in self._some(session, numbers, wanted) if identifier in e.response.ids]
        if not holders:  # another id with the same hash, or nothing that is asked for
            return None
        names = tuple(sorted({c for e in holders for c in e.collections}))
        first, last = holders[0], holders[-1]
        return Sighting(
            session, row["x_count"] if plain else len(holders), first.n, last.n, first.at, last.at, names
        )

    def holders(self, sighting: Sighting, identifier: str, wanted: Filter = ANYTHING) -> Iterator[Exchange]:
        """Every exchange behind a sighting."""
        for exchange in self.exchanges(sighting.session, wanted, after=sighting.first - 1):
            if identifier in exchange.response.ids:
                yield exchange
            if exchange.n >= sighting.last:
                return

    def _some(self, session: Session, numbers: set[int] | None, wanted: Filter) -> Iterator[Exchange]:
        if numbers is None:
            yield from self.exchanges(session, wanted)
            return
        for n in sorted(numbers):
            yield self.exchange(session, n)

    def _sid(self, session: Session) -> int:
        span = _span(session)
        row = self._db.execute(
            "SELECT s.id FROM sessions s JOIN streams t ON t.id = s.stream "
            "WHERE s.session = ? AND t.stream = ?",
            (session.session, span.stream),
        ).fetchone()
        if row is None:
            raise ArchiveError(f"no session {session.session}", "vecward sessions lists them")
        return int(row[0])

    def _exchange(self, session: Session, row: sqlite3.Row) -> Exchange | None:
        """Read its blocks and put it together; None, and a problem, where one cannot be read."""
        stream, n = _span(session).stream, row["n"]
        spots = {(row["segment"], row["offset"]), (row["end_segment"], row["end_offset"])}
        spots.update(
            (r[0], r[1])
            for r in self._db.execute(
                "SELECT segment, offset FROM chunks WHERE sid = ? AND n = ?", (row["sid"], n)
            )
        )
        assembler = Assembler(stream)
        for place in sorted(Place(stream, *spot) for spot in spots if spot[0] is not None):
            try:
                frames = self._block(place)
            except ArchiveError as error:
                self.archive.problems[place] = Problem(
                    place, f"exchange {n} of {session.session}: {error.message}", False
                )
                return None
            for item in frames:
                if (
                    getattr(item.frame, "session", None) == session.session
                    and getattr(item.frame, "n", None) == n
                ):
                    for made in assembler.take(item):
                        return made
        return next(assembler.rest(), None)

    def _block(self, place: Place) -> list[Located]:
        found = self._blocks.get(place)
        if found is None:
            found = self.archive.read(place)
            while len(self._blocks) >= _CACHED_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            self._blocks[place] = found
        return found


def _span(session: Session) -> Any:
    if session.evidence is None:
        raise ArchiveError(f"session {session.session} stands in no stream")
    return session.evidence
