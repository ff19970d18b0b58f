# SPDX-License-Identifier: Apache-2.0
"""Every route of Chroma's REST API v2, and what it does.

From the server's own router (rust/frontend/src/server.rs, frontend-core/src/routes.rs) and the
/openapi.json of 1.5.9. What is not here is unknown. Describing one collection by name or id is
``session`` on that collection: every client does it before it may search.
"""

from __future__ import annotations

from typing import Final

from agent.engines.routes import Table, spec
from policy.model import Action

_S, _R, _W, _D = Action.SEARCH, Action.READ, Action.WRITE, Action.DELETE
_TENANT: Final = "/api/v2/tenants/{tenant}"
_DB: Final = _TENANT + "/databases/{database}"
_ALL: Final = _DB + "/collections"
_ONE: Final = _ALL + "/{collection}"

BY_NAME: Final = frozenset({"describe", "drop"})
"""Kinds whose collection segment is a name; in every other one it is a UUID."""

TABLE: Final = Table((
    spec("GET", "/api/v2", Action.SESSION),
    spec("GET", "/api/v2/healthcheck", Action.SESSION),
    spec("GET", "/api/v2/heartbeat", Action.SESSION),
    spec("GET", "/api/v2/version", Action.SESSION),
    spec("GET", "/api/v2/pre-flight-checks", Action.SESSION),
    spec("GET", "/api/v2/auth/identity", Action.SESSION),
    spec("GET", "/openapi.json", Action.SESSION),
    spec("GET", "/docs", Action.SESSION),
    spec("GET", "/docs/{file}", Action.SESSION),
    spec("GET", "/api/v2/collections/{crn}", Action.SESSION, "crn", body=False),
    spec("POST", "/api/v2/reset", (Action.ADMIN, _D), "everything", body=False),
    spec("POST", "/api/v2/tenants", Action.ADMIN),
    spec("GET", _TENANT, Action.SESSION),
    spec("PATCH", _TENANT, Action.ADMIN),
    spec("GET", _TENANT + "/databases", Action.ADMIN),
    spec("POST", _TENANT + "/databases", Action.ADMIN),
    spec("GET", _DB, Action.SESSION),
    spec("DELETE", _DB, (Action.ADMIN, _D), "everything", body=False),
    spec("GET", _ALL, Action.SCHEMA, "list", body=False),
    spec("POST", _ALL, Action.SCHEMA, "create"),
    spec("GET", _DB + "/collections_count", Action.COUNT, "everything", body=False),
    spec("GET", _ALL + "/by-id/{collection}", Action.SESSION, "by-id", body=False),
    spec("GET", _ONE, Action.SESSION, "describe", body=False),
    spec("PUT", _ONE, Action.SCHEMA, "alter"),
    spec("DELETE", _ONE, (Action.SCHEMA, _D), "drop", body=False),
    spec("POST", _ONE + "/query", _S, "query", rows=True),
    spec("POST", _ONE + "/search", _S, "search", rows=True),
    spec("POST", _ONE + "/get", (Action.SCAN, _R), "get", rows=True),
    spec("POST", _ONE + "/conditional/get", (Action.SCAN, _R), "conditional-get", rows=True),
    spec("POST", _ONE + "/conditional/commit", (_W, _D), "conditional-commit"),
    spec("POST", _ONE + "/add", _W, "add", streamable=True),
    spec("POST", _ONE + "/upsert", _W, "upsert", streamable=True),
    spec("POST", _ONE + "/update", _W, "update", streamable=True),
    spec("POST", _ONE + "/delete", _D, "delete"),
    spec("GET", _ONE + "/count", Action.COUNT, "plain", body=False),
    spec("GET", _ONE + "/indexing_status", Action.COUNT, "plain", body=False),
    spec("GET", _ONE + "/fork_count", Action.COUNT, "plain", body=False),
    # A fork and a function's output hold the rows of the first collection under another name.
    spec("POST", _ONE + "/fork", (Action.SNAPSHOT, Action.SCHEMA), "fork"),
    spec("POST", _ONE + "/functions/attach", (Action.SNAPSHOT, Action.SCHEMA), "attach"),
    spec("GET", _ONE + "/functions/{function}", Action.SCHEMA, "plain", body=False),
    spec("POST", _ONE + "/attached_functions/{function}/add_input", Action.SCHEMA, "add-input"),
    spec("POST", _ONE + "/attached_functions/{function}/detach", (Action.SCHEMA, _D), "detach"),
))  # fmt: skip
