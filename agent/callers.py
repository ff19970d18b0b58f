# SPDX-License-Identifier: Apache-2.0
"""What a worker asks of a caller beside policy: is it a peer of the cluster, and as whom is it counted."""

from __future__ import annotations

import ipaddress
from typing import Any

from agent.messages import GuardSettings
from policy.model import Subject


def is_peer(guard: GuardSettings, server: tuple[str, int], remote: str) -> bool:
    """Whether the configuration lists this address, for the port dialled, among the guard's peers."""
    address = ipaddress.ip_address(remote)
    return any(
        address in ipaddress.ip_network(network) and port in (None, server[1])
        for network, port in guard.peers
    )


def subject_key(subject: Subject) -> tuple[Any, ...]:
    """Connections with one key are of one process, or of one other host."""
    return (subject.pid, subject.start_time, subject.remote)


def may_be_named(guard: GuardSettings) -> bool:
    """Whether a client's certificate may still tell who it is."""
    return guard.tls is not None and guard.tls.client_cert != "none"
