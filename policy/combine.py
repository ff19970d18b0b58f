# SPDX-License-Identifier: Apache-2.0
"""What several rules restrict together, and whether an operation exceeds it.

Restrictions only ever add up: every function here is commutative and never loosens when a rule is
added. Rules come sorted by id, which settles ties.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from policy.model import Action, Limit, Mask, MaskAs, RecordLevel, RecordMode, Scalar
from policy.operation import Operation
from policy.rules import MaskSpec, Rule

LEVELS: tuple[RecordLevel, ...] = ("meta", "hashes", "masked", "full")
MODES: tuple[RecordMode, ...] = ("best-effort", "strict", "strict-sync")
MASK_STRENGTH: tuple[MaskAs, ...] = ("partial", "hmac", "redact", "null", "drop")
"""From the one that tells most to the one that tells least: on one field the last of these wins."""


@dataclass(frozen=True, slots=True)
class RecordDefaults:
    """What is recorded where no matching rule says (the `evidence` section of the configuration)."""

    level: RecordLevel = "masked"
    mode: RecordMode = "strict"


@dataclass(frozen=True, slots=True)
class Restrictions:
    """The sum of some rules' restrictions. `bounds` holds every limit, `limits` the lowest of each name."""

    bounds: tuple[Limit, ...]
    limits: tuple[Limit, ...]
    vectors_rule: str | None
    fields: frozenset[str] | None
    fields_rule: str | None
    shown: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]  # (rule, paths) that a client may probe
    filters: tuple[tuple[str, Scalar], ...]
    filter_rules: tuple[str, ...]
    masks: tuple[Mask, ...]
    hidden: tuple[tuple[str, tuple[str, ...]], ...]  # (rule, path segments) that a client may not probe
    scores_rule: str | None
    level: RecordLevel
    mode: RecordMode
    reader: str | None  # a rule that needs the body of the request
    places: tuple[tuple[str, str], ...]  # (rule, "file:line")

    @property
    def changes_answer(self) -> bool:
        return bool(self.masks or self.filters or self.vectors_rule) or self.fields is not None

    def where(self, rule: str) -> str | None:
        return dict(self.places).get(rule)


def combine(rules: Sequence[Rule], defaults: RecordDefaults) -> Restrictions:
    """Lowest limits, intersection of fields, AND of filters, union of masks, strictest record mode."""
    bounds = tuple(Limit(spec.name, spec.value, spec.over, rule.id) for rule in rules for spec in rule.limits)
    fields, fields_rule = _intersect_fields(rules)
    filters: dict[tuple[str, str, Scalar], str] = {}  # by type too: 1 and True are different values
    for rule in rules:
        for name, value in rule.filter:
            filters.setdefault((name, type(value).__name__, value), rule.id)
    masks = _join_masks(rules)
    level, mode = _join_records(rules, defaults)
    return Restrictions(
        bounds=bounds,
        limits=_lowest(bounds),
        vectors_rule=next((rule.id for rule in rules if not rule.vectors), None),
        fields=fields,
        fields_rule=fields_rule,
        shown=tuple(
            (rule.id, tuple(map(segments, rule.fields))) for rule in rules if rule.fields is not None
        ),
        filters=tuple((name, value) for name, _, value in filters),
        filter_rules=tuple(filters.values()),
        masks=masks,
        hidden=tuple(
            (mask.rule, path) for mask in masks if mask.field is not None for path in _spellings(mask.field)
        ),
        scores_rule=next((mask.rule for mask in masks if mask.scores is not None), None),
        level=level,
        mode=mode,
        reader=next((rule.id for rule in rules if reads_body(rule)), None),
        places=tuple((rule.id, rule.where) for rule in rules),
    )


def reads_body(rule: Rule) -> bool:
    """A restriction that cannot be kept without the request's body (PII masks only touch answers)."""
    on_request = any(mask.field is not None or mask.scores is not None for mask in rule.masks)
    return bool(rule.limits or rule.filter) or not rule.vectors or rule.fields is not None or on_request


def _lowest(bounds: Iterable[Limit]) -> tuple[Limit, ...]:
    lowest: dict[str, Limit] = {}
    for bound in bounds:
        held = lowest.get(bound.name)
        if held is None or (bound.value, bound.over == "clamp") < (held.value, held.over == "clamp"):
            lowest[bound.name] = bound
    return tuple(lowest.values())


def _intersect_fields(rules: Iterable[Rule]) -> tuple[frozenset[str] | None, str | None]:
    """Paths that every rule lets through: of "address" and "address.city" the narrower one."""
    result: frozenset[str] | None = None
    named: str | None = None
    for rule in rules:
        if rule.fields is None:
            continue
        mine = frozenset(rule.fields)
        if result is None:
            result, named = mine, rule.id
        else:
            result = frozenset(
                a if _is_within(a, b) else b
                for a in result
                for b in mine
                if _is_within(a, b) or _is_within(b, a)
            )
    return result, named


