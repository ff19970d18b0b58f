# SPDX-License-Identifier: Apache-2.0
"""The `what` of many rules as bit sets: a question about 200 rules in a few integer operations.

Says the same as `match.what_failures` does rule by rule; a test holds it to that.
"""

from __future__ import annotations

from policy.globs import Matcher, is_glob, name_matcher
from policy.match import actions_of
from policy.model import ANY_COLLECTION, Action, Operation
from policy.rules import What


class WhatIndex:
    """The `what` of many rules as bit sets: which are hit by any member, which cover every member."""

    def __init__(self, whats: list[What | None]) -> None:
        self.everything = (1 << len(whats)) - 1
        self._actions = dict.fromkeys(Action, 0)
        self._no_collection = self._star = 0
        self._exact: dict[str, int] = {}
        self._globs: dict[str, tuple[Matcher, int]] = {}
        self._engines: dict[str, int] = {}
        self._no_engine = 0
        for at, what in enumerate(whats):
            self._add(what or What(), 1 << at)

    def _add(self, what: What, bit: int) -> None:
        for action in Action if what.action is None else map(Action, what.action):
            self._actions[action] |= bit
        for engine in what.engine or ():
            self._engines[engine] = self._engines.get(engine, 0) | bit
        self._no_engine |= bit if what.engine is None else 0
        self._no_collection |= bit if what.collection is None else 0
        for pattern in what.collection or ():
            if pattern == ANY_COLLECTION:
                self._star |= bit
            elif is_glob(pattern):
                matcher, bits = self._globs.get(pattern) or (name_matcher(pattern), 0)
                self._globs[pattern] = (matcher, bits | bit)
            else:
                self._exact[pattern] = self._exact.get(pattern, 0) | bit

    def _collection(self, name: str) -> int:
        """Rules that name this collection, by name, glob or ``*``."""
        bits = self._exact.get(name, 0) | self._star
        for matcher, those in self._globs.values():
            if those & ~bits and matcher(name):
                bits |= those
        return bits

    def engine(self, engine: str) -> int:
        return self._no_engine | self._engines.get(engine, 0)

    def hit(self, operation: Operation) -> int:
        """Rules of which some action and some collection is in the operation."""
        by_action = 0
        for action in actions_of(operation):
            by_action |= self._actions[action]
        by_collection = self._no_collection
        for name in operation.collections:
            if name == ANY_COLLECTION:
                by_collection = self.everything
                break
            by_collection |= self._collection(name)
        return by_action & by_collection & self.engine(operation.engine)

    def covering(self, operation: Operation) -> int:
        """Rules that cover every action and every collection of the operation."""
        bits = self.actions_covering(operation)
        return bits and bits & self.collections_covering(operation) & self.engine(operation.engine)

    def actions_covering(self, operation: Operation) -> int:
        bits = self.everything
        for action in actions_of(operation):
            bits &= self._actions[action]
        return bits

    def collections_covering(self, operation: Operation) -> int:
        if not operation.collections:
            return self._no_collection
        bits = self.everything
        for name in operation.collections:
            named = self._star if name == ANY_COLLECTION else self._collection(name)
            bits &= named | self._no_collection
        return bits
