# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a policy file, said so that its author can mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: where, the offending line, what is wrong, and what to do."""

    file: str
    line: int
    text: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        shown = f"\n    {self.text}" if self.text else ""
        hint = f"\n    hint: {self.hint}" if self.hint else ""
        return f"{self.file}:{self.line}: {self.message}{shown}{hint}"


class PolicyError(Exception):
    """The policy cannot be used. The author's to mend; `problems` holds all that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the closest known word, or with all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return "known: " + ", ".join(names) if names else ""
