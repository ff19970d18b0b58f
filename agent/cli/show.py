# SPDX-License-Identifier: Apache-2.0
"""``vecward show``: one session as an identity card and its exchanges, or one exchange whole."""

from __future__ import annotations

from collections.abc import Iterable

import click
from rich.console import Console
from rich.text import Text

from agent.cli.asking import asking
from agent.cli.output import (
    STYLES,
    Column,
    clock,
    console,
    day_time,
    emit_json,
    facts,
    heading,
    size,
    span,
    table,
    text,
    utc,
    verdict_text,
)
from agent.cli.settings import Settings, dir_option, json_option, pass_settings
from agent.cli.whole import print_exchange
from agent.evidence.query import Gap, Query
from agent.evidence.views import Exchange, Session, stamp


def outcome_text(exchange: Exchange) -> Text:
    if exchange.outcome.startswith("unknown"):
        return text(exchange.outcome, STYLES["unknown"])
    head = exchange.response.head  # SQL has no status: the error's code, or the tag of what was done
    told = exchange.response.status or head.get("sqlstate") or head.get("tag")
    status = f" {told}" if told is not None else ""
    return text(exchange.outcome + status, STYLES.get(exchange.outcome, ""))


def changes(exchange: Exchange, how: bool = False) -> str:
    """What policy changed in it: what was masked, how far it was cut, that embeddings were not asked for."""
    masked = ", ".join(f"{m.count}× {m.what}{f' ({m.how})' if how else ''}" for m in exchange.masks)
    made = [f"masked: {masked}"] if masked else []
    made += [f"{cut['name']} cut to {cut['value']}" for cut in exchange.trace.get("clamps") or ()]
    if exchange.vectors and exchange.trace.get("vectors") is False and exchange.verdict == "allow":
        made.append("no embeddings")
    return "; ".join(made)


def changes_text(exchange: Exchange) -> Text:
    made = changes(exchange).removeprefix("masked: ")
    return text(made, "magenta") if made else text("·", "dim")


EXCHANGES: tuple[Column[Exchange], ...] = (
    Column("n", lambda e: e.n, right=True, keep=True, style="bold"),
    Column("at (UTC)", lambda e: clock(stamp(e.at)), keep=True),
    Column("took", lambda e: span(e.took), right=True, drop=100, keep=True),
    Column("action", lambda e: ", ".join(e.actions) or None),
    Column("collection", lambda e: ", ".join(e.collections) or None),
    Column("method", lambda e: e.method, drop=140, least=32),
    Column("verdict", lambda e: verdict_text(e.verdict, e.would), keep=True),
    Column("rule", lambda e: e.rule, drop=90),
    Column("rows", lambda e: e.rows, right=True, keep=True),
    Column("changed", changes_text, drop=110, least=18),
    Column("outcome", outcome_text, fold=True, least=14),
    Column("answer", lambda e: size(e.response.bytes), right=True, drop=120, keep=True),
)


def identity(session: Session) -> Iterable[tuple[str, object]]:
    """The identity card's lines, in the order in which one asks at night."""
    why = session.null_reason
    person = session.user or (f"uid {session.uid}" if session.uid is not None else None)
    if person and session.uid is not None and session.user:
        other = f", euid {session.euid}" if session.euid not in (None, session.uid) else ""
        person += f" (uid {session.uid}{other})"
    login = session.login_user or session.login_uid
    origin = {k: v for k, v in (session.login_from or {}).items() if v}
    if login is not None and origin:
        login = f"{login} from {' at '.join(str(v) for v in (origin.get('peer'), origin.get('tty')) if v)}"
    yield "user", _known(person, why.get("user") or why.get("uid"))
    yield "login user", _known(login, why.get("login_user") or why.get("login_uid"))
    yield "program", _known(session.exe, why.get("exe"))
    yield "sha256", session.exe_sha256
    yield "arguments", " ".join(session.argv) if session.argv else None
    yield "in folder", session.beside.get("cwd")
    yield (
        "process",
        None
        if session.pid is None
        else f"pid {session.pid} ({session.comm})"
        if session.comm
        else f"pid {session.pid}",
    )
    yield "started by", " < ".join(f"{p['exe'] or '?'} [{p['pid']}]" for p in session.parents) or None
    yield (
        "unit",
        session.unit or (f"{session.user_unit} (user unit, unattested)" if session.user_unit else None),
    )
    yield "container", session.container
    yield "image", session.beside.get("image")
    yield "cgroup", session.cgroup
    yield "known by", _attribution(session)
    yield "connection", f"{session.client or '?'} → {session.server or '?'}"
    yield "guard", f"{session.guard} ({session.engine})" if session.engine else session.guard
    yield (
        "protocol",
        None
        if session.protocol is None
        else f"{session.protocol}{f', {session.tls_subject}' if session.tls_subject else ''}",
    )
    yield "time (UTC)", _times(session)
    yield "host", session.host
    span_ = session.evidence
    yield (
        "evidence",
        None if span_ is None else f"stream {span_.stream}, frames {span_.first} to {span_.last}",
    )


