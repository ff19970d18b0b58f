# SPDX-License-Identifier: Apache-2.0
"""What ``vecward status`` tells, in the one line that `systemctl status` shows. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.status import coverage

if TYPE_CHECKING:
    from agent.keeper import Keeper


def status_line(keeper: Keeper) -> str:
    """Guards and their mode, workers, sessions, and what is not as it should be."""
    ways = coverage(keeper.steering.stats())
    members = keeper.crew.members.values()
    draining = sum(m.draining for m in members)
    guards = (f"{w.guard.name}: {'OFF' if w.off else w.guard.mode}" for w in keeper.guards)
    parts = [", ".join(guards) or "no guard is configured", f"{len(members) - draining} workers"]
    if draining:
        parts[-1] += f" and {draining} draining"
    parts += [f"{sum(m.sessions for m in members)} sessions", f"{ways['connects']} connects"]
    parts += [f"{ways[way]} {way}" for way in ("unobserved", "bypass") if ways[way]]
    if keeper.rule_problem:
        parts.append("THE LAST RELOAD WAS REFUSED")
    if keeper.pressure != "ok":
        parts.append(f"evidence disk: {keeper.pressure}")
    return "; ".join(parts)
