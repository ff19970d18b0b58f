# SPDX-License-Identifier: Apache-2.0
"""A guard's held credential as a worker's PostgreSQL sessions use it.

Owns the way from what the agent pushed (pairs of words) to `Custody`; keeps nothing of its own. The salted
keys of a custody live as long as the credential does not change.
"""

from __future__ import annotations

import hashlib

from agent.messages import GuardSettings
from agent.protocols.postgres_auth import Custody
from agent.protocols.scram import parse_verifier

VERIFIER = "verifier:"  # as agent/credentials.py writes it


def make_custody(guard: GuardSettings, key: bytes) -> Custody:
    """`key`: of this host, from which the salts of users that do not exist are made."""
    held = dict(guard.credential)
    password = held.get("password")
    return Custody(
        auth=guard.auth,
        user=held.get("user"),
        password=None if password is None else password.encode(),
        verifiers={
            name.removeprefix(VERIFIER): parse_verifier(text)
            for name, text in guard.credential
            if name.startswith(VERIFIER)
        },
        decoy=hashlib.blake2b(b"scram decoy", key=key[:64]).digest(),
    )
