# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's query phase in enforce, against a server of a few words.

The attacks, each with its test: a length that lies, that is zero, that is huge; kinds that do not exist;
messages of the wrong phase; storms of Sync; CopyData outside COPY; a simple Query between extended
messages; answers that nothing asked for; rows before their description; a refused message that succeeds;
Close of names of SQL; a portal after its transaction; names that SQL gave another meaning; the same name
twice behind a failure; more rows from a suspended portal; a refusal in the middle of a pipeline, in a
transaction, of a COPY; a policy that changes between Parse and Bind; a statement whose result must be
masked and was never described; a text outside ASCII while client_encoding changes; names too long to be
told apart.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent.protocols.budget import Budget
from agent.protocols.postgres_forms import (
    Bind,
    Execute,
    Named,
    Parse,
    write_bind,
    write_command_complete,
    write_data_row,
    write_execute,
    write_named,
    write_parse,
    write_query,
)
from agent.protocols.postgres_messages import (
    Framer,
    error_response,
    message,
    parameter_status,
    ready_for_query,
    server_limits,
)
from agent.protocols.postgres_query import QueryPhase
from agent.protocols.session import Abort, Bounds, Chunk, Intent, Output, ProtocolError, Result
from policy.model import Mask
from tests.unit.protocols.fake_sql import ALLOW, DENY, WHERE, FakeSqlEngine, SpyJudge
from tests.wire.conversations import Played
from tests.wire.postgres_server import Server

SYNC, FLUSH = message(ord("S")), message(ord("H"))
MASKED = replace(ALLOW, masks=(Mask("r", field="payload.ssn"),))


def parse(text: str, name: bytes = b"") -> bytes:
    return write_parse(Parse(name, text.encode(), ()))


def bind(name: bytes = b"", portal: bytes = b"", *values: bytes) -> bytes:
    return write_bind(Bind(portal, name, (), values, ()))


def execute(portal: bytes = b"", rows: int = 0) -> bytes:
    return write_execute(Execute(portal, rows))


def query(text: str) -> bytes:
    return write_query(text.encode())


def close_statement(name: bytes) -> bytes:
    return write_named(ord("C"), Named("statement", name))


@dataclass
class Talk:
    """A client, the session and a server."""

    session: QueryPhase
    engine: FakeSqlEngine
    judge: SpyJudge
    server: Server
    played: Played

    def say(self, *messages: bytes) -> str:
        """What the client gets for them: a letter a message, errors with their code."""
        before = len(self.played.to_client)
        out = self.session.client_data(b"".join(messages))
        while True:
            self.played.add(out)
            answer = self.server.feed(b"".join(out.to_server)) if out.to_server else b""
            if not answer:
                return letters(self.played.to_client[before:])
            out = self.session.server_data(answer)

    @property
    def ran(self) -> list[str]:
        return [text for text, _, _ in self.server.ran if text != "SELECT catalog"]


def letters(data: bytes) -> str:
    framer = Framer("server", server_limits(1 << 20))
    framer.feed(data)
    found = []
    while (taken := framer.take()) is not None:
        kind = chr(taken.kind)
        if kind == "E":
            kind = f"E{_code(taken.raw)}"
        elif kind == "Z":
            kind = f"Z{chr(taken.raw[5])}"
        found.append(kind)
    return " ".join(found)


def _code(raw: bytes) -> str:
    return next(f[1:].decode() for f in raw[5:].split(b"\0") if f[:1] == b"C")


def talk(judge: SpyJudge | None = None, bounds: Bounds | None = None) -> Talk:
    engine = FakeSqlEngine()
    judge = judge or SpyJudge()
    session = QueryPhase(engine, engine.conversation, judge, "g", WHERE, bounds or Bounds(), 1)
    return Talk(session, engine, judge, Server(), Played())


def test_a_simple_query_is_one_exchange_with_what_the_client_got() -> None:
    t = talk()
    assert t.say(query("SELECT 2")) == "T D D C ZI"
    intent, result = t.played.records
    assert isinstance(intent, Intent)
    assert isinstance(result, Result)
    assert intent.head == {"user": "alice", "database": "shop", "application_name": "unit"}
    assert (result.outcome, result.rows, result.head, result.vectors_cut) == (
        "answered",
        2,
        {"tag": "SELECT 2"},
        2,
    )
    assert result.body is not None
    assert b"VECTOR" not in result.body
    assert b"DIGEST" in result.body
    assert result.released_sha256 == result.sha256


