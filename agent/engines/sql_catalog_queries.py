# SPDX-License-Identifier: Apache-2.0
"""The questions we ask a database about itself: the texts of ``Conversation.wants``.

The client chose the search path and the settings of the connection they run on, so every name and every
operator is qualified (``@=`` below stands for ``OPERATOR(pg_catalog.=)``), and nothing here depends on a
setting: neither a function nor an operator of the client's can take the place of a built-in one. What is
written with IN, CASE x WHEN, USING or IS DISTINCT FROM looks up its operator by the path: not used here.
``sql_catalog_read`` reads the answers.
"""

from __future__ import annotations

import re
from typing import Final

MAX_RELATIONS: Final = 20_000
MAX_COLUMNS: Final = 200_000
MAX_FUNCTIONS: Final = 20_000


def _statements(text: str) -> tuple[str, ...]:
    """Statements between semicolons, on one line each, with their operators qualified."""
    text = re.sub(r"@(<>|<=|>=|>|=|!~)", r"OPERATOR(pg_catalog.\1)", text)
    for short, full in _SHORT.items():
        text = text.replace(short, full)
    return tuple(" ".join(one.split()) for one in text.split(";") if one.strip())


_SHORT: Final = {
    "$TEXT": "::pg_catalog.text",
    "$CHAR": '::pg_catalog."char"',
    "$OID": "::pg_catalog.regclass::pg_catalog.oid",
    "$KINDS": "OPERATOR(pg_catalog.=) ANY (ARRAY['r','p','v','m','f','S','c']::pg_catalog.\"char\"[])",
    "$USER": "OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid",  # FirstNormalObjectId (access/transam.h)
    "$RELATIONS": str(MAX_RELATIONS + 1),
    "$COLUMNS": str(MAX_COLUMNS + 1),
    "$FUNCTIONS": str(MAX_FUNCTIONS + 1),
}

SESSION: Final = _statements("""
SELECT pg_catalog.array_to_json(pg_catalog.current_schemas(true))$TEXT, current_user$TEXT,
    pg_catalog.current_setting('standard_conforming_strings'$TEXT),
    pg_catalog.current_setting('client_encoding'$TEXT),
    (SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE n.oid @= pg_catalog.pg_my_temp_schema()),
    pg_catalog.current_setting('server_version_num'$TEXT),
    pg_catalog.current_setting('search_path'$TEXT);
SELECT c.oid, c.relname, c.relkind FROM pg_catalog.pg_class c
    WHERE c.relnamespace @= pg_catalog.pg_my_temp_schema() AND c.relkind $KINDS LIMIT $RELATIONS;
SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid @= a.attrelid
    WHERE c.relnamespace @= pg_catalog.pg_my_temp_schema() AND c.relkind $KINDS
    AND a.attnum @> 0::pg_catalog.int2 AND NOT a.attisdropped LIMIT $COLUMNS
""")
"""Where this connection stands: (path, role, strings, encoding, own temporary schema, version,
search_path), and its own temporary relations with their columns."""

_CHANGES: Final = {
    "pg_class": "x.oid $USER AND x.relpersistence @<> 't'$CHAR",
    "pg_attribute": "x.attrelid $USER",
    "pg_namespace": "true",
    "pg_rewrite": "x.oid $USER",
    "pg_inherits": "true",
    "pg_proc": "x.oid $USER",
    "pg_operator": "x.oid $USER",
    "pg_cast": "x.oid $USER",
    "pg_type": "x.oid $USER",
    "pg_constraint": "x.contype @= 'p'$CHAR",
    "pg_extension": "true",
}


def _sums() -> str:
    """Of each system relation a number that changes when a row is added, removed or changed."""
    one = """(SELECT pg_catalog.concat_ws('.'$TEXT, pg_catalog.count(*),
        pg_catalog.sum(pg_catalog.hashtext(x.xmin$TEXT)::pg_catalog.int8))
        FROM pg_catalog.$TABLE x WHERE $ROWS)"""
    return ", ".join(one.replace("$TABLE", table).replace("$ROWS", rows) for table, rows in _CHANGES.items())


FINGERPRINT: Final = _statements("SELECT pg_catalog.concat_ws(':'$TEXT, $SUMS)".replace("$SUMS", _sums()))

