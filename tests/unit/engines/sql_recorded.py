# SPDX-License-Identifier: Apache-2.0
"""The catalog of tests/data/sql/schema.sql as a server told it once, for tests without one."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from agent.engines.sql_catalog import Scope
from agent.engines.sql_catalog_read import read_catalog
from agent.engines.sql_views import with_views

DATA = Path(__file__).parents[2] / "data" / "sql"


@functools.cache
def recording() -> dict[str, Any]:
    return dict(json.loads((DATA / "catalog.json").read_text()))


@functools.cache
def recorded_scope(*path: str) -> Scope:
    """As a connection with this ``current_schemas(true)`` sees it; by default pg_catalog and public."""
    told = tuple(recording()["path"])
    catalog, views = read_catalog(7, "fingerprint", recording()["whole"])
    return Scope(with_views(catalog, views, told), path or told)
