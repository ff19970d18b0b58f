# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - markup is read line by line
"""Exchanges and sessions to files that leave this host: JSON lines, and pages for people.

A file appears whole or not at all, mode 0600: it holds what clients asked and got. Nothing is overwritten
unless that is said.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from agent.evidence.archive import ArchiveError
from agent.evidence.filter import Filter
from agent.evidence.page import Cleaner, Proof, session_page, timeline
from agent.evidence.query import Query
from agent.evidence.style import STYLE
from agent.evidence.views import Exchange, Session, stamp

Advance = Callable[[int], None]
ProofOf = Callable[[Session], Proof]


@contextmanager
def whole_file(path: Path, force: bool) -> Iterator[TextIO]:
    """A file that is there only when all of it is written. Raises ArchiveError where it is there already."""
    if not force and path.exists():
        raise ArchiveError(f"{path}: is there already", "name another with -o, or say --force")
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ArchiveError(
            f"{path.parent}: {error.strerror}", "name a folder that can be written with -o"
        ) from None
    try:
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def json_lines(
    query: Query, sessions: Iterable[Session], wanted: Filter, line: Callable[[object], str], advance: Advance
) -> Iterator[str]:
    """One line per exchange, by session and number."""
    for session in sessions:
        for exchange in query.exchanges(session, wanted):
            yield line(exchange.as_dict()) + "\n"
            advance(1)


def write_page(
    query: Query,
    session: Session,
    wanted: Filter,
    file: TextIO,
    proof: Proof,
    made_at: str,
    clean: Cleaner,
    advance: Advance,
) -> None:
    """One session's page."""
    total = query.count(session, wanted)
    notes = [f"{stamp(g.at)}: {g.text}" for g in query.gaps(session)]

    def counted() -> Iterator[Exchange]:
        for exchange in query.exchanges(session, wanted):
            yield exchange
            advance(1)

    pieces = session_page(session, counted(), total, proof, made_at, clean, notes)
    file.write(next(pieces))
    file.write(timeline(session, query.marks(session, wanted)))
    for piece in pieces:
        file.write(piece)


def write_pages(
    query: Query,
    sessions: list[Session],
    wanted: Filter,
    target: Path,
    proof_of: ProofOf,
    made_at: str,
    clean: Cleaner,
    force: bool,
    advance: Advance,
) -> list[Path]:
    """A page for each session: the file `target` for one session, else in the folder `target` with a list."""
    if len(sessions) == 1 and not target.is_dir():
        with whole_file(target, force) as file:
            write_page(query, sessions[0], wanted, file, proof_of(sessions[0]), made_at, clean, advance)
        return [target]
    try:
        target.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ArchiveError(f"{target}: {error.strerror}", "with several sessions -o names a folder") from None
    made = []
    for session in sessions:
        path = target / page_name(session)
        with whole_file(path, force) as file:
            write_page(query, session, wanted, file, proof_of(session), made_at, clean, advance)
        made.append(path)
    with whole_file(target / "index.html", force) as file:
        file.write(_list_page(sessions, made_at, clean))
    return [target / "index.html", *made]


def page_name(session: Session) -> str:
    """A file name of a session's id, which a worker chose: letters, digits and dashes only."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in session.session)[:100]
    stream = session.evidence.stream[:6] if session.evidence else "0"
    return f"{plain}-{stream}.html"


def _list_page(sessions: list[Session], made_at: str, clean: Cleaner) -> str:
    def e(value: object) -> str:
        return html.escape(clean(value), quote=True)

    rows = "".join(
        f'<tr><td><a href="{page_name(s)}">{e(s.session)}</a></td><td>{e(stamp(s.started) or "?")}</td><td>{e(s.person or "?")}</td>'
        f'<td>{e(s.exe or s.comm or "?")}</td><td>{e(s.unit or "")}</td><td>{e(s.guard or "")}</td><td class="num">{s.requests}</td>'
        f'<td class="num">{s.denied}</td><td class="num">{s.masked}</td></tr>'
        for s in sessions
    )
    heads = "".join(
        f"<th>{t}</th>"
        for t in ("session", "started", "who", "program", "unit", "guard", "requests", "denied", "masked")
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{len(sessions)} sessions</title><style>{STYLE}</style></head><body><h1>{len(sessions)} sessions</h1>"
        f'<table class="hits"><tr>{heads}</tr>{rows}</table><footer>Made by vecward at {e(made_at)}. Times are UTC.</footer></body></html>\n'
    )
