# SPDX-License-Identifier: Apache-2.0
"""The scenarios of ``postgres_scenarios.py`` by name: that file is run by the clients' venv, not imported."""

from __future__ import annotations

NAMES = (
    "psycopg", "transactions", "copy", "pipeline", "cursors", "prepared", "notify", "cancel", "async",
    "asyncpg", "sqlalchemy",
)  # fmt: skip
