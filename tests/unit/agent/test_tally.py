# SPDX-License-Identifier: Apache-2.0
"""The sums at the end of a session."""

from __future__ import annotations

from agent.protocols.session import Abort, Intent, Masked, Opaque
from agent.tally import Tally
from policy.model import Verdict
from tests.unit.agent.side import OPERATION, intent, result


def test_what_was_asked_and_what_came_back_is_summed_up() -> None:
    tally = Tally()
    would = Verdict("allow", "r", None, "", "hash", would="deny")
    for record in (
        intent(1), result(1, rows=3),
        intent(2, outcome="deny"), result(2),
        intent(3), result(3, rows=2, masks=(Masked("vectors", "cut", 2), Masked("pii:email", "redact", 1))),
        intent(4, outcome="tunnel"), Abort(4, "client-gone"),
        Intent(5, OPERATION, would, {}, None, b"", 0), result(5),
        Opaque("tls is not read", "tls"),
    ):  # fmt: skip
        tally.note(record)
    assert tally.open == 0
    assert tally.summary("closed", "http1", 10, 20) == {
        "reason": "closed", "requests": 5, "allowed": 4, "denied": 1, "held": 0, "masked": 1, "would": 1,
        "rows": 5, "bytes_in": 10, "bytes_out": 20, "opaque": "tls is not read", "protocol": "http1",
    }  # fmt: skip


def test_an_exchange_is_open_from_its_intent_to_its_end() -> None:
    tally = Tally()
    tally.note(intent(1))
    assert tally.open == 1
    tally.note(result(1))
    assert tally.open == 0