def _is_within(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def _join_masks(rules: Iterable[Rule]) -> tuple[Mask, ...]:
    """One mask a field and a kind of PII, the strongest; one rounding of scores, the coarsest."""
    fields: dict[str, tuple[str, MaskAs]] = {}
    kinds: dict[str, tuple[str, MaskAs]] = {}
    scores: tuple[int, str] | None = None
    for rule in rules:
        for spec in rule.masks:
            if spec.field is not None:
                _keep_stronger(fields, spec.field, rule.id, spec)
            for kind in spec.pii:
                _keep_stronger(kinds, kind, rule.id, spec)
            if spec.scores is not None and (scores is None or spec.scores < scores[0]):
                scores = (spec.scores, rule.id)
    joined = [Mask(rule=rule, field=name, how=how) for name, (rule, how) in sorted(fields.items())]
    by_origin: dict[tuple[str, MaskAs], list[str]] = {}
    for kind, origin in sorted(kinds.items()):
        by_origin.setdefault(origin, []).append(kind)
    joined += [Mask(rule=rule, pii=tuple(names), how=how) for (rule, how), names in sorted(by_origin.items())]
    if scores is not None:
        joined.append(Mask(rule=scores[1], scores=scores[0]))
    return tuple(joined)


def _keep_stronger(held: dict[str, tuple[str, MaskAs]], name: str, rule: str, spec: MaskSpec) -> None:
    if name not in held or MASK_STRENGTH.index(spec.how) > MASK_STRENGTH.index(held[name][1]):
        held[name] = (rule, spec.how)


def _join_records(rules: Iterable[Rule], defaults: RecordDefaults) -> tuple[RecordLevel, RecordMode]:
    specs = [rule.record for rule in rules if rule.record is not None]
    forced = [LEVELS.index(spec.level) for spec in specs if spec.level is not None and spec.force]
    named = [LEVELS.index(spec.level) for spec in specs if spec.level is not None]
    level = LEVELS[max(forced)] if forced else LEVELS[min(named)] if named else defaults.level
    modes = [MODES.index(spec.mode) for spec in specs if spec.mode is not None]
    return level, MODES[max(modes)] if modes else defaults.mode


_MARKS: Final = re.compile(r"\[[^\]]*\]|\"")


def segments(path: str) -> tuple[str, ...]:
    """A dotted path without list marks and quotes: ``people[].name``, ``people[0]."name"`` and
    ``people.name`` are one field, and so is a key that has the dot in its own name."""
    return tuple(part for part in _MARKS.sub("", path).split(".") if part)


def _spellings(field: str) -> tuple[tuple[str, ...], ...]:
    """A mask names the field under its root ("payload.ssn"); a client's filter may leave the root out.

    The empty path is a parent of every field: the whole payload is masked.
    """
    path = segments(field)
    if len(path) > 1:
        return (path, path[1:])
    return ((),) if path and path[0] in WHOLE_PAYLOAD else (path,)


WHOLE_PAYLOAD: Final = frozenset({"payload", "metadata", "metadatas", "properties"})
"""Roots that hold all fields: a mask on one of them hides every field a client could probe."""
UNTOLD: Final = frozenset({(), ("*",)})
"""Probes of a field that cannot be told: taken for any field."""


def refuse(restrictions: Restrictions, operation: Operation) -> tuple[str, str] | None:
    """(rule, message) of the first restriction the operation cannot be brought under, None if it can."""
    if operation.partial and restrictions.reader is not None:
        return restrictions.reader, "its request was not read whole, and this rule needs to read it"
    for bound in restrictions.bounds:
        if bound.over == "deny" and exceeds(operation, bound):
            return bound.rule, _over_limit(operation, bound)
    if restrictions.filters and not operation.carries_filter and operation.actions != SESSION_ONLY:
        key, value = restrictions.filters[0]
        return restrictions.filter_rules[0], f"{operation.method} cannot carry the filter {key} = {value!r}"
    if operation.thresholds and restrictions.scores_rule is not None:
        return restrictions.scores_rule, "a score threshold or radius is not allowed where scores are rounded"
    return _refuse_probes(restrictions, operation) if operation.probed else None


MAX_SHOWN: Final = 100
"""Characters of a client's own field name in the message that refuses it."""
SESSION_ONLY: Final = frozenset({Action.SESSION})
"""Handshake, health, version: it reaches no row, so that no filter is missing on it."""


def exceeds(operation: Operation, bound: Limit) -> bool:
    """Whether the operation asks for more than one limit lets it."""
    match bound.name:
        case "top_k":
            asked = operation.top_k
            return operation.unbounded or (asked is not None and not 0 <= asked <= bound.value)
        case "offset":
            return operation.offset is not None and not 0 <= operation.offset <= bound.value
        case "queries":
            return operation.queries > bound.value
        case "rows":
            return operation.rows > bound.value
        case "bytes":
            return operation.bytes > bound.value
        case _:
            return True  # a limit we do not know is exceeded


def _over_limit(operation: Operation, bound: Limit) -> str:
    if bound.name == "top_k" and operation.unbounded:
        return f"it names no limit, and top_k is limited to {bound.value}"
    asked = getattr(operation, bound.name, "more")
    return f"{bound.name} is limited to {bound.value}, and it asks for {asked}"


def _refuse_probes(restrictions: Restrictions, operation: Operation) -> tuple[str, str] | None:
    """No oracle: what is hidden in the answer may not be asked about in the filter either."""
    for name in sorted(operation.probed):
        probe = segments(name)
        for rule, path in restrictions.hidden:
            if probe in UNTOLD or _overlap(probe, path):
                return rule, f"{name[:MAX_SHOWN]} is masked and may not be filtered, sorted or grouped by"
        for rule, paths in restrictions.shown:
            if not any(probe[: len(path)] == path for path in paths):
                return rule, f"{name[:MAX_SHOWN]} is not one of the fields that may be used"
    return None


def _overlap(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    """One lies within the other: a probe of a parent or of a child tells about the field."""
    return all(a == b or "*" in (a, b) for a, b in zip(left, right, strict=False))
