# SPDX-License-Identifier: Apache-2.0
"""A verdict's masks, ready to be laid over the parts of an answer.

Owns where a mask applies: dotted fields in a payload, the list of allowed fields, personal data in
any text, coarse scores. How a value is masked is ``policy.mask``'s, what is personal data is
``policy.recognise``'s. Engine-neutral: engines find the payloads, documents and scores. Bias: a mask
covers too much rather than too little (a key with a dot in it is taken as a path too).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from agent.protocols.session import Masked
from policy.mask import DROP, mask_value, round_score
from policy.model import Mask, MaskAs, Verdict
from policy.recognise import Recogniser, recogniser

PAYLOAD_ROOTS: Final = frozenset({"payload", "metadata", "metadatas", "properties"})


def parts(path: str) -> tuple[str, ...]:
    """``people[].name`` and ``people.name`` are one field."""
    return tuple(part for part in path.replace("[]", "").split(".") if part)


class Veil:
    """The masks of one verdict over one answer, counting what they took."""

    __slots__ = ("_columns", "_fields", "_key", "_payload", "_pii", "_scores", "counts", "hides_all")

    def __init__(self, verdict: Verdict, key: bytes) -> None:
        self._key = key
        self._payload: list[tuple[tuple[str, ...], Mask]] = []
        self._columns: dict[str, list[tuple[tuple[str, ...], Mask]]] = {}
        self._pii: list[tuple[Recogniser, MaskAs]] = []
        self._scores: int | None = None
        self.counts: Counter[tuple[str, str]] = Counter()
        self._fields = None if verdict.fields is None else frozenset(filter(None, map(parts, verdict.fields)))
        for mask in verdict.masks:
            if mask.field is not None:
                path = parts(mask.field)
                if path[:1] and path[0] in PAYLOAD_ROOTS:
                    self._payload.append((path[1:], mask))
                else:
                    self._columns.setdefault(path[0] if path else "", []).append((path[1:], mask))
            elif mask.scores is not None:
                self._scores = mask.scores if self._scores is None else min(self._scores, mask.scores)
            elif mask.pii:
                self._pii.append((recogniser(mask.pii), mask.how))

    def skip_text(self, body: bytes) -> None:
        """Leave texts alone when nothing in the whole answer can be personal data.

        Only where the bytes are the text: an escape could hide it.
        """
        if self._pii and b"\\" not in body:
            self._pii = [(found, how) for found, how in self._pii if found.may_contain(body)]

    @property
    def reads_payload(self) -> bool:
        return bool(self._payload or self._pii) or self._fields is not None

    @property
    def reads_rows(self) -> bool:
        """Whether anything but vectors has to be looked for in rows."""
        return self.reads_payload or bool(self._columns) or self._scores is not None

    @property
    def reads_text(self) -> bool:
        return bool(self._pii)

    @property
    def reads_scores(self) -> bool:
        return self._scores is not None

    def shows(self, column: str) -> bool:
        """Whether a column beside the payload is among the allowed fields."""
        return self._fields is None or (column,) in self._fields

    def masks_column(self, column: str) -> bool:
        return column in self._columns or bool(self._pii)

    def take(self, what: str, how: str, count: int = 1) -> None:
        if count:
            self.counts[what, how] += count

    def masked(self) -> tuple[Masked, ...]:
        return tuple(Masked(what, how, count) for (what, how), count in sorted(self.counts.items()))

    def payload(self, payload: Any) -> Any:
        """A payload (or one row's metadata) with fields, masks and texts done. None stays None."""
        if payload is None or not self.reads_payload:
            return payload
        if self._fields is not None and isinstance(payload, dict):
            payload = self._keep(payload, self._fields)
        for path, mask in self._payload:
            payload = self._mask(payload, path, mask)
        payload = None if payload is DROP else payload
        return self.text(payload) if self._pii else payload

    def _keep(self, node: dict[str, Any], fields: frozenset[tuple[str, ...]]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in node.items():
            own = parts(name)
            below = frozenset(path[len(own) :] for path in fields if path[: len(own)] == own)
            if any(own[: len(path)] == path for path in fields):
                kept[name] = value
            elif below:
                kept[name] = self._keep_below(value, below)
            else:
                self.take("fields", "drop")
        return kept

    def _keep_below(self, value: Any, fields: frozenset[tuple[str, ...]]) -> Any:
        if isinstance(value, dict):
            return self._keep(value, fields)
        if isinstance(value, list):
            kept = [member for member in value if isinstance(member, dict | list)]
            self.take("fields", "drop", len(value) - len(kept))
            return [self._keep_below(member, fields) for member in kept]
        if value is not None:
            self.take("fields", "drop")
        return None

    def _mask(self, node: Any, path: tuple[str, ...], mask: Mask) -> Any:
        if not path:
            self.take(mask.field or "", mask.how)
            return mask_value(mask, node, self._key)
        if isinstance(node, list):
            members = [self._mask(member, path, mask) for member in node]
            return [member for member in members if member is not DROP]
        if not isinstance(node, dict):
            return node
        head = path[0]
        names = list(node) if head == "*" else [n for n in node if n == head or "." in n or "[]" in n]
        if not names:
            return node
        done = dict(node)
        for name in names:
            own = (head,) if head == "*" else parts(name)
            if own and own[: len(path)] == path:
                value = self._mask(node[name], (), mask)
            elif own and path[: len(own)] == own:
                value = self._mask(node[name], path[len(own) :], mask)
            else:
                continue
            if value is DROP:
                del done[name]
            else:
                done[name] = value
        return done

    def column(self, name: str, value: Any) -> Any:
        """One cell of a column beside the payload (a document, a URI, an id)."""
        for path, mask in self._columns.get(name, ()):
            if value is not None:
                value = self._mask(value, path, mask)
        value = None if value is DROP else value
        return self.text(value) if self._pii else value

    def text(self, value: Any) -> Any:
        """Personal data out of every text in a value: names of keys and numbers that read as data too."""
        for found, how in self._pii:
            value, counts = found.redact_value(value, how, self._key)
            for kind, count in counts.items():
                self.take(f"pii:{kind}", how, count)
        return value

    def score(self, value: Any, norm: float | None = None) -> Any:
        """A score or distance at the allowed precision. `norm`: of the query, where it is known.

        Never under 1: a query scaled down would else buy digits where the score does not scale. Where the
        norm is not known, the coarser of the score's own digits and those of a norm of 1: a query brought
        close to a row would else buy digits of its distance.
        """
        if self._scores is None or isinstance(value, bool) or not isinstance(value, int | float):
            return value
        self.take("scores", f"{self._scores} digits")
        if norm is None:
            own = None if abs(value) >= 1.0 else 1.0
            return round_score(float(value), self._scores, own)
        return round_score(float(value), self._scores, max(norm, 1.0))
