# SPDX-License-Identifier: Apache-2.0
"""Every REST route a Qdrant server answers, and what it does.

From the route macros of the server's source (src/actix), not from its OpenAPI, which leaves out 32 of
them. Reads of one shard by its number pass the collection's own routing and are ``admin``: nothing
but a cluster peer needs them. Describing one collection by name is ``session`` on it.
"""

from __future__ import annotations

from typing import Final

from agent.engines.routes import Table, spec
from policy.model import Action

_SESSION, _SCHEMA, _ADMIN, _SNAP = Action.SESSION, Action.SCHEMA, Action.ADMIN, Action.SNAPSHOT
_SEARCH, _SCAN, _READ, _COUNT = Action.SEARCH, Action.SCAN, Action.READ, Action.COUNT
_WRITE, _DELETE = Action.WRITE, Action.DELETE
_C: Final = "/collections/{collection}"
_P: Final = _C + "/points"
_SH: Final = _C + "/shards/{shard}"

TABLE: Final = Table((
    spec("GET", "/", _SESSION),
    spec("GET", "/healthz", _SESSION),
    spec("GET", "/livez", _SESSION),
    spec("GET", "/readyz", _SESSION),
    # Collections.
    spec("GET", "/collections", _SCHEMA, "list", body=False),
    spec("GET", "/aliases", _SCHEMA, "list", body=False),
    spec("POST", "/collections/aliases", _SCHEMA, "aliases"),
    spec("GET", _C, _SESSION, "describe", body=False),
    spec("GET", _C + "/exists", _SESSION, "describe", body=False),
    spec("GET", _C + "/aliases", _SCHEMA, "plain", body=False),
    spec("GET", _C + "/memory", _SCHEMA, "plain", body=False),
    spec("GET", _C + "/optimizations", _SCHEMA, "plain", body=False),
    spec("PUT", _C, _SCHEMA, "create"),
    spec("PATCH", _C, _SCHEMA, "plain", body=False),
    spec("DELETE", _C, (_SCHEMA, _DELETE), "plain", body=False),
    spec("PUT", _C + "/index", _SCHEMA, "plain", body=False),
    spec("DELETE", _C + "/index/{field}", _SCHEMA, "plain", body=False),
    spec("PUT", _C + "/vectors/{vector}", _SCHEMA, "plain", body=False),
    spec("DELETE", _C + "/vectors/{vector}", (_SCHEMA, _DELETE), "plain", body=False),
    # Searching.
    spec("POST", _P + "/query", _SEARCH, "query", rows=True),
    spec("POST", _P + "/query/batch", _SEARCH, "query-batch", rows=True),
    spec("POST", _P + "/query/groups", _SEARCH, "query-groups", rows=True),
    spec("POST", _P + "/search", _SEARCH, "search", rows=True),
    spec("POST", _P + "/search/batch", _SEARCH, "search-batch", rows=True),
    spec("POST", _P + "/search/groups", _SEARCH, "search-groups", rows=True),
    spec("POST", _P + "/recommend", _SEARCH, "recommend", rows=True),
    spec("POST", _P + "/recommend/batch", _SEARCH, "recommend-batch", rows=True),
    spec("POST", _P + "/recommend/groups", _SEARCH, "recommend-groups", rows=True),
    spec("POST", _P + "/discover", _SEARCH, "discover", rows=True),
    spec("POST", _P + "/discover/batch", _SEARCH, "discover-batch", rows=True),
    spec("POST", _P + "/search/matrix/pairs", _SEARCH, "matrix-pairs", rows=True),
    spec("POST", _P + "/search/matrix/offsets", _SEARCH, "matrix-offsets", rows=True),
    # Reading. A facet lists the values of a field.
    spec("POST", _P, _READ, "retrieve", rows=True),
    spec("GET", _P + "/{id}", _READ, "point", rows=True, body=False),
    spec("POST", _P + "/scroll", _SCAN, "scroll", rows=True),
    spec("POST", _C + "/facet", _SCAN, "facet", rows=True),
    spec("POST", _P + "/count", _COUNT, "count"),
    # Writing.
    spec("PUT", _P, _WRITE, "upsert", streamable=True),
    spec("POST", _P + "/batch", (_WRITE, _DELETE), "update-batch", streamable=True),
    spec("PUT", _P + "/vectors", _WRITE, "update-vectors", streamable=True),
    spec("POST", _P + "/vectors/delete", _DELETE, "delete-vectors"),
    spec("POST", _P + "/payload", _WRITE, "set-payload", streamable=True),
    spec("PUT", _P + "/payload", _WRITE, "overwrite-payload", streamable=True),
    spec("POST", _P + "/payload/delete", _DELETE, "delete-payload"),
    spec("POST", _P + "/payload/clear", _DELETE, "clear-payload"),
    spec("POST", _P + "/delete", _DELETE, "delete"),
    # Snapshots: a whole copy out, a whole copy in (recover fetches a URL).
    spec("GET", _C + "/snapshots", _SNAP, "plain", body=False),
    spec("POST", _C + "/snapshots", _SNAP, "plain", body=False),
    spec("GET", _C + "/snapshots/{snapshot}", _SNAP, "plain", body=False),
    spec("DELETE", _C + "/snapshots/{snapshot}", (_SNAP, _DELETE), "plain", body=False),
    spec("PUT", _C + "/snapshots/recover", (_SNAP, _WRITE), "plain", body=False),
    spec("POST", _C + "/snapshots/upload", (_SNAP, _WRITE), "plain", body=False),
    spec("GET", "/snapshots", _SNAP, "everything", body=False),
    spec("POST", "/snapshots", _SNAP, "everything", body=False),
    spec("GET", "/snapshots/{snapshot}", _SNAP, "everything", body=False),
    spec("DELETE", "/snapshots/{snapshot}", (_SNAP, _DELETE), "everything", body=False),
    spec("GET", _SH + "/snapshot", _SNAP, "plain", body=False),
    spec("GET", _SH + "/snapshots", _SNAP, "plain", body=False),
    spec("POST", _SH + "/snapshots", _SNAP, "plain", body=False),
    spec("GET", _SH + "/snapshots/{snapshot}", _SNAP, "plain", body=False),
    spec("DELETE", _SH + "/snapshots/{snapshot}", (_SNAP, _DELETE), "plain", body=False),
    spec("PUT", _SH + "/snapshots/recover", (_SNAP, _WRITE), "plain", body=False),
    spec("POST", _SH + "/snapshots/upload", (_SNAP, _WRITE), "plain", body=False),
    spec("GET", _SH + "/snapshot/partial/manifest", _SNAP, "plain", body=False),
    spec("POST", _SH + "/snapshot/partial/create", _SNAP, "plain", body=False),
    spec("POST", _SH + "/snapshot/partial/recover", (_SNAP, _WRITE), "plain", body=False),
    spec("POST", _SH + "/snapshot/partial/recover_from", (_SNAP, _WRITE), "plain", body=False),
    # Shards and the cluster.
    spec("GET", _C + "/cluster", _ADMIN, "plain", body=False),
    spec("POST", _C + "/cluster", _ADMIN, "plain", body=False),
    spec("GET", _C + "/shards", _ADMIN, "plain", body=False),
    spec("PUT", _C + "/shards", (_ADMIN, _SCHEMA), "plain", body=False),
    spec("POST", _C + "/shards/delete", (_ADMIN, _SCHEMA, _DELETE), "plain", body=False),
    spec("POST", _SH + "/points", (_ADMIN, _READ), "shard-rows", rows=True, body=False),
    spec("POST", _SH + "/points/scroll", (_ADMIN, _SCAN), "shard-rows", rows=True, body=False),
    spec("POST", _SH + "/points/count", (_ADMIN, _COUNT), "plain", body=False),
    spec("POST", _SH + "/cleanup", (_ADMIN, _DELETE), "plain", body=False),
    spec("GET", _SH + "/recovery_point", _ADMIN, "plain", body=False),
    spec("GET", _SH + "/wal", (_ADMIN, _SNAP), "plain", body=False),
    spec("POST", _C + "/truncate_unapplied_wal", (_ADMIN, _DELETE), "plain", body=False),
    spec("POST", _C + "/debug", _ADMIN, "plain", body=False),
    spec("GET", "/cluster", _ADMIN, "everything", body=False),
    spec("GET", "/cluster/telemetry", _ADMIN, "everything", body=False),
    spec("POST", "/cluster/recover", _ADMIN, "everything", body=False),
    spec("DELETE", "/cluster/peer/{peer}", _ADMIN, "everything", body=False),
    spec("GET", "/cluster/metadata/keys", _ADMIN, "everything", body=False),
    spec("GET", "/cluster/metadata/keys/{key}", _ADMIN, "everything", body=False),
    spec("PUT", "/cluster/metadata/keys/{key}", _ADMIN, "everything", body=False),
    spec("DELETE", "/cluster/metadata/keys/{key}", _ADMIN, "everything", body=False),
    # The service.
    spec("GET", "/telemetry", _ADMIN, "everything", body=False),
    spec("GET", "/metrics", _ADMIN, "everything", body=False),
    spec("GET", "/issues", _ADMIN, "everything", body=False),
    spec("DELETE", "/issues", _ADMIN, "everything", body=False),
    spec("GET", "/quotas", _ADMIN, "everything", body=False),
    spec("PUT", "/quotas", _ADMIN, "everything", body=False),
    spec("GET", "/logger", _ADMIN, "everything", body=False),
    spec("POST", "/logger", _ADMIN, "everything", body=False),
    spec("GET", "/debugger", _ADMIN, "everything", body=False),
    spec("PATCH", "/debugger", _ADMIN, "everything", body=False),
    spec("GET", "/stacktrace", _ADMIN, "everything", body=False),
    spec("GET", "/profiler/slow_requests", _ADMIN, "everything", body=False),
    spec("POST", "/audit/logs", _ADMIN, "everything", body=False),
))  # fmt: skip

DUMPS: Final = frozenset({
    f"GET {_C}/snapshots/{{snapshot}}",
    "GET /snapshots/{snapshot}",
    f"GET {_SH}/snapshot",
    f"GET {_SH}/snapshots/{{snapshot}}",
    f"POST {_SH}/snapshot/partial/create",
    f"GET {_SH}/wal",
    "GET /profiler/slow_requests",
    "POST /audit/logs",
})  # fmt: skip
"""Routes whose answers hold rows, or requests with them, in a form that no mask can be laid over."""
