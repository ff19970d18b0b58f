# SPDX-License-Identifier: Apache-2.0
"""What bounds a recorder. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from agent.evidence.segment import SEGMENT_AGE, SEGMENT_BYTES


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Bounds of one recorder, each with its consequence."""

    unsigned_frames: int = 65_536  # beyond: strict releases are False, frames become losses
    unsigned_age: int = 60 * 10**9  # ns, the same
    segment_bytes: int = SEGMENT_BYTES
    segment_age: int = SEGMENT_AGE
    queue_bytes: int = 8 * 1024 * 1024  # best-effort bodies waiting for their turn; beyond: lost
    gap_every: int = 10 * 10**9  # ns between GAP frames while recording stays impossible


DEFAULTS = Thresholds()