def test_a_prepared_statement_is_judged_at_every_bind() -> None:
    t = talk()
    assert t.say(parse("SELECT x LIMIT $1", b"s"), SYNC) == "1 ZI"
    assert t.say(bind(b"s", b"", b"5"), execute(), SYNC) == "2 D D D C ZI"
    assert t.say(bind(b"s", b"", b"5000"), execute(), SYNC) == "2 E42501 ZI"
    assert t.server.ran == [("SELECT x LIMIT $1", (b"5",), 0)]
    assert [r.outcome for r in t.played.of(Result)] == ["answered", "refused"]


def test_an_execute_for_few_rows_may_do_what_one_for_all_may_not() -> None:
    t = talk()
    t.say(query("BEGIN"))
    assert (
        t.say(parse("SELECT x LIMIT $1"), bind(b"", b"p", b"5000"), execute(b"p", 2), SYNC) == "1 2 D D s ZT"
    )
    assert t.say(execute(b"p"), SYNC) == "E42501 ZE"


def test_a_refusal_in_a_pipeline_skips_to_the_sync_and_rolls_back_what_came_before() -> None:
    t = talk()
    said = t.say(parse("INSERT x"), bind(), execute(), parse("SELECT forbidden"), bind(), execute(), SYNC)
    assert said == "1 2 C E42501 ZI"
    assert t.server.parsed == ["INSERT x"]
    assert t.say(query("SELECT 1")) == "T D C ZI"  # usable


@pytest.mark.parametrize("extended", [False, True])
def test_what_the_database_would_not_run_is_refused_with_its_error_once_the_catalog_was_asked(
    extended: bool,
) -> None:
    t = talk()
    for text, code, asked in (("SELECT nowhere", "42P01", 1), ("SELECT misspelt", "42601", 0)):
        before = len(t.engine.conversation.learnt)
        words = [parse(text), bind(), execute(), SYNC] if extended else [query(text)]
        assert t.say(*words) == f"E{code} ZI"
        assert len(t.engine.conversation.learnt) - before == asked
    intent, result = t.played.records[-2:]
    assert isinstance(intent, Intent)
    assert isinstance(result, Result)
    assert (intent.verdict.outcome, intent.verdict.rule) == ("deny", None)
    assert (result.outcome, result.head["sqlstate"]) == ("refused", "42601")
    assert t.ran == []
    assert t.say(query("SELECT 1")) == "T D C ZI"


@pytest.mark.parametrize("extended", [False, True])
def test_a_name_that_came_meanwhile_is_found_before_it_is_said_not_to_be_there(extended: bool) -> None:
    t = talk()
    t.engine.conversation.made = True
    words = [parse("SELECT nowhere"), bind(), execute(), SYNC] if extended else [query("SELECT nowhere")]
    assert t.say(*words) == ("1 2 D D D C ZI" if extended else "T D D D C ZI")
    assert [type(r) for r in t.played.records] == [Intent, Result]


def test_a_rule_that_denies_what_is_not_there_is_named() -> None:
    t = talk(SpyJudge(denied=frozenset({"nowhere"})))
    assert t.say(query("SELECT nowhere")) == "E42501 ZI"
    assert t.engine.conversation.learnt == []


def test_a_name_in_the_middle_of_a_pipeline_is_refused_unexplained() -> None:
    t = talk()
    assert t.say(parse("INSERT x"), bind(), execute(), parse("SELECT nowhere"), SYNC) == "1 2 C E42501 ZI"
    t.engine.conversation.asks = False
    assert t.say(query("SELECT nowhere")) == "E42501 ZI"
    assert t.engine.conversation.learnt == []


def test_an_unknown_name_aborts_its_transaction_as_the_database_does() -> None:
    t = talk()
    assert t.say(query("BEGIN"), query("SELECT nowhere"), query("SELECT 1")) == "C ZT E42P01 ZE E25P02 ZE"
    assert t.say(query("SELECT nowhere"), query("ROLLBACK")) == "E42501 ZE C ZI"


def test_a_refusal_in_a_transaction_aborts_it() -> None:
    t = talk()
    assert t.say(query("BEGIN"), query("SELECT forbidden")) == "C ZT E42501 ZE"
    assert t.say(query("SELECT 1")) == "E25P02 ZE"
    assert t.say(query("ROLLBACK")) == "C ZI"


