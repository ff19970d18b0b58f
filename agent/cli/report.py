# SPDX-License-Identifier: Apache-2.0
"""``vecward report``: one file for whoever helps, without what is not theirs to know."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.failure import Fail
from agent.cli.settings import Settings

if TYPE_CHECKING:
    from agent.config import Config

MAX_SECRETS = 1 << 20  # bytes of one credential file (agent/credentials.py)
README = """\
A support bundle of Vecward. In it: versions, `vecward status`, `vecward doctor`, the counters, the
configuration with only harmless values, and which files there are. Not in it: credentials, where they stand,
certificates, rules, addresses of clients, and anything of the evidence. Names of guards, folders and the host
are in it. Read it before you send it on.
"""


@click.command()
@click.option(
    "-o", "out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where to (default: vecward-report-HOST-TIME.tar.gz here).",
)  # fmt: skip
@click.pass_obj
def report(settings: Settings, out: Path | None) -> None:
    """Write a support bundle: a gzipped tar file that may be sent to somebody.

    In it are versions, status, doctor, counters, the configuration with credentials, paths to secrets and all
    that is not known to be harmless replaced, and names and sizes of evidence files. Not in it: rules,
    addresses of clients, anything of the evidence. It is searched for the credentials that guards hold
    before it is written. What cannot be had (no agent, not root) is said in its place.
    """
    from agent.bundle import Leak, check_secrets, write_bundle

    parts = _parts(settings)
    try:
        check_secrets(parts, _secrets(settings))
    except Leak as leak:
        raise Fail(f"not written: {leak}", "this should not be: report it, without the file") from None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    file = out or Path(f"vecward-report-{os.uname().nodename}-{stamp}.tar.gz")
    try:
        write_bundle(file, parts)
    except FileExistsError:
        raise Fail(f"{file} is there already", "name another with -o") from None
    click.echo(f"{file}: {', '.join(parts)}")
    click.echo("read it before you send it on: tar -xzOf FILE | less")


def _parts(settings: Settings) -> dict[str, str]:
    from agent.bundle import attempt, config_part, files_part, policy_part, redact_status, versions
    from agent.cli.doctor_view import host_checks
    from agent.cli.service import ask_agent
    from agent.config import policy_files

    parts = {"README.txt": README, "versions.json": attempt(versions)}
    parts["status.json"] = attempt(lambda: redact_status(ask_agent(settings, "status")["status"]))
    parts["metrics.txt"] = attempt(lambda: ask_agent(settings, "metrics")["text"])
    if os.geteuid() == 0:
        parts["doctor.json"] = attempt(
            lambda: [
                {"name": c.name, "ok": c.ok, "lost": c.lost, "hint": c.hint} for c in host_checks(settings)
            ]
        )
    else:
        parts["doctor.json"] = "not available: needs root\n"
    config, problems = _load(settings)
    for file in _config_files(settings):
        parts[f"config/{file.name}.json"] = attempt(lambda file=file: config_part(file))  # type: ignore[misc]
    parts["config/problems.txt"] = problems
    if config is not None:
        parts["policy.txt"] = attempt(lambda: policy_part(policy_files(config)))
        parts["files.txt"] = attempt(lambda: files_part(config))
    return parts


def _config_files(settings: Settings) -> list[Path]:
    file = settings.config_file
    return [path for path in (file, *sorted(file.with_suffix(".d").glob("*.yaml"))) if path.exists()]


def _load(settings: Settings) -> tuple[Config | None, str]:
    """The configuration, and its problems without what the file says."""
    from agent.config import ConfigError, load_config

    if not settings.config_file.exists():
        return None, "no configuration\n"
    try:
        return load_config(settings.config_file), "none\n"
    except ConfigError as error:
        places = [":".join(problem.split(":")[:3]) for problem in error.problems]
        return None, "\n".join([f"{len(error.problems)} problems", *places]) + "\n"


def _secrets(settings: Settings) -> list[str]:
    """What stands in the credential files of all guards, whole and by line, valid or not."""
    config, _ = _load(settings)
    folder = settings.config_file.resolve().parent / "credentials"
    found: list[str] = []
    for guard in config.guards if config is not None else ():
        for kind, name in guard.credential.items():
            if kind == "user":  # a name, no file
                continue
            try:
                with open(folder / name, "rb") as file:
                    text = file.read(MAX_SECRETS).decode("utf-8", "replace")
            except OSError:
                continue
            found += [text.strip(), *(line.strip() for line in text.splitlines())]
            found += re.findall(r'"([^"]{8,})"\s*$', text, re.MULTILINE)  # a client's verifier
    return found
