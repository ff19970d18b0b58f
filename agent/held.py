# SPDX-License-Identifier: Apache-2.0
"""What a guard's workers hold that stands in files of its own: credentials, certificates, keys.

Owns reading all of it for one guard, at the start and at a reload. Shown nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from agent.config import Guard
from agent.credentials import read_credential
from agent.messages import TlsSettings
from agent.tls_files import read_tls, warnings_of


@dataclass(frozen=True, slots=True)
class Held:
    """Of one guard. `warnings`: what will end soon."""

    credential: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    tls: TlsSettings | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


def read_held(guard: Guard, folder: Path) -> Held:
    """Raises ConfigError. Relative paths are taken from `folder`, the configuration's."""
    tls = read_tls(guard, folder)
    return Held(read_credential(guard, folder), tls, tuple(warnings_of(guard.name, tls)))
