# SPDX-License-Identifier: Apache-2.0
"""Chroma's answers: columns of equal length, one list per query for query and search.

Owns what an answer holds and where; `Veil` owns what is masked. Array lengths never change: clients
zip the columns. Bias: an answer of another shape than the documented one is not released.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from agent.engines.census import is_crowded
from agent.engines.chroma_rewrite import carries
from agent.engines.chroma_shapes import Columns, Ids
from agent.engines.splice import cut_answer, decode, open_numbers, read_answer, write_answer
from agent.engines.veil import Veil
from agent.protocols.http import Answer, Refusal, Response
from policy.model import Verdict

MAX_IDS: Final = 10_000  # kept for evidence from one answer
_NESTED: Final = frozenset({"query", "search"})
_ROWS: Final = frozenset({"query", "search", "get"})
_SPLICED: Final = frozenset({"query", "get"})
_COLUMNS: Final = ("documents", "uris")
_SCORES: Final = ("distances", "scores")
_READ: Final = (*_COLUMNS, *_SCORES, "ids", "metadatas")  # every column but the vectors
_VECTORS: Final = b'"embeddings"'
_HOLDS_ROWS: Final = frozenset({*_COLUMNS, *_SCORES, "metadatas", "embeddings"})


_ids_decoder = msgspec.json.Decoder(Ids)
_columns_decoder = msgspec.json.Decoder(Columns)
_list_decoder = msgspec.json.Decoder(list[Any])


def seen(kind: str, response: Response) -> tuple[tuple[str, ...], int]:
    """Ids (at most MAX_IDS) and the number of rows of an unchanged answer. Never raises."""
    if kind not in _ROWS or not 200 <= response.status < 300:
        return (), 0
    try:
        return _read_seen(kind, response.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return (), 0


def _read_seen(kind: str, body: bytes) -> tuple[tuple[str, ...], int]:
    return _flatten(_read_ids(body))


def _read_ids(body: bytes) -> list[Any]:
    """The ids alone. The server writes them first; a quote inside a string is escaped, so the bytes
    that end the column cannot stand inside an id."""
    if body.startswith(b'{"ids":['):
        end = body.find(b'],"')
        if end >= 0:
            return _read_list(body[7 : end + 1])
    return _read_list(bytes(_ids_decoder.decode(body).ids))


def _read_list(raw: bytes) -> list[Any]:
    if is_crowded(raw):
        raise ValueError("too many ids to tell them apart")
    return _list_decoder.decode(raw)


def _flatten(ids: list[Any]) -> tuple[tuple[str, ...], int]:
    flat: list[Any] = []
    for entry in ids:
        if isinstance(entry, list):
            flat += entry
        else:
            flat.append(entry)
    return tuple(map(str, flat[:MAX_IDS])), len(flat)


def mask(
    kind: str, verdict: Verdict, response: Response, key: bytes, norms: Callable[[], list[float | None]]
) -> Answer:
    """The answer under its verdict. Raises Refusal when it cannot be told what it holds.

    `norms` tells the norm of each query vector; asked only where scores are coarsened.
    """
    veil = Veil(verdict, key)
    if not 200 <= response.status < 300 or kind not in _ROWS:
        if 200 <= response.status < 300 and kind in ("conditional-get", "unknown"):
            raise Refusal("unproven-answer", "the answer of this request cannot be masked")
        if kind in _ROWS:
            _check_no_rows(response.body)
        return _mask_other(veil, response)
    veil.skip_text(response.body)
    if not (veil.reads_rows or verdict.filters) and (verdict.vectors or not _may_hold_vectors(response.body)):
        try:
            return Answer(response.body, *_read_seen(kind, response.body))
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass  # not of the known form: what follows says how
    if kind in _SPLICED and not (veil.reads_rows or verdict.filters or verdict.vectors):
        spliced = _strip_unread(response.body, veil)
        if spliced is not None:
            return spliced
    reading = read_answer(response.body)
    tree = reading.tree
    if not isinstance(tree, dict) or not isinstance(tree.get("ids"), list):
        raise Refusal("unproven-answer", "the database's answer is not of the known form")
    nested = kind in _NESTED
    _open_columns(tree, nested)
    _check_filter(verdict, tree, nested)
    _strip_vectors(verdict, veil, tree)
    if reading.cut and veil.reads_text:
        tree = open_numbers(tree)  # those that stay may be read as text
    _mask_columns(veil, tree, nested)
    if veil.reads_scores:
        _coarsen(veil, tree, norms() if nested else [])
    ids, rows = _flatten(tree["ids"])
    taken = veil.masked()
    return Answer(reading.write(tree), ids, rows, taken)


def _strip_unread(body: bytes, veil: Veil) -> Answer | None:
    """The answer without its column of vectors, elsewhere byte for byte the same. None: it has to be read.

    Sound because the arrays that are cut hold no quote and no bracket: with ``0`` in the place of each, the
    answer has the same strings and the same members. What goes is the value of the one member of that name:
    nothing is escaped, and the name stands nowhere else but among the columns that were asked for.
    """
    pieces, cuts = cut_answer(body)
    small = b"0".join(pieces)
    if not cuts or b"\\u" in small or is_crowded(small):
        return None
    try:
        columns = _columns_decoder.decode(small)
        ids, rows = _flatten(_list_decoder.decode(columns.ids))
        held = _list_decoder.decode(columns.embeddings)
        names = _list_decoder.decode(columns.include)
    except (msgspec.DecodeError, RecursionError):
        return None
    start = small.find(_VECTORS) + len(_VECTORS) + 1
    vectors, asked = bytes(columns.embeddings), bytes(columns.include)
    end, told = start + len(vectors), names.count("embeddings")
    if (
        small.count(_VECTORS) != 1 + told
        or small[start - 1 : end] != b":" + vectors
        or (told and (small.count(asked) != 1 or small.find(asked) < end))
    ):
        return None
    veil.take("vectors", "drop", len(held))
    at = 0  # in `small`, of each cut in turn
    before, until = start, end  # the same two places in the body
    for piece, cut in zip(pieces, cuts, strict=False):
        at += len(piece)
        before += len(cut) - 1 if at < start else 0
        until += len(cut) - 1 if at < end else 0
        at += 1
    rest = body[until:]
    if told:
        rest = rest.replace(asked, msgspec.json.encode([name for name in names if name != "embeddings"]))
        veil.take("include", "drop")
    return Answer(body[:before] + b"null" + rest, ids, rows, veil.masked())


def _check_no_rows(body: bytes) -> None:
    """An error that holds rows is no error we know how to mask."""
    try:
        tree = decode(body) if body else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return
    if isinstance(tree, dict) and not _HOLDS_ROWS.isdisjoint(tree):
        raise Refusal("unproven-answer", "the database's error holds rows")


def _mask_other(veil: Veil, response: Response) -> Answer:
    """Errors and answers without rows: their texts may still repeat what a row holds."""
    if not veil.reads_text or not response.body:
        return Answer(response.body)
    try:
        tree = decode(response.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        text = veil.text(response.body.decode("utf-8", "replace"))
        return Answer(text.encode() if veil.counts else response.body, masks=veil.masked())
    done = veil.text(tree)
    return Answer(write_answer(done), masks=veil.masked())


def _may_hold_vectors(body: bytes) -> bool:
    """False: the one key that vectors stand under is null wherever it is, in whatever spelling."""
    at = body.find(_VECTORS)
    while at >= 0:
        at += len(_VECTORS)
        if not body.startswith(b":null", at):
            return True
        at = body.find(_VECTORS, at)
    return b"\\" in body and b"\\u" in body


def _open_columns(tree: dict[str, Any], nested: bool) -> None:
    """Read the columns that were cut unread: long ones of numbers (scores) or of nulls only."""
    for name in _READ:
        column = tree.get(name)
        try:
            if isinstance(column, msgspec.Raw):
                tree[name] = decode(bytes(column))
            elif nested and isinstance(column, list):
                tree[name] = [
                    decode(bytes(entry)) if isinstance(entry, msgspec.Raw) else entry for entry in column
                ]
        except msgspec.DecodeError as error:
            raise Refusal("unproven-answer", f"{name} in the database's answer is not JSON") from error


def _cells(tree: dict[str, Any], name: str, nested: bool, change: Callable[[Any], Any]) -> None:
    column = tree.get(name)
    if column is None:
        return
    if not isinstance(column, list):
        raise Refusal("unproven-answer", f"{name} in the database's answer is not a list")
    if not nested:
        tree[name] = [change(cell) for cell in column]
        return
    done: list[Any] = []
    for entry in column:
        if entry is not None and not isinstance(entry, list):
            raise Refusal("unproven-answer", f"{name} in the database's answer is not a list of lists")
        done.append(None if entry is None else [change(cell) for cell in entry])
    tree[name] = done


def _check_filter(verdict: Verdict, tree: dict[str, Any], nested: bool) -> None:
    """Rows that show their metadata must carry the mandatory values."""
    if not verdict.filters:
        return

    def check(metadata: Any) -> Any:
        held = metadata if isinstance(metadata, dict) else {}
        if not all(carries(held, key, value) for key, value in verdict.filters):
            raise Refusal("filter-broken", "the database returned a row outside the policy's filter")
        return metadata

    _cells(tree, "metadatas", nested, check)


def _strip_vectors(verdict: Verdict, veil: Veil, tree: dict[str, Any]) -> None:
    if verdict.vectors:
        return
    held = tree.get("embeddings")
    if held is not None and (not isinstance(held, list) or any(entry is not None for entry in held)):
        tree["embeddings"] = [None] * len(held) if "select" in tree and isinstance(held, list) else None
        veil.take("vectors", "drop", len(held) if isinstance(held, list) else 1)
    include = tree.get("include")
    if isinstance(include, list) and "embeddings" in include:
        tree["include"] = [column for column in include if column != "embeddings"]
        veil.take("include", "drop")


def _mask_columns(veil: Veil, tree: dict[str, Any], nested: bool) -> None:
    if veil.reads_payload:
        _cells(tree, "metadatas", nested, veil.payload)
    for name in _COLUMNS:
        if not veil.shows(name):
            held = tree.get(name)
            if held is not None:
                veil.take("fields", "drop", len(held))
                _cells(tree, name, nested, lambda cell: None)
        elif veil.masks_column(name):
            _cells(tree, name, nested, lambda cell, name=name: veil.column(name, cell))  # type: ignore[misc]
    if veil.reads_text:
        _cells(tree, "ids", nested, veil.text)


def _coarsen(veil: Veil, tree: dict[str, Any], norms: list[float | None]) -> None:
    for name in _SCORES:
        column = tree.get(name)
        if column is None:
            continue
        if not isinstance(column, list):
            raise Refusal("unproven-answer", f"{name} in the database's answer is not a list")
        for at, entry in enumerate(column):
            norm = norms[at] if at < len(norms) else None
            if entry is not None and not isinstance(entry, list):
                raise Refusal("unproven-answer", f"{name} in the database's answer is not a list of lists")
            column[at] = None if entry is None else [veil.score(score, norm) for score in entry]
