# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's own parser (libpg_query through postgast), and nothing else of it, behind this module.

Owns text to tree and tree to text, and the bounds that keep a hostile text from our stack and memory.
The tree is libpg_query's JSON as plain dicts: half the price of its protobuf form, and it nests deeper
than the 100 levels protobuf decodes. Bias: what cannot be parsed exactly as the server would is an error.

The parser is that of PostgreSQL 18 with ``standard_conforming_strings = on``, an ASCII-compatible
encoding and identifiers of 63 bytes; whoever calls it makes sure that the server agrees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import postgast
from google.protobuf import json_format
from postgast.native import lib
from postgast.pg_query_pb2 import ParseResult

from agent.engines.sql_tree import Node, Path
from agent.protocols.sql import Fault

MAX_TEXT: Final = 16 * 1024 * 1024
"""Bytes of one text."""
MAX_BARE: Final = 512 * 1024
"""Bytes of it outside quotes: every two of them can be a node (47 bytes of JSON a byte, measured)."""
MAX_CHAIN: Final = 32 * 1024
"""Bytes of one chain of operators. The parser's output recurses up to once every two bytes with 128 bytes of
stack a level: ``1+1+1...`` of 130,784 bytes overflowed a stack of 8 MiB."""
MAX_TREE: Final = 8 * 1024 * 1024
"""Bytes of the tree as JSON."""
MAX_NESTING: Final = 1000
"""Levels of a tree that may be written back."""

_read = msgspec.json.Decoder(dict[str, Any]).decode
_UNSURE: Final = re.compile(r"--|/\*|\$[A-Za-z_$\x80-\U0010ffff]|\\")
_ESCAPED: Final = re.compile(r"(?:^|[^A-Za-z0-9_$\x80-\U0010ffff])[eE]$")
_MARKS: Final = re.compile(r"[(),;\[\]]")
_PLACES: Final = frozenset(
    {
        "list_end", "list_start", "location", "name_location",
        "rexpr_list_end", "rexpr_list_start", "stmt_len", "stmt_location",
    }
)  # fmt: skip


class ParseFailure(Exception):
    """The text is not SQL as far as we can tell, or beyond our bounds. The message is for the client.

    `fault`: the database's own error, where it is a syntax error.
    """

    def __init__(self, message: str, fault: Fault | None = None) -> None:
        super().__init__(message)
        self.fault = fault


def parse(text: str) -> Node:
    """The root ``{"version": ..., "stmts": [{"stmt": {...}, "stmt_location": 0, "stmt_len": 10}, ...]}``.

    Positions are bytes of the text in UTF-8. Raises ParseFailure.
    """
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise ParseFailure("the text is not valid UTF-8") from None
    if 0 in raw:
        raise ParseFailure("the text holds a zero byte")
    if len(raw) > MAX_CHAIN:
        _measure(text, len(raw))
    result = lib.pg_query_parse(raw)
    try:
        if result.error:
            error = result.error.contents
            message = (error.message or b"syntax error").decode(errors="replace")
            fault = Fault("42601", message, error.cursorpos or None, of_catalog=False)
            # What is reported by this function of scan.l is a syntax error; other errors have other codes.
            raise ParseFailure(message, fault if error.funcname == b"scanner_yyerror" else None)
        found = result.parse_tree
    finally:
        lib.pg_query_free_parse_result(result)
    if len(found) > MAX_TREE:
        raise ParseFailure(
            f"the statement is too complex to be judged ({len(found)} > {MAX_TREE} bytes of tree)"
        )
    try:
        return _read(found)
    except (msgspec.DecodeError, RecursionError):
        raise ParseFailure("the statement is nested too deeply, or holds text that is not UTF-8") from None


def deparse(tree: Node) -> str:
    """The text of a tree, proven to parse to that tree again. Raises ParseFailure.

    One statement a line where there are several. About 2 ms: keep the result.
    """
    try:
        message = json_format.ParseDict(dict(tree), ParseResult(), max_recursion_depth=MAX_NESTING)
        text: str = postgast.deparse(message)
    except (json_format.ParseError, postgast.PgQueryError, RecursionError, ValueError) as error:
        raise ParseFailure(f"the statement cannot be written back: {error}") from None
    if not same(parse(text), tree):
        raise ParseFailure("the statement changes its meaning when it is written back")
    return text


