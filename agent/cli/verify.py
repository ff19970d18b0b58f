# SPDX-License-Identifier: Apache-2.0
"""``vecward verify``: prove that the evidence is whole, or say where it is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from agent.cli.failure import Code, Fail
from agent.cli.output import Column, console, emit_json, facts, progress, size, span, table, text
from agent.cli.settings import Settings, dir_option, json_option, pass_settings
from agent.evidence.archive import Archive, ArchiveError
from agent.evidence.standalone import FAILING
from agent.evidence.verify import Finding, Report, VerifyError
from agent.evidence.verify import verify as prove

SHOWN = 200  # findings on the screen; --json has all that the report keeps
OPEN_SHOWN = 10
COLUMNS: tuple[Column[Finding], ...] = (
    Column("finding", lambda f: text(f.kind, "bold red" if f.kind in FAILING else "yellow"), keep=True),
    Column("file", lambda f: f.file, fold=True, least=18),
    Column("offset", lambda f: f.offset, right=True, keep=True, drop=2),
    Column("frames", lambda f: f"{f.first}–{f.last}" if f.first else None, right=True, keep=True, drop=1),
    Column("what", lambda f: f.message, fold=True, least=24),
)


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
@click.option("--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="The host's public key, kept somewhere else than in DIR.")  # fmt: skip
@click.option("--anchor", metavar="EPOCH:HEX", help="A checkpoint kept elsewhere, which must be in it.")
@click.option("--no-audit", is_flag=True, help="Prove only; do not look for exchanges without a result.")
@json_option
@dir_option
@pass_settings
def verify(
    settings: Settings, folder: Path | None, key: Path | None, anchor: str | None, no_audit: bool
) -> int:
    """Prove the evidence of DIR: chains, signatures, gaps, torn tails. Needs only the public key.

    Exit 0: whole (what was torn by a crash, lost or unproven is listed, it is no tampering). Exit 4:
    tampered, truncated, or the chain of keys is broken. Without --key the folder's own key is trusted,
    which proves nothing against who could replace both.
    """
    root = folder or settings.evidence_dir()
    try:
        report = _proved(root, key, anchor, not no_audit)
    except (VerifyError, ArchiveError) as error:
        raise Fail(str(error), "is it an evidence folder? name it: vecward verify DIR") from None
    if settings.json:
        emit_json(_as_dict(report))
    else:
        _print(root, report, console(), own_key=key is None)
    return Code.UNPROVEN if report.exit_code else Code.DONE


def _proved(root: Path, key: Path | None, anchor: str | None, audit: bool) -> Report:
    total, done = Archive(root).size(), 0
    with progress(f"proving {size(total)}", total) as advance:

        def move(now: int, _all: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        return prove(root, key.read_bytes() if key else None, progress=move, anchor=anchor, audit=audit)


def _as_dict(report: Report) -> dict[str, object]:
    proof, audit = report.proof, report.audit
    return {
        "whole": report.exit_code == 0,
        "findings": [asdict(f) for f in report.findings],
        "frames": proof.frames, "bytes": proof.bytes, "checkpoints": proof.checkpoints,
        "streams": proof.streams,
        "unsigned": proof.unsigned, "anchor": proof.anchor, "trusted": proof.trusted, "took": report.seconds,
        "exchanges": audit.exchanges,
        "unknown": {"count": audit.unknown_count, "listed": [asdict(x) for x in audit.unknown]},
        "missing": [{"session": s, "first": a, "last": b} for s, a, b in audit.missing],
        "undecodable": [{"file": f, "offset": o, "why": w} for f, o, w in audit.undecodable],
    }  # fmt: skip


def _print(root: Path, report: Report, screen: Console, own_key: bool) -> None:
    proof, audit = report.proof, report.audit
    word = Text("NOT WHOLE", style="bold red") if report.exit_code else Text("whole", style="bold green")
    screen.print(word.append_text(text(f"  {root}", "dim")))
    screen.print(facts([
        ("frames", f"{proof.frames} in {proof.streams} streams, {size(proof.bytes)}"),
        ("checkpoints", f"{proof.checkpoints}, {proof.unsigned} frames not yet signed"),
        ("exchanges", audit.exchanges or None),
        ("trusting", text(proof.trusted, "yellow" if own_key else "green")),
        ("last checkpoint", f"{proof.anchor} (keep it elsewhere, for --anchor)" if proof.anchor else None),
        ("speed", f"{span(report.seconds)}, {size(int(report.rate))}/s"),
    ]))  # fmt: skip
    if report.findings:
        screen.print(table(COLUMNS, report.findings[:SHOWN], screen))
        if len(report.findings) > SHOWN:
            screen.print(f"… {len(report.findings) - SHOWN} more; --json has them")
    _print_audit(report, screen)


def _print_audit(report: Report, screen: Console) -> None:
    audit = report.audit
    if audit.unknown_count:
        screen.print(
            f"{audit.unknown_count} exchanges without a result: outcome unknown, may have executed",
            style="yellow",
        )
        for x in audit.unknown[:OPEN_SHOWN]:
            screen.print(text(f"  session {x.session} exchange {x.n} (frame {x.seq} of {x.stream})"))
    for session, first, last in audit.missing[:OPEN_SHOWN]:
        screen.print(
            text(f"exchanges {first} to {last} of session {session} are missing without a word", "bold red")
        )
    for file, offset, why in audit.undecodable[:OPEN_SHOWN]:
        screen.print(text(f"{file} at {offset}: {why}", "red"))
