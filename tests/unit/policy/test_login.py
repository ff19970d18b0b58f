# SPDX-License-Identifier: Apache-2.0
"""`who.db_user` and `what.database`: what a client names to PostgreSQL, as rules meet it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.cases import subject_from
from policy.context import GuardContext, GuardInfo
from policy.decide import decide
from policy.document import load_policy
from policy.explain import explain
from policy.login import ANY_LOGIN, CANCEL_METHOD, UNREAD, Login, recorded_login, with_login
from policy.model import Verdict
from policy.operation import Operation
from policy.problem import PolicyError
from tests.unit.policy.tables import CONTEXT, ENGINES, GUARDS, NOW, failures, load, policy, what

APP = """
  - {id: app, who: {user: rag}, what: {guard: pg, database: [app, "app_*"], action: session}, allow: true}
  - {id: not-as-owner, who: {db_user: owner}, what: {guard: pg}, deny: "not as the owner"}
  - {id: secret, what: {guard: pg, database: secret}, unless: {who: {db_user: dba}}, deny: "secret"}
"""
SESSION = what("guard=pg engine=pgvector action=session")
CANCEL = what(f"guard=pg engine=pgvector action=session method={CANCEL_METHOD}")


def judged(rules: str, login: Login | None, asked: Operation = SESSION, user: str = "rag") -> Verdict:
    return decide(policy(rules), with_login(subject_from({"user": user}), login), asked, {}, NOW)


@pytest.mark.parametrize(
    ("login", "outcome", "rule"),
    [
        (Login("rag_ro", "app"), "allow", "app"),
        (Login("rag_ro", "app_7"), "allow", "app"),
        (Login("rag_ro", "App"), "deny", None),
        (Login("rag_ro", "postgres"), "deny", None),
        (Login("owner", "app"), "deny", "not-as-owner"),
        (Login("rag_ro", "secret"), "deny", "secret"),
        (UNREAD, "deny", "not-as-owner"),
        (None, "deny", None),
    ],
)
def test_a_rule_meets_the_user_and_the_database_that_the_client_named(
    login: Login | None, outcome: str, rule: str | None
) -> None:
    found = judged(APP, login)
    assert (found.outcome, found.rule) == (outcome, rule)


def test_what_is_not_known_yet_makes_a_deny_apply_and_an_allow_not() -> None:
    deny = '  - {id: a, what: {guard: pg}, allow: true}\n  - {id: d, what: {database: x}, deny: "no"}'
    assert judged(deny, UNREAD).rule == "d"
    assert judged(deny, Login("u", "y")).rule == "a"
    assert judged(deny, None).rule == "a", "where there is no such thing, no deny on it applies"
    allow = "  - {id: a, who: {db_user: u}, what: {guard: pg, database: y}, allow: true}"
    assert [judged(allow, one).outcome for one in (UNREAD, Login("u", "y"), Login("v", "y"))] == [
        "deny", "allow", "deny",
    ]  # fmt: skip


def test_a_refusal_says_that_the_database_is_another() -> None:
    found = judged(APP, Login("rag_ro", "postgres"))
    assert found.message == "no rule allows it; closest: app, failed what.database"
    assert found.nearest is not None
    assert (found.nearest.wanted, found.nearest.got) == ("app, app_*", "postgres")


@pytest.mark.parametrize(
    ("rules", "user", "outcome"),
    [
        (APP, "rag", "allow"),
        (APP, "eve", "deny"),
        (APP + '  - {id: no, who: {user: rag}, what: {action: session}, deny: "no"}', "rag", "deny"),
        (
            APP + '  - {id: only, what: {guard: pg}, unless: {what: {database: app}}, deny: "app only"}',
            "rag", "allow",
        ),
        (
            APP + '  - {id: no, what: {guard: pg}, unless: {who: {user: x}, what: {database: app}}, deny: n}',
            "rag", "deny",
        ),
        (
            "  - {id: a, what: {guard: pg}, unless: {what: {database: secret}}, allow: true}", "rag", "allow",
        ),
    ],
)  # fmt: skip
def test_a_cancel_is_judged_by_all_but_what_its_session_had_named(
    rules: str, user: str, outcome: str
) -> None:
    found = judged(rules, UNREAD, CANCEL, user)
    assert found.outcome == outcome
    assert found.policy == policy(rules).hash
    traced = explain(policy(rules), with_login(subject_from({"user": user}), UNREAD), CANCEL, NOW)
    assert traced.verdict == found


def test_a_session_keeps_its_rights_while_nothing_is_known_of_its_login() -> None:
    only = "  - {id: a, what: {guard: pg, database: app}, allow: true}"
    rules, caller = policy(only), subject_from({"user": "rag"})
    assert rules.for_any_login().bind(with_login(caller, UNREAD), "pg").has_rights(NOW)
    assert rules.bind(with_login(caller, Login("u", "app")), "pg").has_rights(NOW)
    assert not rules.bind(with_login(caller, Login("u", "other")), "pg").has_rights(NOW)


def test_a_tunnel_is_not_given_past_a_deny_on_a_database() -> None:
    own = with_login(replace(subject_from({"user": "rag"}), is_self=True), UNREAD)
    tunnel = "  - {id: t, who: {self: true}, what: {guard: pg}, tunnel: true}"
    deny = '\n  - {id: d, what: {guard: pg, database: secret}, deny: "no"}'
    assert policy(tunnel).bind(own, "pg").tunnel("pgvector", NOW) is not None
    assert policy(tunnel + deny).bind(own, "pg").tunnel("pgvector", NOW) is None


def problems(rules: str, context: GuardContext = CONTEXT) -> list[str]:
    with pytest.raises(PolicyError) as found:
        load_policy([("p.yaml", "version: 1\nrules:\n" + rules)], context)
    return [problem.message for problem in found.value.problems]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            "{id: a, what: {guard: q, database: app}, allow: true}",
            "this rule can never match: a client of qdrant names no `database`",
        ),
        (
            "{id: a, who: {user: u, db_user: x}, what: {engine: [qdrant, chroma]}, allow: true}",
            "this rule can never match: a client of chroma, qdrant names no `db_user`",
        ),
        (
            '{id: a, what: {guard: c}, unless: {what: {database: app}}, deny: "no"}',
            "this exception can never apply: a client of chroma names no `database`",
        ),
        (
            "{id: a, who: {self: true}, what: {guard: pg, database: app}, tunnel: true}",
            "a tunnel is unread bytes, no `database` can be told in it",
        ),
        (
            "{id: a, who: {self: true, db_user: app}, what: {guard: pg}, tunnel: true}",
            "a tunnel is unread bytes, no `db_user` can be told in it",
        ),
        (
            '{id: a, what: {guard: pg, database: app}, unless: {what: {database: [app, b]}}, deny: "no"}',
            "this rule can never match: its exception covers all of it",
        ),
    ],
)
def test_what_can_never_match_is_an_error(rule: str, said: str) -> None:
    assert problems(f"  - {rule}") == [said]


def test_a_rule_for_every_guard_may_name_what_one_of_them_has() -> None:
    assert load("  - {id: a, what: {database: app}, allow: true}").warnings == ()


@pytest.mark.parametrize(("auth", "warned"), [("identity", True), ("password", False), ("relay", False)])
def test_a_rule_that_rests_on_the_clients_word_alone_is_warned_about(auth: str, warned: bool) -> None:
    guards = (GuardInfo("pg", "pgvector", auth=auth), *(one for one in GUARDS if one.name != "pg"))
    text = "version: 1\nrules:\n  - {id: a, who: {db_user: app}, what: {guard: pg}, allow: true}"
    found = load_policy([("p.yaml", text)], GuardContext(guards, NOW)).warnings
    assert [("own word on pg" in one.message) for one in found] == [True] * warned


def test_cases_name_them() -> None:
    text = f"version: 1\nrules:{APP}tests:\n" + "".join(
        f"  - {{name: n, who: {{user: rag, db_user: {user}}}, what: {{guard: pg, action: session"
        f"{database}}}, expect: {expect}}}\n"
        for user, database, expect in (
            ("ro", ", database: app", "allow"), ("ro", ", database: other", "deny"), ("ro", "", "deny"),
            ("owner", ", database: app", "deny"),
        )
    )  # fmt: skip
    assert ENGINES["pg"] == "pgvector"
    assert failures(text) == []


def test_what_was_recorded_is_judged_by_what_was_known() -> None:
    head = {"user": "ro", "database": "app", "upstream-user": "held"}
    assert recorded_login("pgvector", head) == Login("ro", "app")
    assert recorded_login("pgvector", {"process": "7"}) == UNREAD
    assert recorded_login("qdrant", head) is None
    assert ANY_LOGIN not in (UNREAD, None)
