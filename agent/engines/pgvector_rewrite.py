# SPDX-License-Identifier: Apache-2.0
"""SQL brought under its verdict: filters, clamps, hidden columns. The text that is forwarded.

Owns the order of the steps and what is refused on the way; the parts are ``pgvector_wrap`` (references
that are read), ``pgvector_level`` (distances, outputs), ``pgvector_writes`` (INSERT, UPDATE, DELETE, MERGE).
A changed text is written back from the tree and proven to parse to that tree (``sql_parse.deparse``); a
text that nothing changes is forwarded as it came. Bias: a statement that cannot be brought under the
verdict is refused with the rule's name; nothing is left to what the answer may show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.engines import pgvector_nodes as nodes
from agent.engines.pgvector_calm import is_calm
from agent.engines.pgvector_copy import check_form, copy_form
from agent.engines.pgvector_hidden import STATISTICS, Hidden, Treatment
from agent.engines.pgvector_level import Level, distances, examples, round_distances
from agent.engines.pgvector_limits import clamp, clamp_of
from agent.engines.pgvector_nodes import BODIES, WRAPPERS, Node
from agent.engines.pgvector_reach import inward, known, known_relations, references_of
from agent.engines.pgvector_wrap import Names, Wrap, replace, shown_names
from agent.engines.pgvector_writes import bring_writes
from agent.engines.sql_parse import ParseFailure, copy, deparse, find
from agent.engines.sql_tree import Reference, Relation, Resolved, Statement
from agent.protocols.http import Refusal
from policy.model import Verdict

MAX_SHOWN: Final = 100  # characters of a name of the client's in a message
_VIEWS: Final = frozenset({"v", "m"})
_CHANGES: Final = frozenset({"insert", "update", "delete", "merge"})
_HARMLESS: Final = frozenset({"lock", "truncate"})
"""Uses that show nothing of a column; truncate is refused under a filter all the same."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What is forwarded. `changed` False: the text as it came."""

    text: str
    changed: bool
    notices: tuple[str, ...] = ()


def rewrite(resolved: Resolved, verdict: Verdict, key: bytes) -> Rewritten:
    """The text under its verdict. `key` makes the names that clients cannot know.

    Raises Refusal with the rule's name where a restriction cannot be carried. About 2 ms where the text
    changes: `Rewriter` keeps the result.
    """
    hidden = Hidden.of(verdict)
    limit = clamp_of(verdict)
    if resolved.tree is None or not (hidden.restricts or limit is not None):
        return Rewritten(resolved.text, False)
    tree: Node = copy(resolved.tree)
    names = Names(key, resolved.text)
    changed = False
    notices: list[str] = []
    for statement in resolved.statements:
        if hidden.restricts:
            changed |= _Bringing(tree, statement, hidden, names).run()
        if limit is not None and clamp(tree, statement, limit, bool(verdict.clamps)):
            changed = True
            notices.append(f"{limit.name} cut to {limit.value} by rule {limit.rule}")
    if not changed:
        return Rewritten(resolved.text, False)
    try:
        return Rewritten(deparse(tree), True, tuple(dict.fromkeys(notices)))
    except ParseFailure as error:
        raise Refusal("rewrite", f"the statement cannot be brought under the policy: {error}") from None


