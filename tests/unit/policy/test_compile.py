# SPDX-License-Identifier: Apache-2.0
"""Properties of decisions over generated rules, callers and operations; and the reference they meet."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.compile import Bound, Policy, decode_rules, encode_rules
from policy.decide import decide, observed
from policy.explain import explain
from policy.login import CANCEL_METHOD, for_any_login
from policy.match import Truth, compile_condition
from policy.model import Action, Attribution, Subject, Verdict
from policy.operation import Operation
from policy.rules import Condition, LimitSpec, MaskSpec, Rule, Unless, What
from tests.unit.policy.tables import NOW, policy, verdict, what, who

QUICK = settings(max_examples=15, deadline=None)

CONDITIONS = st.one_of(
    st.builds(
        Condition,
        st.sampled_from(["user", "unit", "group"]),
        st.sampled_from([("a",), ("a", "b"), ("a*",), ("*b?",)]),
    ),
    st.just(Condition("uid", (1, 2))),
    st.just(Condition("exe", ("/a/*",))),
    st.just(Condition("login_session", (True,))),
    st.just(Condition("remote", ("10.0.0.0/8",))),
    st.just(Condition("db_user", ("a", "b*"))),
)
WHOS = st.lists(CONDITIONS, max_size=2, unique_by=lambda condition: condition.key).map(tuple)
WHATS = st.builds(
    What,
    guard=st.sampled_from([None, ("q",), ("x*",)]),
    engine=st.sampled_from([None, None, ("qdrant",), ("other",)]),
    collection=st.sampled_from([None, ("c",), ("c*",), ("*",), ("*1", "d")]),
    action=st.sampled_from([None, ("search",), ("read", "search"), ("write",), ("unknown",)]),
    database=st.sampled_from([None, None, ("a",), ("a*", "b")]),
)
UNLESS = st.one_of(st.none(), st.builds(Unless, WHOS, st.one_of(st.none(), WHATS)))
LIMITS = st.lists(
    st.builds(
        LimitSpec,
        st.sampled_from(["top_k", "offset", "queries"]),
        st.integers(1, 4),
        st.sampled_from(["deny", "clamp"]),
    ).map(lambda spec: spec if spec.name == "top_k" else replace(spec, over="deny")),
    max_size=2,
).map(tuple)
MASKS = st.lists(
    st.one_of(
        st.builds(MaskSpec, field=st.just("payload.a"), how=st.sampled_from(["redact", "hmac", "drop"])),
        st.builds(MaskSpec, scores=st.integers(1, 3)),
    ),
    max_size=2,
).map(tuple)


@st.composite
def restrictions(draw: st.DrawFn) -> Rule:
    return Rule(
        id="restriction",
        where="p:1",
        who=draw(WHOS),
        what=draw(WHATS),
        unless=draw(UNLESS),
        limits=draw(LIMITS),
        vectors=draw(st.booleans()),
        fields=draw(st.sampled_from([None, ("a",), ("a.b", "c"), ()])),
        filter=draw(st.sampled_from([(), (("tenant", "x"),), (("tenant", 1),)])),
        masks=draw(MASKS),
    )


@st.composite
def rules(draw: st.DrawFn) -> list[Rule]:
    found = []
    for at in range(draw(st.integers(0, 5))):
        rule = replace(
            draw(restrictions()), id=f"r{at}", mode=draw(st.sampled_from(["enforce", "enforce", "shadow"]))
        )
        match draw(st.sampled_from(["allow", "allow", "deny", "restrict"])):
            case "allow":
                rule = replace(rule, allow=True)
            case "deny":
                rule = Rule(rule.id, "p:2", rule.who, rule.what, rule.unless, deny="no", mode=rule.mode)
        found.append(rule)
    return found


SUBJECTS = st.builds(
    Subject,
    attribution=st.sampled_from([Attribution.KERNEL, Attribution.KERNEL, Attribution.UNATTRIBUTED]),
    uid=st.sampled_from([None, 1, 3]),
    user=st.sampled_from([None, "a", "b", "ab1"]),
    unit=st.sampled_from([None, "a", "ab"]),
    groups=st.sampled_from([None, ("a", "z"), ("z",)]),
    exe=st.sampled_from([None, "/a/x", "/a/x/y", "foreign:/a/x"]),
    login_session=st.booleans(),
    remote=st.sampled_from([None, None, "10.1.2.3", "::ffff:10.1.2.3", "11.1.2.3", "no address"]),
    db_user=st.sampled_from([None, "a", "b1"]),
    database=st.sampled_from([None, "a", "ab", "c"]),
    unobtained=st.frozensets(
        st.sampled_from(["user", "exe", "groups", "uid", "unit", "database", "db_user"]), max_size=3
    ),
)
OPERATIONS = st.builds(
    Operation,
    engine=st.sampled_from(["qdrant", "other"]),
    guard=st.just("q"),
    method=st.just("m"),
    actions=st.frozensets(
        st.sampled_from([Action.SEARCH, Action.READ, Action.WRITE, Action.UNKNOWN]), max_size=2
    ),
    collections=st.frozensets(st.sampled_from(["c", "c1", "d", "*", "C"]), max_size=2),
    top_k=st.sampled_from([None, 1, 3, 9]),
    unbounded=st.booleans(),
    offset=st.sampled_from([None, 0, 9]),
    vectors=st.booleans(),
    probed=st.frozensets(st.sampled_from(["a", "a.b", "c", "payload.a", "*"]), max_size=1),
    thresholds=st.booleans(),
    carries_filter=st.booleans(),
    queries=st.integers(0, 5),
    partial=st.booleans(),
)


def judged(some: list[Rule], subject: Subject, operation: Operation) -> Verdict:
    return decide(Policy(some), subject, operation, {}, NOW)


@QUICK
@given(rules(), SUBJECTS, OPERATIONS, st.randoms(use_true_random=False))
def test_the_order_of_rules_never_matters(some: list[Rule], who_: Subject, asked: Operation, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(some)
    random.shuffle(shuffled)
    assert judged(some, who_, asked) == judged(shuffled, who_, asked)


@QUICK
@given(rules(), SUBJECTS, OPERATIONS, WHOS, WHATS, UNLESS)
def test_one_more_deny_never_allows_more(
    some: list[Rule],
    who_: Subject,
    asked: Operation,
    whos: tuple[Condition, ...],
    whats: What,
    unless: Unless | None,
) -> None:
    more = [*some, Rule("z", "p:9", whos, whats, unless, deny="no")]
    if judged(some, who_, asked).outcome == "deny":
        assert judged(more, who_, asked).outcome == "deny"


@QUICK
@given(rules(), SUBJECTS, OPERATIONS, restrictions())
def test_one_more_restriction_never_loosens(
    some: list[Rule], who_: Subject, asked: Operation, extra: Rule
) -> None:
    before, after = judged(some, who_, asked), judged([*some, extra], who_, asked)
    if before.outcome == "deny" or after.outcome == "deny":
        assert after.outcome == "deny"
        return
    for limit in before.limits:
        assert any(other.name == limit.name and other.value <= limit.value for other in after.limits)
    assert before.vectors or not after.vectors
    assert set(before.filters) <= set(after.filters)
    assert {mask.field for mask in before.masks} <= {mask.field for mask in after.masks}
    if before.fields is not None:
        assert after.fields is not None
        assert all(
            any((field + ".").startswith(old + ".") for old in before.fields) for field in after.fields
        )
    if before.clamps:
        assert after.clamps
        assert after.clamps[0].value <= before.clamps[0].value


@QUICK
@given(
    rules(),
    SUBJECTS,
    OPERATIONS,
    st.sampled_from([None, "a", "b", "ab1", "z"]),
    st.sampled_from([None, "/a/x", "/b"]),
)
def test_what_is_allowed_without_knowing_is_allowed_whatever_it_turns_out_to_be(
    some: list[Rule], who_: Subject, asked: Operation, user: str | None, exe: str | None
) -> None:
    unknown = replace(who_, user=None, exe=None, unobtained=who_.unobtained | {"user", "exe"})
    known = replace(who_, user=user, exe=exe, unobtained=who_.unobtained - {"user", "exe"})
    guessed = judged(some, unknown, asked)
    if guessed.outcome == "allow":
        told = judged(some, known, asked)
        assert told.outcome == "allow"
        assert told.vectors or not guessed.vectors
        assert set(told.filters) <= set(guessed.filters)


@QUICK
@given(rules(), SUBJECTS, OPERATIONS)
def test_a_cancel_is_allowed_where_some_login_is_and_what_names_none_is_judged_the_same(
    some: list[Rule], who_: Subject, asked: Operation
) -> None:
    cancel = asked.changed(method=CANCEL_METHOD)
    if judged(some, who_, asked).outcome == "allow":
        assert judged(some, who_, cancel).outcome == "allow"
    plain = [rule for rule in some if rule == for_any_login(rule)]
    assert judged(plain, who_, asked) == judged(plain, who_, cancel)


@QUICK
@given(rules(), SUBJECTS, OPERATIONS)
def test_bit_sets_say_what_judging_rule_by_rule_says(
    some: list[Rule], who_: Subject, asked: Operation
) -> None:
    explained = explain(Policy(some), who_, asked, NOW)
    counted = [step for step in explained.steps if step.mode == "enforce"]
    denied = sorted(step.rule for step in counted if step.effects[:1] == ("deny: no",))
    allowed = sorted(step.rule for step in counted if "allow" in step.effects)
    if denied:
        assert (explained.verdict.outcome, explained.verdict.rule) == ("deny", denied[0])
    elif not allowed:
        assert explained.verdict.outcome == "deny"
        assert explained.verdict.rule is None
    elif explained.verdict.outcome == "allow":
        assert explained.verdict.rule == allowed[0]
    limits = {f"limit {one.name} {one.value} ({one.over})" for one in explained.verdict.limits}
    if explained.verdict.outcome == "allow":
        effects = {effect for step in counted for effect in step.effects}
        assert limits <= effects
        assert ("no vectors" in effects) is (not explained.verdict.vectors)
        assert any(effect.startswith("only fields") for effect in effects) is (
            explained.verdict.fields is not None
        )
        assert {f"filter {k} = {v!r}" for k, v in explained.verdict.filters} == {
            effect for effect in effects if effect.startswith("filter ")
        }


@QUICK
@given(CONDITIONS, SUBJECTS)
def test_the_index_of_who_says_what_the_condition_says(condition: Condition, who_: Subject) -> None:
    from policy.index import WhoIndex

    surely, maybe, _ = WhoIndex([(condition,)]).evaluate(who_)
    truth = compile_condition(condition)(who_)
    assert (surely, maybe & 1) == {Truth.YES: (1, 1), Truth.ERROR: (0, 1), Truth.NO: (0, 0)}[truth]


@QUICK
@given(rules(), SUBJECTS, OPERATIONS)
def test_observing_refuses_and_changes_nothing(some: list[Rule], who_: Subject, asked: Operation) -> None:
    enforced = judged(some, who_, asked)
    seen = observed(enforced, asked)
    assert seen.outcome == "allow"
    assert not seen.touches_answer
    assert not seen.clamps
    assert (seen.would == "deny") is (enforced.outcome == "deny")


@QUICK
@given(rules(), SUBJECTS, OPERATIONS)
def test_what_needs_the_body_is_never_let_through_without_it(
    some: list[Rule], who_: Subject, asked: Operation
) -> None:
    bound = Policy(some).bind(who_, "q")
    head = asked.changed(partial=True)
    verdict = bound.decide(head, NOW)
    if verdict.outcome == "allow" and (verdict.limits or verdict.filters or not verdict.vectors):
        raise AssertionError("allowed unread")
    if not bound.reads_body(head):
        assert verdict == bound.decide(asked.changed(partial=False), NOW)


@QUICK
@given(rules())
def test_rules_reach_a_worker_as_they_were(some: list[Rule]) -> None:
    assert list(decode_rules(encode_rules(some))) == some


def test_the_hash_is_of_the_meaning_not_of_the_place() -> None:
    one = Rule("a", "x:1", allow=True)
    two = Rule("b", "x:9", deny="no")
    assert Policy([one, two]).hash == Policy([two, replace(one, where="y:7")]).hash
    assert Policy([one]).hash != Policy([replace(one, vectors=False)]).hash


def test_a_session_of_one_guard_judges_nothing_of_another() -> None:
    bound = policy("  - {id: a, what: {guard: q}, allow: true}").bind(who("user=u"), "q")
    assert bound.decide(what("guard=q action=search"), NOW).outcome == "allow"
    assert bound.decide(what("guard=pg action=search"), NOW).outcome == "deny"


def test_a_flood_of_collection_names_is_forgotten_not_kept() -> None:
    bound = policy("  - {id: a, what: {collection: 'c*'}, allow: true}").bind(who("user=u"), "q")
    for at in range(2000):
        assert bound.decide(what(f"action=search collection=c{at}"), NOW).outcome == "allow"
    assert len(bound._kinds) <= 256


def test_an_exception_inside_is_a_denial() -> None:
    bound = Bound(policy("  - {id: a, what: {collection: 'c*'}, allow: true}"), who("user=u"), "q")
    asked = what("action=search collection=c")
    assert bound.decide(asked, NOW).outcome == "allow"
    broken = asked.changed(collections=frozenset({5}))  # what no engine makes
    assert bound.decide(broken, NOW).outcome == "deny"


SHADOW = """
  - {id: a, allow: true}
  - {id: s, what: {action: scan}, deny: "no bulk", mode: shadow, until: 2027-01-31}
