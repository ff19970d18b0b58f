# SPDX-License-Identifier: Apache-2.0
"""What ``vecward status`` tells: one document, made from what the agent holds.

Owns the document's shape (docs/status.md). Reads counters, changes nothing.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agent import __version__
from agent.guards import Watched

if TYPE_CHECKING:
    from agent.keeper import Keeper


MAX_LISTED = 100  # connections older than the agent, of one guard


def status_document(keeper: Keeper) -> dict[str, Any]:
    """Times RFC 3339 UTC, sizes bytes, durations seconds."""
    kernel = keeper.steering.stats()
    members = list(keeper.crew.members.values())
    return {
        "version": __version__,
        "host": keeper.notary.host,
        "boot": keeper.notary.boot,
        "started": _stamp(keeper.started),
        "loader": "core",
        "guards": [_guard(keeper, watched) for watched in keeper.guards],
        "coverage": coverage(kernel),
        "unanswered": keeper.unanswered.count,
        "steering_lost": keeper.losses.lost,
        "kernel": kernel,
        "proxy": keeper.crew.counters(),
        "workers": [
            {
                "pid": m.pid,
                "slot": m.slot,
                "generation": m.generation,
                "stream": m.stream,
                "sessions": m.sessions,
                "draining": m.draining,
            }
            for m in members
        ],
        "policy": {
            "hash": keeper.rulebook.hash,
            "rules": len(keeper.rulebook.document.rules),
            "files": [str(file) for file in keeper.rulebook.files],
            "problem": keeper.rule_problem,
            "warnings": list(keeper.rulebook.warnings),
        },
        "evidence": keeper.notary.document(),
    }


def coverage(kernel: dict[str, int]) -> dict[str, int]:
    """Established connections to guarded ports, by the way they took. `connects` is their sum.

    Counted by the kernel at the end of each handshake: nothing is counted twice, nothing is left out.
    """
    ways = {
        "steered": kernel["established_steered"],
        "unobserved": kernel["established_unobserved"]
        + kernel["established_off"]
        + kernel["established_remote"],
        "bypass": kernel["established_bypass"],
    }
    return {"connects": sum(ways.values()), **ways, "ticketed": kernel["established_upstream"]}


def _guard(keeper: Keeper, watched: Watched) -> dict[str, Any]:
    guard = watched.guard
    off: dict[str, Any] | None = None
    if watched.off_until is not None:
        ends = None if math.isinf(watched.off_until) else _stamp(watched.off_until)
        off = {"until": ends, "reason": watched.off_reason}
    return {
        "name": guard.name,
        "engine": guard.engine,
        "ports": list(guard.ports),
        "address": guard.address,
        "mode": guard.mode,
        "off": off,
        "on_failure": "pass" if guard.passes_on_failure else "refuse",
        "remote": guard.remote_rule,
        "workers": sum(guard.name in m.listening for m in keeper.crew.members.values()),
        "pre_existing": len(watched.pre_existing),
        "pre_existing_connections": [
            {
                "attribution": "pre-existing",
                "client_addr": str(one.remote),
                "client_port": one.remote_port,
                "server_addr": str(one.local),
                "server_port": one.local_port,
            }
            for one in watched.pre_existing[:MAX_LISTED]
        ],
        "up": any(one.port in guard.ports for one in keeper.steering.up()),
    }


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
