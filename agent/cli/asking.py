# SPDX-License-Identifier: Apache-2.0
"""How commands get at the evidence: the index opened, caught up behind a bar, its troubles said once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent.cli.failure import Fail
from agent.cli.output import clean, console, progress, size
from agent.cli.settings import Settings
from agent.evidence.archive import Archive, ArchiveError
from agent.evidence.index import Index
from agent.evidence.query import Query

BAR_FROM = 8 * 1024 * 1024  # bytes of catch-up that are worth a progress bar


@contextmanager
def asking(settings: Settings) -> Iterator[Query]:
    """A caught-up index to ask. What could not be read is said on stderr afterwards; raises Fail."""
    try:
        with Index.open(settings.evidence_dir()) as index:
            behind = index.behind()
            if behind >= BAR_FROM:
                with progress(f"indexing {size(behind)} of evidence", behind) as advance:
                    index.catch_up(advance)
            else:
                index.catch_up()
            query = Query(index)
            yield query
            tell_problems(query.archive)
    except ArchiveError as error:
        raise Fail(error.message, error.hint) from None


def tell_problems(archive: Archive) -> None:
    """Say what could not be read, one line each; `vecward verify` says what it means."""
    screen = console(stderr=True)
    problems = list(archive.problems.values())
    for problem in problems[:5]:
        screen.print(f"vecward: {clean(problem)}", style="yellow", soft_wrap=True)
    if len(problems) > 5:
        screen.print(f"vecward: and {len(problems) - 5} more like it", style="yellow", soft_wrap=True)
    if any(not p.torn for p in problems):
        screen.print(
            "vecward: what is shown is incomplete (hint: vecward verify)", style="yellow", soft_wrap=True
        )
