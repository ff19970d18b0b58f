# SPDX-License-Identifier: Apache-2.0
"""Many rules as bit sets: a question about 200 rules in a few integer operations.

Says the same as `match` does condition by condition; a test holds it to that. Bit i stands for the
i-th rule. Names that clients choose are remembered within a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from policy.globs import Matcher, is_glob, name_matcher
from policy.match import Test, Truth, actions_of, compile_condition, is_unobtained, value_of
from policy.model import ANY_COLLECTION, Action, Scalar, Subject
from policy.operation import Operation
from policy.rules import NAME_KEYS, WHO_PATHS, Condition, What

MAX_NAMES = 1024
"""Collection names whose rules are remembered for all sessions of a guard; then it starts anew."""


class NameIndex:
    """Which rules name a name: exact ones and plain prefixes by look-up, other globs one by one."""

    def __init__(self) -> None:
        self._exact: dict[str, int] = {}
        self._prefixes: dict[int, dict[str, int]] = {}  # by length
        self._globs: dict[str, tuple[Matcher, int]] = {}
        self._known: dict[str, int] = {}

    def add(self, pattern: str, bit: int) -> None:
        if not is_glob(pattern):
            self._exact[pattern] = self._exact.get(pattern, 0) | bit
        elif pattern.endswith("*") and not is_glob(pattern[:-1]):
            prefixes = self._prefixes.setdefault(len(pattern) - 1, {})
            prefixes[pattern[:-1]] = prefixes.get(pattern[:-1], 0) | bit
        else:
            matcher, bits = self._globs.get(pattern) or (name_matcher(pattern), 0)
            self._globs[pattern] = (matcher, bits | bit)

    def find(self, name: str) -> int:
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= MAX_NAMES:
                self._known.clear()
            found = self._known[name] = self._search(name)
        return found

    def _search(self, name: str) -> int:
        bits = self._exact.get(name, 0)
        for length, prefixes in self._prefixes.items():
            bits |= prefixes.get(name[:length], 0)
        for matcher, those in self._globs.values():
            if those & ~bits and matcher(name):
                bits |= those
        return bits


@dataclass(slots=True)
class KeyIndex:
    """One key of `who` over all rules."""

    without: int  # rules that do not have the key
    exact: dict[Scalar, int] = field(default_factory=dict)
    tests: dict[Condition, tuple[Test, int]] = field(default_factory=dict)

    def add(self, condition: Condition, bit: int) -> None:
        self.without &= ~bit
        rest = []
        for value in condition.values:
            if _is_exact(condition.key, value):
                self.exact[value] = self.exact.get(value, 0) | bit
            else:
                rest.append(value)
        if rest:
            left = Condition(condition.key, tuple(rest))
            test, bits = self.tests.get(left) or (compile_condition(left), 0)
            self.tests[left] = (test, bits | bit)

    def evaluate(self, subject: Subject, key: str) -> tuple[int, int]:
        """(rules whose condition is surely met, rules whose condition may be met)."""
        value = value_of(subject, key)
        surely = self.without
        for one in value if isinstance(value, tuple) else (value,):
            surely |= self.exact.get(one, 0)
        unsure = 0
        for test, bits in self.tests.values():
            truth = test(subject)
            if truth is Truth.YES:
                surely |= bits
            elif truth is Truth.ERROR:
                unsure |= bits
        return surely, -1 if is_unobtained(subject, key) else surely | unsure


def _is_exact(key: str, value: Scalar) -> bool:
    if key in NAME_KEYS or key in WHO_PATHS:
        return not is_glob(str(value))
    return key in ("uid", "exe_sha256")


class WhoIndex:
    """The `who` of many rules, by key: most conditions are one look-up of the subject's value."""

    def __init__(self, whos: Sequence[Sequence[Condition]]) -> None:
        self._everything = (1 << len(whos)) - 1
        self._keys: dict[str, KeyIndex] = {}
        for at, conditions in enumerate(whos):
            for condition in conditions:
                index = self._keys.setdefault(condition.key, KeyIndex(self._everything))
                index.add(condition, 1 << at)

    def evaluate(self, subject: Subject) -> tuple[int, int, list[int]]:
        """(surely met, may be met, surely met for each key): Kleene's AND over the keys of each rule."""
        surely = maybe = self._everything
        by_key = []
        for key, index in self._keys.items():
            try:
                met, possible = index.evaluate(subject, key)
            except Exception:  # a condition that cannot be evaluated may be met, and is not surely met
                met, possible = index.without, -1
            by_key.append(met)
            surely &= met
            maybe &= possible
        return surely, maybe, by_key


class WhatIndex:
    """The `what` of many rules as bit sets: which are hit by any member, which cover every member."""

    def __init__(self, whats: list[What | None]) -> None:
        self.everything = (1 << len(whats)) - 1
        self._actions = dict.fromkeys(Action, 0)
        self._no_collection = self._star = 0
        self._names = NameIndex()
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
            else:
                self._names.add(pattern, bit)

    def _collection(self, name: str) -> int:
        """Rules that name this collection, by name, glob or ``*``."""
        return self._names.find(name) | self._star

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
