# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - only names of our own tables and columns are put into statements, values are bound
"""The index beside the segments: which sessions, which exchanges, who saw which id, in milliseconds.

Disposable: made from the segments, caught up before it is asked, rebuilt when it does not fit them any
more. It finds; what it finds is read from the segments themselves. Private to its owner (0600).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.evidence.archive import Archive, ArchiveError, Batch, Place
from agent.evidence.blocks import HEADER
from agent.evidence.frames import LEDGER
from agent.evidence.intake import Intake
from agent.evidence.schema import VERSION, connect, hash_key, index_file, make_tables, transaction
from agent.evidence.segment import segment_name

BATCH_FRAMES = (
    50_000  # frames of one transaction: some 100 MB of memory at most, a lock held for about a second
)
MERGE_FROM = 3_000_000  # new sightings that are sorted into place at once; 60 MB in the file until then
_SESSION_TABLES = ("exchanges", "session_shapes", "chunks", "seen")
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Info:
    """What the index holds. `bytes` is the file's size, `behind` what segments hold beyond it."""

    file: Path
    bytes: int
    behind: int
    sessions: int
    exchanges: int
    ids: int
    streams: int


class Index:
    """An open index of one evidence folder. Use as a context manager; `catch_up` before asking."""

    def __init__(self, archive: Archive, file: Path, database: sqlite3.Connection, key: bytes) -> None:
        self.archive = archive
        self.file = file
        self.database = database
        self.key = key
        self.skipped = 0

    @classmethod
    def open(cls, folder: Path, file: Path | None = None) -> Self:
        """Open, or make, the index of an evidence folder. Raises ArchiveError."""
        archive = Archive(folder)
        archive.streams()  # says at once when there is nothing to read
        path = file or index_file(folder)
        try:
            key = hash_key(path.with_suffix(".key"))
            return cls(archive, path, _usable(path, key), key)
        except (OSError, sqlite3.Error) as error:
            raise ArchiveError(
                f"{path}: the index cannot be used: {error}", "remove it, it will be made again"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.database.close()

    def rebuild(self, advance: Advance = lambda by: None) -> None:
        """Throw it all away and read every segment again."""
        make_tables(self.database)
        _mark(self.database, self.key)
        self.catch_up(advance)

    def behind(self) -> int:
        """Bytes that are in the segments and not yet in the index: the size of a catch-up."""
        total = 0
        positions = self.positions()
        for stream in self.archive.streams():
            at = positions.get(stream)
            for number, path in self.archive.segments_or_none(stream):
                if stream != LEDGER and (at is None or number >= at.segment):
                    done = at.offset if at is not None and number == at.segment else 0
                    total += max(0, _size(path) - done)
        return total

    def positions(self) -> dict[str, Place]:
        """How far each stream is in the index."""
        rows = self.database.execute("SELECT stream, segment, offset FROM streams").fetchall()
        return {r["stream"]: Place(r["stream"], r["segment"], r["offset"]) for r in rows}

    def catch_up(self, advance: Advance = lambda by: None) -> None:
        """Read what was written since. Rebuilds by itself when the segments are not those it was made of."""
        try:
            if not self._fits():
                make_tables(self.database)
                _mark(self.database, self.key)
            for stream in self.archive.streams():
                if stream != LEDGER:
                    while self._take_some(stream, advance):
                        self._merge_seen(MERGE_FROM)
            self._merge_seen(1)
            self._prune()
        except sqlite3.Error as error:
            raise ArchiveError(f"{self.file}: {error}", "vecward index rebuild makes it again") from None

    def _fits(self) -> bool:
        """Whether the last block of each stream that it took is still there, with the same chain value."""
        for row in self.database.execute("SELECT * FROM streams").fetchall():
            path = self.archive.path(row["stream"]) / segment_name(row["last_segment"])
            if path.exists() and _chain_at(path, row["last_block"]) != row["last_chain"]:
                return False
        return True

    def _take_some(self, stream: str, advance: Advance) -> bool:
        """One transaction's worth of a stream. False when there was nothing more to take."""
        db = self.database
        with transaction(db):
            row = db.execute("SELECT * FROM streams WHERE stream = ?", (stream,)).fetchone()
            number = row["id"] if row else self._next_stream()
            start = Place(stream, row["segment"], row["offset"]) if row else None
            host, boot = (row["host"], row["boot"]) if row else (None, None)
            intake = Intake(db, self.key, number, host, boot)
            last, frames = None, 0
            for batch in self.archive.scan(stream, start, bodies=False):
                intake.take(batch)
                advance(batch.end - batch.place.offset)
                last, frames = batch, frames + len(batch.frames)
                if frames >= BATCH_FRAMES:
                    break
            if last is not None:
                intake.flush()
                oldest = row["oldest"] if row else last.place.segment
                self._store_position(number, last, oldest, intake)
            self.skipped += intake.skipped
        return frames >= BATCH_FRAMES

    def _next_stream(self) -> int:
        return int(self.database.execute("SELECT coalesce(max(id), 0) + 1 FROM streams").fetchone()[0])

    def _store_position(self, number: int, last: Batch, oldest: int, intake: Intake) -> None:
        place = last.place
        path = self.archive.path(place.stream) / segment_name(place.segment)
        chain = _chain_at(path, place.offset)
        values = (
            place.segment,
            last.end,
            place.segment,
            place.offset,
            chain,
            oldest,
            intake.host,
            intake.boot,
        )
        self.database.execute(
            "INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, place.stream, *values),
        )

    def _merge_seen(self, least: int) -> None:
        """Bring new sightings in order, when there are so many: SQLite sorts them better than one by one."""
        db = self.database
        if (db.execute("SELECT max(rowid) FROM seen_new").fetchone()[0] or 0) < least:
            return
        with transaction(db):
            db.execute(
                "INSERT INTO seen SELECT key, sid, min(n), max(n), count(*) FROM seen_new WHERE 1 "
                "GROUP BY key, sid ON CONFLICT DO UPDATE SET first = min(first, excluded.first), "
                "last = max(last, excluded.last), count = count + excluded.count"
            )
            db.execute("DELETE FROM seen_new")

    def _prune(self) -> None:
        """Forget the sessions of which retention has removed every segment."""
        db = self.database
        for row in db.execute("SELECT id, stream, segment, oldest FROM streams").fetchall():
            segments = self.archive.segments_or_none(row["stream"])
            oldest = segments[0][0] if segments else row["segment"] + 1
            if oldest == row["oldest"]:
                continue
            gone = "SELECT id FROM sessions WHERE stream = ? AND last_segment < ?"
            with transaction(db):
                for table in _SESSION_TABLES:
                    db.execute(f"DELETE FROM {table} WHERE sid IN ({gone})", (row["id"], oldest))
                db.execute("DELETE FROM sessions WHERE stream = ? AND last_segment < ?", (row["id"], oldest))
                db.execute("UPDATE streams SET oldest = ? WHERE id = ?", (oldest, row["id"]))

    def info(self) -> Info:
        count = {
            t: self.database.execute(f"SELECT count(*) FROM {t}").fetchone()[0]
            for t in ("sessions", "exchanges", "seen", "streams")
        }
        return Info(
            self.file,
            _size(self.file),
            self.behind(),
            count["sessions"],
            count["exchanges"],
            count["seen"],
            count["streams"],
        )


def _usable(path: Path, key: bytes) -> sqlite3.Connection:
    """The database with today's tables and this key; made anew when it is another version's or damaged."""
    try:
        database = connect(path)
        if database.execute("PRAGMA user_version").fetchone()[0] == VERSION and _marked(database, key):
            return database
        make_tables(database)
        _mark(database, key)
        return database
    except sqlite3.OperationalError:  # locked, read-only, no space: not a reason to throw it away
        raise
    except sqlite3.DatabaseError:
        path.unlink()
        database = connect(path)
        make_tables(database)
        _mark(database, key)
        return database


def _mark(database: sqlite3.Connection, key: bytes) -> None:
    database.execute("INSERT OR REPLACE INTO meta VALUES ('key', ?)", (hashlib.sha256(key).digest(),))


def _marked(database: sqlite3.Connection, key: bytes) -> bool:
    found = database.execute("SELECT value FROM meta WHERE name = 'key'").fetchone()
    return found is not None and found[0] == hashlib.sha256(key).digest()


def _chain_at(path: Path, offset: int) -> bytes:
    """The chain value in the header of the block at `offset`; b"" where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(HEADER.size)[-32:]
    except OSError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