def test_a_refusal_comes_behind_the_answers_to_what_was_asked_before() -> None:
    t = talk()
    assert (
        t.say(query("SELECT 1"), query("SELECT forbidden"), query("SELECT 1"))
        == "T D C ZI E42501 ZI T D C ZI"
    )


def test_a_refused_message_that_the_database_does_not_fail_at_ends_the_connection() -> None:
    for told in (message(ord("1")), write_command_complete("SELECT 1"), ready_for_query("I")):
        t = talk()
        t.session.client_data(parse("SELECT forbidden") if told[:1] == b"1" else query("SELECT forbidden"))
        with pytest.raises(ProtocolError):
            t.session.server_data(told)


def test_a_simple_query_behind_an_error_is_skipped_with_the_rest() -> None:
    t = talk()
    assert t.say(parse("SELECT syntax"), query("SELECT 1"), SYNC) == "E42601 ZI"
    assert t.ran == []


def test_what_stands_under_a_name_behind_a_failure_is_not_guessed() -> None:
    """The Parse that gives the unnamed statement a harmless meaning is skipped: the old one must not run."""
    t = talk()
    t.say(parse("SELECT x LIMIT $1"), SYNC)
    skipped = [parse("SELECT broken", b"b"), bind(b"b"), execute(), parse("SELECT 1 ignoring $1"), SYNC]
    said = t.say(*skipped, bind(b"", b"", b"5000"), execute(), SYNC)
    assert said == "1 2 E22012 ZI 2 E42501 ZI"
    assert "SELECT x LIMIT $1" not in t.ran


def test_a_policy_that_changes_between_parse_and_bind_is_the_one_that_counts() -> None:
    t = talk()
    t.say(parse("SELECT 1", b"s"), SYNC)
    t.judge.verdict = replace(ALLOW, filters=(("tenant", "a"),))
    assert t.say(bind(b"s"), execute(), SYNC) == "2 D C ZI"
    assert t.ran == ["SELECT 1 /* filtered a */"]  # parsed again, unseen
    t.judge.verdict = DENY
    assert t.say(bind(b"s"), execute(), SYNC) == "E42501 ZI"
    t.judge.verdict = ALLOW
    assert t.say(bind(b"s"), execute(), SYNC) == "2 D C ZI"
    assert t.ran[1:] == ["SELECT 1"]


def test_a_portal_that_was_bound_under_another_policy_does_not_run() -> None:
    t = talk()
    t.say(query("BEGIN"))
    t.say(parse("SELECT 5"), bind(b"", b"p"), execute(b"p", 1), SYNC)
    t.judge.verdict = replace(ALLOW, filters=(("tenant", "a"),))
    assert t.say(execute(b"p", 1), SYNC) == "E42501 ZE"


def test_an_execute_without_a_description_is_masked_too() -> None:
    t = talk(SpyJudge(MASKED))
    t.say(parse("SELECT 1", b"s"), SYNC)
    assert t.say(bind(b"s"), execute(), SYNC) == "2 D C ZI"
    assert b"secret" not in t.played.to_client
    assert t.played.of(Result)[0].masks[0].count == 1


def test_a_description_shows_what_the_plan_shows() -> None:
    t = talk(SpyJudge(MASKED))
    t.say(query("SELECT 1 vector"))
    assert b"\x00\x00\x00\x19" in t.played.to_client  # text


@pytest.mark.parametrize("text", ["SELECT unplannable", "SELECT unprovable"])
def test_rows_that_cannot_be_masked_become_an_error(text: str) -> None:
    t = talk()
    assert t.say(query(text)).split()[-2:] == ["E42501", "ZI"]
    said = t.say(parse(text), bind(), execute(), SYNC)
    assert said.endswith("E42501 ZI")
    assert b"unprovable" not in t.played.to_client
    assert t.say(query("SELECT 1")) == "T D C ZI"


def test_a_clamped_portal_looks_complete_and_gives_no_more() -> None:
    t = talk()
    t.say(query("BEGIN"))
    assert t.say(parse("SELECT 9 limited"), bind(b"", b"p"), execute(b"p"), SYNC) == "1 2 D D N C ZT"
    assert t.say(execute(b"p"), SYNC) == "E34000 ZE"


def test_a_simple_query_is_clamped_by_its_rows() -> None:
    t = talk()
    assert t.say(query("SELECT 9 limited")) == "T D D N C ZI"
    assert t.played.of(Result)[0].rows == 2


