# SPDX-License-Identifier: Apache-2.0
"""How the demo speaks: chapters, one sentence before each step, commands with their output, checks.

Bias: output of commands is shown as it is, never edited; what is checked is that same text.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PACE = 0.55  # of the seconds in the story: the whole in about 80 s
_WIDTHS = (100, 160)  # columns: narrower loses columns of tables, wider is not read


class Differs(Exception):
    """What was said and what is differ: the message names both."""


def plain(text: str) -> str:
    return _COLOUR.sub("", text)


class Screen:
    """Prints to standard output; waits for a reader only on a terminal and unless `fast`."""

    def __init__(self, fast: bool) -> None:
        self.colour = sys.stdout.isatty()
        self.fast = fast or not self.colour
        columns = shutil.get_terminal_size((120, 24)).columns if self.colour else 120
        self.width = min(max(columns, _WIDTHS[0]), _WIDTHS[1])
        self.hint = (
            f"(your terminal has {columns} columns; {_WIDTHS[0]} show the tables whole)"
            if columns < _WIDTHS[0]
            else ""
        )
        self.checks = 0
        self._console = Console(
            width=self.width,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=False,
            force_terminal=self.colour,
        )

    @property
    def environment(self) -> dict[str, str]:
        """What makes Vecward's commands print as they do on this terminal."""
        made = {"COLUMNS": str(self.width)}
        if self.colour:
            made |= {"FORCE_COLOR": "1", "TERM": os.environ.get("TERM", "xterm-256color")}
        return made

    def title(self, title: str, lines: list[str]) -> None:
        self._console.print(
            Panel("\n".join(lines), title=Text(title, "bold"), border_style="cyan", padding=(0, 1))
        )

    def chapter(self, number: int, title: str) -> None:
        self._console.print()
        self._console.print(Rule(Text(f"{number}  {title}", style="bold cyan"), style="cyan", align="left"))

    def say(self, sentence: str, wait: float = 1.5) -> None:
        self._console.print()
        self._console.print(Text(sentence, style="bold"))
        self.wait(wait)

    def command(self, prompt: str, line: str) -> None:
        made = Text(f"{prompt} ", style="bold green" if prompt.endswith("$") else "bold red")
        self._console.print(made.append(line, style="bold yellow"), soft_wrap=True)

    def output(self, text: str) -> None:
        if text.strip():
            sys.stdout.flush()
            print(text.rstrip("\n"), flush=True)

    def file(self, name: str, text: str, kind: str) -> None:
        self._console.print(
            Panel(
                Syntax(text.rstrip(), kind, background_color="default"),
                title=name,
                title_align="left",
                border_style="dim",
            )
        )

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def check(self, what: str, holds: object, otherwise: str = "") -> None:
        """A green line, or Differs with what was there instead."""
        if not holds:
            raise Differs(f"{what}: it is not so{': ' + otherwise if otherwise else ''}")
        self.checks += 1
        self._console.print(Text("  ✓ ", style="bold green").append(what, style="green"))

    def wait(self, seconds: float) -> None:
        if not self.fast:
            sys.stdout.flush()
            time.sleep(seconds * _PACE)

    def error(self, line: str) -> None:
        Console(stderr=True, highlight=False, markup=False).print(
            Text(f"demo: {line}", style="bold red"), soft_wrap=True
        )
