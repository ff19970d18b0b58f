# SPDX-License-Identifier: Apache-2.0
"""``vecward policy learn``: a policy file out of what was observed. Reads evidence; changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent.cli.failure import Fail
from agent.cli.settings import Settings, dir_option, json_option
from agent.cli.when import When


@click.command()
@click.option("--since", type=When(), help="Not before: '2026-11-23 18:00', yesterday, -7d, @SECONDS.")
@click.option("--until", type=When(), help="Not after.")
@click.option("--guard", metavar="GLOB", help="Only of this guard.")
@click.option("--refused", is_flag=True, help="Also what no rule allowed while the guard enforced.")
@click.option("-o", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write it to a new FILE.")
@json_option
@dir_option
@click.pass_obj
def learn(
    settings: Settings,
    since: int | None,
    until: int | None,
    guard: str | None,
    refused: bool,
    out: Path | None,
) -> None:
    """Propose least-privilege rules from what was observed.

    One rule for each caller, by what the kernel attests of it (unit, user, executable, image, address), with
    the collections and actions that it was seen to use, the highest top_k, and no embeddings where it asked
    for none. Comments say how often and by which processes. What is not proposed is listed with the reason:
    unknown requests, callers that nothing attested names, what a rule refused or would refuse. The database's
    own traffic and that of its listed peers become tunnels where it cannot be read.

    Nothing is put in force. Read the rules: what was seen is not what is right.

    \b
    vecward policy learn --since -7d -o /etc/vecward/policy.d/learned.yaml
    vecward policy check && vecward policy test && vecward reload
    """
    from agent.cli.asking import asking
    from agent.cli.output import emit_json, progress
    from agent.cli.policy import subject_of
    from agent.evidence.filter import Filter
    from agent.evidence.observed import observe
    from policy.learn import learn as propose
    from policy.learn_text import as_json, stamp, yaml_text

    guards, peers = _configured(settings)
    wanted = Filter(guard=guard, since=since, until=until)
    with asking(settings) as query, progress("reading what was asked", query.archive.size()) as advance:
        seen, sessions = observe(query, wanted, subject_of, refused=refused, advance=advance)
    found = propose(seen, peers, guards)
    if seen.full:
        raise Fail(
            "too many different callers and requests for one proposal", "narrow it with --guard, --since"
        )
    told: dict[str, Any] = {"sessions": sessions, "exchanges": seen.exchanges}
    told |= {
        "since": None if since is None else stamp(since),
        "until": None if until is None else stamp(until),
    }
    if settings.json:
        text = None
        emit_json(told | as_json(found))
    else:
        text = yaml_text(found, _head(told, guard))
        if out is None:
            click.echo(text, nl=False)
    if out is not None:
        _write(out, text or yaml_text(found, _head(told, guard)))
        click.echo(f"{out}: {len(found.proposals)} rules, {len(found.left)} not proposed", err=True)


def _head(told: dict[str, Any], guard: str | None) -> list[str]:
    when = f"from {told['since'] or 'the beginning'} to {told['until'] or 'now'}"
    return [
        f"Proposed by `vecward policy learn`: {told['exchanges']} requests of {told['sessions']} sessions,",
        f"{f'of guard {guard}, ' if guard else ''}{when}.",
        "What was seen is not what is right: read every rule.",
    ]


def _write(file: Path, text: str) -> None:
    """A new file; what is there is never overwritten."""
    try:
        with open(file, "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise Fail(f"{file} is there already", "name another, and compare them") from None


def _configured(settings: Settings) -> tuple[list[str] | None, dict[str, list[str]]]:
    """The guards of the configuration and their peers; None where there is no configuration."""
    from agent.config import ConfigError, load_config

    if settings.config is None and not settings.config_file.exists():
        return None, {}
    try:
        config = load_config(settings.config_file)
    except ConfigError as error:
        raise Fail("\n".join(error.problems), lines=True) from None
    return [g.name for g in config.guards], {g.name: [p.remote for p in g.peers] for g in config.guards}
