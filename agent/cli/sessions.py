# SPDX-License-Identifier: Apache-2.0
"""``vecward sessions``: who connected, one line per session."""

from __future__ import annotations

from pathlib import PurePosixPath

import click
from rich.text import Text

from agent.cli.asking import asking
from agent.cli.filters import filter_options
from agent.cli.output import Column, console, day_time, emit_json, size, span, table, text
from agent.cli.settings import Settings, dir_option, json_option, pass_settings
from agent.evidence.filter import Filter
from agent.evidence.views import Session, stamp


def program(session: Session) -> str | None:
    """The program's name: of its attested path where there is one, else what it calls itself."""
    if session.exe is None:
        return None if session.comm is None else f"({session.comm})"
    kind, _, path = session.exe.rpartition("foreign:")
    name = PurePosixPath(path).name or path
    return f"{name} (foreign)" if kind or session.exe.startswith("foreign:") else name


def who(session: Session) -> Text:
    """The user, and the person behind it where that is another; loud where the kernel did not say."""
    made = text(session.person, "" if session.attribution == "kernel" else "yellow")
    if session.login_user and session.login_user != session.user:
        made.append_text(text(f" ({session.login_user})", "cyan"))
    return made


def duration(session: Session) -> str:
    if session.started is None:
        return "-"
    return "no end" if session.ended is None else span((session.ended - session.started) / 1e9)


def number(value: int, style: str) -> Text:
    return text(value, style) if value else text("·", "dim")


COLUMNS: tuple[Column[Session], ...] = (
    Column("started (UTC)", lambda s: day_time(stamp(s.started)), keep=True),
    Column("session", lambda s: s.session, keep=True, style="bold"),
    Column("who", who),
    Column("program", program),
    Column("pid", lambda s: s.pid, right=True, drop=90),
    Column(
        "unit", lambda s: s.unit or s.user_unit or (s.container and f"container {s.container[:12]}"), drop=120
    ),
    Column("client", lambda s: s.client_addr, drop=150),
    Column("guard", lambda s: s.guard),
    Column("took", duration, right=True, drop=132),
    Column("req", lambda s: s.requests, right=True, keep=True),
    Column("deny", lambda s: number(s.denied, "bold red"), right=True, keep=True),
    Column("mask", lambda s: number(s.masked, "magenta"), right=True, drop=90, keep=True),
    Column("would", lambda s: number(s.would, "yellow"), right=True, drop=100, keep=True),
    Column("rows", lambda s: s.rows, right=True, drop=110, keep=True),
    Column("out", lambda s: size(s.bytes_out), right=True, drop=120, keep=True),
)


@click.command()
@filter_options
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest so many.")
@json_option
@dir_option
@pass_settings
def sessions(settings: Settings, wanted: Filter, limit: int) -> None:
    """Who connected: one line per session, the newest last.

    Every filter must hold; those on what was asked (--action, --verdict, --collection) must hold for one and
    the same request. GLOBs take * ? and [].

    \b
    vecward sessions --verdict deny --since -2h
    vecward sessions --user rag --collection 'kb_*' --json
    """
    with asking(settings) as query:
        found = query.sessions(wanted, limit)
        if settings.json:
            emit_json([s.as_dict() for s in found])
            return
        screen = console()
        if not found:
            screen.print("no session matches" if wanted != Filter() else "no session is recorded yet")
            return
        screen.print(table(COLUMNS, found, screen))
        if len(found) == limit:
            console(stderr=True).print(f"the newest {limit}; --limit N shows more", style="dim")
