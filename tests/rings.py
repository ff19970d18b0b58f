# SPDX-License-Identifier: Apache-2.0
"""Runs the rings, each in a pytest process with a time limit, and says what ran and what did not.

    python -m tests.rings [--ring NAME]... [--shard NAME]... [--full] [-- PYTEST-ARGUMENT...]

A ring is a folder of tests/; a shard is one file of it (tests/soak/test_attribution.py is ``attribution``). A
ring without tests is said, not failed. Exits 1 when anything failed or ran out of time. The last line is ``N
passed, N failed, N skipped`` over all rings; above it each ring's own closing line from pytest.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Seconds a ring may take, small size: four times and more what it takes on two cores, so that a hang ends and
# a machine of a third of the speed is no failure (half of native and package is compiling). What they take
# together on two cores stays under the 25 minutes of `make test`.
BUDGETS = {
    "unit": 300, "harness": 200, "wire": 400, "kernel": 400, "servers": 1800, "native": 1400, "package": 1800,
    "soak": 600,
}  # fmt: skip
FULL_BUDGET = 3600  # of one shard
STOP_GRACE = 30  # seconds for pytest to clean up after the limit, before it is killed
NO_TESTS = 5  # pytest's exit status

_CLOSING = re.compile(r"\b(?:passed|failed|error|errors|skipped|no tests ran)\b.* in [\d.]+s")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


@dataclass(slots=True)
class Outcome:
    """What came of one ring, or one shard of it."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    closing: str = ""
    notes: list[str] = field(default_factory=list)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)


def run(name: str, paths: list[Path], budget: float, *, full: bool, arguments: list[str]) -> Outcome:
    """One pytest process over `paths`; its output passes through as it comes."""
    outcome = Outcome(name)
    began = time.monotonic()
    print(f"\n=== {name} (at most {budget:.0f} s)", flush=True)
    with tempfile.TemporaryDirectory(prefix="vwtest-rings-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_logging=no"]
        command.append("--continue-on-collection-errors")  # one broken file hides no other
        command += ["--color=yes" if sys.stdout.isatty() else "--color=no", *map(str, paths), *arguments]
        environment = os.environ | {"VECWARD_TEST_SIZE": "full" if full else "small"}
        status = _stream(command, environment, budget, outcome)
        outcome.seconds = time.monotonic() - began
        _count(report, outcome)
    if status == NO_TESTS:
        outcome.notes.append("no tests")
    elif status != 0 and outcome.failed == 0:
        outcome.failed = 1
        outcome.notes.append(f"pytest exited with {status}")
    return outcome


def _stream(command: list[str], environment: dict[str, str], budget: float, outcome: Outcome) -> int:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell: pytest would inherit it and could not be stopped gently.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:

        def stop() -> None:
            outcome.notes.append(f"stopped after {budget:.0f} s")
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_GRACE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(budget, stop)
        timer.start()
        try:
            for line in process.stdout or ():
                sys.stdout.write(line)
                sys.stdout.flush()
                plain = _COLOUR.sub("", line).strip()
                if _CLOSING.search(plain):
                    outcome.closing = plain.strip("= ")
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            raise
        finally:
            timer.cancel()
        return process.wait()


def _count(report: Path, outcome: Outcome) -> None:
    """Counts by test: one that passed and whose teardown failed has failed, once."""
    try:
        cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314  # our own pytest wrote it
    except (OSError, ET.ParseError):
        return  # killed before it wrote: the exit status says so
    verdicts: dict[tuple[str, str], str] = {}
    for case in cases:
        key = (case.get("classname", ""), case.get("name", ""))
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            verdicts[key] = "failed"
        elif skipped is not None:
            verdicts.setdefault(key, "skipped")
            outcome.reasons[skipped.get("message", "no reason given")] += 1
        else:
            verdicts.setdefault(key, "passed")
    totals = collections.Counter(verdicts.values())
    outcome.passed, outcome.failed, outcome.skipped = totals["passed"], totals["failed"], totals["skipped"]


def shards(ring: str, wanted: list[str]) -> dict[str, Path]:
    """The files of a ring by shard name: those of `wanted`, or all."""
    files = {
        path.stem.removeprefix("test_"): path for path in sorted((ROOT / "tests" / ring).glob("test_*.py"))
    }
    return {name: path for name, path in files.items() if not wanted or name in wanted}


def check_shards(rings: Sequence[str], wanted: list[str]) -> None:
    """Exit with the names there are when a wanted one is in none of the rings."""
    there = {name: ring for ring in rings for name in shards(ring, [])}
    if unknown := [name for name in wanted if name not in there]:
        folders = " and ".join(f"tests/{ring}" for ring in rings)
        sys.exit(f"rings: no shard {unknown[0]} in {folders}; there are: {', '.join(there) or 'none'}")


def summary(outcomes: list[Outcome]) -> str:
    """The table, the reasons of what was skipped, pytest's closing lines, and the one closing line."""
    lines = ["", f"{'ring':<20} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}"]
    for o in outcomes:
        notes = "; ".join(o.notes)
        lines.append(
            f"{o.name:<20} {o.passed:>7} {o.failed:>7} {o.skipped:>8} {o.seconds:>8.1f}  {notes}".rstrip()
        )
    for o in outcomes:
        lines += [f"skipped in {o.name}: {count} x {reason}" for reason, count in o.reasons.most_common()]
    lines += [f"{o.name}: {o.closing}" for o in outcomes if o.closing]
    passed, failed, skipped = (
        sum(getattr(o, kind) for o in outcomes) for kind in ("passed", "failed", "skipped")
    )
    return "\n".join([*lines, f"{passed} passed, {failed} failed, {skipped} skipped"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="rings", description="Run the rings of tests.")
    parser.add_argument("--ring", action="append", default=[], choices=[*BUDGETS, "bench"])
    parser.add_argument("--shard", action="append", default=[], help="one file of the ring: test_NAME.py")
    parser.add_argument(
        "--full", action="store_true", help="full sizes, each file in a process and hour of its own"
    )
    parser.add_argument("arguments", nargs="*", help="passed on to pytest")
    options = parser.parse_args()

    outcomes: list[Outcome] = []
    rings = options.ring or list(BUDGETS)
    check_shards(rings, options.shard)
    for ring in rings:
        if options.full or options.shard:
            for shard, path in shards(ring, options.shard).items():
                budget = FULL_BUDGET if options.full else BUDGETS[ring]
                name = f"{ring}/{shard}"
                outcomes.append(run(name, [path], budget, full=options.full, arguments=options.arguments))
        elif (folder := ROOT / "tests" / ring).is_dir():
            outcomes.append(run(ring, [folder], BUDGETS[ring], full=False, arguments=options.arguments))
        else:
            outcomes.append(Outcome(ring, notes=["no tests"]))
    print(summary(outcomes), flush=True)
    return 1 if any(o.failed for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
