# SPDX-License-Identifier: Apache-2.0
"""Policy files to checked rules: text in, a `Document` out, or a `PolicyError` that names every line.

No file is opened here. Bias: what is not understood whole is refused whole; there is no partial policy.
The agent and the command line load documents; a worker gets only ``compile.encode_rules``'s bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from policy.cases import Case, case_from
from policy.checks import check_rules
from policy.context import GuardContext
from policy.model import LIMIT_NAMES, Over, Scalar
from policy.problem import PolicyError, Problem, did_you_mean
from policy.rules import (
    WHO_KEYS,
    Condition,
    LimitSpec,
    MaskSpec,
    RecordSpec,
    Rule,
    Unless,
    What,
    hash_rules,
)
from policy.schema import (
    NOT_ENFORCED,
    CaseModel,
    CaseWhatModel,
    CaseWhoModel,
    LimitModel,
    MaskModel,
    RecordModel,
    RuleModel,
    UnlessModel,
    WhatModel,
    WhoModel,
)
from policy.yaml_text import Path, Plain, SourceFile

VERSION = 1
MAX_RULES = 10_000
"""Rules of one policy: a bind evaluates each once, so that this bounds what a connection costs."""


@dataclass(frozen=True, slots=True)
class Document:
    """A policy that was checked whole. `warnings` do not stop it; `hash` is that of its rules."""

    rules: tuple[Rule, ...]
    cases: tuple[Case, ...]
    warnings: tuple[Problem, ...]
    hash: str


def load_policy(files: Sequence[tuple[str, str]], context: GuardContext) -> Document:
    """Check `files` ((name, text), one policy together) against the guards there are.

    Raises PolicyError with every problem found: syntax and shape first, then rules among each other.
    """
    sources = [SourceFile(name, text) for name, text in files]
    rules: list[tuple[Rule, SourceFile, Path]] = []
    cases: list[Case] = []
    for source in sources:
        if not source.problems:
            _read(source, rules, cases)
    problems = [problem for source in sources for problem in source.problems]
    if len(rules) > MAX_RULES:
        problems.append(Problem(files[0][0], 1, "", f"{len(rules)} rules, at most {MAX_RULES} are taken"))
    if problems:
        raise PolicyError(problems)
    errors, warnings = check_rules(rules, context)
    errors += _check_cases(cases, rules)
    if errors:
        raise PolicyError(errors)
    ordered = tuple(sorted((rule for rule, _, _ in rules), key=lambda rule: rule.id))
    return Document(ordered, tuple(cases), tuple(warnings), hash_rules(ordered))


def _check_cases(cases: Sequence[Case], rules: Sequence[tuple[Rule, SourceFile, Path]]) -> list[Problem]:
    ids = {rule.id for rule, _, _ in rules}
    return [
        case.source.problem(case.path, f"no rule has the id `{case.rule}`", did_you_mean(case.rule, ids))
        for case in cases
        if case.rule is not None and case.rule not in ids
    ]


def _read(source: SourceFile, rules: list[tuple[Rule, SourceFile, Path]], cases: list[Case]) -> None:
    value = source.value
    if value is None:
        return  # an empty file, or comments alone
    if not isinstance(value, dict):
        source.report((), "a policy file holds `version`, `rules` and `tests`", "start with `version: 1`")
        return
    for key in value.keys() - {"version", "rules", "tests"}:
        source.report((key,), f"unknown key `{key}`", did_you_mean(key, ("version", "rules", "tests")))
    version = value.get("version")
    if version != VERSION or isinstance(version, bool):
        source.report(("version",), "a policy file needs `version: 1`", "put it in the first line")
    for path, entry in _entries(source, value, "rules"):
        model = _validate(source, path, entry, RuleModel)
        if isinstance(model, RuleModel):
            rules.append((_rule(model, source.where((*path, "id"))), source, path))
    for path, entry in _entries(source, value, "tests"):
        model = _validate(source, path, entry, CaseModel)
        if isinstance(model, CaseModel):
            cases.append(case_from(model, source, path))


def _entries(source: SourceFile, value: Mapping[str, Plain], key: str) -> list[tuple[Path, dict[str, Plain]]]:
    listed = value.get(key)
    if listed is None:
        if key in value:
            source.report((key,), f"`{key}` is empty", "leave it out, or give it a list")
        return []
    if not isinstance(listed, list):
        source.report((key,), f"`{key}` is a list", "begin each with `- `")
        return []
    found: list[tuple[Path, dict[str, Plain]]] = []
    for at, entry in enumerate(listed):
        if isinstance(entry, dict):
            found.append(((key, at), entry))
        else:
            source.report((key, at), f"an entry of `{key}` is a mapping of keys", "begin it with `- id:`")
    return found


def _validate(
    source: SourceFile, path: Path, entry: dict[str, Plain], model: type[BaseModel]
) -> BaseModel | None:
    """The entry as its model, or None with its problems reported."""
    before = len(source.problems)
    entry = dict(entry)
    if model is RuleModel:
        for key in NOT_ENFORCED:
            if entry.pop(key, NOT_ENFORCED) is not NOT_ENFORCED:
                source.report(
                    (*path, key), f"this build does not enforce `{key}` yet", "take the key out of the rule"
                )
    elif entry.get("expect") == "hold":
        source.report((*path, "expect"), "this build does not enforce `approve` yet, nothing is held")
        return None
    _report_empty(source, path, entry)
    if len(source.problems) > before:
        return None
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            _report_fault(source, path, entry, fault)
        return None


def _report_empty(source: SourceFile, path: Path, entry: Plain) -> None:
    """A key with nothing behind it is a slip of the pen, and `who:` of nobody would mean anyone."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            if value is None or (value == {} and path[0] == "rules"):
                source.report((*path, key), f"`{key}` is empty", "leave it out, or give it a value")
            else:
                _report_empty(source, (*path, key), value)
    elif isinstance(entry, list):
        for at, value in enumerate(entry):
            if value is None:
                source.report((*path, at), "an entry of the list is empty")
            else:
                _report_empty(source, (*path, at), value)