def _known(value: object, reason: str | None) -> object:
    return (
        value
        if value is not None
        else None
        if reason is None
        else Text.assemble(("- ", "dim"), text(f"({reason})", "dim"))
    )


def _attribution(session: Session) -> Text:
    return text(session.attribution, "green" if session.attribution in ("kernel", "peer") else "yellow")


def _times(session: Session) -> str:
    begin = utc(session.started) or "?"
    if session.ended is None:
        return f"{begin}, not ended"
    took = f", {span((session.ended - session.started) / 1e9)}" if session.started is not None else ""
    return f"{begin} to {utc(session.ended)}{took}"


def numbers(session: Session) -> Text:
    """What came of it, in a line."""
    parts = [
        (f"{session.requests} requests", ""),
        (f"{session.allowed} allowed", "green"),
        (f"{session.denied} denied", "bold red"),
        (f"{session.held} held", "yellow"),
        (f"{session.masked} masked", "magenta"),
        (f"{session.would} would", "yellow"),
    ]
    made = Text("  ").join(Text(t, style=s if not t.startswith("0 ") else "dim") for t, s in parts)
    return made.append(
        f"  {session.rows} rows  in {size(session.bytes_in)}  out {size(session.bytes_out)}", style=""
    )


def print_identity(session: Session, screen: Console) -> None:
    heading(f"session {session.session}", screen)
    screen.print(facts(identity(session)))
    screen.print(numbers(session))


def print_gaps(gaps: list[Gap], screen: Console) -> None:
    for gap in gaps:
        screen.print(text(f"{day_time(stamp(gap.at))}: {gap.text}", "bold yellow"))


@click.command()
@click.argument("session")
@click.option(
    "--exchange",
    "-n",
    "number",
    type=click.IntRange(1),
    metavar="N",
    help="One exchange whole: request, decision, answer.",
)
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Exchanges after number N.")
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="So many exchanges.")
@json_option
@dir_option
@pass_settings
def show(settings: Settings, session: str, number: int | None, after: int, limit: int) -> None:
    """One session: its identity card and its exchanges.

    SESSION is an id, or the beginning or end of one. With --exchange N that exchange whole: what was asked,
    how and by which rule it was decided, and the answer as it was delivered.
    """
    with asking(settings) as query:
        found = query.session(session)
        if number is not None:
            _show_exchange(settings, found, query.exchange(found, number))
        else:
            _show_session(settings, query, found, after, limit)


def _show_exchange(settings: Settings, session: Session, exchange: Exchange) -> None:
    if settings.json:
        emit_json(exchange.as_dict(trace=True))
    else:
        print_exchange(session, exchange, console())


def _show_session(settings: Settings, query: Query, session: Session, after: int, limit: int) -> None:
    listed = query.exchanges(session, after=after, limit=limit)
    gaps = query.gaps(session)
    if settings.json:
        document = {"session": session.as_dict(), "exchanges": [e.as_dict() for e in listed]}
        emit_json(
            document
            | {
                "gaps": [
                    {"first": g.first, "last": g.last, "frames": g.frames, "reason": g.reason} for g in gaps
                ]
            }
        )
        return
    screen = console()
    print_identity(session, screen)
    exchanges = list(listed)
    if exchanges:
        screen.print()
        screen.print(table(EXCHANGES, exchanges, screen))
    print_gaps(gaps, screen)
    if exchanges and exchanges[-1].n < session.requests and len(exchanges) == limit:
        console(stderr=True).print(
            f"{session.requests} in all; --after {exchanges[-1].n} shows the next", style="dim"
        )
