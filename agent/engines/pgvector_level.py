# SPDX-License-Identifier: Apache-2.0
"""One query level: which of its expressions reach a hidden column after all, and how.

Owns three exceptions to "the hidden is not there", each for one form of expression and no other:
a distance of a hidden vector to a vector of the client's own; ``embedding IS [NOT] NULL``; and a column
that becomes a token (mask as hmac) where it is itself an output of the outermost query. And the rounding
of distances under a mask of scores: in the database, so that arithmetic over a distance gains no digit.
It must not descend into subqueries: they are levels of their own. Bias: a name that could mean two
columns is left alone, and finds the masked one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from agent.engines import pgvector_nodes as nodes
from agent.engines.pgvector_hidden import Hidden, is_vector
from agent.engines.pgvector_nodes import DISTANCE_FUNCTIONS, DISTANCE_OPERATORS, VECTOR_TYPES, Node
from agent.engines.pgvector_wrap import Names, Wrap
from agent.engines.sql_parse import copy
from agent.engines.sql_tree import Attribute
from agent.protocols.http import Refusal

_DEEPER: Final = frozenset({"SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"})
_OTHER_LEVELS: Final = ("larg", "rarg", "withClause")  # of a statement's body
_FREE: Final = frozenset({"A_Const", "ParamRef", "TypeCast", "TypeName", "A_ArrayExpr", "String", "List"})
_MAKERS: Final = frozenset({"binary_quantize", "l2_normalize", "vector", "halfvec", "sparsevec"})


@dataclass(slots=True)
class Distance:
    """A distance in the statement: its wrapper, and the two sides' wrappers."""

    place: Node
    sides: tuple[Node, Node]


