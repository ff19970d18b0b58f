# SPDX-License-Identifier: Apache-2.0
"""``vecward export``: sessions or a time range to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from agent.cli.asking import asking
from agent.cli.failure import Fail
from agent.cli.filters import filter_options
from agent.cli.output import clean, console, emit_json, json_text, progress, text, utc
from agent.cli.proof import prove
from agent.cli.settings import Settings, dir_option, json_option, not_in_this_build, pass_settings
from agent.evidence.export import json_lines, whole_file, write_pages
from agent.evidence.filter import Filter
from agent.evidence.page import Proof
from agent.evidence.query import Query
from agent.evidence.views import Session

MANY = 500  # exchanges from which on a bar is worth its lines


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "html", "parquet", "ocsf"]),
    default="jsonl",
    show_default=True,
    help="What to write.",
)
@click.option(
    "--session", "-s", "names", multiple=True, metavar="ID", help="This session (may be given again)."
)
@filter_options
@click.option("--limit", type=click.IntRange(1), help="The newest so many sessions.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The file, or for pages of several sessions the folder. JSON lines go to stdout without it.",
)
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.option("--no-verify", is_flag=True, help="Do not verify the evidence for the pages' proof.")
@json_option
@dir_option
@pass_settings
def export(
    settings: Settings,
    form: str,
    names: tuple[str, ...],
    wanted: Filter,
    limit: int | None,
    output: Path | None,
    force: bool,
    no_verify: bool,
) -> None:
    """Sessions, or what matches in a time range, to a file.

    \b
    jsonl  one exchange a line, fields as in `vecward show --json`
    html   one self-contained page per session: to open, read and print
    parquet and ocsf are not in this build

    \b
    vecward export --format html -s SESSION -o session.html
    vecward export --since yesterday --verdict deny -o denied.jsonl
    """
    if form in ("parquet", "ocsf"):
        raise not_in_this_build(
            f"export --format {form}", "--format jsonl writes every field; other tools convert it"
        )
    if form == "html" and output is None:
        raise click.UsageError("--format html needs -o FILE, or -o FOLDER for several sessions")
    with asking(settings) as query:
        sessions = [query.session(name) for name in names] if names else query.sessions(wanted, limit)
        if not sessions:
            raise Fail("no session matches, nothing was written", "vecward sessions takes the same filters")
        total = sum(query.count(s, wanted) for s in sessions)
        if form == "jsonl":
            _lines(query, sessions, wanted, output, force, total)
            made = [output] if output is not None else []
        elif output is not None:
            made = _pages(settings, query, sessions, wanted, output, force, total, not no_verify)
        else:
            made = []
        _tell(settings, made, len(sessions), total)


def _lines(
    query: Query, sessions: list[Session], wanted: Filter, output: Path | None, force: bool, total: int
) -> None:
    with progress(f"writing {total} exchanges", total, show=output is not None and total >= MANY) as advance:
        lines = json_lines(query, sessions, wanted, json_text, advance)
        if output is None:
            sys.stdout.writelines(lines)
            return
        with whole_file(output, force) as file:
            file.writelines(lines)


def _pages(
    settings: Settings,
    query: Query,
    sessions: list[Session],
    wanted: Filter,
    output: Path,
    force: bool,
    total: int,
    verify: bool,
) -> list[Path]:
    made_at = utc(time.time_ns(), 0) or ""
    proof_of: Callable[[Session], Proof] = (
        prove(settings.evidence_dir()) if verify else lambda s: Proof("not verified")
    )
    with progress(f"writing {total} exchanges", total, show=total >= MANY) as advance:
        return write_pages(query, sessions, wanted, output, proof_of, made_at, clean, force, advance)


def _tell(settings: Settings, made: list[Path], sessions: int, exchanges: int) -> None:
    if not made:
        return
    if settings.json:
        emit_json({"files": [str(p) for p in made], "sessions": sessions, "exchanges": exchanges})
    else:
        console().print(
            text(f"{made[0]}: {sessions} session{'s' if sessions > 1 else ''}, {exchanges} exchanges"),
            soft_wrap=True,
        )
