# SPDX-License-Identifier: Apache-2.0
"""``vecward doctor``: the kernel's checks and those of the configuration, one line each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence

from rich.text import Text

from agent.cli.output import clean, console, count
from agent.cli.settings import Settings
from agent.kernel.doctor import Check, checks


def host_checks(settings: Settings) -> list[Check]:
    """Every check that can be made without changing anything but for a moment."""
    from agent.config import Config, ConfigError, load_config
    from agent.run import OBJECT

    found: list[Check] = []
    config = Config()
    if settings.config is not None or settings.config_file.exists():
        try:
            config = load_config(settings.config_file)
            found.append(Check(f"configuration {settings.config_file}", True))
        except ConfigError as error:
            found.append(
                Check(
                    f"configuration {settings.config_file}",
                    False,
                    error.problems[0],
                    "nothing starts until it is mended",
                )
            )
    return [*checks(OBJECT, config.steer.pins), *found, *_guard_checks(config), *_place_checks(config)]


def _guard_checks(config: object) -> Iterator[Check]:
    from agent.config import Config
    from agent.kernel.sockdiag import listeners

    if not isinstance(config, Config):
        return
    for guard in config.guards:
        for port in guard.ports:
            name = f"guard {guard.name} port {port}"
            sockets = listeners([port])
            if not sockets:
                yield Check(name, False, "no database listens there", "start it, or mend `ports:`")
                continue
            open_to = [str(s.local) for s in sockets if not s.local.is_loopback]
            if open_to and guard.mode == "observe" and guard.remote_rule == "pass":
                yield Check(
                    f"{name} also on {', '.join(open_to)}: other hosts pass unjudged in observe", True
                )
            else:
                yield Check(name, True)
            if guard.engine == "pgvector":
                yield from _address_rules(name, port)
            if not _accepts(str(sockets[0].local), port):
                yield Check(
                    f"{name} accepts",
                    False,
                    "a connection was refused",
                    "vecward status says whether workers live",
                )


def _address_rules(name: str, port: int) -> Iterator[Check]:
    """Lines of pg_hba.conf that act on the proxy's address; none of them is a fault."""
    from agent.pg_hba import Unreadable, changed_lines, find_rules

    try:
        for line in changed_lines(find_rules(port)):
            yield Check(f"{name} pg_hba.conf:{line}", True)
    except Unreadable as error:
        yield Check(f"{name} pg_hba.conf not read, look yourself: {error}", True)


def _accepts(address: str, port: int) -> bool:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - what it listens on
    try:
        socket.create_connection((target, port), 3).close()
    except OSError:
        return False
    return True


def _place_checks(config: object) -> Iterator[Check]:
    from agent.config import Config, ConfigError, policy_files

    if not isinstance(config, Config):
        return
    try:
        files = policy_files(config)
        enforces = any(guard.mode == "enforce" for guard in config.guards)
        lost = "in enforce nothing is allowed without a rule" if enforces and not files else None
        yield Check(
            f"policy: {count(len(files), 'file')}",
            lost is None,
            lost,
            None if lost is None else "write one, or stay in observe",
        )
    except ConfigError as error:
        yield Check("policy", False, error.problems[0], "set `policy:` in the configuration")
    folder = config.evidence.dir
    parent = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    free = os.statvfs(parent)
    left = free.f_bavail * free.f_frsize
    enough = left > 2 * config.evidence.reserve
    yield Check(
        f"evidence {folder}: {left // 2**20} MiB free", enough,
        None if enough else "strict rules will deny when the disk is full",
        None if enough else "free space, or set evidence.max_size",
    )  # fmt: skip


def show_checks(found: Sequence[Check]) -> None:
    screen = console()
    for check in found:
        line = Text("ok    " if check.ok else "MISS  ", style="green" if check.ok else "bold red")
        line.append(clean(check.name), style="")
        if check.lost:
            line.append(f": {clean(check.lost)}", style="")
        if check.hint:
            line.append(f" (hint: {clean(check.hint)})", style="dim")
        screen.print(line, soft_wrap=True)
