# SPDX-License-Identifier: Apache-2.0
"""What a policy file is refused for, and how its author is told."""

from __future__ import annotations

import pytest

from policy.context import GuardContext
from policy.document import load_policy
from policy.problem import PolicyError, Problem
from policy.schema import ActionName, PiiKind, WhoModel
from tests.unit.policy.tables import CONTEXT, NOW, failures, load


def problems(text: str, context: GuardContext = CONTEXT) -> tuple[Problem, ...]:
    with pytest.raises(PolicyError) as caught:
        load_policy([("p.yaml", text)], context)
    return caught.value.problems


HEAD = "version: 1\nrules:\n"
# (rules, line, part of the message, part of the hint)
REFUSED = [
    ("  - {id: a, allow: true}\n  - {id: a, deny: x}", 4, "two rules have the id `a`", "p.yaml:3"),
    ("  - id: a\n    alow: true", 4, "unknown key `alow`", "did you mean allow?"),
    ("  - id: a\n    allow: true\n    who: {exec: /bin/x}", 5, "unknown key `exec`", "exe"),
    ("  - id: a\n    allow: true\n    what: {action: serach}", 5, "unknown action `serach`", "search"),
    ("  - id: a\n    allow: true\n    what: {action: Search}", 5, "unknown action `Search`", "search"),
    ("  - id: a\n    allow: true\n    what: {action: '*'}", 5, "unknown action `*`", "known"),
    ("  - id: a\n    allow: true\n    allow: true", 5, "`allow` is given twice", "line 4"),
    ("  - id: a\n    allow: true\n    approve: {by: {group: dba}}", 5, "does not enforce `approve` yet", ""),
    ("  - id: a\n    allow: true\n    rate: {queries: 600/min}", 5, "does not enforce `rate` yet", ""),
    ("  - id: a\n    allow: true\n    rate:", 5, "does not enforce `rate` yet", ""),
    ("  - id: a\n    allow: true\n    what: {guard: qq}", 5, "no guard is named `qq`", "q"),
    ("  - id: a\n    allow: true\n    what: {engine: qdrent}", 5, "no guard has the engine", "qdrant"),
    ("  - id: a\n    allow: true\n    what: {guard: q, engine: chroma}", 5, "can never match: no guard", ""),
    ("  - id: a\n    allow: true\n    who: {remote: 10.0.0.0/8, uid: 0}", 5, "can never match", "two rules"),
    ("  - id: a\n    allow: true\n    who: {remote: 10.0.0.1/8}", 5, "host bits", ""),
    ("  - id: a\n    allow: true\n    who: {unit: []}", 5, "`unit` is empty", "leave the key out"),
    ("  - id: a\n    allow: true\n    who: {}", 5, "`who` is empty", "leave it out"),
    ("  - id: a\n    allow: true\n    who:", 5, "`who` is empty", "leave it out"),
    ("  - id: a\n    allow: true\n    who: {user: 1000}", 5, "should be a valid string", "quotes"),
    ("  - id: a\n    allow: true\n    who: {uid: root}", 5, "should be a valid integer", ""),
    ("  - id: a\n    allow: true\n    who: {uid: true}", 5, "should be a valid integer", ""),
    ("  - id: a\n    allow: true\n    who: {exe: python3}", 5, "a path starts with /", ""),
    ("  - id: a\n    allow: true\n    who: {exe: /srv/a**/x}", 5, "whole segments", ""),
    ("  - id: a\n    allow: true\n    who: {exe: 'foreign:/x'}", 5, "a path starts with /", ""),
    ("  - id: a\n    allow: true\n    who: {exe_sha256: abc}", 5, "64 hex digits", ""),
    ("  - id: a\n    allow: true\n    who: {login_session: false}", 5, "only `true`", ""),
    ("  - id: a\n    allow: false", 4, "only `true`", ""),
    ("  - id: a\n    allow: true\n    vectors: true", 5, "only `false`", ""),
    ("  - id: a\n    who: {user: u}", 3, "does nothing", "allow"),
    ("  - id: a\n    allow: true\n    deny: x", 5, "cannot both permit and deny", ""),
    ("  - id: a\n    deny: x\n    vectors: false", 4, "cannot be restricted", ""),
    ("  - id: a\n    allow: true\n    limit: {over: clamp}", 5, "names no limit", ""),
    ("  - id: a\n    allow: true\n    limit: {rows: 5, over: clamp}", 5, "only top_k can be cut", ""),
    ("  - id: a\n    allow: true\n    limit: {top_k: 0}", 5, "greater than or equal to 1", ""),
    ("  - id: a\n    allow: true\n    filter: {}", 5, "`filter` is empty", ""),
    ("  - id: a\n    allow: true\n    filter: {tenant: [x]}", 5, "one text, number", ""),
    ("  - id: a\n    allow: true\n    mask: [{field: payload.a, scores: 2}]", 5, "exactly one of", ""),
    ("  - id: a\n    allow: true\n    mask: [{field: paylod.a}]", 5, "no answer of", "payload"),
    ("  - {id: a, vectors: false, what: {guard: pg}, mask: [{field: payload.a}]}", 3, "no answer", ""),
    ("  - id: a\n    allow: true\n    mask: [{pii: emial}]", 5, "unknown value of `pii`", "email"),
    ("  - id: a\n    allow: true\n    mask: [{pii: email, as: drop}]", 5, "cannot be `drop`", "redact"),
    ("  - id: a\n    allow: true\n    until: 2027-01-31", 5, "enforces already", "mode: shadow"),
    ("  - id: a\n    tunnel: true", 4, "database's own traffic", "self: true"),
    ("  - id: a\n    who: {remote: 10.9.9.9}\n    tunnel: true", 4, "is not a peer", "peers"),
    ("  - id: a\n    who: {self: true}\n    what: {action: scan}\n    tunnel: true", 5, "unread bytes", ""),
    ("  - id: a\n    who: {user: u}\n    deny: x\n    unless: {who: {user: [u, v]}}", 6, "never match", ""),
    ("  - {id: a, who: {user: u}, deny: x, unless: {who: {remote: 10.0.0.9}}}", 3, "never apply", ""),
    ("  - id: a\n    what: {action: unknown}\n    allow: true", 4, "unknown is never allowed", ""),
    ("  - id: 'a b'\n    allow: true", 3, "an id is", ""),
    ("  - allow: true", 3, "`id` is missing", ""),
    ("  - id: a\n    allow: !!python/name:os.system x", 4, "the tag", ""),
    ("  - [a]", 3, "is a mapping", ""),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "line", "message", "hint"), REFUSED, ids=[row[2] for row in REFUSED])