def _measure(text: str, size: int) -> None:
    """Refuse what could exhaust stack or memory before the parser sees it.

    Quotes are counted by parity, which is exact as long as nothing stands outside them that starts another
    kind of quote or a comment: a text this long that has such is refused too.
    """
    if size > MAX_TEXT:
        raise ParseFailure(f"the text is too long to be judged ({size} > {MAX_TEXT} bytes)")
    parts = text.split("'")
    bare = parts[::2]
    if sum(map(len, bare)) > MAX_BARE:
        raise ParseFailure(
            f"the text is too long to be judged (more than {MAX_BARE} bytes outside of quotes)"
        )
    for at, part in enumerate(bare):
        if _UNSURE.search(part) or part.count('"') % 2:
            raise ParseFailure(
                f"a text of more than {MAX_CHAIN} bytes may hold no comments, $$ or backslashes"
            )
        if _ESCAPED.search(part) and 2 * at + 1 < len(parts) and "\\" in parts[2 * at + 1]:
            raise ParseFailure(f"a text of more than {MAX_CHAIN} bytes may hold no E'' strings")
    if _longest_chain("''".join(bare)) > MAX_CHAIN:
        raise ParseFailure(f"the text is too complex to be judged (a chain of more than {MAX_CHAIN} bytes)")


def _longest_chain(bare: str) -> int:
    """An upper bound of how deep a tree of this text can be, in bytes of text that lie on one way down.

    Left recursion is broken by commas, semicolons and the end of a bracket; what is inside of a bracket
    hangs below what is around it.
    """
    stack: list[
        tuple[int, int, int]
    ] = []  # of the brackets around: (own bytes, deepest child, longest piece)
    own = child = longest = start = 0
    for mark in _MARKS.finditer(bare):
        own += mark.start() - start + 1
        start = mark.end()
        match mark.group():
            case "(" | "[":
                stack.append((own, child, longest))
                own = child = longest = 0
            case ")" | "]":
                inside = max(longest, own + child)
                if stack:
                    own, child, longest = stack.pop()
                child = max(child, inside)
            case _:
                longest = max(longest, own + child)
                own = child = 0
    deepest = max(longest, own + len(bare) - start + child)
    for own, child, longest in reversed(stack):  # brackets that are never closed
        deepest = max(longest, own + child + deepest)
    return deepest


# Trees.


def find(tree: Node, path: Path) -> Any:
    """What a path leads to. Raises KeyError, IndexError where there is no such place."""
    here: Any = tree
    for step in path:
        here = here[step]
    return here


def copy(node: Any) -> Any:
    """A deep copy that may be changed (dicts and lists)."""
    if node.__class__ is dict:
        return {key: copy(value) for key, value in node.items()}
    if node.__class__ is list:
        return [copy(item) for item in node]
    return node


def same(left: Any, right: Any) -> bool:
    """Whether two trees are equal but for positions in the text."""
    if left.__class__ is dict and right.__class__ is dict:
        ours, theirs = (_meaning(side) for side in (left, right))
        return ours.keys() == theirs.keys() and all(same(left[key], right[key]) for key in ours)
    if left.__class__ is list and right.__class__ is list:
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _meaning(node: Node) -> Node:
    """Without positions in the text (a tablespace has a location too: a string)."""
    return {key: value for key, value in node.items() if key not in _PLACES or value.__class__ is str}


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, str, Node]]:
    """Every node below, outermost first: (path of its wrapper, "RangeVar", {...})."""
    todo: list[tuple[Path, Any]] = [(path, node)]
    while todo:
        at, here = todo.pop()
        if here.__class__ is list:
            todo += [((*at, index), item) for index, item in reversed(list(enumerate(here)))]
        elif here.__class__ is dict:
            if len(here) == 1:
                ((kind, inner),) = here.items()
                if kind[:1].isupper() and inner.__class__ is dict:
                    yield at, kind, inner
            todo += [((*at, key), item) for key, item in reversed(here.items())]


def names(items: Any) -> tuple[str, ...]:
    """The parts of a dotted name: [{"String": {"sval": "public"}}, ...]; "*" for A_Star."""
    return tuple("*" if "A_Star" in item else item.get("String", {}).get("sval", "") for item in items or ())
