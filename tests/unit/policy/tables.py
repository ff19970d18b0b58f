# SPDX-License-Identifier: Apache-2.0
"""Rules and callers for policy tests: text in, verdicts out."""

from __future__ import annotations

from policy.cases import operation_from, run_cases, subject_from
from policy.compile import Policy, decode_rules, encode_rules
from policy.context import GuardContext, GuardInfo
from policy.decide import decide
from policy.document import Document, load_policy
from policy.model import Subject, Verdict
from policy.operation import Operation

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
GUARDS = (
    GuardInfo("q", "qdrant", frozenset({"payload", "id", "score"}), ("10.0.0.7/32",)),
    GuardInfo("pg", "pgvector", frozenset({"row"})),
    GuardInfo("c", "chroma", frozenset({"metadata", "document"})),
)
ENGINES = {guard.name: guard.engine for guard in GUARDS}
CONTEXT = GuardContext(GUARDS, NOW)


def load(rules: str) -> Document:
    """A document out of the text of its rules (without the head)."""
    return load_policy([("p.yaml", "version: 1\nrules:\n" + rules)], CONTEXT)


def policy(rules: str) -> Policy:
    """Compiled as a worker does it: from the bytes that the agent sends."""
    return Policy(decode_rules(encode_rules(load(rules).rules)))


def words(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split())


def who(text: str) -> Subject:
    return subject_from(words(text))


def what(text: str) -> Operation:
    given = {"guard": "q", "engine": "qdrant", **words(text)}
    return operation_from(given)[0]


def verdict(rules: str, caller: str, asked: str, now: float = NOW) -> Verdict:
    return decide(policy(rules), who(caller), what(asked), {}, now)


def failures(text: str) -> list[str]:
    """What fails of the cases of a whole policy file."""
    document = load_policy([("p.yaml", text)], CONTEXT)
    results = run_cases(Policy(document.rules), document.cases, ENGINES, NOW)
    return [str(result.problem) for result in results if not result.passed]
