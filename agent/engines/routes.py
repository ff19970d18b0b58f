# SPDX-License-Identifier: Apache-2.0
"""Tables of routes: method and path segments to what a route is.

Owns the matching only; each engine brings its table. Bias: no match is unknown, and unknown is
denied in enforce.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agent.protocols.http import Request, Route
from policy.model import Action

UNKNOWN: Final = Route("unknown", known=False)
MAX_FOUND: Final = 1024  # requests whose line is remembered
MAX_PATH: Final = 512  # of characters of such a request's path


@dataclass(frozen=True, slots=True)
class Spec:
    """One line of an engine's table. `kind` names the reader of its body ("" = none)."""

    route: Route
    segments: tuple[str | None, ...]  # None = any one segment
    actions: frozenset[Action]
    kind: str = ""


def spec(
    verb: str, path: str, actions: Action | Iterable[Action], kind: str = "", *, rows: bool = False,
    body: bool | None = None, streamable: bool = False,
) -> Spec:  # fmt: skip
    """A line of a table: ``POST``, ``/collections/{c}/points/query``, what it does, who reads it."""
    acts = frozenset((actions,) if isinstance(actions, Action) else actions)
    parts = tuple(None if p.startswith("{") else p for p in path.split("/")[1:] if p)
    reads = bool(kind) if body is None else body
    route = Route(f"{verb} {path}", True, reads_body=reads, streamable=streamable, answer_rows=rows)
    return Spec(route, parts, acts, kind)


class Table:
    """Finds the line of a request. Literal segments win over any; HEAD reads as GET."""

    def __init__(self, specs: Iterable[Spec]) -> None:
        self.specs = tuple(specs)
        self._by: dict[tuple[str, int], list[Spec]] = {}
        self._named: dict[str, Spec] = {}
        self._found: dict[tuple[str, tuple[str, ...]], Spec | None] = {}
        for line in self.specs:
            verb = line.route.method.split(" ", 1)[0]
            self._by.setdefault((verb, len(line.segments)), []).append(line)
            if self._named.setdefault(line.route.method, line) is not line:
                raise ValueError(f"{line.route.method} stands in the table twice")
        for lines in self._by.values():
            lines.sort(key=lambda s: sum(p is None for p in s.segments))

    def find(self, request: Request) -> Spec | None:
        key = (request.method, request.segments)
        try:
            return self._found[key]
        except KeyError:
            line = self._find(*key)
        if len(request.path) <= MAX_PATH:
            if len(self._found) >= MAX_FOUND:
                self._found.clear()
            self._found[key] = line
        return line

    def _find(self, method: str, segments: tuple[str, ...]) -> Spec | None:
        verb = "GET" if method == "HEAD" else method
        for line in self._by.get((verb, len(segments)), ()):
            for want, got in zip(line.segments, segments, strict=True):
                if want is not None and want != got:
                    break
            else:
                return line
        return None

    def named(self, route: Route) -> Spec | None:
        """The line a route came from."""
        return self._named.get(route.method)
