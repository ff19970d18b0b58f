# SPDX-License-Identifier: Apache-2.0
"""Statements that name an earlier one: what EXECUTE and FETCH stand for.

Owns only the outer form; who resolves a text remembers what was prepared and declared. Bias: nothing of the
earlier statement has a place in this text, so no path of it is handed on.
"""

from __future__ import annotations

from dataclasses import replace

from agent.engines.sql_nodes import constant
from agent.engines.sql_tree import UNLIMITED, Amount, Node, Path, Statement


def literal(node: Node) -> Amount | None:
    text = constant(node)
    inner = node.get("A_Const", {})
    if "ival" in inner:
        return Amount(None, literal=inner["ival"].get("ival", 0))
    if inner.get("isnull"):
        return UNLIMITED
    if "ParamRef" in node:
        return Amount(None, parameter=node["ParamRef"].get("number", 0))
    return Amount(None, literal=int(text)) if text and text.isascii() and text.isdigit() else None


def bound(amount: Amount, given: list[Amount | None]) -> Amount:
    """A count of the prepared statement with the arguments of EXECUTE: it has no place in this text."""
    if amount.parameter is not None:
        value = given[amount.parameter - 1] if 0 < amount.parameter <= len(given) else None
        return value or Amount(None)
    return replace(amount, path=None)


def named(inner: Statement, command: str, path: Path, span: tuple[int, int], name: str) -> Statement:
    """The outer form of a statement that stands elsewhere: nothing of it has a place in this text."""
    return replace(
        inner,
        command=command,
        path=path,
        span=span,
        references=(),
        outputs=tuple(replace(one, target=None) for one in inner.outputs) if inner.outputs else inner.outputs,
        limit=replace(inner.limit, path=None),
        offset=replace(inner.offset, path=None),
        writes=(),
        inner=inner,
        name=name,
    )
