# SPDX-License-Identifier: Apache-2.0
"""``vecward run``, ``steer`` and ``unsteer``: what starts and ends the kernel part."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.failure import Code, Fail
from agent.cli.settings import Settings

if TYPE_CHECKING:
    from agent.kernel.attach import Loaded


@click.command()
@click.option("-c", "--config", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The configuration (default: /etc/vecward/vecward.yaml).")  # fmt: skip
@click.pass_obj
def run(settings: Settings, file: Path | None) -> int:
    """Run everything in the foreground, and take everything down at the end.

    Prints "vecward: ready" when every guarded port is steered. SIGTERM or ^C: exchanges under way end,
    everything is detached, exit 0. A second signal ends at once. SIGHUP: like `vecward reload`.
    """
    from agent.config import ConfigError, load_config
    from agent.kernel.errors import SteeringError
    from agent.places import RunError
    from agent.rulebook import load_rulebook
    from agent.run import Supervisor
    from policy.problem import PolicyError

    path = file or settings.config_file
    try:
        config = load_config(path)
        load_rulebook(config, time.time())  # the agent does it again; here its problems end the start
        return Supervisor(config, path.resolve()).run()
    except ConfigError as error:
        raise Fail("\n".join(error.problems), "nothing was started", lines=True) from None
    except PolicyError as error:
        raise Fail(str(error), "nothing was started", lines=True) from None
    except SteeringError as error:
        raise Fail(
            f"steering: {error.missing}", error.hint or "vecward doctor tells what this host can do"
        ) from None
    except RunError as error:
        raise Fail(str(error), error.hint or None) from None


@contextmanager
def failing_plainly(config_code: Code = Code.FAILED) -> Iterator[None]:
    """What keeps a process of ours from starting, as one line and a hint."""
    from agent.config import ConfigError
    from agent.confine import ConfineError
    from agent.kernel.errors import SteeringError
    from agent.places import RunError
    from policy.problem import PolicyError

    try:
        yield
    except ConfigError as error:
        raise Fail("\n".join(error.problems), code=config_code, lines=True) from None
    except PolicyError as error:
        raise Fail(str(error), code=config_code, lines=True) from None
    except SteeringError as error:
        raise Fail(
            f"steering: {error.missing}", error.hint or "vecward doctor tells what this host can do"
        ) from None
    except (RunError, ConfineError) as error:
        raise Fail(str(error), getattr(error, "hint", "") or None) from None


def say_attached(loaded: Loaded) -> None:
    click.echo(f"attached {len(loaded.programs)} programs below {loaded.pins}")
    for program, why in loaded.lost.items():
        click.echo(f"not loaded: {program}: {why}", err=True)


@click.command()
@click.pass_obj
def steer(settings: Settings) -> int:
    """Attach the kernel part and pin it; it stays when this command ends.

    Without an agent that serves the guarded ports nothing is refused yet: guards are set by the agent.
    """
    from agent.config import load_config
    from agent.roles import steer as attach_once

    if os.geteuid() != 0:
        raise Fail("steer needs root", "run it with sudo")
    with failing_plainly():
        config = load_config(settings.config_file)
        loaded = attach_once(config)
    if loaded is None:
        click.echo(f"it is attached already, below {config.steer.pins}")
    else:
        say_attached(loaded)
    return 0


@click.command()
@click.pass_obj
def unsteer(settings: Settings) -> int:
    """Detach and unpin everything. Guarded ports then reach the database directly."""
    from agent.config import ConfigError, load_config
    from agent.kernel.attach import detach

    if os.geteuid() != 0:
        raise Fail("unsteer needs root", "run it with sudo")
    try:
        pins = load_config(settings.config_file).steer.pins
    except ConfigError as error:
        if settings.config is not None:
            raise Fail("\n".join(error.problems), lines=True) from None
        pins = Path("/sys/fs/bpf/vecward")  # a broken configuration must not keep anyone from opening the way
    removed = detach(pins)
    click.echo(
        f"detached: {len(removed)} pins removed below {pins}"
        if removed
        else f"nothing was attached below {pins}"
    )
    return 0
