# SPDX-License-Identifier: Apache-2.0
"""What the global options say, and the options that several commands share.

`--dir` and `--json` may stand before or after the command's name: people put them where they think
of them. The configuration is read only when a command needs something from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from agent.cli.failure import Code, Fail

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_CONFIG = Path("/etc/vecward/vecward.yaml")
DEFAULT_EVIDENCE = Path("/var/lib/vecward/evidence")


@dataclass(slots=True)
class Settings:
    """The global options of one call."""

    config: Path | None = None  # None: the default file, if it is there
    dir: Path | None = None
    json: bool = False

    @property
    def config_file(self) -> Path:
        return self.config or DEFAULT_CONFIG

    def evidence_dir(self) -> Path:
        """--dir, else the configuration's evidence.dir, else the default. Raises Fail."""
        folder = self.dir or self._configured_dir()
        if not folder.is_dir():
            raise Fail(
                f"{folder}: no evidence there",
                "name the evidence with --dir DIR, or the configuration with -c FILE",
            )
        return folder

    def _configured_dir(self) -> Path:
        if self.config is None and not DEFAULT_CONFIG.exists():
            return DEFAULT_EVIDENCE
        from agent.config import ConfigError, load_config  # pydantic: 0.2 s that --dir does not pay

        try:
            return load_config(self.config_file).evidence.dir
        except ConfigError as error:
            raise Fail(error.problems[0], "name the evidence itself with --dir DIR") from None


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.ensure_object(Settings), name, value)

    return store


def json_option(command: F) -> F:
    """`--json` after the command's name, into Settings.json."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_keep("json"),
        help="Print JSON for programs instead of tables.",
    )(command)


def dir_option(command: F) -> F:
    """`--dir` after the command's name, into Settings.dir."""
    return click.option(
        "--dir",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_keep("dir"),
        metavar="DIR",
        help="The evidence to read (default: of the configuration).",
    )(command)


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def not_in_this_build(what: str, instead: str) -> Fail:
    """The one answer to a promise that this build does not keep."""
    return Fail(f"{what} is not in this build", instead, Code.FAILED)
