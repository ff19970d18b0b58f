# SPDX-License-Identifier: Apache-2.0
"""What one connection knows: when it asks, what it believes, what it remembers, and what it doubts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest

from agent.engines import sql_catalog_queries as queries
from agent.engines.pgvector import PgvectorConversation, PgvectorEngine
from agent.engines.pgvector_catalogs import BELIEVED, MAX_CACHED, MAX_CACHED_BYTES, Cache, weight
from agent.protocols.http import Refusal
from agent.protocols.sql import Fault, Reading, Rows, Where
from agent.protocols.sql_made import Parameter
from policy.model import Action, Verdict
from tests.unit.engines.sql_recorded import recording

ALLOW = Verdict("allow", "r", None, "", "p")
HIDING = Verdict("allow", "r", None, "", "p", vectors=False, vectors_rule="v")
SEARCH = "SELECT id FROM documents ORDER BY embedding <=> $1 LIMIT $2"


class Place:
    """An engine with a clock, and a database that answers what is wanted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.fingerprint = "1"
        self.path = ["pg_catalog", "public"]
        self.settings = ("on", "UTF8")
        self.asked: list[str] = []
        self.takes = 0.0  # seconds of an answer
        self.engine = PgvectorEngine("pg", hmac_key=b"k" * 32, clock=lambda: self.now)

    def converse(self, database: str = "corpus") -> PgvectorConversation:
        return self.engine.converse("pg", Where("rag", database))

    def session(self) -> list[Rows]:
        path = "[" + ",".join(f'"{one}"' for one in self.path) + "]"
        return [[[path, "rag", *self.settings, None, "180004", ",".join(self.path)]], [], []]

    def learn(self, conversation: PgvectorConversation) -> list[str]:
        """What was asked, until nothing is wanted."""
        asked: list[str] = []
        while (text := conversation.wants) is not None and len(asked) < 8:
            results: list[Rows] = self.session()
            self.now += self.takes
            name = {queries.SESSION_TEXT: "session", queries.CHECK_TEXT: "check"}.get(text, "whole")
            if name != "session":
                results.append([[self.fingerprint]])
            if name == "whole":
                results += recording()["whole"]
            conversation.learn(results)
            asked.append(name)
        return asked

    def ask(self, conversation: PgvectorConversation) -> bool:
        return conversation.wants is not None

    def run(
        self,
        conversation: PgvectorConversation,
        text: str,
        status: Literal["I", "T", "E"] = "I",
        verdict: Verdict = ALLOW,
        fails: bool = False,
    ) -> Reading:
        self.learn(conversation)
        reading = conversation.read(text)
        conversation.rewrite(reading, conversation.operation(reading, None), verdict)
        for index, method in enumerate(reading.methods):
            conversation.settle(reading, index, None if fails else method)
        conversation.ended(status)
        return reading


def unknown(conversation: PgvectorConversation, text: str) -> bool:
    return Action.UNKNOWN in conversation.operation(conversation.read(text), None).actions


# When it asks.


def test_the_catalog_is_asked_for_once_by_all_connections_to_a_database() -> None:
    place = Place()
    assert place.learn(place.converse()) == ["whole"]
    assert place.learn(place.converse()) == ["check"]
    assert place.learn(place.converse("other")) == ["whole"]
    first, second = place.converse(), place.converse()
    place.learn(first), place.learn(second)
    assert first.read(SEARCH) is second.read(SEARCH)


def test_after_a_while_one_connection_asks_whether_the_catalog_still_stands() -> None:
    place = Place()
    first, second = place.converse(), place.converse()
    place.learn(first), place.learn(second)
    place.now += BELIEVED + 1
    assert place.learn(first) == ["check"]
    assert place.learn(second) == []
    place.now += BELIEVED + 1
    place.fingerprint = "2"
    assert place.learn(second) == ["check", "whole"]
    assert place.learn(first) == ["session"]


@pytest.mark.parametrize(("takes", "believed"), [(0.001, 2.0), (0.15, 15.0), (5.0, BELIEVED)])
def test_a_catalog_is_asked_after_as_often_as_that_costs_little(takes: float, believed: float) -> None:
    place = Place()
    first, second = place.converse(), place.converse()
    place.learn(first)
    place.takes = takes
    assert place.learn(second) == ["check"]
    place.now += believed - 0.1
    assert place.learn(first) == []
    place.now += 0.2
    assert place.learn(first) == ["check"]


