# SPDX-License-Identifier: Apache-2.0
"""``vecward seen``: who ever got a point or row id back."""

from __future__ import annotations

from typing import Any

import click

from agent.cli.asking import asking
from agent.cli.filters import filter_options
from agent.cli.output import Column, console, count, day_time, emit_json, table, text
from agent.cli.sessions import program, who
from agent.cli.settings import Settings, dir_option, json_option, pass_settings
from agent.evidence.filter import Filter
from agent.evidence.query import Query, Sighting
from agent.evidence.views import stamp

COLUMNS: tuple[Column[Sighting], ...] = (
    Column("who", lambda x: who(x.session)),
    Column("program", lambda x: program(x.session)),
    Column("unit", lambda x: x.session.unit or x.session.user_unit or x.session.container, drop=3),
    Column("client", lambda x: x.session.client_addr, drop=4),
    Column("collection", lambda x: ", ".join(x.collections) or None),
    Column("times", lambda x: x.count, right=True, keep=True, drop=1),
    Column("first (UTC)", lambda x: day_time(stamp(x.first_at)), keep=True),
    Column("last (UTC)", lambda x: day_time(stamp(x.last_at)), keep=True, drop=2),
    Column("session", lambda x: x.session.session, keep=True, style="bold"),
    Column("exchange", lambda x: f"{x.first}" if x.first == x.last else f"{x.first} … {x.last}", keep=True),
)


@click.command()
@click.argument("identifier", metavar="ID")
@filter_options
@click.option(
    "--every", is_flag=True, help="With --json: every exchange, not only the first and last of a session."
)
@json_option
@dir_option
@pass_settings
def seen(settings: Settings, identifier: str, wanted: Filter, every: bool) -> None:
    """Who ever got point or row ID back, when, and by which exchange: the list for a breach notification.

    Ids are what the database calls its points, so name the --guard or --collection where several use the
    same. What was recorded at level `meta` holds no ids, and answers that could not be read hold none either.
    """
    with asking(settings) as query:
        found = query.seen(identifier, wanted)
        if settings.json:
            emit_json([_as_dict(query, s, identifier, wanted, every) for s in found])
            return
        screen = console()
        if not found:
            screen.print(text(f"no recorded answer held {identifier}"))
            return
        screen.print(table(COLUMNS, found, screen))
        subjects = {
            (
                s.session.uid,
                s.session.user,
                s.session.exe,
                s.session.unit,
                s.session.container,
                s.session.client_addr if s.session.attribution == "remote" else None,
            )
            for s in found
        }
        screen.print(
            text(
                f"{count(len(subjects), 'subject')}, {count(len(found), 'session')}, "
                f"{count(sum(s.count for s in found), 'answer')} held {identifier}"
            )
        )


def _as_dict(
    query: Query, sighting: Sighting, identifier: str, wanted: Filter, every: bool
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": identifier,
        "count": sighting.count,
        "collections": sighting.collections,
        "first": {"exchange": sighting.first, "at": stamp(sighting.first_at)},
        "last": {"exchange": sighting.last, "at": stamp(sighting.last_at)},
        "session": sighting.session.as_dict(),
    }
    if every:
        made["exchanges"] = [
            {"exchange": e.n, "at": stamp(e.at)} for e in query.holders(sighting, identifier, wanted)
        ]
    return made
