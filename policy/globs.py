# SPDX-License-Identifier: Apache-2.0
"""Globs of the policy language, in time that an attacker's names cannot blow up.

Names: ``*`` is any run of characters, ``?`` exactly one; there are no other special characters and
no escape. Paths: the same within one segment; a whole segment ``**`` is any number of segments, none
included. Case counts, nothing is normalised: engines and identity hand over the canonical name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

Matcher = Callable[[str], bool]

MAX_PATTERN = 1024
"""Characters in one glob: longer than any path or name that Linux and the engines allow in practice."""
MAX_SEGMENTS = 256
"""Segments of a path that are compared; a deeper one matches nothing (PATH_MAX holds 2048)."""


def is_glob(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def name_matcher(pattern: str) -> Matcher:
    """A function that says whether a whole name matches `pattern`; linear in the name."""
    if not is_glob(pattern):
        return pattern.__eq__
    if pattern.strip("*") == "":
        return _anything
    head, _, tail = pattern.partition("*")
    if "?" not in pattern and tail == "":
        return lambda name: name.startswith(head)
    return _by_regex(pattern)


def _anything(name: str) -> bool:
    return True


def _by_regex(pattern: str) -> Matcher:
    """Each piece between stars is taken at its first place and never given back (atomic groups)."""
    first, *rest = (_literal(piece) for piece in re.split(r"\*+", pattern))
    if not rest:
        text = first
    else:
        *middle, last = rest
        text = first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last
    whole = re.compile(text + r"\Z", re.DOTALL).match
    return lambda name: whole(name) is not None


def _literal(piece: str) -> str:
    return "".join("." if char == "?" else re.escape(char) for char in piece)


def path_matcher(pattern: str) -> Matcher:
    """A function that says whether a whole path matches `pattern`.

    ``foreign:<path>`` never matches: it does not start at the root, and the pattern does.
    """
    if not is_glob(pattern):
        return pattern.__eq__
    parts = tuple(None if part == "**" else name_matcher(part) for part in pattern.split("/"))

    def match(path: str) -> bool:
        segments = path.split("/")
        if path.startswith("foreign:") or len(segments) > MAX_SEGMENTS:
            return False
        return _segments(parts, segments)

    return match


def _segments(parts: tuple[Matcher | None, ...], segments: list[str]) -> bool:
    """Dynamic programming over (parts, segments): no backtracking. None is ``**``."""
    reached = [True] + [False] * len(segments)
    for part in parts:
        if part is None:
            seen = False
            for at, here in enumerate(reached):
                seen = seen or here
                reached[at] = seen
        else:
            reached = [False] + [
                here and part(segment) for here, segment in zip(reached, segments, strict=False)
            ]
    return reached[-1]


@lru_cache(maxsize=4096)
def globs_overlap(left: str, right: str) -> bool:
    """Whether some name could match both (path globs are taken as name globs: errs towards True)."""
    reached = {0}
    reached = _after_stars(left, reached)
    for at, char in enumerate(right):
        if char == "*":
            grown = set(range(min(reached), len(left) + 1)) if reached else set()
            reached = _after_stars(left, grown)
        else:
            reached = _after_stars(left, {to for at in reached for to in _step(left, at, char)})
        if not reached:
            return False
    return len(left) in reached


def _step(pattern: str, at: int, char: str) -> tuple[int, ...]:
    if at == len(pattern):
        return ()
    mine = pattern[at]
    if mine == "*":
        return (at,)
    return (at + 1,) if "?" in (mine, char) or mine == char else ()


def _after_stars(pattern: str, positions: set[int]) -> set[int]:
    """The positions, and those behind each star that may stand for nothing."""
    found = set(positions)
    for at in positions:
        step = at
        while step < len(pattern) and pattern[step] == "*":
            step += 1
            found.add(step)
    return found