def test_copy_in_is_recorded_and_refused_before_its_data() -> None:
    t = talk()
    data, done = message(ord("d"), b"1\n"), message(ord("c"))
    assert t.say(query("COPY t from STDIN")) == "G"
    assert t.say(data, data, done) == "C ZI"
    assert sum(c.bytes for c in t.played.of(Chunk) if c.side == "request") == 14
    assert t.say(query("COPY forbidden from STDIN"), data, done, query("SELECT 1")) == "E42501 ZI T D C ZI"


def test_copy_data_outside_copy_goes_nowhere() -> None:
    t = talk()
    out = t.session.client_data(message(ord("d"), b"SELECT forbidden") + message(ord("c")))
    assert out == Output()


def test_a_query_inside_copy_ends_the_connection() -> None:
    t = talk()
    t.say(query("COPY t from STDIN"))
    with pytest.raises(ProtocolError, match="inside COPY"):
        t.say(query("SELECT 1"))


def test_close_of_a_name_that_sql_gave_leaves_it_alone() -> None:
    """The conversation goes on knowing what EXECUTE runs; so the name may not come to mean another text."""
    t = talk()
    t.say(query("PREPARE s1 as SELECT 7"))
    assert t.say(close_statement(b"s1"), SYNC) == "3 ZI"
    assert t.server.statements == {b"s1": "SELECT 7"}
    assert t.say(parse("SELECT 1", b"s1"), SYNC) == "E42P05 ZI"


def test_a_name_that_sql_gave_is_not_usable_by_messages() -> None:
    t = talk()
    t.say(query("PREPARE s1 as SELECT forbidden"), query("PREPARE s2 as SELECT 2"))
    assert t.say(bind(b"s2"), execute(), SYNC) == "E26000 ZI"


def test_a_deallocate_that_fails_forgets_nothing() -> None:
    t = talk()
    t.say(parse("SELECT 1", b"s1"), SYNC, query("BEGIN"), query("SELECT broken"))
    assert t.say(query("DEALLOCATE s1")) == "E25P02 ZE"
    t.say(query("ROLLBACK"))
    assert t.say(bind(b"s1"), execute(), SYNC) in ("2 D C ZI", "E26000 ZI")


def test_a_portal_does_not_outlive_its_transaction() -> None:
    t = talk()
    t.say(parse("SELECT 3"), bind(b"", b"p"), execute(b"p", 1), SYNC)
    assert t.say(execute(b"p"), SYNC) == "E34000 ZI"


def test_a_catalog_is_asked_between_segments_and_never_inside() -> None:
    t = talk()
    said = t.say(parse("CREATE x"), bind(), execute(), parse("SELECT 1"), SYNC)
    assert said == "1 2 C E42501 ZI"
    assert len(t.engine.conversation.learnt) == 1
    assert t.say(query("CREATE x"), query("SELECT 1")) == "C ZI T D C ZI"
    assert len(t.engine.conversation.learnt) == 2


def test_after_a_while_the_catalog_is_asked_before_anything_is_read_by_it() -> None:
    t = talk()
    t.say(parse("SELECT 1", b"s"), parse("SELECT 2"), SYNC)
    for words, said in (
        ([query("SELECT 1")], "T D C ZI"),
        ([parse("SELECT 1"), bind(), execute(), SYNC], "1 2 D C ZI"),
        ([bind(b"s"), execute(), SYNC], "2 D C ZI"),
    ):
        before = len(t.server.ran)
        t.engine.conversation.wants = "SELECT catalog"  # it is due
        assert t.say(*words) == said
        assert [text for text, _, _ in t.server.ran[before:]] == ["SELECT catalog", "SELECT 1"]


@pytest.mark.parametrize("words", [[query("SELECT 1")], [parse("SELECT 1"), bind(), execute(), SYNC]])
def test_a_transaction_that_waited_asks_before_its_first_query_and_not_before_it_is_set_up(
    words: list[bytes],
) -> None:
    t = talk()
    t.say(parse("SELECT 1", b"s"), SYNC)
    t.say(query("BEGIN"))
    before = len(t.server.ran)
    t.engine.conversation.late = True
    t.engine.conversation.asks = False
    t.say(query("SET x"))
    t.engine.conversation.asks = True
    assert [text for text, _, _ in t.server.ran[before:]] == ["SET x"]
    for asked in (words, [bind(b"s"), execute(), SYNC]):
        before = len(t.server.ran)
        assert t.say(*asked).endswith("D C ZT")
        assert [text for text, _, _ in t.server.ran[before:]] == ["SELECT catalog", "SELECT 1"]


