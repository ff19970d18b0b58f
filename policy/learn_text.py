# SPDX-License-Identifier: Apache-2.0
"""Proposed rules as a policy file, and as JSON.

Owns the layout. Bias: names and programs were chosen by strangers: each is one line, quoted where YAML could
read it as anything else, and no argument of a command line is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from policy.learn import MAX_TOLD, Learnt, Left, Process, Proposal
from policy.learn_names import is_writable, plain
from policy.model import Scalar, Subject
from policy.rules import Rule

_PLAIN = re.compile(r"[A-Za-z/_][A-Za-z0-9_./@-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})
SHOWN = 5
MAX_CASE = 64  # collections of a case
WIDTH = 110


def stamp(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"


def yaml_text(learnt: Learnt, head: Sequence[str]) -> str:
    """A policy file; `head` are lines for its first comment."""
    lines = [f"# {plain(line)}" for line in head]
    for left in learnt.left:
        lines += _left_lines(left)
    lines += ["version: 1", f"rules:{'' if learnt.proposals else ' []'}"]
    for one in learnt.proposals:
        lines += ["", *(f"  # {line}" for line in seen_lines(one))]
        lines += [f"  {line}" for line in rule_lines(one.rule)]
    cases = [case for one in learnt.proposals if (case := _case(one)) is not None]
    if cases:
        lines += ["", "tests:"]
        lines += [line for case in cases for line in case]
    return "\n".join(lines) + "\n"


def as_json(learnt: Learnt) -> dict[str, Any]:
    return {
        "rules": [{**rule_mapping(one.rule), "seen": _seen(one)} for one in learnt.proposals],
        "left": [
            {
                "guard": one.guard, "who": one.who, "what": one.what, "count": one.count, "why": one.why,
                "rule": None if one.rule is None else rule_mapping(one.rule),
            }
            for one in learnt.left
        ],
    }  # fmt: skip


def rule_mapping(rule: Rule) -> dict[str, Any]:
    """The rule as the language writes it."""
    made: dict[str, Any] = {"id": rule.id} if rule.id else {}
    if rule.who:
        made["who"] = {c.key: _one(c.values) for c in rule.who}
    what = {
        key: _one(values)
        for key, values in (
            ("guard", rule.what.guard),
            ("database", rule.what.database),
            ("collection", rule.what.collection),
            ("action", rule.what.action),
        )
        if values is not None
    }
    made["what"] = what
    made |= {"allow": True} if rule.allow else {"tunnel": True}
    if rule.limits:
        made["limit"] = {limit.name: limit.value for limit in rule.limits}
    if not rule.vectors:
        made["vectors"] = False
    return made


def rule_lines(rule: Rule) -> list[str]:
    lines = []
    for key, value in rule_mapping(rule).items():
        text = _flow(value)
        if key == "what" and len(text) > WIDTH:
            lines.append("what:")
            lines += [f"  {name}: {_flow(part)}" for name, part in value.items()]
        else:
            lines.append(f"{key}: {text}")
    return [f"{'- ' if at == 0 else '  '}{line}" for at, line in enumerate(lines)]


def _one(values: Sequence[Scalar]) -> Any:
    return [str(v) if isinstance(v, str) else v for v in values] if len(values) > 1 else _scalar(values[0])


def _scalar(value: Scalar) -> Scalar:
    return str(value) if isinstance(value, str) else value


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        fits = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if fits else json.dumps(value, ensure_ascii=False)
    return str(value)


# -- what it was made of ----------------------------------------------------------------------------


def _counts(one: Proposal) -> dict[str, int]:
    found: dict[str, int] = {}
    for use in one.uses:
        key = "+".join(sorted(use.operation.actions)) if one.rule.allow else f"unread {use.operation.method}"
        found[key] = found.get(key, 0) + use.count
    return dict(sorted(found.items()))


def _processes(one: Proposal) -> list[Process]:
    return sorted({process for use in one.uses for process in use.processes})


def seen_lines(one: Proposal) -> Iterator[str]:
    uses = one.uses
    if uses:
        total, sessions = sum(u.count for u in uses), _sessions(one)
        first, last = min(u.first for u in uses), max(u.last for u in uses)
        counts = ", ".join(f"{count} {name}" for name, count in _counts(one).items())
        yield f"seen {total} {_times(total)} ({counts}) in {_many(sessions, 'session')},"
        yield f"from {stamp(first)} to {stamp(last)}"
        processes = _processes(one)
        shown = ", ".join(f"{pid} {plain(program)}" for pid, _, program in processes[:SHOWN])
        more = f" and {len(processes) - SHOWN} more" if len(processes) > SHOWN else ""
        if processes:
            yield f"by {_many(len(processes), 'process', 'es')}: {shown}{more}"
    for note in one.notes:
        yield f"note: {plain(note)}"


def _times(number: int) -> str:
    return "time" if number == 1 else "times"


def _sessions(one: Proposal) -> int:
    return len({session for use in one.uses for session in use.sessions})


def _many(number: int, noun: str, plural: str = "s") -> str:
    """Sessions and processes are told apart up to a bound."""
    return f"{number}{'+' if number >= MAX_TOLD else ''} {noun}{'' if number == 1 else plural}"


def _seen(one: Proposal) -> dict[str, Any]:
    uses, processes = one.uses, _processes(one)
    return {
        "count": sum(u.count for u in uses),
        "actions": _counts(one),
        "sessions": _sessions(one),
        "first": stamp(min(u.first for u in uses)) if uses else None,
        "last": stamp(max(u.last for u in uses)) if uses else None,
        "processes": len(processes),
        "top_k": max((u.operation.top_k for u in uses if u.operation.top_k is not None), default=None),
        "vectors": any(u.operation.vectors for u in uses),
        "some": [{"pid": pid, "program": program} for pid, _, program in processes[:SHOWN]],
        "notes": list(one.notes),
    }


def _left_lines(one: Left) -> Iterator[str]:
    what = f", {plain(one.what)}" if one.what else ""
    often = f"{one.count} {_times(one.count)}"
    yield f"# not proposed: guard {plain(one.guard)}, {plain(one.who)}{what}, {often}:"
    yield f"#   {plain(one.why)}"
    if one.rule is not None:
        yield from (f"#   {line}" for line in rule_lines(one.rule))


# -- cases ------------------------------------------------------------------------------------------


def _case(one: Proposal) -> list[str] | None:
    """A case of what was seen most; None where the language cannot say it."""
    allowed = one.uses if one.rule.allow else ()
    if not allowed:
        return None
    use = max(
        allowed, key=lambda use: (use.count, sorted(use.operation.actions), sorted(use.operation.collections))
    )
    operation = use.operation
    what: dict[str, Any] = {"guard": operation.guard, "action": sorted(map(str, operation.actions))}
    if use.subject.database is not None:
        what["database"] = use.subject.database
    if operation.collections:
        what["collection"] = sorted(operation.collections)
    if operation.top_k is not None:
        what["top_k"] = operation.top_k
    for key in ("unbounded", "vectors"):
        if getattr(operation, key):
            what[key] = True
    who = _case_who(use.subject)
    texts = [v for v in who.values() if isinstance(v, str)] + list(operation.collections)
    texts += [what["database"]] if "database" in what else []
    if len(operation.collections) > MAX_CASE or not all(t.isprintable() and is_writable(t) for t in texts):
        return None
    name = f"{one.rule.id}: {', '.join(sorted(operation.actions))}"
    lines = [f"name: {json.dumps(name)}", f"who: {_flow(who)}", f"what: {_flow(what)}", "expect: allow"]
    return [f"  {'- ' if at == 0 else '  '}{line}" for at, line in enumerate(lines)]


def _case_who(subject: Subject) -> dict[str, Any]:
    who: dict[str, Any] = {}
    for key in ("unit", "user", "uid", "login_user", "exe", "image", "container", "tls_subject"):
        value = getattr(subject, key)
        if value is not None:
            who[key] = value
    if subject.is_self:
        who["self"] = True
    if subject.remote is not None:
        who["remote"] = subject.remote.partition("%")[0]
    if subject.unobtained:
        who["unobtained"] = sorted(subject.unobtained)
    return who