class Level:
    """The expressions of one statement body, and the references in its FROM that are replaced."""

    def __init__(
        self,
        body: Node,
        wraps: list[Wrap],
        hidden: Hidden,
        names: Names,
        outermost: bool = False,
        example: bool = False,
    ) -> None:
        """`example`: it is a subquery that is an operand of a distance (`examples`)."""
        self._example = example
        self._body = body
        self._wraps = wraps
        self._hidden = hidden
        self._names = names
        self._outermost = outermost and body.get("op", "SETOP_NONE") == "SETOP_NONE"
        # Names within (a JOIN b) AS j are not visible beside j.
        self._reaches = not any(kind == "JoinExpr" and "alias" in inner for kind, inner, _ in self._nodes())

    def expose(self) -> None:
        """Change the level's expressions in place; says in the wraps which raw columns they need."""
        self._unqualify()
        if self._reaches:
            for distance in list(distances(self._nodes())):
                self._measure(distance)
            for kind, inner, _ in list(self._nodes()):
                if kind == "NullTest":
                    self._reach(inner.get("arg"))
            if self._outermost:
                self._tokens()
            if self._example:
                self._reach(self._body["targetList"][0]["ResTarget"].get("val"))
        self._stars()

    def _nodes(self) -> Iterator[tuple[str, Node, Node]]:
        todo: list[Any] = [value for name, value in self._body.items() if name not in _OTHER_LEVELS]
        while todo:
            here = todo.pop()
            if here.__class__ is list:
                todo += reversed(here)
            elif here.__class__ is dict:
                kind, inner = nodes.kind_of(here)
                if kind in _DEEPER:
                    continue
                if kind:
                    yield kind, inner, here
                todo += reversed(list(here.values()))

    def _unqualify(self) -> None:
        """``public.docs.title`` is ``docs.title`` of the subquery that took its place."""
        for kind, inner, _ in self._nodes():
            if kind != "ColumnRef" or len(inner["fields"]) < 3:
                continue
            *_, schema, name, _last = nodes.names_of(inner["fields"])
            for wrap in self._wraps:
                if wrap.relation.schema == schema and wrap.relation.name == name == wrap.reference.alias:
                    inner["fields"] = inner["fields"][-2:]

    def find(self, place: Any) -> tuple[Wrap, Attribute] | None:
        """The column of a replaced reference that a ColumnRef means."""
        kind, inner = nodes.kind_of(place)
        if kind != "ColumnRef":
            return None
        names = nodes.names_of(inner["fields"])
        wraps = self._wraps
        if len(names) == 2:
            wraps = [wrap for wrap in wraps if wrap.reference.alias == names[0]]
        elif len(names) != 1:
            return None
        found = [(wrap, one) for wrap in wraps if (one := wrap.attribute(names[-1])) is not None]
        return found[0] if len(found) == 1 else None

    # Distances.

    def _measure(self, distance: Distance) -> None:
        for own, other in (distance.sides, distance.sides[::-1]):
            place = operand(own)
            if place is None or not (is_free(other) or example_of(other) is not None):
                continue
            found = self.find(place)
            if found is not None and is_vector(found[1]) and self._reach(place):
                refuse_unit_vectors(other)

    def _reach(self, place: Any) -> bool:
        """Let a ColumnRef of a hidden vector find the vector."""
        found = self.find(place) if self._reaches else None
        if found is None:
            return False
        wrap, column = found
        treatment = wrap.treatments.get(column.number)
        if treatment is not None and treatment.how == "vector":
            made = wrap.take_raw(column, self._names)
            place.clear()
            place.update(made)
            return True
        return False

    # Outputs.

    def _tokens(self) -> None:
        """Columns that become tokens pass raw where they are outputs; who masks rows finds them by origin."""
        if self._body.get("groupClause") or self._body.get("distinctClause"):
            return
        tokens = [wrap for wrap in self._wraps if any(t.how == "hmac" for t in wrap.treatments.values())]
        if not tokens or "targetList" not in self._body:
            return
        self._body["targetList"] = [
            part for one in self._body["targetList"] for part in self._spread(one, tokens)
        ]
        for one in self._body["targetList"]:
            inner = one["ResTarget"]
            found = self.find(inner.get("val"))
            if found is None:
                continue
            wrap, column = found
            treatment = wrap.treatments.get(column.number)
            if treatment is not None and treatment.how == "hmac":
                inner.setdefault("name", nodes.names_of(inner["val"]["ColumnRef"]["fields"])[-1])
                inner["val"] = wrap.take_raw(column, self._names)

    def _spread(self, one: Node, tokens: list[Wrap]) -> list[Node]:
        """A star over a replaced reference as its columns; any other output as it is."""
        if not _is_star(one["ResTarget"]):
            return [one]
        names = nodes.names_of(one["ResTarget"]["val"]["ColumnRef"]["fields"])
        if names == ("*",):
            items = self._items()
            if items is None or not all(
                any(w.reference.alias == item for w in self._wraps) for item in items
            ):
                return [one]  # shows the mask's word
            return [part for item in items for part in self._columns(item)]
        return self._columns(names[0]) if any(w.reference.alias == names[0] for w in tokens) else [one]

    def _columns(self, alias: str) -> list[Node]:
        wrap = next(one for one in self._wraps if one.reference.alias == alias)
        return [nodes.target(nodes.column(alias, name)) for name in wrap.shown]

    def _stars(self) -> None:
        """``*`` must not show the raw columns beside: it is spelled as the stars of the other members."""
        if not any(wrap.raw for wrap in self._wraps):
            return
        targets = []
        for one in self._body.get("targetList", ()):
            if _is_star(one["ResTarget"]) and len(one["ResTarget"]["val"]["ColumnRef"]["fields"]) == 1:
                items = self._items()
                if items is None:
                    raise Refusal(
                        "star",
                        "SELECT * over this join cannot be told apart from what the policy hides: name the "
                        "columns",
                    )
                targets += [nodes.target(nodes.star_of(item)) for item in items]
            else:
                targets.append(one)
        if "targetList" in self._body:
            self._body["targetList"] = targets
        for kind, inner, _ in self._nodes():
            if kind == "ColumnRef" and nodes.names_of(inner["fields"]) == ("*",):
                raise Refusal("star", "a bare * beside a distance of a hidden vector: name the columns")

    def _items(self) -> list[str] | None:
        """Names of the members of FROM in order, where ``*`` is the stars of each; None where it is not."""
        made: list[str] = []
        todo = list(reversed(self._body.get("fromClause", ())))
        while todo:
            kind, inner = nodes.kind_of(todo.pop())
            alias = inner.get("alias", {}).get("aliasname")
            if kind == "RangeTableSample":
                kind, inner = nodes.kind_of(inner["relation"])
                alias = inner.get("alias", {}).get("aliasname")
            if kind == "JoinExpr":
                if inner.get("usingClause") or inner.get("isNatural") or alias:
                    return None
                todo += (inner["rarg"], inner["larg"])
            elif alias or kind == "RangeVar":
                made.append(alias or inner["relname"])
            else:
                return None
        return made if len(set(made)) == len(made) else None


def distances(found: Iterable[tuple[str, Node, Node]]) -> Iterator[Distance]:
    """Distances among nodes (kind, inner, wrapper)."""
    for kind, inner, place in found:
        if kind == "A_Expr" and inner.get("kind") == "AEXPR_OP" and "lexpr" in inner:
            name, sides = nodes.names_of(inner["name"])[-1], (inner["lexpr"], inner["rexpr"])
            if name in DISTANCE_OPERATORS:
                yield Distance(place, sides)
        elif kind == "FuncCall" and len(inner.get("args", ())) == 2:
            name, sides = nodes.names_of(inner["funcname"])[-1], (inner["args"][0], inner["args"][1])
            if name in DISTANCE_FUNCTIONS:
                yield Distance(place, sides)