def test_a_catalog_that_is_due_is_asked_before_a_cursor_of_sql_is_described() -> None:
    t = talk()
    t.say(query("BEGIN"), query("DECLARE c CURSOR FOR SELECT 1"))
    t.engine.conversation.wants = "SELECT catalog"
    asked = write_named(ord("D"), Named("portal", b"c"))
    assert t.session.client_data(asked).to_server == [query("SELECT catalog")]
    forwarded = t.session.server_data(t.server.feed(query("SELECT catalog"))).to_server
    assert forwarded[0] == asked


def test_a_catalog_that_is_due_is_asked_before_a_close_begins_a_segment() -> None:
    t = talk()
    t.say(parse("SELECT 2", b"s"), SYNC)
    before = len(t.server.ran)
    t.engine.conversation.wants = "SELECT catalog"
    assert t.say(close_statement(b"s"), parse("SELECT 1"), bind(), execute(), SYNC) == "3 1 2 D C ZI"
    assert [text for text, _, _ in t.server.ran[before:]] == ["SELECT catalog", "SELECT 1"]


def test_the_unnamed_statement_survives_a_catalog_query_of_ours() -> None:
    t = talk()
    t.say(parse("CREATE x", b"c"), SYNC, parse("SELECT 1"), SYNC)
    assert t.say(bind(b"c"), execute(), SYNC) == "2 C ZI"
    assert t.say(bind(), execute(), SYNC) == "2 D C ZI"


def test_text_beyond_ascii_waits_for_the_encoding() -> None:
    t = talk()
    t.engine.conversation.asks = False
    said = t.say(parse("SET x"), bind(), execute(), FLUSH, parse("SELECT 'é'"), SYNC)
    assert said == "1 2 C E42501 ZI"
    assert t.say(query("SELECT 'é'")).endswith("C ZI")


def test_a_function_call_is_refused() -> None:
    t = talk()
    assert t.say(message(ord("F"), bytes(10))) == "E42501 ZI"
    assert t.played.of(Intent)[0].operation.method == "FunctionCall"


@pytest.mark.parametrize(
    "data",
    [
        b"Q\0\0\0\3", b"Q\xff\xff\xff\xff", b"y\0\0\0\4", b"\0\0\0\0\4", message(ord("p"), b"x\0"),
        message(ord("Q"), b"SELECT 1"), message(ord("Q"), b"SELECT 1\0x\0"), message(ord("S"), b"x"),
        message(ord("P"), b"\0SELECT 1\0\0\7"), message(ord("B"), b"\0\0\0\0\0\1\0\0\0\7abc\0\0"),
        message(ord("D"), b"X\0"), message(ord("E"), b"\0\0\0"),
    ],
)  # fmt: skip
def test_what_is_no_message_ends_the_connection_and_goes_nowhere(data: bytes) -> None:
    t = talk()
    with pytest.raises(ProtocolError):
        t.session.client_data(data)


@pytest.mark.parametrize(
    "data",
    [
        b"D\0\0\0\6\0\0", b"T\0\0\0\6\0\0", b"1\0\0\0\4", b"ZI", ready_for_query("I"),
        message(ord("W"), b"\0\0\0"), message(ord("K"), bytes(8)), message(ord("R"), bytes(4)),
        message(ord("G"), b"\0\0\0"), b"q\0\0\0\4", message(ord("V"), bytes(4)),
        message(ord("E"), b"SERROR\0C42601\0Mx\0\0"),
    ],
)  # fmt: skip
def test_an_answer_that_nothing_asked_for_ends_the_connection(data: bytes) -> None:
    t = talk()
    with pytest.raises(ProtocolError) as caught:
        t.session.server_data(data + bytes(10))
    assert caught.value.side == "server"


def test_rows_before_their_description_are_not_handed_out() -> None:
    t = talk()
    t.session.client_data(query("SELECT 1"))
    with pytest.raises(ProtocolError, match="before it described"):
        t.session.server_data(write_data_row([b"x"]))


def test_more_results_than_statements_end_the_connection() -> None:
    t = talk()
    t.session.client_data(query("INSERT x"))
    t.session.server_data(write_command_complete("INSERT 0 1"))
    with pytest.raises(ProtocolError, match="more statements"):
        t.session.server_data(write_command_complete("INSERT 0 1"))


