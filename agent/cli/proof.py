# SPDX-License-Identifier: Apache-2.0
"""What an exported page may say of proof: one verification of the folder, told per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.cli.output import progress, size
from agent.evidence.archive import Archive
from agent.evidence.page import Proof
from agent.evidence.verify import Finding, VerifyError, verify
from agent.evidence.views import Session

MAX_FINDINGS = 20  # on one page


def prove(folder: Path) -> Callable[[Session], Proof]:
    """Verify the folder once; the result says it for each session's stream."""
    archive = Archive(folder)
    total = archive.size()
    done = 0

    try:
        with progress(f"verifying {size(total)} of evidence", total) as advance:

            def move(now: int, _all: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            report = verify(folder, progress=move, audit=False)
    except VerifyError as error:
        failure = str(error)
        return lambda session: Proof("not verified", (failure,))
    status = "whole" if report.exit_code == 0 else "not whole"
    signed = archive.signed()
    trust = f"host key: {report.proof.trusted}; last checkpoint {report.proof.anchor}"

    def of(session: Session) -> Proof:
        stream = session.evidence.stream if session.evidence else ""
        concerned = [f for f in report.findings if stream in f.file or f.file.startswith("ledger")]
        lines = [trust, *(finding_line(f) for f in concerned[:MAX_FINDINGS])]
        seq, head = signed.get(stream, (None, None))
        return Proof(status, tuple(lines), seq, head)

    return of


def finding_line(finding: Finding) -> str:
    frames = f", frames {finding.first} to {finding.last}" if finding.first else ""
    return f"{finding.kind}: {finding.file} at {finding.offset}{frames}: {finding.message}"
