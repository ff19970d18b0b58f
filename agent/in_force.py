# SPDX-License-Identifier: Apache-2.0
"""What a worker's sessions are judged by at this moment: the last snapshot that the agent pushed.

Owns the policy compiled from it and the modes of its guards; asked at every request. Bias: a guard that
the snapshot does not name enforces, and without a stream there is no evidence.
"""

from __future__ import annotations

from typing import Final

from agent.judge import Bindings
from agent.messages import Settings, Snapshot
from agent.stream import EvidenceStream
from policy.combine import RecordDefaults
from policy.compile import Bound, Policy, decode_rules
from policy.login import Login
from policy.model import RecordLevel, RecordMode, Subject

_UNNAMED: Final = (True, False)


class InForce:
    """Implements ``judge.Rules``."""

    def __init__(self, stream: EvidenceStream) -> None:
        self._stream = stream
        self._snapshot: Snapshot | None = None
        self._policy: Policy | None = None
        self._modes: dict[str, tuple[bool, bool]] = {}
        self._bindings = Bindings()

    def take(self, snapshot: Snapshot) -> None:
        """Replace what was in force. Raises what `decode_rules` raises; all is then as it was."""
        before = self._snapshot
        if before is None or (snapshot.policy, snapshot.settings) != (before.policy, before.settings):
            defaults = RecordDefaults(snapshot.settings.level, snapshot.settings.mode)
            self._policy = Policy(decode_rules(snapshot.policy), defaults)
        self._snapshot = snapshot
        self._modes = {guard.name: (guard.mode == "enforce", guard.off) for guard in snapshot.guards}

    @property
    def snapshot(self) -> Snapshot | None:
        return self._snapshot

    @property
    def settings(self) -> Settings:
        """Raises RuntimeError before the first snapshot."""
        if self._snapshot is None:
            raise RuntimeError("no snapshot yet")
        return self._snapshot.settings

    @property
    def in_force(self) -> object:
        return self._policy

    @property
    def policy_hash(self) -> str:
        return self._policy.hash if self._policy is not None else ""

    @property
    def defaults(self) -> tuple[RecordLevel, RecordMode]:
        settings = self.settings
        return settings.level, settings.mode

    def bind(self, subject: Subject, guard: str, login: Login | None = None) -> Bound:
        if self._policy is None:
            raise RuntimeError("no policy yet")
        return self._bindings.bind(self._policy, subject, guard, login)

    def names(self, guard: str, key: str) -> bool:
        """Whether a rule of this guard asks for that key of a caller."""
        return self._policy is not None and key in self._policy.subject_keys(guard)

    def guard_mode(self, guard: str) -> tuple[bool, bool]:
        return self._modes.get(guard, _UNNAMED)

    def evidence_stands(self) -> bool:
        return self._stream.stands
