# SPDX-License-Identifier: Apache-2.0
"""Rules out of observations: what was seen is allowed and nothing else, and a name is only text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.cases import run_cases
from policy.compile import Policy
from policy.context import GuardContext, GuardInfo
from policy.decide import decide
from policy.document import Document, load_policy
from policy.learn import Learnt, Observations, cover, learn
from policy.learn_text import as_json, yaml_text
from policy.login import Login, with_login
from policy.model import ANY_COLLECTION, Action, Attribution, Subject
from policy.operation import Operation
from policy.rules import UNATTESTED

A = Action
GUARD = "docs"
RAG = Subject(
    Attribution.KERNEL, pid=41, uid=990, user="rag", unit="rag.service", exe="/srv/rag/bin/app", comm="app",
    argv=("app", "--token", "hunter2"), cwd="/tmp", script="/tmp/x.py", user_unit="evil.service",
)  # fmt: skip
ADA = Subject(Attribution.KERNEL, uid=1000, user="ada", unit="session-3.scope", exe="/usr/bin/python3.11")
SELF = replace(RAG, unit="chroma.service", is_self=True)
REMOTE = Subject(Attribution.REMOTE, remote="10.0.0.7")


def asked(*actions: Action, on: Iterable[str] = ("papers",), **more: object) -> Operation:
    return Operation("chroma", GUARD, "POST /x", frozenset(actions), frozenset(on), **more)  # type: ignore[arg-type]


def seen(*pairs: tuple[Subject, Operation]) -> Observations:
    made = Observations()
    for n, (subject, operation) in enumerate(pairs):
        made.add(subject, operation, 10**18 + n, f"s{n // 2}", (subject.pid or 1, 1, "app"))
    return made


def loaded(learnt: Learnt, context: GuardContext | None = None) -> Document:
    text = yaml_text(learnt, ["made by a test"])
    return load_policy([("learned.yaml", text)], context or GuardContext(None, 0.0))


def verdict(document: Document, subject: Subject, operation: Operation) -> str:
    return decide(Policy(document.rules), subject, operation, {}, 0.0).outcome


def rules(learnt: Learnt) -> list[dict[str, object]]:
    return [{k: v for k, v in rule.items() if k not in ("id", "seen")} for rule in as_json(learnt)["rules"]]


def test_a_service_is_named_by_unit_user_and_executable_and_held_to_what_it_did() -> None:
    pairs = [(RAG, asked(A.SEARCH, top_k=k)) for k in (3, 5, 4)] + [(RAG, asked(A.SESSION, on=()))]
    assert rules(learn(seen(*pairs), {})) == [
        {
            "who": {"unit": "rag.service", "user": "rag", "exe": "/srv/rag/bin/app"},
            "what": {"guard": "docs", "action": "session"},
            "allow": True,
        },
        {
            "who": {"unit": "rag.service", "user": "rag", "exe": "/srv/rag/bin/app"},
            "what": {"guard": "docs", "collection": "papers", "action": "search"},
            "allow": True,
            "limit": {"top_k": 5},
            "vectors": False,
        },
    ]


def test_a_scope_of_a_login_and_a_transient_unit_are_no_name_of_a_caller() -> None:
    for unit in ("session-3.scope", "run-u12.service", "run-r0a1b.service", "user@1000.service"):
        found = rules(learn(seen((replace(ADA, unit=unit), asked(A.READ))), {}))
        assert found[0]["who"] == {"user": "ada", "exe": "/usr/bin/python3.11"}


def test_the_person_behind_sudo_is_named() -> None:
    root = Subject(Attribution.KERNEL, uid=0, user="root", login_user="ada", exe="/usr/bin/psql")
    assert rules(learn(seen((root, asked(A.READ))), {}))[0]["who"] == {
        "user": "root",
        "login_user": "ada",
        "exe": "/usr/bin/psql",
    }


def test_a_container_is_named_by_its_image_and_uid() -> None:
    boxed = Subject(Attribution.KERNEL, uid=100, container="c0ffee", image="rag:2", exe="foreign:/bin/app")
    assert rules(learn(seen((boxed, asked(A.READ))), {}))[0]["who"] == {"image": "rag:2", "uid": 100}


def test_an_executable_of_another_place_is_not_named_and_said() -> None:
    odd = replace(RAG, exe="foreign:/srv/rag/bin/app")
    (one,) = learn(seen((odd, asked(A.READ))), {}).proposals
    assert [c.key for c in one.rule.who] == ["unit", "user"]
    assert "any program of that service fits" in one.notes[0]


@pytest.mark.parametrize("attribution", [Attribution.UNATTRIBUTED, Attribution.PRE_EXISTING])
def test_who_is_not_known_gets_no_rule(attribution: Attribution) -> None:
    found = learn(seen((replace(RAG, attribution=attribution), asked(A.READ))), {})
    assert found.proposals == ()
    assert "did not say" in found.left[0].why


def test_nothing_attested_is_no_rule() -> None:
    claims = Subject(Attribution.KERNEL, comm="rag", argv=("rag",), cwd="/srv", script="/x", user_unit="r")
    found = learn(seen((claims, asked(A.READ))), {})
    assert (found.proposals, found.left[0].why) == ((), "nothing attested names it")


def test_unknown_is_never_allowed() -> None:
    found = learn(seen((RAG, asked(A.UNKNOWN)), (RAG, asked(A.SEARCH, A.UNKNOWN))), {})
    assert found.proposals == ()
    assert all("never allowed by a rule" in one.why for one in found.left)


def test_what_a_rule_refused_is_told_and_not_proposed() -> None:
    made = seen((RAG, asked(A.SEARCH)))
    for _ in range(3):
        made.add_refused(asked(A.SCAN), ADA, "rule no-scan would refuse it")
    found = learn(made, {})
    assert [one.rule.what.action for one in found.proposals] == [("search",)]
    assert [(one.count, one.why) for one in found.left] == [(3, "rule no-scan would refuse it")]


def test_what_the_database_says_to_itself_unread_becomes_a_tunnel_and_replaces_its_other_rules() -> None:
    made = seen((SELF, asked(A.SESSION)))
    made.add_unread(GUARD, "qdrant", SELF, "http2", 10**18, "s9")
    assert rules(learn(made, {})) == [{"who": {"self": True}, "what": {"guard": "docs"}, "tunnel": True}]
    assert verdict(loaded(learn(made, {})), SELF, asked(A.SESSION)) == "tunnel"


def test_what_the_database_says_to_itself_readably_is_allowed_and_not_tunnelled() -> None:
    found = rules(learn(seen((SELF, asked(A.COUNT))), {}))
    assert [(r["who"], "tunnel" in r) for r in found] == [({"self": True}, False)]


@pytest.mark.parametrize(("peers", "tunnel"), [(["10.0.0.0/24"], True), (["10.1.0.0/24", "fd00::/8"], False)])
def test_only_a_listed_peer_gets_a_tunnel(peers: list[str], tunnel: bool) -> None:
    made = Observations()
    made.add_unread(GUARD, "qdrant", REMOTE, "http2", 10**18, "s1")
    found = learn(made, {GUARD: peers})
    context = GuardContext((GuardInfo(GUARD, "qdrant", None, tuple(peers)),), 0.0)
    document = loaded(found, context)
    assert [rule.tunnel for rule in document.rules] == ([True] if tunnel else [])
    assert tunnel or "list it under `peers:`" in found.left[0].why


def test_a_caller_of_another_host_is_named_by_address_and_certificate() -> None:
    known = replace(REMOTE, remote="::ffff:10.0.0.7", tls_subject="CN=etl*")
    (rule,) = rules(learn(seen((known, asked(A.WRITE))), {}))
    assert rule["who"] == {"remote": "10.0.0.7/32", "tls_subject": "CN=etl?"}


def test_collections_used_differently_are_not_mixed_into_one_rule() -> None:
    found = learn(seen((RAG, asked(A.SEARCH, on=["a"])), (RAG, asked(A.SCAN, on=["b"]))), {})
    document = loaded(found)
    assert verdict(document, RAG, asked(A.SEARCH, on=["a"])) == "allow"
    assert verdict(document, RAG, asked(A.SCAN, on=["a"])) == "deny"
    assert verdict(document, RAG, asked(A.SEARCH, on=["b"])) == "deny"


def test_a_request_on_all_collections_does_not_open_them_for_other_actions() -> None:
    document = loaded(learn(seen((RAG, asked(A.SCHEMA, on=["*"])), (RAG, asked(A.SEARCH, on=["a"]))), {}))
    assert verdict(document, RAG, asked(A.SCHEMA, on=["new"])) == "allow"  # "all" holds it
    assert verdict(document, RAG, asked(A.SEARCH, on=["b"])) == "deny"


def test_rows_on_no_collection_are_not_opened_everywhere() -> None:
    found = learn(seen((RAG, asked(A.SCAN, on=()))), {})
    assert found.proposals == ()
    assert found.left[0].rule is not None
    assert "every collection" in found.left[0].why
    assert "#   - id: learned-rag-everywhere" in yaml_text(found, [])


def test_a_limit_holds_for_everyone_that_the_rule_reaches() -> None:
    """ada's program was not obtained once: the rule that names it may be about her then too."""
    unclear = replace(ADA, exe=None, unobtained=frozenset({"exe"}))
    found = learn(seen((ADA, asked(A.SEARCH, top_k=3)), (unclear, asked(A.SEARCH, top_k=50))), {})
    document = loaded(found)
    assert verdict(document, unclear, asked(A.SEARCH, top_k=50)) == "allow"
    assert found.left == ()


