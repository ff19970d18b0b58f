# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain values, each with its line: the only door for YAML in the policy.

YAML 1.2, one document, plain values only. Refused: repeated keys, tags, keys that are no text, merge
keys, aliases that nest or multiply beyond the bounds below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from policy.problem import Problem

MAX_TEXT = 1024 * 1024
"""Characters of one policy file: thousands of rules; a parser in Python takes seconds for more."""
MAX_VALUES = 200_000
"""Values of one file with aliases written out: an alias of aliases grows without end."""
MAX_DEPTH = 32

Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]
Path = tuple[str | int, ...]
TAG = "tag:yaml.org,2002:"


class SourceFile:
    """The text of one file, and where each value of it stands."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self.value: Plain = None
        self._lines = text.splitlines()
        self._places: dict[Path, int] = {}
        self._count = 0
        self._parse(text)

    def line_of(self, path: Path) -> int:
        """The line (from 1) of the value at `path`, or of its nearest parent that exists."""
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, 1)

    def where(self, path: Path) -> str:
        return f"{self.name}:{self.line_of(path)}"

    def problem(self, path: Path, message: str, hint: str = "") -> Problem:
        return self._at(self.line_of(path), message, hint)

    def report(self, path: Path, message: str, hint: str = "") -> None:
        self.problems.append(self.problem(path, message, hint))

    def _at(self, line: int, message: str, hint: str = "") -> Problem:
        text = self._lines[line - 1].strip() if 0 < line <= len(self._lines) else ""
        return Problem(self.name, line, text, message, hint)

    def _parse(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            self.problems.append(self._at(1, f"the file is longer than {MAX_TEXT} characters", "split it"))
            return
        for number, line in enumerate(self._lines, 1):
            if line.startswith("%"):
                self.problems.append(
                    self._at(number, "YAML directives are not taken", "files are YAML 1.2, leave it out")
                )
                return
        try:
            node = cast("Node | None", YAML(typ="safe", pure=True).compose(text))
            if node is not None:
                self.value = self._plain(node, (), 0)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            at = 1 if mark is None else int(mark.line) + 1
            self.problems.append(self._at(at, f"not YAML: {error.problem or error.context}"))
        except (YAMLError, ValueError, RecursionError) as error:
            self.problems.append(self._at(1, f"not YAML: {str(error).splitlines()[0]}"))

    def _plain(self, node: Node, path: Path, depth: int) -> Plain:
        self._places.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_VALUES:
            raise ValueError(f"nested deeper than {MAX_DEPTH} or more than {MAX_VALUES} values")
        if isinstance(node, MappingNode):
            return {
                key: self._plain(value, (*path, key), depth + 1) for key, value in self._pairs(node, path)
            }
        if isinstance(node, SequenceNode):
            return [self._plain(value, (*path, at), depth + 1) for at, value in enumerate(node.value)]
        return self._scalar(cast("ScalarNode", node), path)

    def _pairs(self, node: MappingNode, path: Path) -> Iterator[tuple[str, Node]]:
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or not _tag(key).endswith(":str"):
                self.problems.append(self._at(line, "a key must be plain text"))
                continue
            name = str(key.value)
            if name in seen:
                self.problems.append(
                    self._at(line, f"`{name}` is given twice", f"first given in line {seen[name]}")
                )
                continue
            seen[name] = line
            self._places[(*path, name)] = line
            yield name, value

    def _scalar(self, node: ScalarNode, path: Path) -> Plain:
        text = str(node.value)
        kind = _tag(node).removeprefix(TAG)
        match kind:
            case "str" | "timestamp":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text.replace("_", ""), 0 if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)
            case "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
            case _:
                self.report(path, f"the tag {kind} is not taken", "only plain values")
                return None


def _tag(node: Any) -> str:
    tag = node.tag
    return tag if isinstance(tag, str) else str(tag)
