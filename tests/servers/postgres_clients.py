# SPDX-License-Identifier: Apache-2.0
"""What clients of a PostgresStage run and are known by, for more than one file of tests."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from agent.protocols.scram import make_verifier
from tests import venvs
from tests.kernel.arena import PATIENCE
from tests.servers.postgres import OWNER, PORT, PostgresStage

SCENARIOS = Path(__file__).with_name("postgres_scenarios.py")


def scenarios(
    stage: PostgresStage, names: Sequence[str], password: str | None, **environment: str
) -> dict[str, Any]:
    """The results of ``postgres_scenarios.py`` by name, in one process of a client that is nobody."""
    script = stage.folder / SCENARIOS.name
    if not script.exists():
        script.write_text(SCENARIOS.read_text())
        script.chmod(0o644)
    words = {"PGHOST": "127.0.0.1", "PGPORT": str(PORT), "PGUSER": OWNER, "PGDATABASE": "postgres"}
    if password is not None:
        words["PGPASSWORD"] = password
    process = stage.arena.popen(
        [str(venvs.python("pgvector")), str(script), *names], user="nobody", stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=stage.folder, env=stage.environment(**words, **environment),
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=10 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, f"{names}: {err.decode()[-3000:]}\n{stage.tail()}"
    return dict(zip(names, map(json.loads, out.splitlines()), strict=True))


def verifiers(stage: PostgresStage, **passwords: str) -> str:
    """A credential file of what clients prove: the name to write in the configuration."""
    lines = []
    for user, password in passwords.items():
        made = make_verifier(password.encode(), sha256(user.encode()).digest()[:16], 4096)
        words = [base64.b64encode(one).decode() for one in (made.salt, made.stored_key, made.server_key)]
        lines.append(f'"{user}" "SCRAM-SHA-256$4096:{words[0]}${words[1]}:{words[2]}"')
    return stage.hold("users.txt", "\n".join(lines))
