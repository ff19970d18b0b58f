# SPDX-License-Identifier: Apache-2.0
"""``vecward status`` for people: what holds, what does not, on one screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from agent.cli.output import Column, clean, console, count, size, table


def show_status(document: dict[str, Any]) -> None:
    """Print one status document (``agent/status.py``)."""
    screen = console()
    _head(screen, document)
    screen.print(table(_GUARD_COLUMNS, document["guards"], screen))
    _coverage(screen, document["coverage"])
    _steering(screen, document["steering_lost"])
    if document["workers"]:
        screen.print(table(_WORKER_COLUMNS, document["workers"], screen))
    _policy(screen, document["policy"])
    _evidence(screen, document["evidence"], document["proxy"])


def _mode(guard: dict[str, Any]) -> Text:
    if guard["off"]:
        until = guard["off"]["until"]
        return Text(f"OFF until {until}" if until else "OFF", style="bold white on red")
    return Text(guard["mode"], style="green" if guard["mode"] == "enforce" else "yellow")


def _workers(guard: dict[str, Any]) -> Text:
    return Text(str(guard["workers"]), style="" if guard["workers"] else "bold red")


_GUARD_COLUMNS: list[Column[dict[str, Any]]] = [
    Column("guard", lambda g: g["name"], keep=True),
    Column("engine", lambda g: g["engine"]),
    Column("ports", lambda g: ", ".join(map(str, g["ports"]))),
    Column("mode", _mode, keep=True),
    Column("database", lambda g: Text("up", "green") if g["up"] else Text("not listening", "bold red")),
    Column("workers", _workers, right=True),
    Column("on failure", lambda g: g["on_failure"], drop=2),
    Column("remote", lambda g: g["remote"], drop=3),
    Column("pre-existing", lambda g: g["pre_existing"], right=True, drop=1),
]
_WORKER_COLUMNS: list[Column[dict[str, Any]]] = [
    Column("worker", lambda w: w["pid"], right=True, keep=True),
    Column("slot", lambda w: w["slot"], right=True, drop=2),
    Column("sessions", lambda w: w["sessions"], right=True),
    Column("stream", lambda w: w["stream"]),
    Column("state", lambda w: "draining" if w["draining"] else "serving"),
]


def _head(screen: Console, document: dict[str, Any]) -> None:
    screen.print(
        Text(
            f"vecward {document['version']} on {clean(document['host'])[:16]}, since {document['started']}, "
            f"loader {document['loader']}"
        )
    )


def _coverage(screen: Console, coverage: dict[str, int]) -> None:
    parts = [f"{coverage[way]} {way}" for way in ("steered", "unobserved", "bypass")]
    line = Text(
        f"coverage: {coverage['connects']} connects = {' + '.join(parts)}; "
        f"{coverage['ticketed']} of ours to the database"
    )
    if coverage["bypass"]:
        line.stylize("bold red")
    screen.print(line)


def _steering(screen: Console, lost: dict[str, str]) -> None:
    if lost:
        named = ", ".join(f"{clean(name)} {clean(state)}" for name, state in lost.items())
        screen.print(Text(f"steering lost: {named}; connections may go unseen", style="bold red"))


def _policy(screen: Console, policy: dict[str, Any]) -> None:
    screen.print(
        Text(
            f"policy: {policy['hash'][:12]}, {count(policy['rules'], 'rule')} from "
            f"{count(len(policy['files']), 'file')}"
        )
    )
    if policy["problem"]:
        screen.print(Text("the last reload was refused; the policy above stays:", style="bold red"))
        screen.print(Text(clean(policy["problem"], lines=True)))
    for warning in policy["warnings"]:
        screen.print(Text(f"warning: {clean(warning, lines=True)}", style="yellow"))


def _evidence(screen: Console, evidence: dict[str, Any], proxy: dict[str, int]) -> None:
    lost = proxy.get("evidence_dropped", 0)
    line = Text(
        f"evidence: {clean(evidence['dir'])}, epoch {evidence['epoch']}, {len(evidence['streams'])} streams, "
        f"{evidence['unsigned']} frames unsigned, {size(evidence['bytes'])} used, "
        f"{size(evidence['free'])} free, "
        f"append-only: {'yes' if evidence['append_only'] else 'no'}"
    )
    screen.print(line)
    if lost:
        screen.print(Text(f"{lost} frames could not be written; GAP frames say which", style="bold red"))
