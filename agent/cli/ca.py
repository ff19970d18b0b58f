# SPDX-License-Identifier: Apache-2.0
"""``vecward ca``: make the built-in authority, look at it, have it sign.

Works on files alone; no agent is needed. It runs as who may write beside the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.failure import Fail
from agent.cli.output import Column, console, emit_json, facts, table
from agent.cli.settings import Settings, json_option, pass_settings

if TYPE_CHECKING:
    from agent.ca import Issued

T = TypeVar("T")


@click.group()
def ca() -> None:
    """The built-in certificate authority, in the folder `ca` beside the configuration."""


@ca.command()
@click.option("--name", default="Vecward CA", show_default=True, help="Its subject's common name.")
@click.option("--days", type=int, default=3650, show_default=True, help="How long it is valid.")
@json_option
@pass_settings
def init(settings: Settings, name: str, days: int) -> None:
    """Make the authority: ca.crt for those who shall believe it, ca.key (0600) for this host alone."""
    from agent.ca import create

    _tell(settings, _asked(lambda: create(_folder(settings), name, days)))


@ca.command()
@json_option
@pass_settings
def show(settings: Settings) -> None:
    """The authority and what it issued."""
    from agent.ca import listing

    found = _asked(lambda: listing(_folder(settings)))
    if settings.json:
        emit_json({"certificates": [_fields(one) for one in found]})
        return
    columns: list[Column[Issued]] = [
        Column("file", lambda one: one.file.name, keep=True),
        Column("for", lambda one: one.role),
        Column("ends", lambda one: f"{one.not_after:%Y-%m-%d}"),
        Column("subject", lambda one: one.subject, fold=True),
        Column("names", lambda one: ", ".join(one.names) or None, fold=True, drop=1),
        Column("SHA-256", lambda one: one.sha256[:16], drop=2),
    ]
    screen = console()
    screen.print(table(columns, found, screen))


@ca.command()
@click.argument("name")
@click.option(
    "--san", "names", multiple=True, metavar="NAME|ADDRESS", help="Another name it is for; repeatable."
)
@click.option("--client", is_flag=True, help="For a client (its subject CN=NAME becomes tls_subject).")
@click.option("--days", type=int, default=397, show_default=True, help="How long it is valid.")
@json_option
@pass_settings
def issue(settings: Settings, name: str, names: tuple[str, ...], client: bool, days: int) -> None:
    """Sign a new key for NAME: NAME.crt and NAME.key (0600)."""
    from agent.ca import issue as sign

    role: Any = "client" if client else "server"
    _tell(settings, _asked(lambda: sign(_folder(settings), name, names, role, days)))


def _folder(settings: Settings) -> Path:
    return settings.config_file.parent / "ca"


def _asked(call: Callable[[], T]) -> T:
    from agent.ca import CaError

    try:
        return call()
    except CaError as error:
        raise Fail(error.message, error.hint) from None


def _tell(settings: Settings, made: Issued) -> None:
    if settings.json:
        emit_json(_fields(made))
        return
    lines = [
        ("certificate", made.file),
        ("key", made.file.with_suffix(".key")),
        ("subject", made.subject),
        ("for", ", ".join(made.names) or None),
        ("ends", f"{made.not_after:%Y-%m-%d %H:%M} UTC"),
        ("SHA-256", made.sha256),
    ]
    console().print(facts(lines))


def _fields(one: Issued) -> dict[str, Any]:
    return {
        "file": str(one.file),
        "key": str(one.file.with_suffix(".key")),
        "subject": one.subject,
        "names": list(one.names),
        "role": one.role,
        "serial": one.serial,
        "not_before": one.not_before.isoformat().replace("+00:00", "Z"),
        "not_after": one.not_after.isoformat().replace("+00:00", "Z"),
        "sha256": one.sha256,
    }
