# SPDX-License-Identifier: Apache-2.0
"""``vecward completion``: the shell's completion script, as click makes it."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from agent.cli.main import main


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  vecward completion bash > /usr/share/bash-completion/completions/vecward
    zsh:   vecward completion zsh  > /usr/share/zsh/vendor-completions/_vecward
    fish:  vecward completion fish > ~/.config/fish/completions/vecward.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(made(main, {}, "vecward", "_VECWARD_COMPLETE").source())