_EXTENSION: Final = """(SELECT e.extname FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_extension e ON e.oid @= d.refobjid
    WHERE d.classid @= 'pg_catalog.$TABLE'$OID AND d.objid @= x.oid AND d.deptype @= 'e'$CHAR
    AND d.refclassid @= 'pg_catalog.pg_extension'$OID LIMIT 1)"""

WHOLE: Final = _statements(
    """
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relispartition FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid @= c.relnamespace
    WHERE c.relkind $KINDS AND c.oid $USER AND n.nspname @!~ '^pg_(temp|toast)'$TEXT LIMIT $RELATIONS;
SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid @= c.relnamespace
    WHERE n.nspname @= ANY (ARRAY['pg_catalog','information_schema']::pg_catalog.name[]) AND c.relkind $KINDS;
SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid @= a.attrelid
    WHERE c.oid $USER AND c.relkind $KINDS
    AND a.attnum @> 0::pg_catalog.int2 AND NOT a.attisdropped LIMIT $COLUMNS;
SELECT x.oid, x.typname, x.typtype, x.typbasetype, x.typelem, x.typrelid, $EXTENSION(pg_type)
    FROM pg_catalog.pg_type x WHERE x.oid $USER LIMIT $COLUMNS;
SELECT i.inhrelid, i.inhparent FROM pg_catalog.pg_inherits i;
SELECT k.conrelid, pg_catalog.array_to_json(k.conkey)$TEXT FROM pg_catalog.pg_constraint k
    WHERE k.contype @= 'p'$CHAR;
SELECT DISTINCT r.ev_class, d.refobjid, r.rulename, r.ev_type FROM pg_catalog.pg_rewrite r
    LEFT JOIN pg_catalog.pg_depend d ON d.classid @= 'pg_catalog.pg_rewrite'$OID AND d.objid @= r.oid
    AND d.refclassid @= 'pg_catalog.pg_class'$OID AND d.refobjid @<> r.ev_class
    WHERE r.oid $USER;
SELECT c.oid, pg_catalog.pg_get_viewdef(c.oid) FROM pg_catalog.pg_class c
    WHERE c.oid $USER AND c.relkind @= ANY (ARRAY['v','m']::pg_catalog."char"[]);
SELECT DISTINCT n.nspname, x.proname, $EXTENSION(pg_proc) FROM pg_catalog.pg_proc x
    JOIN pg_catalog.pg_namespace n ON n.oid @= x.pronamespace WHERE x.oid $USER LIMIT $FUNCTIONS;
SELECT DISTINCT n.nspname, x.oprname, $EXTENSION(pg_operator) FROM pg_catalog.pg_operator x
    JOIN pg_catalog.pg_namespace n ON n.oid @= x.oprnamespace WHERE x.oid $USER LIMIT $FUNCTIONS;
SELECT DISTINCT t.typname, $EXTENSION(pg_cast) FROM pg_catalog.pg_cast x
    JOIN pg_catalog.pg_type t ON t.oid @= x.casttarget WHERE x.oid $USER AND x.castmethod @= 'f'$CHAR;
SELECT DISTINCT p.proname FROM pg_catalog.pg_proc p
    WHERE p.pronamespace @= 'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid
    AND p.provolatile @<> 'i'$CHAR AND p.pronargs @> 0::pg_catalog.int2
    AND pg_catalog.int2mi(p.pronargs, p.pronargdefaults) @<= 1::pg_catalog.int2
""".replace("$EXTENSION(pg_type)", _EXTENSION.replace("$TABLE", "pg_type"))
    .replace("$EXTENSION(pg_proc)", _EXTENSION.replace("$TABLE", "pg_proc"))
    .replace("$EXTENSION(pg_operator)", _EXTENSION.replace("$TABLE", "pg_operator"))
    .replace("$EXTENSION(pg_cast)", _EXTENSION.replace("$TABLE", "pg_cast"))
)
"""Everything of a database that a statement can name, in the order `sql_catalog_read` takes it."""

SESSION_TEXT: Final = "; ".join(SESSION)
CHECK_TEXT: Final = "; ".join((*SESSION, *FINGERPRINT))
WHOLE_TEXT: Final = "; ".join((*SESSION, *FINGERPRINT, *WHOLE))