def test_a_name_that_is_not_known_is_asked_after_at_any_time_but_in_a_failed_transaction() -> None:
    place = Place()
    conversation = place.converse()
    place.learn(conversation)
    fault = conversation.read("SELECT 1 FROM alembic_version").fault
    assert fault == Fault("42P01", 'relation "alembic_version" does not exist')
    conversation.ended("T")
    assert conversation.wants is None
    assert conversation.doubt_names()
    assert place.learn(conversation) == ["check"]
    assert conversation.doubt_names()
    place.fingerprint = "2"
    assert place.learn(conversation) == ["check", "whole"]
    conversation.ended("E")
    assert not conversation.doubt_names()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SELECT nothing FROM documents", "42703"),
        ("SELECT d.nothing FROM documents d", "42703"),
        ("SELECT x.id FROM documents", "42P01"),
        ("SELEC 1", "42601"),
        ("SELECT id FROM documents; SELECT * FROM nothing", "42P01"),
        ("CREATE TABLE x (id int); SELECT * FROM x", None),
        ("SELECT no_such_function(id) FROM documents", None),
        ("SELECT * FROM pg_temp_3.other", None),
        ("SELECT * FROM other.public.documents", None),
        ("SELECT d.pg_size_pretty FROM documents d", None),
        ("SELECT id FROM documents", None),
    ],
)
def test_a_text_has_a_fault_where_the_database_would_surely_say_the_same(text: str, code: str | None) -> None:
    place = Place()
    conversation = place.converse()
    place.learn(conversation)
    reading = conversation.read(text)
    assert (None if reading.fault is None else reading.fault.sqlstate) == code
    assert reading.fault is None or unknown(conversation, text)


def test_nothing_is_asked_in_the_middle_of_a_pipeline_or_of_a_transaction_that_may_still_be_set_up() -> None:
    place = Place()
    conversation = place.converse()
    place.learn(conversation)
    place.now += BELIEVED + 1
    conversation.read(SEARCH)
    assert conversation.wants is None  # begun: until the next ReadyForQuery
    conversation.ended("T")
    assert conversation.wants is None  # SET TRANSACTION may come next
    place.run(conversation, SEARCH, "T")
    assert place.learn(conversation) == ["check"]
    conversation.ended("E")
    place.now += BELIEVED + 1
    assert conversation.wants is None  # in a failed transaction it would fail


def test_a_transaction_that_waited_asks_before_its_first_query() -> None:
    place = Place()
    conversation = place.converse()
    place.run(conversation, "BEGIN", "T")
    search = conversation.read(SEARCH)
    assert not conversation.doubt_late(search)  # nothing is due
    place.now += BELIEVED + 1
    for first in ("SET TRANSACTION READ ONLY", "SHOW search_path", "LOCK TABLE documents", "ROLLBACK"):
        assert not conversation.doubt_late(conversation.read(first))
    assert conversation.doubt_late(conversation.read("SET TRANSACTION READ ONLY; SELECT 1"))
    assert place.learn(conversation) == ["check"]
    assert not conversation.doubt_late(search)
    place.fingerprint = "2"
    assert place.learn(place.converse()) == ["check", "whole"]  # another's, of this moment
    assert conversation.doubt_late(search)
    assert place.learn(conversation) == ["check"]
    place.run(conversation, SEARCH, "T")
    place.now += BELIEVED + 1
    assert not conversation.doubt_late(search)  # `wants` asks again
    assert place.learn(conversation) == ["check"]


def test_a_definition_makes_the_catalog_stale_for_everybody() -> None:
    place = Place()
    first, second = place.converse(), place.converse()
    place.learn(first), place.learn(second)
    place.run(first, "CREATE TABLE t (id int)")
    place.fingerprint = "2"
    assert place.learn(second) == ["check", "whole"]


