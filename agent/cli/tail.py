# SPDX-License-Identifier: Apache-2.0
"""``vecward tail``: exchanges as they are recorded."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console
from rich.text import Text

from agent.cli.asking import asking, tell_problems
from agent.cli.filters import filter_options
from agent.cli.output import clean, clock, console, emit_line, text, verdict_text
from agent.cli.sessions import program
from agent.cli.settings import Settings, dir_option, json_option, pass_settings
from agent.cli.show import changes, outcome_text
from agent.evidence.archive import Place
from agent.evidence.filter import Filter
from agent.evidence.query import Query
from agent.evidence.views import Exchange, Session, stamp

POLL = 0.2  # seconds between looks at the segments; a look costs a stat per stream


@click.command()
@filter_options
@click.option("-f", "--follow", is_flag=True, help="Go on as exchanges are recorded, until ^C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="The newest so many to begin with.",
)
@json_option
@dir_option
@pass_settings
def tail(settings: Settings, wanted: Filter, follow: bool, lines: int) -> None:
    """The newest exchanges, and with -f each as it ends. With --json one JSON line each.

    An exchange is printed when its answer is recorded, or when its session ends without one.
    """
    with asking(settings) as query:
        positions = query.index.positions()
        screen = console()
        for session, exchange in query.recent(wanted, lines) if lines else ():
            _emit(settings, session, exchange, screen)
        if follow:
            tell_problems(query.archive)
            query.archive.problems.clear()
            _follow(settings, query, wanted, positions, screen)


def _follow(
    settings: Settings, query: Query, wanted: Filter, positions: dict[str, Place], screen: Console
) -> None:
    follower = query.archive.follow(positions, query.find)
    while True:
        for session, exchange in follower.poll():
            if wanted.wants_exchange(exchange) and (session is None or wanted.wants_session(session)):
                _emit(settings, session, exchange, screen)
        sys.stdout.flush()
        time.sleep(POLL)


def _emit(settings: Settings, session: Session | None, exchange: Exchange, screen: Console) -> None:
    if settings.json:
        emit_line(exchange.as_dict())
        return
    line = Text(f"{clock(stamp(exchange.at))} ", style="dim")
    line.append_text(text(exchange.session, "dim")).append(f"#{exchange.n} ", style="dim")
    if session is not None:
        name = program(session)
        line.append_text(text(session.person, "bold" if session.attribution == "kernel" else "bold yellow"))
        line.append_text(text(f"/{name} " if name else " "))
    line.append_text(verdict_text(exchange.verdict, exchange.would)).append(" ")
    where = ",".join(exchange.collections)
    line.append_text(text(f"{','.join(exchange.actions)}{f' {where}' if where else ''} "))
    line.append_text(outcome_text(exchange))
    line.append(f" {exchange.rows} rows" if exchange.rows else "")
    if changed := changes(exchange):
        line.append_text(text(f" {changed}", "magenta"))
    if exchange.rule and exchange.verdict != "allow":
        line.append(f" [{clean(exchange.rule)}]", style="dim")
    screen.print(line, soft_wrap=True)
