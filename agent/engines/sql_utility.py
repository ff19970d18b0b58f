# SPDX-License-Identifier: Apache-2.0
"""Statements that are neither queries nor writes of rows: what each is called, does, and changes.

Owns the table of them (PostgreSQL docs, Part VI, SQL Commands; node names of nodes/parsenodes.h). Bias: a
kind that is not in the table is unknown.
"""

from __future__ import annotations

from typing import Any, Final

from agent.engines.sql_catalog import Scope, collection_name
from agent.engines.sql_functions import ORDERS, PATH, READING, ROLES
from agent.engines.sql_nodes import constant
from agent.engines.sql_parse import names, walk
from agent.engines.sql_scope import Facts
from agent.engines.sql_tree import Call, Change, Node, Path, Reference
from policy.model import Action

_SESSION: Final = frozenset({Action.SESSION})
_SCHEMA: Final = frozenset({Action.SCHEMA})
_CODE: Final = frozenset({Action.SCHEMA, Action.ADMIN})
_ADMIN: Final = frozenset({Action.ADMIN})

CATALOG: Final[frozenset[Change]] = frozenset({"catalog"})

COMMANDS: Final[dict[str, tuple[str, frozenset[Action]]]] = {
    # What moves no rows.
    "TransactionStmt": ("", _SESSION),
    "VariableSetStmt": ("SET", _SESSION),
    "VariableShowStmt": ("SHOW", _SESSION),
    "ListenStmt": ("LISTEN", _SESSION),
    "UnlistenStmt": ("UNLISTEN", _SESSION),
    "NotifyStmt": ("NOTIFY", _SESSION),
    "DiscardStmt": ("DISCARD", _SESSION),
    "DeallocateStmt": ("DEALLOCATE", _SESSION),
    "ClosePortalStmt": ("CLOSE CURSOR", _SESSION),
    "ConstraintsSetStmt": ("SET CONSTRAINTS", _SESSION),
    "LockStmt": ("LOCK TABLE", _SCHEMA),
    # The shape of the database.
    "CreateStmt": ("CREATE TABLE", _SCHEMA),
    "CreateSchemaStmt": ("CREATE SCHEMA", _SCHEMA),
    "CreateSeqStmt": ("CREATE SEQUENCE", _SCHEMA),
    "AlterSeqStmt": ("ALTER SEQUENCE", _SCHEMA),
    "AlterTableStmt": ("ALTER TABLE", _SCHEMA),
    "AlterTableMoveAllStmt": ("ALTER TABLE", _ADMIN),
    "IndexStmt": ("CREATE INDEX", _SCHEMA),
    "CreateStatsStmt": ("CREATE STATISTICS", _SCHEMA),
    "AlterStatsStmt": ("ALTER STATISTICS", _SCHEMA),
    "CreateEnumStmt": ("CREATE TYPE", _SCHEMA),
    "AlterEnumStmt": ("ALTER TYPE", _SCHEMA),
    "CompositeTypeStmt": ("CREATE TYPE", _SCHEMA),
    "CreateRangeStmt": ("CREATE TYPE", _SCHEMA),
    "AlterTypeStmt": ("ALTER TYPE", _SCHEMA),
    "CreateDomainStmt": ("CREATE DOMAIN", _SCHEMA),
    "AlterDomainStmt": ("ALTER DOMAIN", _SCHEMA),
    "ViewStmt": ("CREATE VIEW", _SCHEMA),
    "RefreshMatViewStmt": ("REFRESH MATERIALIZED VIEW", _SCHEMA),
    "DropStmt": ("DROP", _SCHEMA),
    "RenameStmt": ("ALTER", _SCHEMA),
    "AlterObjectSchemaStmt": ("ALTER", _SCHEMA),
    "CommentStmt": ("COMMENT", _SCHEMA),
    "ReindexStmt": ("REINDEX", _SCHEMA),
    "VacuumStmt": ("VACUUM", _SCHEMA),
    "ClusterStmt": ("CLUSTER", _SCHEMA),
    "AlterCollationStmt": ("ALTER COLLATION", _SCHEMA),
    # What changes the meaning of names, or runs later as code.
    "CreateFunctionStmt": ("CREATE FUNCTION", _CODE),
    "AlterFunctionStmt": ("ALTER FUNCTION", _CODE),
    "CreateTrigStmt": ("CREATE TRIGGER", _CODE),
    "RuleStmt": ("CREATE RULE", _CODE),
    "CreatePolicyStmt": ("CREATE POLICY", _CODE),
    "AlterPolicyStmt": ("ALTER POLICY", _CODE),
    "CreateExtensionStmt": ("CREATE EXTENSION", _CODE),
    "AlterExtensionStmt": ("ALTER EXTENSION", _CODE),
    "AlterExtensionContentsStmt": ("ALTER EXTENSION", _CODE),
    "DefineStmt": ("CREATE", _CODE),
    "AlterOperatorStmt": ("ALTER OPERATOR", _CODE),
    "CreateOpClassStmt": ("CREATE OPERATOR CLASS", _CODE),
    "CreateOpFamilyStmt": ("CREATE OPERATOR FAMILY", _CODE),
    "AlterOpFamilyStmt": ("ALTER OPERATOR FAMILY", _CODE),
    "CreateCastStmt": ("CREATE CAST", _CODE),
    "CreateConversionStmt": ("CREATE CONVERSION", _CODE),
    "CreateTransformStmt": ("CREATE TRANSFORM", _CODE),
    "CreatePLangStmt": ("CREATE LANGUAGE", _CODE),
    "CreateAmStmt": ("CREATE ACCESS METHOD", _CODE),
    "CreateEventTrigStmt": ("CREATE EVENT TRIGGER", _CODE),
    "AlterEventTrigStmt": ("ALTER EVENT TRIGGER", _CODE),
    "AlterTSDictionaryStmt": ("ALTER TEXT SEARCH DICTIONARY", _CODE),
    "AlterTSConfigurationStmt": ("ALTER TEXT SEARCH CONFIGURATION", _CODE),
    "AlterObjectDependsStmt": ("ALTER", _CODE),
    "ImportForeignSchemaStmt": ("IMPORT FOREIGN SCHEMA", _CODE),
    "CreateForeignTableStmt": ("CREATE FOREIGN TABLE", _CODE),
    # An administrator's.
    "AlterSystemStmt": ("ALTER SYSTEM", _ADMIN),
    "LoadStmt": ("LOAD", _ADMIN),
    "CheckPointStmt": ("CHECKPOINT", _ADMIN),
    "CreatedbStmt": ("CREATE DATABASE", _ADMIN),
    "DropdbStmt": ("DROP DATABASE", _ADMIN),
    "AlterDatabaseStmt": ("ALTER DATABASE", _ADMIN),
    "AlterDatabaseSetStmt": ("ALTER DATABASE", _ADMIN),
    "AlterDatabaseRefreshCollStmt": ("ALTER DATABASE", _ADMIN),
    "CreateRoleStmt": ("CREATE ROLE", _ADMIN),
    "AlterRoleStmt": ("ALTER ROLE", _ADMIN),
    "AlterRoleSetStmt": ("ALTER ROLE", _ADMIN),
    "DropRoleStmt": ("DROP ROLE", _ADMIN),
    "GrantStmt": ("GRANT", _ADMIN),
    "GrantRoleStmt": ("GRANT ROLE", _ADMIN),
    "AlterDefaultPrivilegesStmt": ("ALTER DEFAULT PRIVILEGES", _ADMIN),
    "AlterOwnerStmt": ("ALTER", _ADMIN),
    "ReassignOwnedStmt": ("REASSIGN OWNED", _ADMIN),
    "DropOwnedStmt": ("DROP OWNED", _ADMIN),
    "SecLabelStmt": ("SECURITY LABEL", _ADMIN),
    "CreateTableSpaceStmt": ("CREATE TABLESPACE", _ADMIN),
    "DropTableSpaceStmt": ("DROP TABLESPACE", _ADMIN),
    "AlterTableSpaceOptionsStmt": ("ALTER TABLESPACE", _ADMIN),
    "CreateFdwStmt": ("CREATE FOREIGN DATA WRAPPER", _ADMIN),
    "AlterFdwStmt": ("ALTER FOREIGN DATA WRAPPER", _ADMIN),
    "CreateForeignServerStmt": ("CREATE SERVER", _ADMIN),
    "AlterForeignServerStmt": ("ALTER SERVER", _ADMIN),
    "CreateUserMappingStmt": ("CREATE USER MAPPING", _ADMIN),
    "AlterUserMappingStmt": ("ALTER USER MAPPING", _ADMIN),
    "DropUserMappingStmt": ("DROP USER MAPPING", _ADMIN),
    "CreatePublicationStmt": ("CREATE PUBLICATION", _ADMIN),
    "AlterPublicationStmt": ("ALTER PUBLICATION", _ADMIN),
    "CreateSubscriptionStmt": ("CREATE SUBSCRIPTION", _ADMIN),
    "AlterSubscriptionStmt": ("ALTER SUBSCRIPTION", _ADMIN),
    "DropSubscriptionStmt": ("DROP SUBSCRIPTION", _ADMIN),
}
"""By kind of node: the command and its actions. DO and CALL are not here: what they run is not known."""