def test_what_names_no_limit_and_embeddings_that_were_asked_for_stay() -> None:
    (one,) = learn(
        seen((RAG, asked(A.SEARCH, unbounded=True, vectors=True)), (RAG, asked(A.SEARCH, top_k=3))), {}
    ).proposals
    assert (one.rule.limits, one.rule.vectors) == ((), True)
    assert one.notes == ("no top_k: some requests name no limit", "raw embeddings were asked for")


def test_a_guard_that_is_not_configured_any_more_gets_no_rule() -> None:
    found = learn(seen((RAG, asked(A.SEARCH))), {}, ["other"])
    assert (found.proposals, found.left[0].why) == ((), "no guard of the configuration has this name")


def test_the_file_says_how_often_and_by_which_processes_and_shows_no_argument() -> None:
    text = yaml_text(
        learn(seen((RAG, asked(A.SEARCH)), (RAG, asked(A.SEARCH)), (RAG, asked(A.SEARCH))), {}), []
    )
    assert "# seen 3 times (3 search) in 2 sessions," in text
    assert "# by 1 process: 41 app" in text
    assert "hunter2" not in text


HOSTILE = (
    'x\n  - id: evil\n    allow: true', "*", "a*", "?", "#", '"', "'", "{a: b}", "yes", "1", "- x", "\x1b[2J",
    "\u2028", "\u202e", "a: b", "!!python", "&a", "%TAG", "null", "é", "x" * 1024, "x" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_a_stranger_chose_is_only_a_name(name: str) -> None:
    """It adds no rule, matches nothing but itself (and what differs in an odd character), moves no cursor."""
    odd = replace(RAG, exe="/srv/" + name, unit=None)
    found = learn(seen((odd, asked(A.SEARCH, on=[name])), (RAG, asked(A.SEARCH, on=["plain"]))), {})
    text = yaml_text(found, [])
    assert all(c.isprintable() for c in text.replace("\n", ""))
    document = loaded(found)
    assert len(document.rules) == len(found.proposals)
    assert not any(rule.id == "evil" for rule in document.rules)
    assert verdict(document, RAG, asked(A.SEARCH, on=["completely other"])) == "deny"
    if name != ANY_COLLECTION and len(name) <= 1000:
        assert verdict(document, odd, asked(A.SEARCH, on=[name])) == "allow"


OPS = st.builds(
    lambda actions, on, k, vectors, wide: asked(*actions, on=on, top_k=k, vectors=vectors, unbounded=wide),
    st.sets(st.sampled_from([a for a in Action if a is not A.UNKNOWN]), min_size=1, max_size=3),
    st.sets(st.sampled_from(["a", "b", "c", "kb_?", ANY_COLLECTION]), max_size=3),
    st.one_of(st.none(), st.integers(0, 50)), st.booleans(), st.booleans(),
)  # fmt: skip
CALLERS = st.sampled_from(
    [RAG, ADA, replace(ADA, exe=None, unobtained=frozenset({"exe"})), SELF, REMOTE, replace(RAG, user="x")]
)


@given(st.lists(st.tuples(CALLERS, OPS), max_size=12), st.randoms())
def test_what_was_seen_is_allowed_and_the_order_it_was_seen_in_does_not_matter(
    pairs: list[tuple[Subject, Operation]], random: object
) -> None:
    found = learn(seen(*pairs), {})
    document = loaded(found)
    assert not [warning for warning in document.warnings if "rests on nothing attested" in str(warning)]
    for rule in document.rules:
        assert {c.key for c in rule.who} - UNATTESTED
        assert "unknown" not in (rule.what.action or ())
    for subject, operation in pairs:
        wide = not operation.collections and not operation.actions <= {A.SESSION, A.COUNT, A.SCHEMA, A.ADMIN}
        assert wide or verdict(document, subject, operation) == "allow"
    assert all(result.passed for result in run_cases(Policy(document.rules), document.cases, {}, 0.0))
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rules(learn(seen(*shuffled), {})) == rules(found)


@given(st.lists(OPS, min_size=1, max_size=10))
def test_no_pair_of_action_and_collection_is_allowed_that_was_not_seen(operations: list[Operation]) -> None:
    free = {
        a
        for o in operations
        if not o.collections and o.actions <= {A.SESSION, A.COUNT, A.SCHEMA, A.ADMIN}
        for a in o.actions
    }
    pairs = {(a, c) for o in operations for a, c in itertools.product(o.actions, o.collections)}
    everywhere = {a for a, c in pairs if c == ANY_COLLECTION}
    document = loaded(learn(seen(*((RAG, o) for o in operations)), {}))
    for action, name in itertools.product(
        [a for a in Action if a is not A.UNKNOWN], ["a", "b", "c", "other"]
    ):
        expected = action in free or action in everywhere or (action, name) in pairs
        assert (verdict(document, RAG, asked(action, on=[name])) == "allow") == expected
    assert cover(operations) == cover(list(reversed(operations)))


def test_what_observe_calls_a_scan_of_a_postgresql_may_be_a_read_in_enforce() -> None:
    """There the catalog says which columns are the key. Elsewhere a scan is a scan."""
    for engine, allowed in (("pgvector", "allow"), ("chroma", "deny")):
        operation = replace_engine(asked(A.SCAN), engine)
        document = loaded(learn(seen((RAG, operation)), {}))
        assert verdict(document, RAG, replace_engine(asked(A.READ, top_k=1), engine)) == allowed
        assert verdict(document, RAG, replace_engine(asked(A.READ, on=["b"]), engine)) == "deny"


def test_who_asked_a_postgresql_may_open_a_session_though_observe_recorded_none() -> None:
    for engine, allowed in (("pgvector", "allow"), ("chroma", "deny")):
        learnt = learn(seen((RAG, replace_engine(asked(A.SEARCH), engine))), {})
        opens = replace_engine(asked(A.SESSION, on=[]), engine)
        assert verdict(loaded(learnt), RAG, opens) == allowed
        assert learnt.left == ()


def replace_engine(operation: Operation, engine: str) -> Operation:
    return operation.changed(engine=engine)


def test_a_database_that_clients_name_is_in_the_rule_and_its_case() -> None:
    def at(database: str, *actions: Action, on: Iterable[str] = ()) -> tuple[Subject, Operation]:
        operation = Operation("pgvector", "pg", "SELECT", frozenset(actions), frozenset(on))
        return with_login(RAG, Login("rag", database)), operation

    pairs = [at("app", A.SESSION), at("app", A.SEARCH, on=["docs"]), at("hr", A.SESSION)]
    found = learn(seen(*pairs), {})
    assert [rule["what"] for rule in rules(found)] == [
        {"guard": "pg", "database": "app", "action": "session"},
        {"guard": "pg", "database": "app", "collection": "docs", "action": "search"},
        {"guard": "pg", "database": "hr", "action": "session"},
    ]
    context = GuardContext((GuardInfo("pg", "pgvector"),), 0.0)
    document = loaded(found, context)
    assert all(verdict(document, *pair) == "allow" for pair in pairs)
    assert verdict(document, *at("hr", A.SEARCH, on=["docs"])) == "deny"
    results = run_cases(Policy(document.rules), document.cases, {"pg": "pgvector"}, 0.0)
    assert [result.passed for result in results] == [True] * 3
