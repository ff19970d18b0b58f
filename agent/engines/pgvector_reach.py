# SPDX-License-Identifier: Apache-2.0
"""What a resolved statement reaches: its references in this text, and the relations behind them.

Owns the difference between a statement that stands in a text and one that is only named by it (EXECUTE,
FETCH): the latter was brought under a verdict when it was prepared or declared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agent.engines.sql_tree import Reference, Relation, Statement
from agent.protocols.http import Refusal

BY_NAME: Final = frozenset({"EXECUTE", "FETCH", "MOVE"})
"""What they run was brought under a verdict when it was prepared or declared."""


def known_relations(statement: Statement) -> dict[int, Relation]:
    """Relations by OID, of all that a statement touches."""
    known = {one.oid: one for one in statement.relations}
    if statement.inner is not None:
        known |= known_relations(statement.inner)
    for reference in statement.references:
        if reference.relation is not None:
            known[reference.relation.oid] = reference.relation
    return known


def known(reference: Reference) -> Relation:
    if reference.relation is None:  # not reached: `run` has refused already
        raise Refusal("unresolved", f"{reference.name} is not known")
    return reference.relation


def inward(statement: Statement) -> Iterator[Statement]:
    here: Statement | None = statement
    while here is not None:
        yield here
        here = here.inner


def references_of(statement: Statement) -> Iterator[Reference]:
    """Those whose paths lead into this text: of what EXECUTE and FETCH name, none."""
    if statement.command in BY_NAME:
        return
    seen = set()
    for one in inward(statement):
        for reference in one.references:
            if reference.path not in seen:
                seen.add(reference.path)
                yield reference