"""
UNTIL = 1_801_353_600.0  # 2027-01-31T00:00:00Z


def test_a_shadow_rule_is_counted_and_enforces_from_its_day_on_in_an_open_session() -> None:
    bound = policy(SHADOW).bind(who("user=u"), "q")
    scan = what("action=scan")
    before = bound.decide(scan, UNTIL - 1)
    assert (before.outcome, before.hits[0].rule, before.hits[0].would) == ("allow", "s", "deny")
    after = bound.decide(scan, UNTIL)
    assert (after.outcome, after.rule, after.hits) == ("deny", "s", ())


def test_a_caller_of_another_host_needs_a_rule_that_names_remote() -> None:
    open_rule = "  - {id: a, allow: true}\n"
    assert verdict(open_rule, "remote=10.0.0.9", "action=search").outcome == "deny"
    named = open_rule + "  - {id: b, who: {remote: 10.0.0.0/8}, allow: true}\n"
    assert verdict(named, "remote=10.0.0.9", "action=search").rule == "b"
    assert verdict(named, "remote=::ffff:10.0.0.9", "action=search").rule == "b"
    assert verdict(named, "remote=11.0.0.9", "action=search").outcome == "deny"


def test_who_cannot_be_named_is_allowed_nothing() -> None:
    rule = "  - {id: a, allow: true}\n"
    assert verdict(rule, "attribution=unattributed", "action=search").outcome == "deny"


def test_a_deny_applies_when_its_condition_could_not_be_obtained_and_an_allow_does_not() -> None:
    rules_ = """
  - {id: a, what: {action: search}, allow: true}
  - {id: b, who: {exe: /usr/bin/curl}, what: {action: search}, deny: "no curl"}
  - {id: c, who: {exe: /usr/bin/dump}, what: {action: scan}, allow: true}