def test_a_catalog_that_a_transaction_saw_is_not_shared() -> None:
    place = Place()
    first, second = place.converse(), place.converse()
    place.learn(first), place.learn(second)
    shared = place.engine.catalogs.find("corpus")
    place.run(first, "BEGIN", "T")
    place.run(first, "ALTER TABLE documents RENAME TO papers", "T")
    assert place.learn(first) == ["whole"]
    assert place.engine.catalogs.find("corpus") is shared
    place.run(first, "ROLLBACK")
    assert place.learn(first) == ["check"]


def test_a_path_that_was_set_is_learnt_before_the_next_text() -> None:
    place = Place()
    conversation = place.converse()
    place.run(conversation, "SET search_path TO app")
    place.path = ["pg_catalog", "app"]
    assert place.learn(conversation) == ["session"]
    assert unknown(conversation, SEARCH)
    assert not unknown(conversation, "SELECT token FROM secrets LIMIT 1")
    conversation.status("search_path", "public")  # as the server tells it, whoever set it
    place.path = ["pg_catalog", "public"]
    conversation.ended("I")
    assert place.learn(conversation) == ["session"]
    assert not unknown(conversation, SEARCH)


def test_the_end_of_a_transaction_that_set_a_path_asks_again() -> None:
    place = Place()
    conversation = place.converse()
    place.run(conversation, "BEGIN", "T")
    place.run(conversation, "SET LOCAL search_path TO app", "T")
    assert place.learn(conversation) == ["session"]
    place.run(conversation, "COMMIT")
    assert place.learn(conversation) == ["session"]
    place.run(conversation, "BEGIN", "T")
    place.run(conversation, "COMMIT")
    assert place.learn(conversation) == []


@pytest.mark.parametrize("results", [None, [], [[["x"]]], [[["[", "", "on", "UTF8", None, "x", ""]], [], []]])
def test_where_the_database_does_not_answer_nothing_is_known(results: Sequence[Rows] | None) -> None:
    place = Place()
    conversation = place.converse()
    assert place.ask(conversation)
    conversation.learn(results)
    assert not place.ask(conversation)  # not again at once
    assert unknown(conversation, "SELECT 1")
    place.now += 6
    conversation.ended("I")
    assert place.learn(conversation) == ["whole"]
    assert not unknown(conversation, SEARCH)


def test_without_being_asked_it_reads_names_as_they_are_written() -> None:
    conversation = Place().converse()  # as in observe: nothing of ours is ever sent
    operation = conversation.operation(
        conversation.read("SELECT id FROM docs ORDER BY e <=> $1 LIMIT 5"), None
    )
    assert operation.actions == {Action.SEARCH}
    assert operation.collections == {"docs"}


# Texts.


def test_texts_that_the_server_reads_otherwise_are_unknown() -> None:
    place = Place()
    conversation = place.converse()
    place.learn(conversation)
    conversation.status("client_encoding", "SJIS")
    assert unknown(conversation, "SELECT 'é'")
    assert not unknown(conversation, "SELECT 'e'")
    conversation.status("client_encoding", "UTF8")
    assert not unknown(conversation, "SELECT 'é'")
    conversation.status("standard_conforming_strings", "off")
    assert unknown(conversation, "SELECT '\\'' || title FROM documents --'")
    assert not unknown(conversation, SEARCH)


def test_limits_come_with_their_parameters() -> None:
    place = Place()
    conversation = place.converse()
    place.learn(conversation)
    reading = conversation.read(SEARCH)
    assert reading.reads_parameters
    assert conversation.operation(reading, None).top_k == 0

    def top_k(value: Parameter, rows: int = 0) -> int | None:
        operation = conversation.operation(reading, [Parameter(0, 0, b"[1,2,3]"), value], rows)
        return None if operation.unbounded else operation.top_k

    assert top_k(Parameter(20, 0, b"7")) == 7
    assert top_k(Parameter(20, 1, (7).to_bytes(8, "big"))) == 7
    assert top_k(Parameter(23, 1, (7).to_bytes(4, "big"))) == 7
    assert top_k(Parameter(0, 1, (7).to_bytes(8, "big"))) == 7
    assert top_k(Parameter(20, 0, None)) is None  # LIMIT NULL
    assert top_k(Parameter(20, 0, b"seven")) is None
    assert top_k(Parameter(1700, 1, b"\0\1\0\0\0\0\0\0\0\7")) is None
    assert top_k(Parameter(20, 0, b"-1")) is None
    assert top_k(Parameter(20, 0, b"7"), rows=3) == 3


