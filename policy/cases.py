# SPDX-License-Identifier: Apache-2.0
"""Test cases beside the rules: a caller, an operation, and the verdict that the author expects.

Also the two constructors that ``vecward policy explain --who k=v --what k=v`` needs: a Subject and an
Operation out of plain words. Cases are judged as enforce mode does, whatever mode a guard is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from policy.compile import Policy
from policy.decide import decide
from policy.model import Action, Attribution, Subject, Verdict
from policy.operation import Operation
from policy.problem import PolicyError, Problem, did_you_mean
from policy.schema import CaseModel, CaseWhatModel, CaseWhoModel
from policy.yaml_text import Path, SourceFile


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    subject: Subject
    operation: Operation
    expect: str
    rule: str | None
    at: float | None
    source: SourceFile
    path: Path

    @property
    def where(self) -> str:
        return self.source.where(self.path)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """`got` is what `expect` is compared with; `problem` is None when the case passed."""

    name: str
    where: str
    passed: bool
    got: str
    verdict: Verdict
    problem: Problem | None


def case_from(model: CaseModel, source: SourceFile, path: Path) -> Case:
    return Case(
        name=model.name,
        subject=replace(_subject(model.who), database=model.what.database),
        operation=_operation(model.what),
        expect=model.expect,
        rule=model.rule,
        at=model.at,
        source=source,
        path=path,
    )


def _subject(model: CaseWhoModel) -> Subject:
    groups = tuple(model.group or ())
    attribution = model.attribution or ("remote" if model.remote else "kernel")
    given = model.model_dump(
        exclude={"attribution", "group", "self", "argv", "unobtained"}, exclude_none=True
    )
    return Subject(
        attribution=Attribution(attribution),
        group=groups[0] if groups else None,
        groups=groups or None,
        is_self=model.self,
        argv=None if model.argv is None else tuple(model.argv),
        unobtained=frozenset(model.unobtained or ()),
        **given,
    )


def _operation(model: CaseWhatModel) -> Operation:
    given = model.model_dump(exclude={"engine", "database", "action", "collection", "probed"})
    return Operation(
        engine=model.engine or "",
        actions=frozenset(map(Action, model.action)),
        collections=frozenset(model.collection),
        probed=frozenset(model.probed),
        **given,
    )


def verdict_word(verdict: Verdict) -> str:
    """What a case may expect: deny, tunnel; for an allow clamp, mask, or allow when nothing is changed."""
    if verdict.outcome != "allow":
        return verdict.outcome
    return "clamp" if verdict.clamps else "mask" if verdict.touches_answer else "allow"


def named_rules(verdict: Verdict) -> frozenset[str]:
    """The rule that decided, and for an allow the rules that restrict it."""
    found = {verdict.rule}
    if verdict.outcome == "allow":
        found |= {clamp.rule for clamp in verdict.clamps} | {mask.rule for mask in verdict.masks}
        found |= {verdict.vectors_rule, verdict.fields_rule, *verdict.filter_rules}
    return frozenset(rule for rule in found if rule is not None)


def run_cases(
    policy: Policy, cases: Sequence[Case], engines: Mapping[str, str], now: float
) -> list[CaseResult]:
    """Judge every case; `engines` gives the engine of each guard, for cases that do not name it."""
    return [_run(policy, case, engines, now) for case in cases]


def _run(policy: Policy, case: Case, engines: Mapping[str, str], now: float) -> CaseResult:
    operation = with_engine(case.operation, engines)
    verdict = decide(policy, case.subject, operation, {}, now if case.at is None else case.at)
    got = verdict_word(verdict)
    # `allow` is kept by an allow that masks or cuts; the narrower words ask for just that.
    fits = case.expect in (verdict.outcome, got) or (case.expect == "mask" and verdict.touches_answer)
    if fits and case.rule is not None:
        fits = case.rule in named_rules(verdict)
    problem = None
    if not fits:
        by = f" by rule {verdict.rule}" if verdict.rule else ""
        wanted = case.expect + (f" by rule {case.rule}" if case.rule else "")
        problem = case.source.problem(
            case.path, f"case `{case.name}`: expected {wanted}, got {got}{by}", verdict.message
        )
    return CaseResult(case.name, case.where, fits, got, verdict, problem)


def with_engine(operation: Operation, engines: Mapping[str, str]) -> Operation:
    if operation.engine or operation.guard not in engines:
        return operation
    return operation.changed(engine=engines[operation.guard])


def subject_from(words: Mapping[str, str]) -> Subject:
    """A caller out of ``--who key=value`` words (lists by comma). Raises PolicyError on a bad one."""
    return _subject(_validate(CaseWhoModel, words, "--who"))


def operation_from(words: Mapping[str, str]) -> tuple[Operation, str | None]:
    """An operation out of ``--what key=value`` words (lists by comma), and the database it is asked of.

    Raises PolicyError on a bad one.
    """
    model = _validate(CaseWhatModel, words, "--what")
    return _operation(model), model.database


_NUMBERS = frozenset({"uid", "top_k", "offset", "queries", "rows", "bytes"})
_FLAGS = frozenset({"login_session", "self", "unbounded", "vectors", "thresholds", "carries_filter"})
_LISTS = frozenset({"group", "argv", "unobtained", "action", "collection", "probed"})
_Model = TypeVar("_Model", CaseWhoModel, CaseWhatModel)


def _validate(model: type[_Model], words: Mapping[str, str], option: str) -> _Model:
    try:
        return model.model_validate({key: _value(key, text) for key, text in words.items()})
    except ValidationError as error:
        raise PolicyError([_word_problem(model, option, fault) for fault in error.errors()]) from None


def _value(key: str, text: str) -> object:
    if key in _LISTS:
        return [part for part in text.split(",") if part]
    if key in _FLAGS and text in ("true", "false"):
        return text == "true"
    if key in _NUMBERS and text.isascii() and text.isdigit():
        return int(text)
    return text


def _word_problem(model: type[_Model], option: str, fault: Any) -> Problem:
    key = str(fault["loc"][0]) if fault["loc"] else ""
    match fault["type"]:
        case "extra_forbidden":
            message, hint = f"unknown key `{key}`", did_you_mean(key, model.model_fields)
        case "missing":
            message, hint = f"`{key}` is missing", f"add {option} {key}=..."
        case "literal_error":
            message, hint = f"unknown {key} `{fault['input']}`", f"known: {fault['ctx']['expected']}"
        case _:
            message, hint = f"`{key}`: {fault['msg']}", ""
    return Problem(option, 1, "", message, hint)