"""
    assert verdict(rules_, "user=u exe=/bin/x", "action=search").outcome == "allow"
    assert verdict(rules_, "user=u unobtained=exe", "action=search").rule == "b"
    assert verdict(rules_, "user=u unobtained=exe", "action=scan").outcome == "deny"


def test_an_exception_that_could_not_be_evaluated_does_not_lift_a_deny() -> None:
    rules_ = """
  - {id: a, allow: true}
  - {id: b, unless: {who: {unit: backup.service}}, deny: "backup only"}
"""
    assert verdict(rules_, "unit=backup.service", "action=scan").outcome == "allow"
    assert verdict(rules_, "unobtained=unit", "action=scan").rule == "b"


TUNNEL = """
  - {id: own, who: {self: true}, what: {guard: q}, tunnel: true}
"""


def test_a_tunnel_is_for_the_database_itself_and_not_where_anything_restricts_it() -> None:
    bound = policy(TUNNEL).bind(who("self=true"), "q")
    passed = bound.tunnel("qdrant", NOW)
    assert passed is not None
    assert (passed.outcome, passed.rule) == ("tunnel", "own")
    assert policy(TUNNEL).bind(who("user=u"), "q").tunnel("qdrant", NOW) is None
    masked = TUNNEL + "  - {id: m, what: {collection: x}, vectors: false}\n"
    assert policy(masked).bind(who("self=true"), "q").tunnel("qdrant", NOW) is None
    denied = TUNNEL + "  - {id: d, what: {action: snapshot}, deny: 'no'}\n"
    assert policy(denied).bind(who("self=true"), "q").tunnel("qdrant", NOW) is None


def test_an_explanation_names_every_rule_and_where_each_limit_came_from() -> None:
    rules_ = """
  - {id: a, who: {user: u}, what: {guard: q}, allow: true, limit: {top_k: 20, over: clamp}}
  - {id: b, who: {group: staff}, what: {action: search}, limit: {top_k: 5, over: clamp}}
  - {id: c, what: {action: scan}, deny: "no"}