def test_a_faulty_rule_is_refused_at_its_line(rules: str, line: int, message: str, hint: str) -> None:
    found = problems(HEAD + rules)
    matching = [problem for problem in found if message in problem.message]
    assert matching, list(map(str, found))
    assert (matching[0].file, matching[0].line) == ("p.yaml", line)
    assert hint in matching[0].hint
    assert matching[0].text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: []", "version: 1"),
        ("version: 2\nrules: []", "version: 1"),
        ("version: 1\nrulez: []", "unknown key `rulez`"),
        ("version: 1\nrules: [", "not YAML"),
        ("version: 1\n---\nversion: 1", "not YAML"),
        ("%YAML 1.1\n---\nversion: 1", "directives"),
        ("- a", "holds `version`"),
        ("version: 1\nrules: {a: b}", "is a list"),
        ("version: 1\n1: x", "must be plain text"),
        ("version: 1\nrules:\n  - &a [*a]", "not YAML"),
        ("\0", "not YAML"),
        ("a: " + "[" * 300, "not YAML"),
        ("#" * (1024 * 1024 + 1), "longer than"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(text: str, message: str) -> None:
    assert message in problems(text)[0].message


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    bomb = "version: 1\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "more than" in problems(bomb)[0].message


def test_all_problems_of_all_files_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(
            [
                ("a.yaml", HEAD + "  - {id: a, alow: true}"),
                ("b.yaml", HEAD + "  - {id: b, rate: {rows: 1/h}}"),
            ],
            CONTEXT,
        )
    assert [problem.file for problem in caught.value.problems] == ["a.yaml", "b.yaml"]


def test_files_are_one_policy_whatever_their_order() -> None:
    one, two = ("a.yaml", HEAD + "  - {id: a, allow: true}"), ("b.yaml", HEAD + "  - {id: b, deny: x}")
    assert load_policy([one, two], CONTEXT) == load_policy([two, one], CONTEXT)


# (rules, part of the warning)
WARNED = [
    ("  - {id: a, who: {comm: curl}, allow: true}", "rests on nothing attested"),
    ("  - {id: a, deny: x, unless: {who: {argv: '*--ok*'}}}", "so can the exception"),
    ("  - {id: a, deny: x, mode: shadow, until: 2027-01-20}", "enforces in 4 days"),
    ("  - {id: a, deny: x, mode: warn, until: 2027-01-01}", "`until` has passed"),
    (
        "  - {id: a, who: {user: u}, allow: true, limit: {top_k: 5}}\n  - {id: b, allow: true}",
        "`a` and `b` overlap with different limits",
    ),
    (
        (
            "  - {id: a, what: {collection: 'k*1'}, allow: true, limit: {top_k: 5}}\n"
            "  - {id: b, what: {collection: 'kb*'}, allow: true}"
        ),
        "overlap",
    ),
    ("  - {id: a, who: {self: true}, tunnel: true}\n  - {id: b, vectors: false}", "tunnel `a`"),
    ("  - {id: a, allow: true, fields: [payload.title]}", "without their root"),
]


@pytest.mark.parametrize(("rules", "warning"), WARNED, ids=[row[1] for row in WARNED])
def test_a_rule_that_may_surprise_is_warned_about(rules: str, warning: str) -> None:
    assert any(warning in problem.message for problem in load(rules).warnings)


@pytest.mark.parametrize(
    "rules",
    [
        "  - {id: a, deny: x, mode: shadow, until: 2027-03-01}",
        (
            "  - {id: a, what: {collection: k1}, allow: true, limit: {top_k: 5}}\n"
            "  - {id: b, what: {collection: 'x*'}, allow: true}"
        ),
        (
            "  - {id: a, who: {user: u}, allow: true, limit: {top_k: 5}}\n"
            "  - {id: b, who: {unit: x}, allow: true}"
        ),
    ],
)
def test_an_ordinary_rule_is_not_warned_about(rules: str) -> None:
    assert load(rules).warnings == ()


def test_without_a_configuration_guards_are_not_checked() -> None:
    text = HEAD + "  - {id: a, what: {guard: anything}, allow: true}"
    assert load_policy([("p", text)], GuardContext(None, NOW)).rules


def test_a_failing_case_says_what_it_got_and_where_it_stands() -> None:
    text = (
        HEAD
        + "  - {id: a, who: {user: u}, allow: true}\ntests:\n"
        + "  - {name: bob reads, who: {user: bob}, what: {guard: q, action: read}, expect: allow}\n"
        + "  - {name: u reads, who: {user: u}, what: {guard: q, action: read}, expect: allow, rule: a}\n"
    )
    [failure] = failures(text)
    assert "p.yaml:5: case `bob reads`: expected allow, got deny" in failure
    assert "closest: a, failed who.user" in failure


def test_a_case_that_waits_for_approval_is_refused_with_the_reason() -> None:
    text = "version: 1\ntests:\n  - {name: x, who: {user: u}, what: {guard: q, action: read}, expect: hold}\n"
    assert "does not enforce `approve`" in problems(text)[0].message


def test_the_schema_and_the_vocabulary_name_the_same_things() -> None:
    from typing import get_args

    from policy.model import Action
    from policy.recognise import KINDS
    from policy.rules import WHO_KEYS

    assert set(get_args(ActionName)) == {action.value for action in Action}
    assert set(get_args(PiiKind)) == set(KINDS)
    assert set(WhoModel.model_fields) == set(WHO_KEYS)
