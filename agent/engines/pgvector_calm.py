# SPDX-License-Identifier: Apache-2.0
"""Whether a statement's conditions can tell anything of a row but whether it passes them.

PostgreSQL may evaluate a client's condition on rows that the policy's filter rejects: it orders
conditions by cost. A condition that can raise an error (a division, a cast, a pattern out of a
column) or send a notice is then an oracle on those rows. Where every condition is `calm` the filter may
be planned together with them, so that indexes serve both; where one is not, the filter stands behind a
fence (OFFSET 0), which no condition is pushed through. Bias: what is not listed is not calm.
"""

from __future__ import annotations

from typing import Any, Final

from agent.engines.pgvector_nodes import DISTANCE_OPERATORS, Node, below, names_of

_OPERATORS: Final = DISTANCE_OPERATORS | {"=", "<>", "<", "<=", ">", ">=", "@>", "<@", "&&", "?", "?|", "?&"}
_PATTERNS: Final = frozenset({"~~", "!~~", "~~*", "!~~*", "||"})  # LIKE and its kin; text joined
_FUNCTIONS: Final = frozenset(
    {"lower", "upper", "length", "now", "count", "min", "max", "row_number", "rank"}
)
_KINDS: Final = frozenset(
    {
        "A_ArrayExpr", "A_Const", "A_Expr", "A_Star", "Alias", "BooleanTest", "BoolExpr", "CaseExpr",
        "CaseWhen", "CoalesceExpr", "ColumnRef", "CommonTableExpr", "DeleteStmt", "FuncCall",
        "IndexElem", "InferClause", "InsertStmt", "JoinExpr", "List", "LockingClause", "MergeStmt",
        "MergeWhenClause", "NullTest", "OnConflictClause", "ParamRef", "RangeSubselect", "RangeVar",
        "ResTarget", "ReturningClause", "SelectStmt", "SetToDefault", "SortBy", "SQLValueFunction",
        "String", "SubLink", "TypeCast", "TypeName", "UpdateStmt", "WithClause",
    }
)  # fmt: skip
_EXPRESSIONS: Final = frozenset(
    {
        "AEXPR_OP", "AEXPR_OP_ANY", "AEXPR_OP_ALL", "AEXPR_IN", "AEXPR_LIKE", "AEXPR_ILIKE",
        "AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN", "AEXPR_DISTINCT", "AEXPR_NOT_DISTINCT",
    }
)  # fmt: skip


def is_calm(statement: Node) -> bool:
    """`statement`: the body, ``{"SelectStmt": {...}}``. Its outermost outputs and order, and what an UPDATE
    or MERGE sets, are evaluated on rows that passed the filter, so that they are not looked at."""
    ((kind, body),) = statement.items()
    skipped: tuple[str, ...] = ()
    if kind == "MergeStmt":
        clauses = [clause for one in body.get("mergeWhenClauses", ()) for clause in one.values()]
        body = {**body, "mergeWhenClauses": [one.get("condition") for one in clauses], "actions": clauses}
        skipped = ("actions",)
    elif kind == "UpdateStmt":
        skipped = ("targetList",)
    elif kind == "SelectStmt" and body.get("op") == "SETOP_NONE":
        skipped = ("targetList", "sortClause")
    parts = [value for name, value in body.items() if name not in skipped and name != "returningClause"]
    for name in skipped:  # but for the subqueries in them, which have conditions of their own
        parts += [inner for kind, inner, _ in below(body.get(name)) if kind == "SelectStmt"]
    return all(_is_calm(kind, inner) for kind, inner, _ in below(parts))


def _is_calm(kind: str, inner: Node) -> bool:
    match kind:
        case "A_Expr":
            return _expression(inner)
        case "FuncCall":
            names = names_of(inner.get("funcname", ()))
            return names[-1] in _FUNCTIONS and names[:-1] in ((), ("pg_catalog",))
        case "TypeCast":
            return _constant(inner.get("arg"))
        case _:
            return kind in _KINDS


def _expression(inner: Node) -> bool:
    if inner.get("kind") not in _EXPRESSIONS:
        return False
    name = names_of(inner.get("name", ()))[-1]
    if name in _PATTERNS:
        return _constant(inner.get("rexpr"))
    return name in _OPERATORS or name in ("BETWEEN", "NOT BETWEEN")


def _constant(node: Any) -> bool:
    """No column is in it: it is the same for every row, and evaluated before any."""
    kinds = {kind for kind, _, _ in below(node)}
    return not kinds & {"ColumnRef", "SubLink", "FuncCall"}
