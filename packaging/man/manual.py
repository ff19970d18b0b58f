# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completion scripts, made from the command line itself.

    python packaging/man/manual.py OUT     writes OUT/man/*.8, OUT/man/*.5, OUT/completion/*

Owns turning click's description of a command into roff. What a program cannot know stands beside, by hand: a
section after the generated ones from ``NAME.roff``, and whole pages of the files and the units. Nothing is
written about a command that its own ``--help`` does not say, so the two cannot differ.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import click
from click.shell_completion import get_completion_class

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
UNITS = ("vecward-steer.service", "vecward-agent.service", "vecward-proxy@.service")  # see vecward.target(8)
SHELLS = MappingProxyType({"bash": "vecward", "zsh": "_vecward", "fish": "vecward.fish"})


def escape(text: str) -> str:
    """Text as roff prints it unchanged: backslashes, hyphens that are minus signs, and leading dots."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """A docstring as roff: paragraphs are filled, one that starts with ``\\b`` keeps its lines."""
    for number, block in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        if block.lstrip().startswith("\b"):
            lines = textwrap.dedent(block.lstrip().removeprefix("\b").strip("\n")).splitlines()
            yield from (".nf", *(escape(line) for line in lines), ".fi")
        else:
            yield escape(" ".join(block.split()))


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """The options, each as its help record says it."""
    records = [record for p in command.get_params(context) if (record := p.get_help_record(context))]
    records = [
        (names, meaning) for names, meaning in records if meaning
    ]  # a bare argument is in the synopsis
    if records:
        yield ".SH OPTIONS"
    for names, meaning in records:
        yield from (".TP", rf"\fB{escape(names)}\fR", escape(meaning))


def leaves(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """The command, and below it every subcommand of a group."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if (below := command.get_command(context, name)) is not None:
                yield from leaves(below, click.Context(below, context, info_name=name))


def page(command: click.Command, context: click.Context, version: str) -> str:
    """One command's page, with its subcommands on it."""
    name = context.command_path.replace(" ", "-")
    lines = [f'.TH {name.upper()} 8 "" "vecward {version}" "Vecward"', ".SH NAME"]
    lines.append(rf"{escape(name)} \- {escape(command.get_short_help_str(200).rstrip('.'))}")
    lines.append(".SH SYNOPSIS")
    usages = [(c.command_path, " ".join(x.collect_usage_pieces(c))) for x, c in leaves(command, context)]
    for path, pieces in usages if len(usages) == 1 else usages[1:]:
        lines += [rf"\fB{escape(path)}\fR {escape(pieces)}", ".br"]
    lines += [".SH DESCRIPTION", *paragraphs(command.help or ""), *options(command, context)]
    for below, its_context in list(leaves(command, context))[1:]:
        lines += [rf'.SH "{escape(its_context.command_path.upper())}"', *paragraphs(below.help or "")]
        lines += [line.replace(".SH OPTIONS", ".SS Options") for line in options(below, its_context)]
    return finish(name, lines)


def overview(main: click.Group, groups: Mapping[str, Mapping[str, str]], version: str) -> str:
    """vecward(8): the global options and every command in its group."""
    context = click.Context(main, info_name="vecward")
    lines = [f'.TH VECWARD 8 "" "vecward {version}" "Vecward"', ".SH NAME"]
    lines.append(r"vecward \- guard, judge and record every connection to a vector database")
    lines += [".SH SYNOPSIS", r"\fBvecward\fR [OPTIONS] COMMAND [ARGS]..."]
    lines += [".SH DESCRIPTION", *paragraphs(main.help or ""), *options(main, context), ".SH COMMANDS"]
    for title, commands in groups.items():
        lines.append(f'.SS "{escape(title)}"')
        for name, short in commands.items():
            lines += [".TP", rf"\fBvecward\-{escape(name)}\fR(8)", escape(short)]
    return finish("vecward", lines)


def finish(name: str, lines: list[str]) -> str:
    """The hand-written end of a page, and what to read next."""
    beside = HERE / f"{name}.roff"
    if beside.exists():
        text = beside.read_text().splitlines()
        lines = [*lines, *(line for line in text if not line.startswith(r".\" SPDX"))]
    others = [("vecward", 8), ("vecward.target", 8), ("vecward.yaml", 5), ("vecward\\-policy", 5)]
    others += [("vecward\\-evidence", 5), ("vecward\\-json", 5)] if name == "vecward" else []
    see = ", ".join(rf"\fB{title}\fR({section})" for title, section in others if title != name)
    return "\n".join([*lines, ".SH SEE ALSO", see, ""])


def build(out: Path) -> list[str]:
    """Write all of it; returns the names of commands that could not be described."""
    from agent.cli.failure import Fail
    from agent.cli.main import TABLE, main

    version = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])
    man, completion = out / "man", out / "completion"
    for folder in (man, completion):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    groups = {title: {name: entry.short for name, entry in table.items()} for title, table in TABLE.items()}
    (man / "vecward.8").write_text(overview(main, groups, version))
    top = click.Context(main, info_name="vecward")
    missing = []
    for name in main.list_commands(top):
        try:
            command = main.get_command(top, name)
        except Fail:
            command = None
        if command is None:
            missing.append(name)
            continue
        text = page(command, click.Context(command, top, info_name=name), version)
        (man / f"vecward-{name}.8").write_text(text)
    for unit in UNITS:
        (man / f"{unit}.8").write_text(".so man8/vecward.target.8\n")
    for source in (*HERE.glob("*.5"), *HERE.glob("*.8")):
        (man / source.name).write_text(source.read_text().replace("@VERSION@", version))
    for shell, file in SHELLS.items():
        if made := get_completion_class(shell):
            (completion / file).write_text(made(main, {}, "vecward", "_VECWARD_COMPLETE").source())
    return missing


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if absent := build(Path(sys.argv[1] if len(sys.argv) > 1 else "build")):
        sys.exit(f"manual: no such command in this tree yet: {', '.join(absent)}")
