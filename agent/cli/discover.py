# SPDX-License-Identifier: Apache-2.0
"""``vecward discover``: the databases on this host, and a guard drafted for each."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.failure import Code, Fail
from agent.cli.settings import Settings, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.config import Config
    from agent.discover import Database


@click.command()
@click.option("--write", is_flag=True, help="Write a drop-in for each that is not guarded yet.")
@click.option("--port", "ports", type=click.IntRange(1, 65535), multiple=True, help="Also ask this port.")
@json_option
@click.pass_obj
def discover(settings: Settings, write: bool, ports: tuple[int, ...]) -> int:
    """Find the vector databases that listen on this host, and draft a guard for each.

    Looks at every process that listens, in all network namespaces, and asks the likely ports what they are:
    Chroma's heartbeat, Qdrant's root, PostgreSQL's first answer to a startup packet. No credential is sent
    and nothing is changed. Told of each: engine, version, process, authentication, TLS, what else its process
    listens on, and what a guard will not cover.

    --write puts one file per database into vecward.d/ beside the configuration, in observe. A file that is
    there is never overwritten: the difference is shown, and the exit code is 1.
    """
    from agent.cli.output import emit_json
    from agent.discover import discover as find
    from agent.discover_draft import draft, drafts

    if os.geteuid() != 0:
        raise Fail("discover looks at the processes of every user, which needs root", "run it with sudo")
    config = _config(settings)
    found = find(lambda port: _guard_of(config, port), ports)
    if settings.json:
        emit_json([_as_json(one, found) for one in found])
    elif not found:
        click.echo("no vector database answers here (hint: --port N asks a port of another number)")
    else:
        _show(found)
        if not write:
            for one in drafts(found):
                click.echo(f"\n{draft(one, found)}", nl=False)
    return _write(settings, config, found) if write else Code.DONE


def _config(settings: Settings) -> Config | None:
    from agent.config import ConfigError, load_config

    if not settings.config_file.exists():
        return None
    try:
        return load_config(settings.config_file)
    except ConfigError as error:
        raise Fail(
            "\n".join(error.problems), "mend it first: what is guarded is read from it", lines=True
        ) from None


def _guard_of(config: Config | None, port: int) -> str | None:
    return next((g.name for g in config.guards if port in g.ports), None) if config else None


def _show(found: Sequence[Database]) -> None:
    from agent.cli.output import Column, clean, console, table
    from agent.discover_draft import warnings

    columns: list[Column[Database]] = [
        Column("port", lambda d: d.port, right=True, keep=True),
        Column("engine", lambda d: d.answer.engine, keep=True),
        Column("version", lambda d: d.answer.version),
        Column("on", lambda d: ", ".join(d.addresses)),
        Column("pid", lambda d: d.listener.pid, right=True, keep=True),
        Column("program", lambda d: d.listener.program),
        Column("user", lambda d: d.listener.user),
        Column("unit", lambda d: d.listener.unit or d.listener.container, drop=3),
        Column("auth", lambda d: d.answer.auth),
        Column("TLS", lambda d: "yes" if d.answer.tls else "no"),
        Column("side ports", lambda d: ", ".join(map(str, d.side_ports)) or None, drop=2),
        Column("namespace", lambda d: "this one" if d.here else f"net:[{d.listener.netns}]", drop=1),
        Column("guard", lambda d: d.guard, keep=True),
    ]
    screen = console()
    screen.print(table(columns, found, screen))
    for one in found:
        for line in warnings(one) if one.guard is None else ():
            screen.print(f"{one.port}: {clean(line)}", soft_wrap=True)


def _as_json(one: Database, found: Sequence[Database]) -> dict[str, Any]:
    from agent.discover_draft import draft, drafts, warnings

    who = one.listener
    return {
        "engine": one.answer.engine if one.guard is None else None, "version": one.answer.version,
        "port": one.port, "addresses": list(one.addresses), "side_ports": list(one.side_ports),
        "auth": one.answer.auth, "tls": one.answer.tls, "pid": who.pid, "program": who.program,
        "exe": who.exe, "user": who.user, "unit": who.unit, "container": who.container, "net_ns": who.netns,
        "here": one.here, "unix": list(who.unix),
        "callers": [{"address": address, "port": port} for address, port in who.callers],
        "guard": one.guard, "warnings": list(warnings(one)) if one.guard is None else [],
        "draft": draft(one, found) if one in drafts(found) else None,
    }  # fmt: skip


def _write(settings: Settings, config: Config | None, found: Sequence[Database]) -> int:
    """One new file each; the configuration is read again with it, and the file taken back if it breaks."""
    from agent.config import ConfigError, load_config
    from agent.discover_draft import draft, drafts, file_name

    if config is None:
        raise Fail(f"{settings.config_file}: no such file", "an empty one is enough: its drop-ins are read")
    folder = settings.config_file.with_suffix(".d")
    differs = 0
    for one in drafts(found):
        file, text = folder / file_name(one), draft(one, found)
        try:
            folder.mkdir(mode=0o755, exist_ok=True)
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            differs += _differs(file, text)
            continue
        with open(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        try:
            load_config(settings.config_file)
        except ConfigError as error:
            file.unlink()
            raise Fail("\n".join(error.problems), f"{file} was not kept", lines=True) from None
        click.echo(f"wrote {file}; `vecward reload` puts it in force", err=True)
    return Code.FAILED if differs else Code.DONE


def _differs(file: Path, text: str) -> bool:
    """Show what is otherwise in the file that is there; it stays."""
    from agent.cli.output import clean

    there = file.read_text(encoding="utf-8", errors="replace")
    if there == text:
        click.echo(f"{file}: as it would be written", err=True)
        return False
    click.echo(f"{file} is there and stays; a new draft would change:", err=True)
    lines = difflib.unified_diff(there.splitlines(), text.splitlines(), str(file), "draft", lineterm="")
    for line in lines:
        click.echo(clean(line))
    return True
