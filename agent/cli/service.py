# SPDX-License-Identifier: Apache-2.0
"""Commands about the running agent: status, off, on, reload, kill, metrics, doctor.

All but ``doctor`` ask the agent over its control socket; exit 3 where it does not answer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from agent.cli.failure import Code, Fail
from agent.cli.settings import Settings

DEFAULT_SOCKET = Path("/run/vecward/control.sock")


def control_socket(settings: Settings) -> Path:
    """Where the agent listens: from the configuration, or the default where there is none."""
    from agent.config import ConfigError, load_config

    if settings.config is None and not settings.config_file.exists():
        return DEFAULT_SOCKET
    try:
        return load_config(settings.config_file).control.socket
    except ConfigError as error:
        if settings.config is not None:
            raise Fail(error.problems[0], lines=True) from None
        return DEFAULT_SOCKET  # a broken file must not keep anyone from `vecward off`


def ask_agent(settings: Settings, command: str, **arguments: Any) -> dict[str, Any]:
    """One request to the agent. Raises Fail: 3 where it does not answer, 1 where it refuses."""
    from agent.control import ControlError, ask

    path = control_socket(settings)
    try:
        return ask(path, command, **arguments)
    except ControlError as error:
        raise Fail(error.message, error.hint or None, lines=True) from None
    except PermissionError:
        raise Fail(f"{path}: permission denied", "run it with sudo", Code.UNREACHABLE) from None
    except (OSError, TimeoutError):
        raise Fail(
            f"no agent answers at {path}",
            "is vecward running? name its configuration with -c FILE",
            Code.UNREACHABLE,
        ) from None


def json_option(function: Any) -> Any:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


@click.command()
@json_option
@click.pass_obj
def status(settings: Settings, as_json: bool) -> int:
    """Guards, mode, coverage, workers, policy, evidence and losses."""
    from agent.cli.status_view import show_status

    document = ask_agent(settings, "status")["status"]
    if settings.json or as_json:
        print_json(document)
        return 0
    show_status(document)
    return 0


def print_json(document: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


@click.command()
@click.argument("guard", required=False)
@click.option("--for", "duration", metavar="TIME", help="End by itself after 15m, 1h, ... (at most 7d).")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is signed in the evidence.")
@click.pass_obj
def off(settings: Settings, guard: str | None, duration: str | None, reason: str) -> int:
    """Let traffic pass unjudged, for GUARD or all of them.

    New connections reach the database directly and are counted by the kernel; sessions already open go on
    and are recorded. Ends by itself with --for, or with `vecward on`.
    """
    from agent.config_units import parse_duration

    seconds = None
    if duration is not None:
        try:
            seconds = parse_duration(duration)
        except ValueError as error:
            raise Fail(f"--for: {error}", None, Code.USAGE) from None
    answer = ask_agent(settings, "off", guard=guard, seconds=seconds, reason=reason)
    names = ", ".join(answer["guards"]) or "no guard"
    until = f"for {duration}" if duration else "until `vecward on`"
    click.echo(f"off: {names}: traffic passes unjudged {until}")
    return 0


@click.command()
@click.argument("guard", required=False)
@click.pass_obj
def on(settings: Settings, guard: str | None) -> int:
    """Judge again, for GUARD or all of them.

    Connections made while a guard in enforce was off were never judged: they are cut.
    """
    answer = ask_agent(settings, "on", guard=guard)
    click.echo(f"on: {', '.join(answer['guards'])}" if answer["guards"] else "nothing was off")
    return 0


@click.command()
@click.pass_obj
def reload(settings: Settings) -> int:
    """Take the new configuration and policy, or keep everything as it was and say why (exit 1)."""
    answer = ask_agent(settings, "reload")
    for warning in answer["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"reloaded: {answer['rules']} rules, policy {answer['policy'][:12]}")
    return 0


@click.command()
@click.argument("session")
@click.pass_obj
def kill(settings: Settings, session: str) -> int:
    """Close SESSION now, both sides."""
    ask_agent(settings, "kill", session=session)
    click.echo(f"killed: {session}")
    return 0


@click.command()
@click.pass_obj
def metrics(settings: Settings) -> int:
    """Counters in Prometheus' text format."""
    click.echo(ask_agent(settings, "metrics")["text"], nl=False)
    return 0


@click.command()
@json_option
@click.pass_obj
def doctor(settings: Settings, as_json: bool) -> int:
    """What this host can do, what is missing, and what that costs. Exit 1 where something is."""
    from agent.cli.doctor_view import host_checks, show_checks

    if os.geteuid() != 0:
        raise Fail("doctor tries what it reports, which needs root", "run it with sudo")
    checks = host_checks(settings)
    if settings.json or as_json:
        print_json([{"name": c.name, "ok": c.ok, "lost": c.lost, "hint": c.hint} for c in checks])
    else:
        show_checks(checks)
    return Code.DONE if all(check.ok for check in checks) else Code.FAILED
