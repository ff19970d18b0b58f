# SPDX-License-Identifier: Apache-2.0
"""Qdrant's answers: where their rows are, and what becomes of them.

Owns the shapes of ``result``; `Veil` owns what is masked. Vectors are found by path, so that a
payload field called "vector" is payload. Bias: an answer of another shape than the documented one is
not released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from agent.engines.census import has_many_rows
from agent.engines.qdrant_filter import holds
from agent.engines.qdrant_shapes import (
    BatchAnswer,
    GroupsAnswer,
    Id,
    ListAnswer,
    OneAnswer,
    PointsAnswer,
    QueriesAnswer,
)
from agent.engines.splice import cut_answer, decode, read_answer, write_answer
from agent.engines.veil import Veil
from agent.protocols.http import Answer, Refusal, Response
from policy.model import Verdict

MAX_IDS: Final = 10_000  # kept for evidence from one answer
LARGE: Final = 16 * 1024  # bytes from which vectors are cut out before ids are read
_VECTORS: Final = ("vector", "vectors")
_LIST: Final = frozenset({"search", "recommend", "discover", "retrieve"})
_POINTS: Final = frozenset({"query", "scroll"})
_GROUPED: Final = frozenset({"query-groups", "search-groups", "recommend-groups"})
_BATCHED: Final = frozenset({"search-batch", "recommend-batch", "discover-batch"})
_BARE: Final = frozenset({"facet", "matrix-pairs", "matrix-offsets"})
_ROWS: Final = _LIST | _POINTS | _GROUPED | _BATCHED | {"query-batch", "point"}
_UNPROVEN: Final = frozenset({"shard-rows", "unknown"})
Row = dict[str, Any]


_lists = msgspec.json.Decoder(ListAnswer)
_points = msgspec.json.Decoder(PointsAnswer)
_groups = msgspec.json.Decoder(GroupsAnswer)
_batches = msgspec.json.Decoder(BatchAnswer)
_queries = msgspec.json.Decoder(QueriesAnswer)
_one = msgspec.json.Decoder(OneAnswer)


def seen(kind: str, response: Response) -> tuple[tuple[str, ...], int]:
    """Ids (at most MAX_IDS) and the number of rows of an unchanged answer. Never raises."""
    if kind not in _ROWS or not 200 <= response.status < 300:
        return (), 0
    try:
        return _read_seen(kind, response.body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return (), 0


def _read_seen(kind: str, body: bytes) -> tuple[tuple[str, ...], int]:
    if kind not in _ROWS:
        raise ValueError("no rows are looked for in this answer")
    if has_many_rows(body):
        raise ValueError("too many rows to tell them apart")
    if len(body) > LARGE:  # ids are no arrays: what stands in the place of a vector does not matter
        body = b"0".join(cut_answer(body)[0])
    found = _read_ids(kind, body)
    return tuple([str(row.id) for row in found[:MAX_IDS]]), len(found)


def _read_ids(kind: str, body: bytes) -> list[Id]:
    if kind in _LIST:
        return _lists.decode(body).result
    if kind in _POINTS:
        return _points.decode(body).result.points
    if kind in _GROUPED:
        return [hit for group in _groups.decode(body).result.groups for hit in group.hits]
    if kind in _BATCHED:
        return [row for rows in _batches.decode(body).result for row in rows]
    if kind == "query-batch":
        return [row for points in _queries.decode(body).result for row in points.points]
    return [_one.decode(body).result]


def mask(
    kind: str,
    verdict: Verdict,
    response: Response,
    key: bytes,
    asked: frozenset[str] | None,
    norms: Callable[[], list[float | None]],
) -> Answer:
    """The answer under its verdict. Raises Refusal when it cannot be told what it holds.

    `asked`: the payload fields the client asked for, None = all. `norms`: of the query vectors, one
    for each member of a batch; asked only where scores are coarsened.
    """
    veil = Veil(verdict, key)
    ok = 200 <= response.status < 300
    if ok and kind in _UNPROVEN:
        raise Refusal("unproven-answer", "the answer of this request cannot be masked")
    if not ok or kind not in _ROWS | _BARE:
        if kind in _ROWS | _BARE:
            _check_no_rows(response.body)
        return _mask_other(veil, response)
    veil.skip_text(response.body)
    if not (veil.reads_rows or verdict.filters) and (verdict.vectors or not _may_hold_vectors(response.body)):
        try:
            return Answer(response.body, *_read_seen(kind, response.body))
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass  # not of the known form: what follows says how
    reading = read_answer(response.body, opens_numbers=veil.reads_text)
    tree = reading.tree
    if not isinstance(tree, dict) or "result" not in tree:
        raise Refusal("unproven-answer", "the database's answer is not of the known form")
    if kind in _BARE:
        return _mask_bare(kind, veil, verdict, response, tree, norms)
    if kind == "retrieve" and verdict.filters:
        tree["result"] = _keep_own(veil, verdict, _rows_of(tree["result"]), asked)
    lengths = norms() if veil.reads_scores else []
    ids: list[str] = []
    rows = 0
    for at, row in _walk(kind, tree["result"]):
        _mask_row(veil, verdict, row, lengths[at] if at < len(lengths) else None)
        rows += 1
        if len(ids) < MAX_IDS:
            ids.append(str(row.get("id")))
    if kind in _GROUPED:
        _mask_groups(veil, verdict, tree["result"])
    taken = veil.masked()
    return Answer(reading.write(tree), tuple(ids), rows, taken)


def _may_hold_vectors(body: bytes) -> bool:
    """False: no object in it has a key that a vector stands under, in whatever spelling."""
    return b'"vector' in body or (b"\\" in body and b"\\u" in body)


def _rows_of(value: Any) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise Refusal("unproven-answer", "the rows in the database's answer are not a list of objects")
    return value


def _member(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise Refusal("unproven-answer", f"the database's answer has no {name}")
    return value[name]


def _walk(kind: str, result: Any) -> Iterator[tuple[int, Row]]:
    """Each row, with the place of its search in a batch."""
    if kind in _LIST:
        lists = [_rows_of(result)]
    elif kind in _POINTS:
        lists = [_rows_of(_member(result, "points"))]
    elif kind in _GROUPED:
        lists = [_rows_of(_member(group, "hits")) for group in _rows_of(_member(result, "groups"))]
    elif kind == "query-batch":
        lists = [_rows_of(_member(entry, "points")) for entry in _rows_of(result)]
    elif kind in _BATCHED:
        if not isinstance(result, list):
            raise Refusal("unproven-answer", "the database's answer is not a list of lists")
        lists = [_rows_of(entry) for entry in result]
    else:
        lists = [_rows_of([result])]
    for at, rows in enumerate(lists):
        for row in rows:
            yield (0 if kind in _GROUPED else at), row


def _keep_own(veil: Veil, verdict: Verdict, rows: list[Row], asked: frozenset[str] | None) -> list[Row]:
    """Rows read by id that carry the mandatory values; fields fetched for that alone go again."""
    own = [
        row for row in rows if all(holds(row.get("payload"), key, value) for key, value in verdict.filters)
    ]
    veil.take("filter", "drop", len(rows) - len(own))
    if asked is None:
        return own
    for row in own:
        payload = row.get("payload")
        if not isinstance(payload, dict):
            continue
        for key, _ in verdict.filters:
            root = key.split(".")[0]
            if not any(name.split(".")[0].split("[")[0] == root for name in asked) and root in payload:
                del payload[root]
                veil.take("filter field", "drop")
        if not asked:
            row["payload"] = None
    return own


def _mask_row(veil: Veil, verdict: Verdict, row: Row, norm: float | None) -> None:
    if not verdict.vectors:
        for name in _VECTORS:
            if row.get(name) is not None:
                row[name] = None
                veil.take("vectors", "drop")
    if verdict.filters and isinstance(row.get("payload"), dict):
        _check_filter(verdict, row["payload"])
    if veil.reads_payload and row.get("payload") is not None:
        row["payload"] = veil.payload(row["payload"])
    if veil.reads_scores and "score" in row:
        row["score"] = veil.score(row["score"], norm)
    if veil.reads_text:
        for name in ("order_value", "shard_key"):
            if name in row:
                row[name] = veil.text(row[name])


def _check_filter(verdict: Verdict, payload: dict[str, Any]) -> None:
    """A row that shows the field of a mandatory filter must hold its value."""
    for key, value in verdict.filters:
        if key.split(".")[0] in payload and not holds(payload, key, value):
            raise Refusal("filter-broken", "the database returned a row outside the policy's filter")


def _mask_groups(veil: Veil, verdict: Verdict, result: Any) -> None:
    for group in _rows_of(_member(result, "groups")):
        lookup = group.get("lookup")
        if lookup is not None:
            _mask_row(veil, verdict, _rows_of([lookup])[0], None)
        if veil.reads_text and "id" in group:
            group["id"] = veil.text(group["id"])


def _mask_bare(
    kind: str,
    veil: Veil,
    verdict: Verdict,
    response: Response,
    tree: dict[str, Any],
    norms: Callable[[], list[float | None]],
) -> Answer:
    """Answers without points: facet values, scores between points."""
    result = tree["result"]
    rows = 0
    if kind == "facet":
        hits = _rows_of(_member(result, "hits"))
        rows = len(hits)
        if veil.reads_text:
            for hit in hits:
                hit["value"] = veil.text(hit.get("value"))
    elif kind == "matrix-pairs":
        pairs = _rows_of(_member(result, "pairs"))
        rows = len(pairs)
        for pair in pairs:
            pair["score"] = veil.score(pair.get("score"))
    else:
        scores = _member(result, "scores")
        if isinstance(scores, msgspec.Raw):
            scores = decode(bytes(scores))
        if not isinstance(scores, list):
            raise Refusal("unproven-answer", "the scores in the database's answer are not a list")
        rows = len(scores)
        result["scores"] = [veil.score(score) for score in scores]
    taken = veil.masked()
    return Answer(write_answer(tree), (), rows, taken)


def _check_no_rows(body: bytes) -> None:
    """An error that holds a result is no error we know how to mask."""
    try:
        tree = decode(body) if body else None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return
    if isinstance(tree, dict) and tree.get("result") is not None:
        raise Refusal("unproven-answer", "the database's error holds a result")


def _mask_other(veil: Veil, response: Response) -> Answer:
    """Errors and answers without rows: their texts may still repeat what a row holds."""
    if not veil.reads_text or not response.body:
        return Answer(response.body)
    try:
        done = veil.text(decode(response.body))
    except (msgspec.DecodeError, ValueError, RecursionError):
        done = msgspec.Raw(veil.text(response.body.decode("utf-8", "replace")).encode())
    return Answer(write_answer(done), masks=veil.masked())