_TRANSACTIONS: Final = {
    "TRANS_STMT_BEGIN": "BEGIN", "TRANS_STMT_START": "START TRANSACTION", "TRANS_STMT_COMMIT": "COMMIT",
    "TRANS_STMT_ROLLBACK": "ROLLBACK", "TRANS_STMT_SAVEPOINT": "SAVEPOINT", "TRANS_STMT_RELEASE": "RELEASE",
    "TRANS_STMT_ROLLBACK_TO": "ROLLBACK TO", "TRANS_STMT_PREPARE": "PREPARE TRANSACTION",
    "TRANS_STMT_COMMIT_PREPARED": "COMMIT PREPARED", "TRANS_STMT_ROLLBACK_PREPARED": "ROLLBACK PREPARED",
}  # fmt: skip
ENDS: Final = frozenset({"COMMIT", "ROLLBACK", "ROLLBACK TO"})
"""What may bring back a search path or a role that was set before (docs, SET)."""
OUTSIDE: Final = frozenset({"SET", "BEGIN", "START TRANSACTION", "SHOW", "RESET"})
"""Commands after which SET TRANSACTION may still come: nothing of ours may run before it."""
FIRST: Final = OUTSIDE | ENDS | {"LOCK TABLE"}
"""What a transaction begins with that needs no snapshot, or wants its lock before it has one."""
_MULTI: Final = ("TRANSACTION", "SESSION CHARACTERISTICS", "TRANSACTION SNAPSHOT")
_NAMED_OBJECTS: Final = frozenset({
    "OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_FOREIGN_TABLE", "OBJECT_SEQUENCE",
    "OBJECT_COLUMN", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY",
})  # fmt: skip
"""Kinds of objects that a list of names stands for: a relation, or something that belongs to one."""
_OF_RELATION: Final = frozenset(
    {"OBJECT_COLUMN", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER", "OBJECT_RULE", "OBJECT_POLICY"}
)
_SHAPES: Final = frozenset({"TABLE", "VIEW", "MATVIEW", "SEQUENCE", "INDEX", "SCHEMA", "TYPE", "DOMAIN"})
"""Kinds of objects whose loss is a matter of shape; of all others, of meaning or of rights."""
_GUARDING: Final = (
    "AT_ChangeOwner", "AT_DisableTrig", "AT_EnableTrig", "AT_EnableRow", "AT_DisableRow", "AT_ForceRow",
    "AT_NoForceRow", "AT_EnableRule", "AT_DisableRule", "AT_EnableAlways", "AT_EnableReplica",
)  # fmt: skip
"""ALTER TABLE about who owns a table and what runs on its rows."""
_WIDE: Final = frozenset({
    "DROP SCHEMA", "DropOwnedStmt", "ReassignOwnedStmt", "CreateExtensionStmt", "AlterExtensionStmt",
    "ImportForeignSchemaStmt", "DropdbStmt", "AlterTableMoveAllStmt", "AlterDefaultPrivilegesStmt",
})  # fmt: skip
"""What touches relations that it does not name."""


def utility(facts: Facts, kind: str, node: Node, path: Path) -> tuple[str, frozenset[Change]]:
    """The command of a utility statement and what it changes; actions and relations go to `facts`."""
    known = COMMANDS.get(kind)
    if known is None:
        what = {"DoStmt": "DO", "CallStmt": "CALL"}.get(kind, kind.removesuffix("Stmt").upper())
        facts.puzzle(f"what {what} does is not known")
        facts.everything = True
        return what, CATALOG
    command, actions = known
    facts.actions |= actions
    match kind:
        case "TransactionStmt":
            return _transaction(facts, node)
        case "VariableSetStmt":
            return _set(facts, node)
        case "DiscardStmt":
            return "DISCARD", frozenset({"path", "role", "catalog"})
        case "VariableShowStmt" | "ListenStmt" | "UnlistenStmt" | "NotifyStmt" | "DeallocateStmt":
            return command, frozenset()
        case "ClosePortalStmt" | "ConstraintsSetStmt":
            return command, frozenset()
    facts.carries = False
    _mentions(facts, kind, node, path)
    _functions(facts, node, path)
    if kind == "DropStmt":
        what = node.get("removeType", "").removeprefix("OBJECT_")
        command = "DROP " + what.replace("_", " ")
        if what not in _SHAPES:
            facts.act(Action.ADMIN)
    if command in _WIDE or kind in _WIDE or (kind == "DropStmt" and node.get("behavior") == "DROP_CASCADE"):
        facts.everything = True
    if kind == "AlterTableStmt" and any(
        one["AlterTableCmd"].get("subtype", "").startswith(_GUARDING) for one in node.get("cmds", ())
    ):
        facts.act(Action.ADMIN)
    if kind == "VacuumStmt" and not node.get("is_vacuumcmd"):
        command = "ANALYZE"
    if kind in ("VacuumStmt", "ReindexStmt", "ClusterStmt") and not facts.references:
        facts.everything = True
    return command, CATALOG if Action.SCHEMA in actions or Action.ADMIN in actions else frozenset()


def _transaction(facts: Facts, node: Node) -> tuple[str, frozenset[Change]]:
    command = _TRANSACTIONS.get(node.get("kind", "TRANS_STMT_BEGIN"), "")
    if not command:
        facts.puzzle("this transaction statement is not known")
    if command in ("PREPARE TRANSACTION", "COMMIT PREPARED", "ROLLBACK PREPARED"):
        facts.act(Action.ADMIN)
        return command, CATALOG
    return command, frozenset({"path", "role"}) if command in ENDS else frozenset()


def _set(facts: Facts, node: Node) -> tuple[str, frozenset[Change]]:
    kind, name = node.get("kind", ""), node.get("name", "").lower()
    if kind == "VAR_RESET_ALL":
        return "RESET", frozenset({"path", "role"})
    values = [_setting_value(one) for one in node.get("args", ())]
    value = ", ".join(one for one in values if one is not None) if None not in values and values else None
    facts.setting = (name, value if kind == "VAR_SET_VALUE" else None)
    if kind == "VAR_SET_MULTI" and node.get("name") not in (
        "TRANSACTION",
        "SESSION CHARACTERISTICS",
        "TRANSACTION SNAPSHOT",
    ):
        facts.puzzle(f"SET {node.get('name', '')} is not known")
    goes_back = kind in ("VAR_RESET", "VAR_SET_DEFAULT")
    return "RESET" if kind == "VAR_RESET" else "SET", judge_setting(facts, goes_back=goes_back)


def _setting_value(node: Node) -> str | None:
    found = constant(node)
    if found is not None:
        return found
    inner = node.get("A_Const", {})
    if "ival" in inner:
        return str(inner["ival"].get("ival", 0))
    text = inner.get("fval", {}).get("fval")
    return text if text is None else str(text)


def judge_setting(facts: Facts, *, goes_back: bool = False) -> frozenset[Change]:
    """What `Facts.setting` does, by SET or by set_config; `goes_back`: to what the session began with."""
    if facts.setting is None:
        return frozenset()
    name, value = facts.setting
    if name in ORDERS or (name in ROLES and not goes_back and (name, value) != ("role", "none")):
        facts.actions.add(Action.ADMIN)
    if name == "standard_conforming_strings" and (value or "").lower() not in ("on", "true", "1", "yes"):
        facts.puzzle("texts can be read with standard_conforming_strings = on alone")
    if name == "client_encoding" and not is_utf8(value):
        facts.puzzle("texts can be read in UTF-8 alone")
    if name in PATH:
        return frozenset({"path", "role"}) if name != "search_path" else frozenset({"path"})
    return frozenset({"path"}) if name in READING else frozenset()


def is_utf8(encoding: str | None) -> bool:
    """UTF8 as PostgreSQL may be told it (it drops all but letters and digits, encnames.c)."""
    return "".join(one for one in (encoding or "") if one.isalnum()).upper() in ("UTF8", "UNICODE")


# Relations in a statement of definition.


def _mentions(facts: Facts, kind: str, node: Node, path: Path) -> None:
    """Every relation that stands anywhere in it, by RangeVar or by a list of names."""
    body = (*path, kind)
    todo: list[tuple[Any, Path]] = [(node, body)]
    while todo:
        here, at = todo.pop()
        if here.__class__ is list:
            todo += [(one, (*at, index)) for index, one in enumerate(here)]
        elif here.__class__ is dict:
            if "relname" in here:
                _mention(facts, here.get("schemaname"), here["relname"], at, body)
            else:
                todo += [(one, (*at, key)) for key, one in here.items()]
    for key, kinds in (("objects", node.get("removeType")), ("object", node.get("objtype"))):
        if kinds not in _NAMED_OBJECTS:
            continue
        for one in node.get(key, ()) if key == "objects" else [node.get(key, {})]:
            parts = names(one.get("List", {}).get("items"))
            parts = parts[:-1] if kinds in _OF_RELATION else parts
            if parts:
                _mention(facts, parts[-2] if len(parts) > 1 else None, parts[-1], body, body)
    if kind == "RenameStmt" and node.get("renameType") in _NAMED_OBJECTS - _OF_RELATION:
        schema = node.get("relation", {}).get("schemaname")
        _mention(facts, schema, node.get("newname", ""), body, body)
    if kind == "AlterObjectSchemaStmt" and "relation" in node:
        _mention(facts, node.get("newschema"), node["relation"].get("relname", ""), body, body)


def _mention(facts: Facts, schema: str | None, name: str, at: Path, body: Path) -> None:
    scope = facts.scope
    relation = scope.relation(schema, name)
    written = name if schema is None else f"{schema}.{name}"
    system = scope.is_system(schema, name)
    facts.references.append(Reference(at, body, relation, written, name, "ddl", system=system is not None))
    if relation is not None:
        facts.touch(relation)
    if system is not None:
        facts.act(Action.ADMIN)


def _functions(facts: Facts, node: Node, path: Path) -> None:
    """Defaults, conversions and index expressions may run at once: what they call must be known."""
    for at, kind, inner in walk(node, path):
        if kind != "FuncCall":
            continue
        parts = names(inner["funcname"])
        deed = facts.scope.function(parts[-2] if len(parts) > 1 else None, parts[-1])
        if deed is False:
            facts.calls.append(Call(".".join(parts), at, "what it does is not known"))
            facts.puzzle(f"what the function {'.'.join(parts)} does is not known")
        elif deed is not True and parts[-1] != "nextval":
            facts.act(deed.action)
            facts.everything = facts.everything or deed.everything


def created(scope: Scope, written: str) -> str:
    """The collection that a relation of this name would be: without schema in the first one of the path."""
    schema, _, name = written.rpartition(".")
    if not schema:
        mine = ("pg_catalog", scope.temporary_schema)
        schema = next((one for one in scope.path if one not in mine), "public")
    return collection_name(schema, name)
