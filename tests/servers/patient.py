# SPDX-License-Identifier: Apache-2.0
"""`vecward` as it is shipped, but that nothing is given up because the machine of the tests is busy.

``python -m tests.servers.patient shipped|patient ARGUMENT...``. What waits for an answer of our own processes
(a kill, a stop, a read of /proc) waits a minute. With ``patient`` so does who waits for an identity, with
``shipped`` it waits as long as docs/architecture.md says: for the tests of just that.
"""

from __future__ import annotations

import importlib
import sys

PATIENCE = 60.0
OURS = {
    "agent.crew": ("HELLO_TIMEOUT", "KILL_TIMEOUT"),
    "agent.identity.identifier": ("HASH_S", "NAMES_S", "READ_S", "ROUTE_S"),
    "agent.run": ("READY_TIMEOUT", "STOP_TIMEOUT"),
    "agent.stream": ("CLOSE_TIMEOUT",),
}
IDENTITY = {"agent.worker": ("IDENTITY_TIMEOUT", "OBSERVED_TIMEOUT")}


def be_patient(bounds: dict[str, tuple[str, ...]]) -> None:
    for name, constants in bounds.items():
        module = importlib.import_module(name)
        for constant in constants:
            shipped: float = getattr(module, constant)  # raises where there is no such bound any more
            setattr(module, constant, max(shipped, PATIENCE))


def main() -> None:
    waits = sys.argv.pop(1)
    be_patient(OURS if waits == "shipped" else OURS | IDENTITY)
    from agent.cli.main import main as vecward

    vecward(prog_name="vecward")


if __name__ == "__main__":
    main()