def _keys(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(field.alias or name for name, field in model.model_fields.items())


_KEYS_OF: dict[tuple[str, str], type[BaseModel]] = {
    ("rules", ""): RuleModel,
    ("rules", "who"): WhoModel,
    ("rules", "what"): WhatModel,
    ("rules", "unless"): UnlessModel,
    ("rules", "limit"): LimitModel,
    ("rules", "mask"): MaskModel,
    ("rules", "record"): RecordModel,
    ("tests", ""): CaseModel,
    ("tests", "who"): CaseWhoModel,
    ("tests", "what"): CaseWhatModel,
}


def _report_fault(source: SourceFile, path: Path, entry: dict[str, Plain], fault: Mapping[str, Any]) -> None:
    """One finding of pydantic in the words of the policy language."""
    inside, value = _inside(entry, fault["loc"])
    place = (*path, *inside)
    message = str(fault["msg"]).removeprefix("Value error, ")
    name = next((part for part in reversed(inside) if isinstance(part, str)), "")
    match fault["type"]:
        case "extra_forbidden":
            parents = [part for part in inside[:-1] if isinstance(part, str)]
            model = _KEYS_OF.get((str(path[0]), parents[-1] if parents else ""))
            source.report(place, f"unknown key `{name}`", did_you_mean(name, _keys(model)) if model else "")
        case "literal_error":
            known = str(fault["ctx"]["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
            kind = "action" if name == "action" else f"value of `{name}`"
            source.report(place, f"unknown {kind} `{value}`", did_you_mean(str(value), known))
        case "missing":
            missing = str(fault["loc"][-1])
            source.report(place, f"`{missing}` is missing")
        case "too_short":
            source.report(place, f"`{name}` is empty", "an empty list matches nothing; leave the key out")
        case kind if kind.endswith("_type") and name:
            hint = "put it in quotes" if kind == "string_type" else ""
            source.report(place, f"`{name}`: {message[0].lower()}{message[1:]}", hint)
        case _:
            source.report(place, f"`{name}`: {message}" if name else message)


_NONE: list[Plain] = []


def _child(value: Plain, part: str | int) -> Plain:
    if isinstance(value, dict) and isinstance(part, str):
        return value.get(part, _NONE)
    return value[part] if isinstance(value, list) and isinstance(part, int) and part < len(value) else _NONE


def _inside(entry: Plain, loc: Sequence[str | int]) -> tuple[Path, Plain]:
    """The part of pydantic's location that exists in the file, and the value there."""
    path: list[str | int] = []
    value = entry
    for part in loc:
        inner = _child(value, part)
        if inner is _NONE:
            break
        value = inner
        path.append(part)
    return tuple(path), value


def _rule(model: RuleModel, where: str) -> Rule:
    return Rule(
        id=model.id,
        where=where,
        who=conditions_from(model.who),
        what=_what(model.what) or What(),
        unless=None
        if model.unless is None
        else Unless(conditions_from(model.unless.who), _what(model.unless.what)),
        allow=bool(model.allow),
        tunnel=bool(model.tunnel),
        deny=model.deny,
        limits=_limits(model.limit),
        vectors=model.vectors is not False,
        fields=None if model.fields is None else tuple(sorted(set(model.fields))),
        filter=tuple(sorted((model.filter or {}).items())),
        masks=tuple(_mask(mask) for mask in model.mask or ()),
        record=None
        if model.record is None
        else RecordSpec(model.record.level, model.record.mode, bool(model.record.force)),
        mode=model.mode,
        until=model.until,
    )


def conditions_from(model: WhoModel | None) -> tuple[Condition, ...]:
    if model is None:
        return ()
    found = []
    for key in WHO_KEYS:
        value: bool | list[Scalar] | None = getattr(model, key)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            found.append(Condition(key, tuple(sorted(set(values), key=str))))
    return tuple(found)


def _what(model: WhatModel | None) -> What | None:
    if model is None:
        return None
    keys = ("guard", "engine", "collection", "action", "database")
    return What(*(_sorted(getattr(model, key)) for key in keys))


def _sorted(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(sorted(set(values)))


def _limits(model: LimitModel | None) -> tuple[LimitSpec, ...]:
    """Only top_k can be cut; a request that exceeds another limit is refused whatever `over` says."""
    if model is None:
        return ()
    found = []
    for name in LIMIT_NAMES:
        value: int | None = getattr(model, name)
        if value is not None:
            over: Over = model.over if name == "top_k" else "deny"
            found.append(LimitSpec(name, value, over))
    return tuple(found)


def _mask(model: MaskModel) -> MaskSpec:
    return MaskSpec(model.field, _sorted(model.pii) or (), model.scores, model.as_ or "redact")
