# SPDX-License-Identifier: Apache-2.0
"""The ``vecward`` command: a table of commands, each loaded only when it is called.

Owns the global options and the one mapping of what was raised to an exit code. A command is a click
command in a module of its own; a module that cannot be loaded fails that command, not the others.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from agent.cli.failure import Code, Fail
from agent.cli.settings import Settings


class Entry(NamedTuple):
    """Where a command is, and what the list says of it without loading it."""

    module: str
    function: str
    short: str


TABLE: dict[str, dict[str, Entry]] = {
    "Look": {
        "status": Entry("agent.cli.service", "status", "Guards, coverage, workers, evidence head, losses."),
        "sessions": Entry(
            "agent.cli.sessions", "sessions", "Who connected: one line per session, with filters."
        ),
        "show": Entry("agent.cli.show", "show", "One session whole, or one of its exchanges."),
        "replay": Entry("agent.cli.replay", "replay", "A session as it happened, in time."),
        "tail": Entry("agent.cli.tail", "tail", "Exchanges as they are recorded."),
        "seen": Entry("agent.cli.seen", "seen", "Who ever got a point or row ID back."),
        "doctor": Entry("agent.cli.service", "doctor", "What this host can do, and what is missing."),
        "discover": Entry("agent.cli.discover", "discover", "Databases on this host, and a guard for each."),
        "metrics": Entry("agent.cli.service", "metrics", "Counters in Prometheus' text format."),
    },
    "Prove": {
        "verify": Entry("agent.cli.verify", "verify", "Prove that the evidence is whole."),
        "export": Entry("agent.cli.export", "export", "Sessions or a time range to a file."),
        "index": Entry("agent.cli.index", "index", "The index beside the evidence: rebuild, info."),
    },
    "Decide": {
        "policy": Entry("agent.cli.policy", "policy", "Check, test, explain and learn the policy."),
        "reload": Entry("agent.cli.service", "reload", "Take the new configuration and policy."),
        "off": Entry("agent.cli.service", "off", "Let traffic pass unjudged for a while."),
        "on": Entry("agent.cli.service", "on", "Judge again."),
        "kill": Entry("agent.cli.service", "kill", "Close a session now, both sides."),
    },
    "Run": {
        "run": Entry("agent.cli.start", "run", "Everything in the foreground."),
        "steer": Entry("agent.cli.start", "steer", "Attach and pin the kernel part."),
        "unsteer": Entry("agent.cli.start", "unsteer", "Detach and unpin the kernel part."),
        "ca": Entry("agent.cli.ca", "ca", "The built-in certificate authority: init, show, issue."),
        "report": Entry("agent.cli.report", "report", "A redacted support bundle in one file."),
        "completion": Entry("agent.cli.completion", "completion", "Print the shell completion."),
    },
}
COMMANDS: dict[str, Entry] = {name: entry for group in TABLE.values() for name, entry in group.items()}
# What the units start: in no list, no manual page and no completion.
INTERNAL = {"unit": Entry("agent.cli.unit", "unit", "")}


class Commands(click.Group):
    """Loads a command when it is named, and turns what it raises into a line and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name) or INTERNAL.get(cmd_name)
        if entry is None:
            return None
        try:
            found = getattr(importlib.import_module(entry.module), entry.function)
        except (ModuleNotFoundError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name != entry.module:
                raise Fail(f"{cmd_name}: a part is missing: {error}", "reinstall vecward") from None
            raise Fail(f"{cmd_name} is not in this build", "vecward --help lists what is") from None
        if not isinstance(found, click.Command):
            raise TypeError(f"{entry.module}:{entry.function} is not a command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in {*COMMANDS, *INTERNAL} and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else "vecward --help lists the commands"
            raise Fail(f"no such command: {args[0]}", hint, Code.USAGE)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in TABLE.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.short) for name, entry in group.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # `vecward sessions | head`: the reader has what it wanted. click itself would exit with 1.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Code.DONE

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        code = _guarded(
            lambda: super(Commands, self).main(args, prog_name or "vecward", complete_var, False, **extra)
        )
        if standalone_mode:
            sys.exit(code)
        return code


def _guarded(call: Any) -> int:
    """Run it; every way it can end becomes a line on stderr and an exit code."""
    try:
        result = call()
    except Fail as error:
        return _say(str(error), error.code, error.lines)
    except click.exceptions.NoArgsIsHelpError as error:  # no command: who asks for nothing wants to know what
        click.echo(error.format_message())
        return Code.DONE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "vecward"
        message = " ".join(error.format_message().split())  # click lists choices on lines of their own
        return _say(f"{message} (hint: {where} --help)", Code.USAGE)
    except click.ClickException as error:
        return _say(error.format_message(), Code.FAILED)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OSError as error:
        return _say(str(Fail.from_os(error.filename or "vecward", error)), Code.FAILED)
    return result if isinstance(result, int) else Code.DONE


def _say(line: str, code: int, lines: bool = False) -> int:
    from agent.cli.output import clean

    sys.stderr.write(f"vecward: {clean(line, lines)}\n")
    return code


def _version(context: click.Context, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    import agent

    click.echo(f"vecward {getattr(agent, '__version__', '(from a checkout)')}")
    context.exit()


@click.group("vecward", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The configuration (default: /etc/vecward/vecward.yaml).",
)
@click.option("--dir", "folder", type=click.Path(path_type=Path), metavar="DIR", help="The evidence to read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of tables.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda c, p, v: _version(c, v),
    help="Print the version.",
)
@click.pass_context
def main(context: click.Context, config: Path | None, folder: Path | None, as_json: bool) -> None:
    """Vecward: who asks your vector database what, by which right, and proof of it.

    \b
    Reading commands take --json. Times may be given as journalctl takes them.
    Exit codes: 0 done, 1 refused or failed, 2 usage, 3 agent not reachable,
    4 verification failed.
    """
    context.obj = Settings(config=config, dir=folder, json=as_json)
