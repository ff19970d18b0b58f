# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - table definitions
"""The index's tables, and where its file stands.

The index is disposable: everything in it is in the segments. Answered rows are interned as *shapes* (what
was asked, how it was decided, how it ended), so that a filter over a million exchanges reads a few rows of
`session_shapes`. Point ids stand in it only as keyed hashes; the key lies beside it, readable to the owner.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE streams (id INTEGER PRIMARY KEY, stream TEXT UNIQUE NOT NULL, segment INTEGER NOT NULL, offset INTEGER NOT NULL,
    last_segment INTEGER NOT NULL, last_block INTEGER NOT NULL, last_chain BLOB NOT NULL, oldest INTEGER NOT NULL,
    host TEXT, boot TEXT);
CREATE TABLE sessions (id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, session TEXT NOT NULL,
    started INTEGER, ended INTEGER, guard TEXT, engine TEXT, pid INTEGER, exe TEXT, user TEXT, uid INTEGER,
    login_user TEXT, login_uid INTEGER, unit TEXT, user_unit TEXT, container TEXT, client_addr TEXT, client_port INTEGER,
    requests INTEGER NOT NULL DEFAULT 0, allowed INTEGER NOT NULL DEFAULT 0, denied INTEGER NOT NULL DEFAULT 0,
    held INTEGER NOT NULL DEFAULT 0, masked INTEGER NOT NULL DEFAULT 0, would INTEGER NOT NULL DEFAULT 0,
    rows INTEGER NOT NULL DEFAULT 0, bytes_in INTEGER NOT NULL DEFAULT 0, bytes_out INTEGER NOT NULL DEFAULT 0,
    wire_in INTEGER, wire_out INTEGER, first INTEGER, last INTEGER NOT NULL, last_segment INTEGER NOT NULL, last_at INTEGER,
    protocol TEXT, card BLOB, host TEXT, boot TEXT, UNIQUE (session, stream));
CREATE INDEX sessions_pid ON sessions (pid);
CREATE INDEX sessions_started ON sessions (started);
CREATE INDEX sessions_user ON sessions (user);
CREATE INDEX sessions_exe ON sessions (exe);
CREATE TABLE shapes (id INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, verdict TEXT, would INTEGER, masked INTEGER, outcome TEXT);
CREATE TABLE shape_actions (action TEXT, shape INTEGER, PRIMARY KEY (action, shape)) WITHOUT ROWID;
CREATE TABLE shape_collections (collection TEXT, shape INTEGER, PRIMARY KEY (collection, shape)) WITHOUT ROWID;
CREATE TABLE session_shapes (sid INTEGER, shape INTEGER, count INTEGER NOT NULL, first INTEGER, last INTEGER,
    PRIMARY KEY (shape, sid)) WITHOUT ROWID;
CREATE INDEX session_shapes_sid ON session_shapes (sid);
CREATE TABLE exchanges (sid INTEGER, n INTEGER, at INTEGER, shape INTEGER, segment INTEGER, offset INTEGER,
    end_segment INTEGER, end_offset INTEGER, rows INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (sid, n)) WITHOUT ROWID;
CREATE INDEX exchanges_at ON exchanges (at);
CREATE TABLE chunks (sid INTEGER, n INTEGER, segment INTEGER, offset INTEGER,
    PRIMARY KEY (sid, n, segment, offset)) WITHOUT ROWID;
CREATE TABLE seen (key INTEGER, sid INTEGER, first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (key, sid)) WITHOUT ROWID;
CREATE TABLE seen_new (key INTEGER, sid INTEGER, n INTEGER);
CREATE TABLE gaps (stream INTEGER, at INTEGER, session TEXT, first INTEGER, last INTEGER, frames INTEGER, reason TEXT);
CREATE INDEX gaps_session ON gaps (session);
"""

VERSION = zlib.crc32(TABLES.encode()) & 0x7FFFFFFF
"""Other tables are another version: an index of another build is made anew."""


def index_file(folder: Path) -> Path:
    """``FOLDER/index.sqlite``, or a private file of this user's cache where FOLDER cannot be written
    or the index there is not this user's to write."""
    beside = folder / "index.sqlite"
    mine = os.access(folder, os.W_OK | os.X_OK) and not beside.is_symlink()
    mine = mine and (not beside.exists() or os.access(beside, os.R_OK | os.W_OK))
    if mine:
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return cache / "vecward" / name / "index.sqlite"


def private_file(path: Path) -> None:
    """Make it with mode 0600 if it is not there; as root, it belongs to whom the evidence belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(fd, owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)


def hash_key(path: Path) -> bytes:
    """The key of the ids' hashes, made when it is not there. One whose length is wrong is made anew."""
    private_file(path)
    key = path.read_bytes()
    if len(key) != 32:
        key = os.urandom(32)
        path.write_bytes(key)
    return key


def connect(path: Path) -> sqlite3.Connection:
    """Open the database, not yet its tables. Losing it costs a rebuild: no sync."""
    private_file(path)
    made = sqlite3.connect(path, timeout=30, isolation_level=None)
    made.row_factory = sqlite3.Row
    made.execute("PRAGMA journal_mode=TRUNCATE")
    made.execute("PRAGMA synchronous=OFF")
    made.execute("PRAGMA cache_size=-65536")
    made.execute("PRAGMA case_sensitive_like=ON")
    return made


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing; waits for another process that writes."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def make_tables(database: sqlite3.Connection) -> None:
    """Drop what there is and make the tables anew."""
    with transaction(database):
        names = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        for (name,) in names:
            database.execute(f'DROP TABLE "{name}"')
        for statement in TABLES.split(";"):
            if statement.strip():
                database.execute(statement)
        database.execute(f"PRAGMA user_version={VERSION}")
