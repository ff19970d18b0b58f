# SPDX-License-Identifier: Apache-2.0
"""The identity card: all that is known of the caller, and no credential."""

from __future__ import annotations

from dataclasses import fields

import msgspec

from agent.card import session_card
from policy.model import Attribution, Parent, Subject
from tests.unit.agent.side import guard

CALLER = Subject(
    Attribution.KERNEL, pid=7, uid=1000, user="ann", exe="/usr/bin/app", argv=("app", "--x"), unit=None,
    parents=(Parent(1, "/sbin/init"),), login_tty="pts/1", null_reason={"unit": "no unit"},
)  # fmt: skip


def card(subject: Subject = CALLER) -> dict[str, object]:
    held = guard(credential=(("api-key", "s3cr3t"),))
    return session_card("s1", "h", "b", held, subject, ("10.0.0.1", 5), ("10.0.0.2", 6333), "hash")


def test_the_card_says_who_connected_and_why_a_field_is_null() -> None:
    made = card()
    assert (made["session"], made["guard"], made["mode"], made["policy"]) == ("s1", "q", "enforce", "hash")
    assert (made["attribution"], made["user"], made["exe"], made["unit"]) == (
        "kernel",
        "ann",
        "/usr/bin/app",
        None,
    )
    assert made["null_reason"] == {"unit": "no unit"}
    assert made["parents"] == [{"pid": 1, "exe": "/sbin/init"}]
    assert (made["client_addr"], made["server_port"]) == ("10.0.0.1", 6333)


def test_nothing_known_of_a_subject_is_left_out() -> None:
    renamed = {"login_tty", "login_peer"}  # in `login_from`
    later = {"db_user", "database"}  # named once the session stands, in the head of each exchange
    missing = {field.name for field in fields(Subject)} - set(card()) - renamed - later
    assert missing == set()
    assert card()["login_from"] == {"tty": "pts/1", "peer": None}


def test_no_credential_is_in_it_and_it_is_what_evidence_can_hold() -> None:
    packed = msgspec.msgpack.encode(card())
    assert b"s3cr3t" not in packed
    assert msgspec.msgpack.decode(packed)["pid"] == 7