class _Bringing:
    """One statement on its way under the columns and filters of a verdict."""

    def __init__(self, tree: Node, statement: Statement, hidden: Hidden, names: Names) -> None:
        self._tree = tree
        self._statement = statement
        self._hidden = hidden
        self._names = names
        self._known = known_relations(statement)
        self._references = tuple(references_of(statement))
        self._rule = hidden.filter_rules[0] if hidden.filter_rules else ""
        self._treated: dict[int, Mapping[int, Treatment]] = {}

    def run(self) -> bool:
        """Whether the tree changed."""
        # What CREATE makes is not there yet.
        mine = [
            one for one in self._references if not (one.system or (one.use == "ddl" and one.relation is None))
        ]
        self._check_system()
        if not mine:
            return False
        if any(one.relation is None for one in mine):
            raise Refusal(
                "unresolved", "a relation of this statement is not known, and the policy restricts it"
            )
        touched = [one for one in mine if self._touches(one)]
        if not touched:
            return False
        self._check_form(touched)
        self._check_probes()
        self._check_views(touched)
        self._check_copies()
        return self._change(touched)

    def treatments(self, relation: Relation) -> Mapping[int, Treatment]:
        if relation.oid not in self._treated:
            self._treated[relation.oid] = self._hidden.columns(relation, self._known)
        return self._treated[relation.oid]

    def _touches(self, reference: Reference) -> bool:
        relation = known(reference)
        if self._hidden.filters or self._hidden.pii or self._hidden.scores is not None:
            return True
        return self._hides(relation)

    def _hides(self, relation: Relation) -> bool:
        """Whether a column of it, or of what it stands on, is hidden, or that cannot be told."""
        if not self._hidden.hides:
            return False
        below = [self._known[oid] for oid in relation.bases if oid in self._known]
        unread = len(below) != len(relation.bases) and relation.kind in _VIEWS
        return (
            relation.opaque
            or unread
            or bool(self.treatments(relation))
            or any(self.treatments(base) for base in below)
        )

    # What is refused.

    def _check_system(self) -> None:
        for reference in self._references:
            name = reference.name.rpartition(".")[2]
            if reference.system and name in STATISTICS:
                raise Refusal(
                    "statistics",
                    f"{name} shows values of columns and statements of others, and the policy restricts what "
                    "may be seen",
                )

    def _check_form(self, touched: Sequence[Reference]) -> None:
        root = find(self._tree, self._statement.path)
        kind, _ = nodes.kind_of(root)
        if kind == "ExplainStmt":
            raise Refusal(
                "explain", "EXPLAIN tells how many rows there are behind what the policy hides; it is refused"
            )
        if kind == "CopyStmt" and self._hidden.pii and self._statement.copies == "out":
            check_form(copy_form(self._tree, self._statement))
        if kind in BODIES or kind in WRAPPERS or kind in ("ExecuteStmt", "FetchStmt"):
            return
        if kind == "IndexStmt" and _is_plain_index(root["IndexStmt"]) and not self._hidden.filters:
            return
        if all(one.use in _HARMLESS for one in touched) and not self._hidden.filters:
            return
        if kind in ("VacuumStmt", "ClosePortalStmt", "DeallocateStmt"):
            return
        strict = self._hidden.filters or kind == "CreateTableAsStmt"
        hides = [one for one in touched if strict or self._hides(known(one))]
        if hides:
            raise Refusal(
                "schema",
                f"{self._statement.command} on {known(hides[0]).name} could show elsewhere what the policy "
                "hides there",
            )

    def _check_probes(self) -> None:
        """No oracle: a hidden column in WHERE, ORDER BY and the like. A distance is the search itself."""
        for statement in inward(self._statement):
            for probe in sorted(statement.probes, key=lambda one: (one.name, one.relation)):
                if probe.via in ("distance", "count") and (probe.vector or not probe.attribute):
                    continue
                found = self._hidden.origin(probe, self._known)
                if found is not None:
                    raise Refusal(
                        "probe",
                        f"denied by rule {found.rule}: {probe.name[:MAX_SHOWN]} is masked and may not be "
                        "filtered, sorted or grouped by",
                    )

    def _check_views(self, touched: Sequence[Reference]) -> None:
        """Through a view a column cannot be replaced: what shows a hidden one of its tables is refused."""
        views = [one for one in touched if known(one).kind in _VIEWS]
        if not views:
            return
        first = known(views[0])
        if self._hidden.filters:
            raise Refusal(
                "view", f"denied by rule {self._rule}: {first.name} is a view, its rows cannot be filtered"
            )
        for view in map(known, views):
            bases = [self._known.get(oid) for oid in view.bases]
            hides = view.opaque or any(base is None or self.treatments(base) for base in bases)
            if hides and (self._writes() or self._shows(view)):
                raise Refusal(
                    "view", f"{view.name} is a view that may show what the policy hides in its tables"
                )

    def _shows(self, view: Relation) -> bool:
        """Whether an output reaches a hidden column beneath; the view's own hidden columns are replaced."""
        if view.opaque:
            return True
        reached = [one for inner in inward(self._statement) for one in inner.outputs or ()]
        return any(
            output.opaque
            or any(
                self._hidden.origin(origin, self._known) is not None
                for origin in output.origins
                if origin.relation != view.oid and not (origin.vector and origin.via == "distance")
            )
            for output in reached
        )

    def _writes(self) -> bool:
        return any(one.use in _CHANGES for one in self._references) or self._is_made()

    def _is_made(self) -> bool:
        """CREATE TABLE AS, SELECT INTO."""
        return any(
            "intoClause" in inner for kind, inner, _ in nodes.below(self._body()) if kind == "SelectStmt"
        )

    def _check_copies(self) -> None:
        """Rows must not be written elsewhere without what an answer would have been without."""
        reads = [one for one in self._references if one.use == "read" and one.relation is not None]
        if not reads or not self._writes():
            return
        if self._hidden.pii:
            raise Refusal(
                "copy",
                f"denied by rule {self._hidden.pii[0].rule}: texts cannot be copied to where personal data "
                "in them would not be masked",
            )
        hidden: dict[str, Treatment] = {}
        for reference in reads:
            relation = known(reference)
            for one in relation.columns:
                if (found := self.treatments(relation).get(one.number)) is not None:
                    hidden[one.name] = found
            if reference.column_aliases and self.treatments(relation):
                hidden["*"] = next(iter(self.treatments(relation).values()))
        aliases = {one.alias for one in reads if self.treatments(known(one))}
        for names in _mentions(self._body()):
            is_whole = names[-1] == "*" or (len(names) == 1 and names[0] in aliases)
            found = hidden.get(names[-1]) or (next(iter(hidden.values()), None) if is_whole else None)
            if found is not None or "*" in hidden:
                found = found or hidden["*"]
                raise Refusal(
                    "copy",
                    f"denied by rule {found.rule}: a hidden column would be written without its values",
                )

    def _body(self) -> Any:
        return find(self._tree, self._statement.path)

    # What is changed.

    def _change(self, touched: Sequence[Reference]) -> bool:
        wrapped = self._wraps(touched)
        # Every place is looked up before the first is changed: paths are of the tree as it was.
        bodies = {wrap.reference.within: find(self._tree, wrap.reference.within) for wrap in wrapped}
        example = examples(self._body())
        fence = bool(self._hidden.filters) and not all(is_calm(one) for one in self._bodies())
        changed = bring_writes(
            self._tree, self._statement, touched, self._hidden, self.treatments, fence, self._outermost()
        )
        changed |= self._copy_out(touched, wrapped)
        levels: dict[tuple[str | int, ...], list[Wrap]] = {}
        for wrap in wrapped:
            levels.setdefault(wrap.reference.within, []).append(wrap)
        for path, wraps in levels.items():
            body = bodies[path] if path in bodies else find(self._tree, path)  # that of COPY is new
            outermost = path == self._outermost()
            Level(body, wraps, self._hidden, self._names, outermost, id(body) in example).expose()
        for wrap in wrapped:
            if wrap.filters or wrap.treatments:
                replace(wrap, self._rule, fence, self._names)
                changed = True
        if self._hidden.scores is not None and any(distances(nodes.below(self._body()))):
            round_distances(self._body(), self._hidden.scores)
            changed = True
        return changed

    def _bodies(self) -> Iterator[Node]:
        root = self._body()
        kind, inner = nodes.kind_of(root)
        if kind in WRAPPERS:
            root = inner.get(WRAPPERS[kind])
            kind, inner = nodes.kind_of(root)
        if kind in BODIES:
            yield root

    def _outermost(self) -> tuple[str | int, ...]:
        """Path of the outermost query's body; of COPY there is none (its rows carry no origins)."""
        path: tuple[str | int, ...] = self._statement.path
        kind, inner = nodes.kind_of(self._body())
        if kind == "CopyStmt":
            return ()
        if kind in WRAPPERS:
            path = (*path, kind, WRAPPERS[kind])
            kind, inner = nodes.kind_of(inner.get(WRAPPERS[kind]))
        return (*path, kind)

    def _wraps(self, touched: Sequence[Reference]) -> list[Wrap]:
        made = []
        for reference in touched:
            relation = known(reference)
            if reference.use != "read" or (relation.kind in _VIEWS and not self.treatments(relation)):
                continue
            place = find(self._tree, reference.sampled or reference.path)
            made.append(self._wrap(reference, place))
        return made

    def _wrap(self, reference: Reference, place: Node) -> Wrap:
        relation = known(reference)
        shown = shown_names(reference, relation, place)
        return Wrap(reference, relation, place, self.treatments(relation), self._hidden.filters, shown)

    def _copy_out(self, touched: Sequence[Reference], wrapped: list[Wrap]) -> bool:
        """``COPY docs (a, b) TO STDOUT`` as COPY of a query, where anything of docs is hidden or filtered."""
        for reference in touched:
            if reference.use != "copy-out":
                continue
            relation = known(reference)
            if not (self._hidden.filters or self.treatments(relation)):
                continue
            body = self._body()["CopyStmt"]
            inner = body.pop("relation")
            wanted = nodes.names_of(body.pop("attlist", ())) or tuple(
                one.name for one in relation.columns if not one.generated
            )
            inner = {**inner, "inh": relation.kind == "p"}  # COPY of a table leaves its children out
            place: Node = {"RangeVar": inner}
            name = inner["relname"]
            body["query"] = nodes.select(
                [nodes.target(nodes.column(name, one)) for one in wanted], [place], None
            )
            wrapped.append(self._wrap(reference, place))
            return True
        return False


def _mentions(node: Any) -> Iterator[tuple[str, ...]]:
    for kind, inner, _ in nodes.below(node):
        if kind == "ColumnRef":
            yield nodes.names_of(inner["fields"])


def _is_plain_index(inner: Node) -> bool:
    """Of columns only: an expression or a condition is evaluated on every row, and may tell of it."""
    return "whereClause" not in inner and all(
        "name" in nodes.kind_of(one)[1] for one in inner.get("indexParams", ())
    )
