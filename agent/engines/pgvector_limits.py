# SPDX-License-Identifier: Apache-2.0
"""The rows of a statement cut to a bound: LIMIT written anew, or FETCH's count.

Owns `top_k` of limits that say ``over: clamp``. A parameter is cut by the database (``LEAST($2::bigint,
20)``), so that a prepared statement is cut whatever it is run with. Bias: what cannot be cut is refused.
"""

from __future__ import annotations

from agent.engines import pgvector_nodes as nodes
from agent.engines.pgvector_nodes import WRAPPERS, Node
from agent.engines.sql_parse import find
from agent.engines.sql_tree import Statement
from agent.protocols.http import Refusal
from policy.model import Limit, Verdict


def clamp_of(verdict: Verdict) -> Limit | None:
    """The bound on rows to which statements are cut, whether or not this one is known to exceed it."""
    found = [one for one in verdict.limits if one.name == "top_k" and one.over == "clamp"]
    found += [one for one in verdict.clamps if one.name == "top_k"]
    if any(one.name != "top_k" for one in verdict.clamps):
        raise Refusal("clamp", f"{verdict.clamps[0].name} of a statement cannot be cut")
    return min(found, key=lambda one: one.value) if found else None


def clamp(tree: Node, statement: Statement, limit: Limit, exceeded: bool) -> bool:
    """Cut the outermost LIMIT. A parameter is cut by the database, whatever it will be."""
    root = find(tree, statement.path)
    kind, inner = nodes.kind_of(root)
    if kind == "FetchStmt":
        return _clamp_fetch(inner, statement, limit)
    if kind in WRAPPERS:
        kind, inner = nodes.kind_of(inner.get(WRAPPERS[kind]))
    within = statement.inner if statement.inner is not None and kind == "SelectStmt" else statement
    if kind == "SelectStmt":
        return _cut(inner, within, limit)
    if exceeded and kind not in ("ExecuteStmt",):
        raise Refusal("clamp", f"the rows of {statement.command} cannot be cut to {limit.value}")
    return False


def _cut(body: Node, statement: Statement, limit: Limit) -> bool:
    asked = statement.limit
    if statement.most is not None and statement.most <= limit.value:
        return False
    if asked.literal is not None and asked.literal <= limit.value and not statement.ties:
        return False
    if "intoClause" in body:
        return False
    cut = nodes.literal(limit.value)
    if asked.all or asked.literal is not None:
        body["limitCount"] = (
            cut if asked.literal is None or asked.literal > limit.value else body["limitCount"]
        )
    else:
        wish = nodes.cast(body["limitCount"], "pg_catalog", "int8")
        body["limitCount"] = {"MinMaxExpr": {"op": "IS_LEAST", "args": [wish, cut]}}
    body["limitOption"] = "LIMIT_OPTION_COUNT"
    return True


def _clamp_fetch(inner: Node, statement: Statement, limit: Limit) -> bool:
    count = statement.count
    if inner.get("ismove"):
        return False
    if count.literal is not None and abs(count.literal) <= limit.value:
        return False
    if inner.get("direction", "FETCH_FORWARD") not in ("FETCH_FORWARD", "FETCH_BACKWARD"):
        return False  # one row
    inner["howMany"] = limit.value
    return True
