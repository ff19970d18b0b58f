# SPDX-License-Identifier: Apache-2.0
"""``vecward replay``: a session as it happened: what was asked, what came back, what was taken out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import click
from rich.console import Console
from rich.text import Text

from agent.cli.asking import asking
from agent.cli.output import Column, clean, clock, console, emit_line, span, table, text, verdict_text
from agent.cli.settings import Settings, dir_option, json_option, not_in_this_build, pass_settings
from agent.cli.show import changes, numbers, outcome_text, print_identity
from agent.cli.whole import print_body
from agent.evidence.replay import Hit, Step, hits, pause, steps
from agent.evidence.views import Exchange, Session, stamp

LONGEST_PAUSE = 5.0  # seconds: an idle hour of a session is not replayed as one
HITS_SHOWN = 10
HITS: tuple[Column[Hit], ...] = (
    Column("id", lambda h: h.id, style="bold"),
    Column("score", lambda h: None if h.score is None else f"{h.score:.6g}", right=True),
    Column("what came with it", lambda h: h.payload, least=20),
)


@click.command()
@click.argument("session")
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=None,
    metavar="X",
    help="Wait as the session did, X times as fast.",
)
@click.option("--step", is_flag=True, help="Wait for Enter after each step (q ends).")
@click.option("--bodies", is_flag=True, help="Show whole requests and answers, not only hits.")
@click.option(
    "--against",
    metavar="HOST:PORT",
    help="Send the requests to a test database and compare (not in this build).",
)
@json_option
@dir_option
@pass_settings
def replay(
    settings: Settings, session: str, speed: float | None, step: bool, bodies: bool, against: str | None
) -> None:
    """A session as it happened, in time: queries, hits, what was masked, what was refused.

    Without --speed and --step it is printed at once, to read like a story. Pauses are at most 5 seconds.
    """
    if against is not None:
        raise not_in_this_build(
            "replay --against", f"vecward export --format jsonl --session {session} has the recorded requests"
        )
    if step and speed is not None:
        raise click.UsageError("--step and --speed exclude each other")
    with asking(settings) as query:
        found = query.session(session)
        story = steps(found, query.exchanges(found), query.gaps(found))
        if settings.json:
            for item in story:
                emit_line(_as_dict(item, found))
            return
        screen = console()
        for item in _paced(story, speed, step):
            _print(item, found, screen, bodies)


def _as_dict(item: Step, session: Session) -> dict[str, object]:
    made: dict[str, object] = {"step": item.kind, "at": stamp(item.at), "session": session.session}
    if item.exchange is not None:
        made["n"] = item.exchange.n
        if item.kind == "asked":
            made |= {
                "actions": item.exchange.actions,
                "collections": item.exchange.collections,
                "verdict": item.exchange.verdict,
                "would": item.exchange.would,
                "rule": item.exchange.rule,
            }
        else:
            made |= {
                "outcome": item.exchange.outcome,
                "masks": [m.as_dict() for m in item.exchange.masks],
                "hits": [{"id": h.id, "score": h.score, "payload": h.payload} for h in hits(item.exchange)],
            }
    if item.gap is not None:
        made |= {"first": item.gap.first, "last": item.gap.last, "reason": item.gap.reason}
    return made


def _paced(story: Iterator[Step], speed: float | None, step: bool) -> Iterator[Step]:
    """The steps, each when its time has come."""
    before: Step | None = None
    for item in story:
        if before is not None and speed is not None:
            sys.stdout.flush()
            time.sleep(pause(before, item, speed, LONGEST_PAUSE))
        yield item
        before = item
        if step and not _go_on():
            return


def _go_on() -> bool:
    sys.stdout.flush()
    if sys.stdin.isatty():
        console(stderr=True).print("Enter: next, q: end ", end="", style="dim")
    line = sys.stdin.readline()
    return bool(line) and line.strip().lower() not in ("q", "quit")


def _print(item: Step, session: Session, screen: Console, bodies: bool) -> None:
    match item.kind:
        case "connected":
            print_identity(session, screen)
        case "asked" if item.exchange is not None:
            _print_question(item.exchange, screen, bodies)
        case "answered" | "lost" if item.exchange is not None:
            _print_answer(item, item.exchange, screen, bodies)
        case "gap" if item.gap is not None:
            screen.print(
                _line(
                    item.at,
                    "!",
                    item.gap.text,
                    "bold yellow",
                )
            )
        case _:
            screen.print()
            screen.print(_line(item.at, "■", "the connection ended", "dim"))
            screen.print(numbers(session))


def _line(at: int | None, mark: str, what: str, style: str) -> Text:
    return Text(f"{clock(stamp(at))}  {mark} ", style="dim").append_text(text(what, style))


def _print_question(exchange: Exchange, screen: Console, bodies: bool) -> None:
    screen.print()
    where = ", ".join(exchange.collections)
    asked = f"{exchange.n}. {', '.join(exchange.actions) or 'asked'}{f' in {where}' if where else ''}"
    line = _line(exchange.at, "→", asked, "bold")
    details = [
        f"top {exchange.top_k}" if exchange.top_k is not None else "",
        f"{exchange.queries} query vectors" if exchange.queries > 1 else "",
        "embeddings too" if exchange.vectors else "",
        exchange.method or "",
    ]
    line.append_text(text("  " + " · ".join(d for d in details if d), "dim"))
    screen.print(line)
    verdict = Text(" " * 14).append_text(verdict_text(exchange.verdict, exchange.would))
    if exchange.rule:
        verdict.append(f" by {clean(exchange.rule)}", style="dim")
    # An allow's message only names the rule again.
    if exchange.message and (exchange.verdict != "allow" or exchange.would):
        verdict.append_text(text(f": {exchange.message}"))
    for hit in exchange.trace.get("hits") or ():
        verdict.append_text(text(f"; {hit['rule']} ({hit['mode']}) would {hit['would']}", "yellow"))
    screen.print(verdict)
    if bodies:
        print_body(exchange.request, screen, "not recorded")


def _print_answer(item: Step, exchange: Exchange, screen: Console, bodies: bool) -> None:
    line = _line(item.at, "←" if item.kind == "answered" else "✗", "", "").append_text(outcome_text(exchange))
    reason = exchange.trace.get("reason")
    line.append_text(text(f" after {span(exchange.took)}" if exchange.took is not None else "", "dim"))
    if reason and reason != exchange.message:
        line.append_text(text(f" ({reason})", "yellow"))
    if changed := changes(exchange, how=True):
        line.append_text(text(f"  {changed}", "magenta"))
    screen.print(line)
    found = hits(exchange)
    if bodies:
        print_body(exchange.response, screen, "not recorded")
    elif found:
        screen.print(table(HITS, found[:HITS_SHOWN], screen))
        if len(found) > HITS_SHOWN:
            screen.print(Text(f"… {len(found) - HITS_SHOWN} more hits", style="dim"))
    elif exchange.response.ids:
        shown = ", ".join(exchange.response.ids[:HITS_SHOWN])
        screen.print(text(f"ids {shown}{' …' if len(exchange.response.ids) > HITS_SHOWN else ''}"))