def example_of(node: Any) -> Node | None:
    """The body of ``(SELECT embedding FROM docs WHERE id = 1)``: more like a row that is there."""
    kind, inner = nodes.kind_of(node)
    if kind != "SubLink" or inner.get("subLinkType") != "EXPR_SUBLINK":
        return None
    kind, body = nodes.kind_of(inner.get("subselect"))
    is_plain = (
        kind == "SelectStmt" and body.get("op") == "SETOP_NONE" and len(body.get("targetList", ())) == 1
    )
    return body if is_plain and "distinctClause" not in body and "groupClause" not in body else None


def examples(root: Node) -> set[int]:
    """Bodies (by identity) of the subqueries below whose vector goes into a distance and nowhere else."""
    found = [example_of(side) for one in distances(nodes.below(root)) for side in one.sides]
    return {id(body) for body in found if body is not None}


def refuse_unit_vectors(other: Any) -> None:
    """A literal that reads one coordinate. Raises Refusal."""
    for kind, inner, _ in nodes.below(other):
        if kind == "A_Const" and is_unit(inner.get("sval", {}).get("sval", "")):
            raise Refusal("probe-vector", UNIT)


UNIT: Final = "a query vector with a single number reads a coordinate of what the policy hides; it is refused"
_LEAST: Final = 8  # numbers from which a query vector with a single one that is not zero is no search


def is_unit(text: str) -> bool:
    """A trip wire, no wall: two queries that differ in one coordinate tell it too (docs/threat-model.md)."""
    numbers = text.strip().strip("[]{}").split(",")
    if len(numbers) < _LEAST:
        return False
    try:
        return sum(float(number) != 0.0 for number in numbers) == 1
    except ValueError:
        return False


def round_distances(root: Node, digits: int) -> None:
    """Every distance below, but for one that is itself an ORDER BY: order needs the index, and all digits.

    In the database, so that no arithmetic over a distance (a difference, a remainder) brings digits back.
    """
    for kind, inner, _ in list(nodes.below(root)):
        if kind == "SelectStmt":
            _spell_order(inner)
    exact = {id(inner.get("node")) for kind, inner, _ in nodes.below(root) if kind == "SortBy"}
    for distance in list(distances(nodes.below(root))):
        if id(distance.place) not in exact:
            made = nodes.rounded(dict(distance.place), digits)
            distance.place.clear()
            distance.place.update(made)


def _spell_order(body: Node) -> None:
    """ORDER BY an output that is a distance: by the distance itself, which has the index, not rounded."""
    if body.get("distinctClause") or body.get("groupClause"):
        return
    targets = [one["ResTarget"] for one in body.get("targetList", ()) if "ResTarget" in one]
    spelled = {id(one.place) for one in distances(nodes.below([one.get("val") for one in targets]))}
    for sort in body.get("sortClause", ()):
        inner = sort["SortBy"]
        kind, node = nodes.kind_of(inner.get("node"))
        found: Node | None = None
        if kind == "ColumnRef" and len(node["fields"]) == 1:
            name = nodes.names_of(node["fields"])[0]
            named = [one for one in targets if one.get("name") == name]
            found = named[0].get("val") if len(named) == 1 else None
        elif kind == "A_Const" and "ival" in node:
            at = node["ival"].get("ival", 0) - 1
            is_plain = 0 <= at < len(targets) and not any(_is_star(one) for one in targets[: at + 1])
            found = targets[at].get("val") if is_plain else None
        if found is not None and id(found) in spelled:
            inner["node"] = copy(found)


def _is_star(inner: Node) -> bool:
    kind, node = nodes.kind_of(inner.get("val"))
    return kind == "ColumnRef" and nodes.names_of(node["fields"])[-1] == "*"


def operand(node: Any) -> Node | None:
    """The ColumnRef in a vector operand: itself, cast to a vector type, or quantised to bits."""
    kind, inner = nodes.kind_of(node)
    if kind == "TypeCast" and nodes.names_of(inner["typeName"]["names"])[-1] in VECTOR_TYPES:
        node = inner["arg"]
        kind, inner = nodes.kind_of(node)
    if kind == "FuncCall" and nodes.names_of(inner["funcname"])[-1] == "binary_quantize":
        if len(inner.get("args", ())) != 1:
            return None
        node = inner["args"][0]
        kind, inner = nodes.kind_of(node)
    return node if kind == "ColumnRef" else None


def is_free(node: Any) -> bool:
    """A vector of the client's own: constants, parameters, and what only makes vectors of them."""
    for kind, inner, _ in nodes.below(node):
        if kind == "FuncCall":
            if nodes.names_of(inner["funcname"])[-1] not in _MAKERS:
                return False
        elif kind not in _FREE:
            return False
    return True
