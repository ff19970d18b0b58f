# SPDX-License-Identifier: Apache-2.0
"""``vecward index``: what the index holds, and making it anew."""

from __future__ import annotations

import time

import click

from agent.cli.asking import asking, tell_problems
from agent.cli.failure import Fail
from agent.cli.output import console, emit_json, facts, progress, size, span
from agent.cli.settings import Settings, dir_option, json_option, pass_settings
from agent.evidence.archive import ArchiveError
from agent.evidence.index import Index, Info


@click.group()
def index() -> None:
    """The index beside the evidence. It is disposable: everything in it is in the segments."""


@index.command()
@json_option
@dir_option
@pass_settings
def info(settings: Settings) -> None:
    """Catch up, and say what the index holds."""
    with asking(settings) as query:
        _tell(settings, query.index.info(), None)


@index.command()
@json_option
@dir_option
@pass_settings
def rebuild(settings: Settings) -> None:
    """Throw the index away and read every segment again."""
    try:
        with Index.open(settings.evidence_dir()) as made:
            began = time.monotonic()
            with progress("reading every segment", made.archive.size()) as advance:
                made.rebuild(advance)
            _tell(settings, made.info(), time.monotonic() - began)
            tell_problems(made.archive)
    except ArchiveError as error:
        raise Fail(error.message, error.hint) from None


def _tell(settings: Settings, known: Info, took: float | None) -> None:
    if settings.json:
        emit_json(
            {
                "file": str(known.file),
                "bytes": known.bytes,
                "behind": known.behind,
                "streams": known.streams,
                "sessions": known.sessions,
                "exchanges": known.exchanges,
                "ids": known.ids,
                "took": took,
            }
        )
        return
    lines = [
        ("file", f"{known.file} ({size(known.bytes)})"),
        ("streams", known.streams),
        ("sessions", known.sessions),
        ("exchanges", known.exchanges),
        ("ids (hashed)", known.ids),
        ("not yet in it", size(known.behind)),
    ]
    console().print(facts([*lines, ("took", None if took is None else span(took))]))