def test_the_cache_is_bounded_in_entries_and_bytes_and_keeps_what_is_used() -> None:
    cache: Cache[int] = Cache()
    for number in range(MAX_CACHED * 2):
        cache.put((1, str(number)), number)
        cache.get((1, "0"))
    assert len(cache) <= MAX_CACHED
    assert cache.get((1, "0")) == 0
    wide: Cache[int] = Cache()
    for number in range(100):
        wide.put((1, str(number) * 30_000), number)
    assert len(wide) * weight("x" * 30_000) <= MAX_CACHED_BYTES
    wide.put((1, "x" * 100_000), 1)
    assert wide.get((1, "x" * 100_000)) is None


# What was prepared and declared.


def test_what_was_prepared_is_known_until_it_is_not() -> None:
    place = Place()
    conversation = place.converse()
    place.run(conversation, "PREPARE p AS SELECT title FROM documents WHERE id = $1", fails=True)
    assert unknown(conversation, "EXECUTE p(1)")
    place.run(conversation, "PREPARE p AS SELECT title FROM documents WHERE id = $1")
    assert conversation.operation(conversation.read("EXECUTE p(1)"), None).collections == {"documents"}
    place.run(conversation, "PREPARE p AS SELECT name FROM authors", fails=True)  # there is one already
    assert conversation.operation(conversation.read("EXECUTE p(1)"), None).collections == {"documents"}
    assert unknown(place.converse(), "EXECUTE p(1)")
    place.run(conversation, "DEALLOCATE p")
    assert unknown(conversation, "EXECUTE p(1)")


def test_cursors_end_with_their_transaction_unless_they_hold() -> None:
    place = Place()
    conversation = place.converse()
    place.run(conversation, "BEGIN", "T")
    place.run(conversation, "DECLARE c CURSOR FOR SELECT id FROM documents", "T")
    place.run(conversation, "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM authors", "T")
    operation = conversation.operation(conversation.read("FETCH 7 FROM c"), None)
    assert operation.top_k == 7
    assert operation.collections == {"documents"}
    place.run(conversation, "COMMIT")
    assert unknown(conversation, "FETCH 7 FROM c")
    assert not unknown(conversation, "FETCH 7 FROM h")
    place.run(conversation, "CLOSE ALL")
    assert unknown(conversation, "FETCH 7 FROM h")


def test_what_was_prepared_under_another_policy_is_refused() -> None:
    place = Place()
    conversation = place.converse()
    place.run(conversation, "PREPARE p AS SELECT title FROM documents LIMIT 1")
    place.run(conversation, "EXECUTE p")
    with pytest.raises(Refusal, match="another policy"):
        place.run(conversation, "EXECUTE p", verdict=HIDING)
    place.run(conversation, "DEALLOCATE p")
    place.run(conversation, "PREPARE p AS SELECT title FROM documents LIMIT 1", verdict=HIDING)
    place.run(conversation, "EXECUTE p", verdict=HIDING)


def test_names_that_may_change_are_told_to_the_session() -> None:
    place = Place()
    conversation = place.converse()
    place.learn(conversation)
    assert conversation.read("PREPARE p AS SELECT 1").forgets == {"p"}
    assert conversation.read("DEALLOCATE ALL").forgets == {"*"}
    assert conversation.read("DISCARD ALL").forgets == {"*"}
    assert conversation.read("DECLARE c CURSOR FOR SELECT 1").closes == {"c"}
    assert conversation.read("COMMIT").closes == {"*"}
    assert conversation.read("DO $$ $$").forgets == {"*"}
    assert conversation.read(SEARCH).forgets == conversation.read(SEARCH).closes == frozenset()
    assert conversation.read("COPY documents TO STDOUT").copies == "out"
    assert conversation.read("COPY documents FROM STDIN").copies == "in"
    assert conversation.read("SET search_path TO x").changes == {"path"}
    assert conversation.read("DROP TABLE documents").changes == {"catalog"}
