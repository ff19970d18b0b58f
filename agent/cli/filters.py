# SPDX-License-Identifier: Apache-2.0
"""The filter options that `sessions`, `tail` and `export` share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from agent.cli.when import When
from agent.evidence.filter import VERDICTS, Filter
from policy.model import Action

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--pid", type=click.IntRange(0), help="Process id of the client."),
    click.option("--exe", metavar="GLOB", help="Attested path of its program."),
    click.option("--user", metavar="GLOB", help="User name or uid."),
    click.option("--login-user", metavar="GLOB", help="The person behind sudo: login user name or uid."),
    click.option("--unit", metavar="GLOB", help="systemd unit (or user unit)."),
    click.option("--container", metavar="GLOB", help="Container id."),
    click.option("--client", metavar="ADDR", help="Client address, ADDR:PORT or NETWORK/BITS."),
    click.option("--guard", metavar="GLOB", help="Guarded database."),
    click.option("--collection", metavar="GLOB", help="A collection that was asked for."),
    click.option("--action", type=click.Choice([a.value for a in Action]), help="What was done."),
    click.option(
        "--verdict",
        type=click.Choice(VERDICTS),
        help="How it was decided; would: enforce would have stepped in.",
    ),
    click.option("--since", type=When(), help="Not before: '2026-11-23 18:00', yesterday, -2h, @SECONDS."),
    click.option("--until", type=When(), help="Not after."),
)


def filter_options(command: F) -> F:
    """Adds the filters; the command gets them as `wanted: Filter`."""

    @functools.wraps(command)
    def called(*args: Any, **given: Any) -> Any:
        names = Filter.__dataclass_fields__
        wanted = Filter(**{name: given.pop(name) for name in names})
        if wanted.since is not None and wanted.until is not None and wanted.since > wanted.until:
            raise click.UsageError("--since is after --until")
        return command(*args, wanted=wanted, **given)

    made: Any = called
    for option in reversed(_OPTIONS):
        made = option(made)
    return made  # type: ignore[no-any-return]