def test_what_comes_at_any_time_passes_at_any_time() -> None:
    t = talk()
    status = parameter_status("TimeZone", "UTC")
    told = message(ord("A"), bytes(4) + b"ch\0hi\0")
    fatal = message(ord("E"), b"SFATAL\0VFATAL\0C57P01\0Mgoodbye\0\0")
    for one in (status, told, fatal):
        assert t.session.server_data(one).to_client == [one]
    assert t.engine.conversation.seen == {"TimeZone": "UTC"}


def test_a_storm_of_syncs_is_answered_and_held_to_a_bound() -> None:
    t = talk()
    assert t.say(SYNC * 20_000).count("ZI") == 20_000


def test_a_client_that_does_not_stop_while_it_must_wait_is_cut_off() -> None:
    t = talk(bounds=Bounds(body=1000, pipelined=1000))
    t.session.client_data(query("CREATE x"))
    t.session.client_data(query("SELECT 1"))
    with pytest.raises(ProtocolError, match="more than 1000 bytes wait"):
        t.session.client_data(query("SELECT 1") * 300)


def test_a_client_that_runs_ahead_is_not_read_on_until_an_answer_came() -> None:
    t: Any = talk()
    out = t.session.client_data(query("CREATE x") + query("SELECT 1"))
    assert not t.session.waits  # that it goes away should be seen
    t.session.client_data(query("SELECT '" + "x" * 200_000 + "'")[:150_000])
    assert t.session.waits
    while out.to_server:
        out = t.session.server_data(t.server.feed(b"".join(out.to_server)))
    assert not t.session.waits


def test_what_waits_is_counted_against_the_budget_of_the_worker_and_given_back() -> None:
    shared = Budget(limit=100_000)
    t = talk(bounds=Bounds(budget=shared))
    large = query("SELECT '" + "x" * 150_000 + "'")
    t.session.client_data(large[:60_000])
    assert shared.held == 60_000
    with pytest.raises(ProtocolError, match="max_held"):
        t.session.client_data(large[60_000:120_000])
    t = talk(bounds=Bounds(budget=shared))
    t.session.client_data(large[:30_000])
    gc.collect()
    assert shared.held == 30_000
    t.played.add(t.session.client_data(large[30_000:40_000]))
    assert shared.held == 40_000
    del t
    gc.collect()
    assert shared.held == 0


def test_a_drain_waits_for_answers_and_for_the_end_of_a_transaction() -> None:
    t: Any = talk()
    assert not t.session.is_reading
    t.session.client_data(query("SELECT 1")[:3])
    assert t.session.is_reading
    t = talk()
    t.say(query("BEGIN"))
    assert t.session.is_reading
    t.say(query("COMMIT"))
    assert not t.session.is_reading


def test_names_that_the_database_would_cut_off_are_not_taken() -> None:
    t = talk()
    assert t.say(parse("SELECT 1", b"n" * 64), SYNC) == "E54000 ZI"
    assert t.say(parse("SELECT 1"), bind(b"", b"n" * 64), SYNC) == "1 E54000 ZI"


def test_an_end_leaves_no_exchange_open() -> None:
    t = talk()
    t.played.add(t.session.client_data(query("SELECT 1") + query("SELECT 2")))
    t.played.add(t.session.server_eof())
    assert [r.n for r in t.played.of(Abort)] == [1, 2]
    assert t.session.abandon("again").records == []


def test_an_answer_that_the_database_leaves_is_cut_and_one_that_it_ends_is_not() -> None:
    fatal = error_response("57P01", "terminating connection", severity="FATAL")
    for said, close in ((b"", "reset"), (fatal, "both")):
        t = talk()
        t.played.add(t.session.client_data(query("SELECT 1") + query("SELECT 2")))
        if said:
            t.played.add(t.session.server_data(said))
        assert t.session.server_eof().close == close
    assert talk().session.server_eof().close == "both"


def test_an_error_of_the_database_is_masked_and_recorded() -> None:
    t = talk(SpyJudge(MASKED))
    assert t.say(parse("SELECT broken"), bind(), execute(), SYNC) == "1 2 E22012 ZI"
    assert b"secret" not in t.played.to_client
    assert t.played.of(Result)[0].head == {"sqlstate": "22012"}


def test_another_tenants_row_is_refused_at_bind() -> None:
    t = talk()
    assert t.say(parse("INSERT $1"), bind(b"", b"", b"other tenant"), execute(), SYNC) == "1 E42501 ZI"
    assert t.ran == []
