# SPDX-License-Identifier: Apache-2.0
"""``vecward unit``: what the units start. Not for people: it is in no list and has no manual page."""

from __future__ import annotations

import os

import click

from agent.cli.failure import Code, Fail
from agent.cli.settings import Settings
from agent.cli.start import failing_plainly


@click.group(hidden=True)
def unit() -> None:
    """What the units of the package start."""


@unit.command()
@click.option("--stopped", is_flag=True, help="Say what is refused while nothing runs.")
@click.pass_obj
def steer(settings: Settings, stopped: bool) -> int:
    """Attach and pin, unless that stands already."""
    from agent import roles
    from agent.cli.start import say_attached
    from agent.config import load_config

    with failing_plainly():
        config = load_config(settings.config_file)
        if stopped:
            click.echo("\n".join(roles.stopped_lines(config)))
            return 0
        if os.geteuid() != 0:
            raise Fail("steer needs root", "systemctl start vecward-steer.service")
        loaded = roles.steer(config)
        if loaded is not None:
            say_attached(loaded)
    return 0


@unit.command()
@click.pass_obj
def agent(settings: Settings) -> int:
    """The agent, as vecward-agent.service confines it."""
    from agent import roles

    with failing_plainly(Code.UNCONFIGURED):
        return roles.run_agent(settings.config_file)


@unit.command()
@click.argument("generation")
@click.pass_obj
def proxy(settings: Settings, generation: str) -> int:
    """The workers of one generation, as vecward-proxy@.service confines them."""
    from agent.generation import Generation
    from agent.notify import Notifier

    with failing_plainly():
        return Generation(generation, Notifier(os.environ.pop("NOTIFY_SOCKET", ""))).run()
