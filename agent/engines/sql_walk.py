# SPDX-License-Identifier: Apache-2.0
"""A text resolved: every statement of it, judged whole, against a catalog.

Owns `resolve` and what wraps a statement (EXPLAIN, PREPARE, DECLARE, COPY, CREATE TABLE AS) or names an
earlier one (EXECUTE, FETCH). Bias: where one statement of a text changes what a later one's names mean, the
later one is unknown, because the text is sent at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from agent.engines import sql_parse
from agent.engines.sql_catalog import TEMPORARY, Scope
from agent.engines.sql_expressions import Walker
from agent.engines.sql_from import refer
from agent.engines.sql_functions import EXTENSIONS
from agent.engines.sql_named import bound, literal, named
from agent.engines.sql_parse import ParseFailure, names
from agent.engines.sql_scope import ANYTHING, Facts, Found, Frame, Rows, union
from agent.engines.sql_select import WRITING, condition, select
from agent.engines.sql_tree import (
    UNLIMITED,
    Amount,
    Change,
    Node,
    Output,
    Path,
    Reference,
    Resolved,
    Statement,
    Write,
)
from agent.engines.sql_utility import created, judge_setting, utility
from agent.engines.sql_write import write
from policy.model import ANY_COLLECTION, Action

MAX_STATEMENTS: Final = 1000
"""Statements of one text."""
Memory = Mapping[tuple[str, str], Statement]
"""What was prepared and declared, by ("prepared" | "cursor", name)."""

_COMMANDS: Final = {
    "SelectStmt": "SELECT",
    "InsertStmt": "INSERT",
    "UpdateStmt": "UPDATE",
    "DeleteStmt": "DELETE",
    "MergeStmt": "MERGE",
}
_NAMES: Final = {"DeallocateStmt": "name", "ClosePortalStmt": "portalname", "CreateExtensionStmt": "extname"}
_NAMELESS: Final = frozenset(
    {
        "BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "ROLLBACK TO",
        "SET", "RESET", "SHOW", "DEALLOCATE", "DISCARD", "CLOSE CURSOR", "LISTEN", "UNLISTEN", "NOTIFY",
        "SET CONSTRAINTS",
    }
)  # fmt: skip
"""Commands that mean the same whatever names mean."""
_READS: Final = frozenset(
    {Action.SEARCH, Action.READ, Action.SCAN, Action.COUNT, Action.WRITE, Action.DELETE}
)


def resolve(text: str, scope: Scope, memory: Memory | None = None) -> Resolved:
    """Never raises for bad SQL: then `Resolved.unknown` says why."""
    number = scope.catalog.number
    try:
        tree = sql_parse.parse(text)
        return _resolve(text, tree, scope, dict(memory or {}))
    except ParseFailure as failure:
        return Resolved(text, None, (), str(failure), failure.fault, number)
    except RecursionError:
        return Resolved(text, None, (), "the statement is nested too deeply", version=number)
    except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        # A tree that is not as we know it (another version of the parser): nothing of it is judged.
        why = f"the statement is of a form that is not known ({error!r})"
        return Resolved(text, None, (), why, version=number)


def _resolve(text: str, tree: Node, scope: Scope, memory: dict[tuple[str, str], Statement]) -> Resolved:
    statements: list[Statement] = []
    changed: set[Change] = set()
    nodes = tree.get("stmts", ())
    trouble = scope.catalog.trouble
    if len(nodes) > MAX_STATEMENTS:
        trouble = f"a text of more than {MAX_STATEMENTS} statements"
    for index, raw in enumerate(nodes[:MAX_STATEMENTS]):
        start = raw.get("stmt_location", 0)
        length = raw.get("stmt_len", 0) or len(text.encode()) - start
        one = statement(raw["stmt"], scope, ("stmts", index, "stmt"), (start, start + length), memory)
        if changed and not _stands(one, changed):
            one = _unknown(one, "an earlier statement of the same text changes what names mean")
        statements.append(one)
        changed |= one.changes | ({"role"} if one.changes and _brings_code(one) else set())
        _remember(memory, one)
    unknown, fault = next(((one.unknown, one.fault) for one in statements if one.unknown), (None, None))
    if trouble:
        unknown, fault = trouble, None
    return Resolved(text, tree, tuple(statements), unknown, fault, scope.catalog.number)


def _stands(one: Statement, changed: set[Change]) -> bool:
    """Whether a statement means the same after an earlier one of its text: definitions after definitions do,
    because they name what they touch, and rights to the earlier names were asked for too."""
    if one.command in _NAMELESS:
        return True
    return changed == {"catalog"} and one.actions <= {Action.SCHEMA, Action.SESSION} and not one.everything


def _brings_code(one: Statement) -> bool:
    """Whether what a later definition calls may be another function after it; known extensions do not."""
    return Action.ADMIN in one.actions and not (one.command == "CREATE EXTENSION" and one.name in EXTENSIONS)


def _unknown(one: Statement, why: str) -> Statement:
    return replace(
        one,
        unknown=one.unknown or why,
        fault=None,  # what is not there may be, by then
        actions=one.actions | {Action.UNKNOWN},
        collections=one.collections | {ANY_COLLECTION},
        everything=True,
        carries_filter=False,
    )


def _remember(memory: dict[tuple[str, str], Statement], one: Statement) -> None:
    """What a later statement of the same text may name."""
    match one.command:
        case "PREPARE" if one.name and one.inner:
            memory["prepared", one.name] = one.inner
        case "DECLARE CURSOR" if one.name and one.inner:
            memory["cursor", one.name] = one.inner
        case "DEALLOCATE" | "CLOSE CURSOR" | "DISCARD" | "COMMIT" | "ROLLBACK" | "ROLLBACK TO":
            kind = "prepared" if one.command == "DEALLOCATE" else "cursor"
            for key in [key for key in memory if one.name in (None, key[1]) and key[0] == kind]:
                del memory[key]


def statement(node: Node, scope: Scope, path: Path, span: tuple[int, int], memory: Memory) -> Statement:
    """One statement; `node` is its wrapper and `path` leads to that."""
    ((kind, inner),) = node.items()
    facts = Facts(scope)
    walker = Walker(facts, _query, select)
    match kind:
        case "SelectStmt" | "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt":
            found = _query(walker, node, None, path)
            changes: frozenset[Change] = judge_setting(facts)
            if "intoClause" in inner:
                _made(facts, inner["intoClause"]["rel"], (*path, kind), found)
                return _finish(facts, "SELECT INTO", path, span, None, changes | {"catalog"})
            returns = kind == "SelectStmt" or "returningClause" in inner
            return _finish(facts, _COMMANDS[kind], path, span, found if returns else None, changes)
        case "CopyStmt":
            return _copy(walker, inner, path, span)
        case "ExplainStmt" | "PrepareStmt" | "DeclareCursorStmt" | "CreateTableAsStmt":
            return _wrapped(kind, inner, scope, path, span, memory)
        case "ExecuteStmt":
            return _execute(walker, inner, path, span, memory)
        case "FetchStmt":
            return _fetch(facts, inner, path, span, memory)
        case "TruncateStmt":
            return _truncate(walker, inner, path, span)
    command, changes = utility(facts, kind, inner, path)
    made = _finish(facts, command, path, span, None, changes)
    if kind in _NAMES:
        return replace(made, name=inner.get(_NAMES[kind]) or None)
    return made


def _query(walker: Walker, node: Node, frame: Frame | None, path: Path) -> Found:
    """A query or a writing statement, wherever it stands."""
    ((kind, inner),) = node.items()
    if kind == "SelectStmt":
        return select(walker, inner, frame, (*path, kind))
    if kind in WRITING:
        return write(walker, kind, inner, frame, (*path, kind))
    walker.facts.puzzle(f"a query of the kind {kind} is not known")
    return Found((Output("*", frozenset(), None, opaque=True),), open=True)


def _finish(
    facts: Facts,
    command: str,
    path: Path,
    span: tuple[int, int],
    found: Found | None,
    changes: frozenset[Change] = frozenset(),
) -> Statement:
    references = tuple({one.path: one for one in facts.references}.values())
    actions = set(facts.actions)
    user = [one for one in references if not one.system]
    if user and not actions & _READS and not actions & {Action.SCHEMA, Action.ADMIN}:
        actions.add(Action.SCAN)  # rows that only decide, as in SELECT 1 WHERE EXISTS (...)
    if facts.unknown is not None:
        actions.add(Action.UNKNOWN)
        facts.everything = True
        facts.carries = False
    rows = found.rows if found is not None else Rows()
    collections = {one.collection for one in facts.relations}
    collections |= {created(facts.scope, one.name) for one in user if one.relation is None}
    everything = facts.everything or (Action.SCHEMA in actions and not user)
    if everything:
        collections.add(ANY_COLLECTION)
    return Statement(
        command,
        path,
        span,
        frozenset(actions or {Action.SESSION}),
        references,
        _outputs(found, bool(user) or facts.everything),
        frozenset(facts.probes),
        facts.thresholds,
        rows.limit,
        rows.ties,
        found.offset if found is not None else Amount(None, literal=0),
        tuple(facts.offsets),
        rows.most,
        1_000_000 if facts.many else len(facts.queries),
        facts.filtered,
        tuple(facts.writes),
        tuple({one.path: one for one in facts.calls}.values()),
        frozenset(facts.parameters),
        frozenset(collections),
        frozenset(facts.relations),
        everything,
        facts.carries and not everything,
        facts.unknown,
        facts.fault,
        row_lock=facts.row_lock,
        setting=facts.setting,
        changes=changes,
    )


def _outputs(found: Found | None, rows: bool) -> tuple[Output, ...] | None:
    """None where nothing of a relation comes out; where columns cannot be told, all of them may be any."""
    if found is None or (found.open and not rows):
        return None
    if not found.open:
        return found.outputs
    value = union((found.value, ANYTHING))
    return tuple(replace(one, origins=value.origins, opaque=True) for one in found.outputs)


# What wraps a statement.


def _wrapped(
    kind: str, node: Node, scope: Scope, path: Path, span: tuple[int, int], memory: Memory
) -> Statement:
    inner = statement(node["query"], scope, (*path, kind, "query"), span, memory)
    match kind:
        case "ExplainStmt":
            analyze = any(
                one["DefElem"].get("defname") == "analyze" and _is_on(one["DefElem"])
                for one in node.get("options", ())
            )
            return replace(
                inner, command="EXPLAIN", path=path, inner=inner, outputs=None, analyze=analyze,
                changes=inner.changes if analyze else frozenset(),
            )  # fmt: skip
        case "PrepareStmt":
            return replace(
                inner, command="PREPARE", path=path, inner=inner, outputs=None, name=node.get("name", ""),
                changes=frozenset(),
            )  # fmt: skip
        case "DeclareCursorStmt":
            return replace(
                inner, command="DECLARE CURSOR", path=path, inner=inner, outputs=None,
                name=node.get("portalname", ""),
            )  # fmt: skip
    facts = Facts(scope)
    _made(facts, node["into"]["rel"], (*path, kind), Found(inner.outputs or (), inner.outputs is None))
    made = _finish(facts, "CREATE TABLE AS", path, span, None)
    return replace(
        inner,
        command="CREATE TABLE AS",
        path=path,
        actions=(inner.actions | {Action.SCHEMA, Action.WRITE}) - {Action.SESSION},
        references=(*inner.references, *made.references),
        outputs=None,
        writes=(*inner.writes, *made.writes),
        collections=inner.collections | made.collections,
        carries_filter=False,
        inner=inner,
        changes=inner.changes | {"catalog"},
    )


def _is_on(option: Node) -> bool:
    """EXPLAIN (ANALYZE), (ANALYZE ON): off only where it says so."""
    argument = option.get("arg", {})
    text = argument.get("String", {}).get("sval", "on") if "String" in argument else "on"
    number = argument.get("Integer", {}).get("ival", 0) if "Integer" in argument else 1
    return text.lower() not in ("off", "false", "0") and number != 0


def _made(facts: Facts, node: Node, path: Path, found: Found) -> None:
    """The relation that SELECT INTO and CREATE TABLE AS make, and what flows into it."""
    facts.act(Action.SCHEMA)
    facts.act(Action.WRITE)
    schema = node.get("schemaname")
    if node.get("relpersistence") == "t" and schema is None:
        schema = TEMPORARY
    name = node.get("relname", "")
    written = name if schema is None else f"{schema}.{name}"
    reference = Reference(path, path, None, written, name, "ddl")
    facts.references.append(reference)
    value = found.value
    opaque = found.open or value.opaque
    facts.writes.append(Write(reference, (), "query", None, flows=value.origins, flows_opaque=opaque))


def _copy(walker: Walker, node: Node, path: Path, span: tuple[int, int]) -> Statement:
    """COPY over this connection; from and to files and programs of the server it is not known."""
    facts, body = walker.facts, (*path, "CopyStmt")
    if "filename" in node or node.get("is_program"):
        facts.puzzle("COPY reads or writes a file of the server, or runs a program there")
        facts.actions.add(Action.ADMIN)
    if "query" in node:
        found = _query(walker, node["query"], None, (*body, "query"))
        facts.actions -= {Action.READ}
        facts.actions.add(Action.SCAN)
        changes = judge_setting(facts)
        return replace(_finish(facts, "COPY", path, span, found, changes), copies="out")
    item = refer(
        walker, node["relation"], (*body, "relation"), body, "copy-in" if node.get("is_from") else "copy-out"
    )
    named = names(node.get("attlist"))
    cells = [(name, value) for name, value in item.cells if not named or name in named]
    columns = tuple(name for name in named) or tuple(name for name, _ in cells)
    if "whereClause" in node:
        condition(walker, node["whereClause"], Frame(items=[item]), (*body, "whereClause"))
    if node.get("is_from"):
        facts.act(Action.WRITE)
        facts.writes.append(Write(facts.references[0], columns, "copy", None))
        return replace(_finish(facts, "COPY", path, span, None), copies="in")
    facts.act(Action.SCAN)
    outputs = tuple(Output(name, value.origins, None, opaque=value.opaque) for name, value in cells)
    return replace(_finish(facts, "COPY", path, span, Found(outputs, item.open is not None)), copies="out")


def _truncate(walker: Walker, node: Node, path: Path, span: tuple[int, int]) -> Statement:
    body = (*path, "TruncateStmt")
    for index, one in enumerate(node["relations"]):
        refer(walker, one["RangeVar"], (*body, "relations", index), body, "truncate")
    walker.facts.act(Action.DELETE)
    walker.facts.carries = False
    walker.facts.everything = walker.facts.everything or node.get("behavior") == "DROP_CASCADE"
    return _finish(walker.facts, "TRUNCATE TABLE", path, span, None)


# What names an earlier statement.


def _execute(walker: Walker, node: Node, path: Path, span: tuple[int, int], memory: Memory) -> Statement:
    name = node.get("name", "")
    frame = Frame()
    for index, one in enumerate(node.get("params", ())):
        condition(walker, one, frame, (*path, "ExecuteStmt", "params", index))
    inner = memory.get(("prepared", name))
    if inner is None:
        walker.facts.puzzle(f"what was prepared as {name!r} is not known")
        return replace(_finish(walker.facts, "EXECUTE", path, span, None), name=name)
    given = [literal(one) for one in node.get("params", ())]
    own = _finish(walker.facts, "EXECUTE", path, span, None)
    made = named(inner, "EXECUTE", path, span, name)
    return replace(
        made,
        limit=bound(inner.limit, given),
        offset=bound(inner.offset, given),
        offsets=tuple(bound(one, given) for one in inner.offsets),
        parameters=own.parameters,
        unknown=made.unknown or own.unknown,
        actions=made.actions | (own.actions - {Action.SESSION}),
    )


def _fetch(facts: Facts, node: Node, path: Path, span: tuple[int, int], memory: Memory) -> Statement:
    name = node.get("portalname", "")
    command = "MOVE" if node.get("ismove") else "FETCH"
    inner = memory.get(("cursor", name))
    if inner is None:
        facts.puzzle(f"what the cursor {name!r} was declared for is not known")
        return replace(_finish(facts, command, path, span, None), name=name)
    many = node.get("howMany", 0)
    single = node.get("direction") in ("FETCH_ABSOLUTE", "FETCH_RELATIVE")
    count = Amount(None, literal=1) if single else Amount(None, literal=min(abs(int(many)), 2**62))
    made = named(inner, command, path, span, name)
    if abs(int(many)) >= 2**63 - 1 and not single:
        count = UNLIMITED
    return replace(
        made, count=count, outputs=None if command == "MOVE" else made.outputs, changes=frozenset()
    )