"""
    explained = explain(policy(rules_), who("user=u group=staff"), what("action=search top_k=9"), NOW)
    text = "\n".join(explained.lines())
    assert "limit: top_k 5 (clamp) from b" in text
    assert "cut: top_k to 5 by b" in text
    assert "failed what.action: wants scan, got search" in text
    assert explained.as_dict()["verdict"] == "allow"


def test_the_nearest_miss_is_named_with_its_first_failing_condition() -> None:
    rules_ = """
  - {id: a, who: {user: u, unit: x.service}, what: {collection: c}, allow: true}
  - {id: b, who: {user: u}, what: {collection: d, action: read}, allow: true}
"""
    found = verdict(rules_, "user=u", "action=search collection=c")
    assert found.nearest is not None
    assert (found.nearest.rule, found.nearest.condition) == ("a", "who.unit")
    assert found.message == "no rule allows it; closest: a, failed who.unit"


def test_only_rules_that_ask_for_the_hash_make_identity_hash() -> None:
    rules_ = f"  - {{id: a, who: {{exe_sha256: {'a' * 64}}}, what: {{guard: q}}, allow: true}}\n"
    assert "exe_sha256" in policy(rules_).subject_keys("q")
    assert "exe_sha256" not in policy(rules_).subject_keys("pg")
