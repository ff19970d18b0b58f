# SPDX-License-Identifier: Apache-2.0
"""The relay: what is on record before what passes, and how both sides end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agent.host import Refuse
from agent.protocols.opaque import OpaqueSession
from agent.protocols.session import Abort, Chunk, Opaque, Output, ProtocolError
from agent.relay import HIGH_WATER, LINGER
from agent.sides import ServerSide
from tests.unit.agent.side import SUBJECT, Host, Script, intent, result
from tests.unit.agent.turning import pass_time, run, run_still, turns

# -- evidence before bytes ------------------------------------------------------------------------


def test_no_byte_passes_before_its_record_is_written() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                           server_data=[Output(to_client=[b"answer"], records=[result()])]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        assert host.server.sent == b""
        host.journal.answer()
        assert host.server.sent == b"ask"
        relay.from_server(b"answer")
        assert host.client.sent == b""
        host.journal.answer()
        assert host.bytes_events == [
            ("put", "Intent"), ("to-server", b"ask"), ("put", "Result"), ("to-client", b"answer"),
        ]  # fmt: skip

    run(story)


def test_outputs_leave_in_the_order_they_were_made_whatever_is_written_first() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[
            Output(to_server=[b"1"], records=[intent(1, "strict-sync")]),
            Output(to_server=[b"2"], records=[intent(2, "best-effort")]),
            Output(to_server=[b"3"]),  # nothing to record, but behind the others
        ]))  # fmt: skip
        relay = await host.stand()
        for piece in (b"a", b"b", b"c"):
            relay.from_client(piece)
        assert [mode for _, mode in host.journal.puts] == ["strict-sync", "best-effort"]
        host.journal.answer(1)
        assert host.server.sent == b""
        host.journal.answer(0)
        assert host.server.sent == b"123"

    run(story)


def test_an_output_that_ends_one_exchange_and_begins_the_next_is_written_in_the_stricter_mode() -> None:
    async def story() -> None:
        host = Host(Script(
            client_data=[Output(records=[intent(1, "strict-sync")])],
            server_data=[Output(to_client=[b"1"], to_server=[b"2"],
                                records=[result(1), intent(2, "best-effort")]),
                         Output(records=[result(2)])],
        ))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"both")
        relay.from_server(b"first")
        relay.from_server(b"second")
        assert [mode for _, mode in host.journal.puts] == ["strict-sync", "strict-sync", "best-effort"]

    run(story)


def test_where_a_strict_record_cannot_be_written_nothing_passes_and_both_sides_are_reset() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()]),
                                        Output(to_server=[b"more"])],
                           abandon=[Output(records=[Abort(1, "evidence")])]))  # fmt: skip
        relay = await host.stand()
        host.journal.failing = True
        relay.from_client(b"ask")
        relay.from_client(b"more")
        host.journal.answer_all()
        assert (host.server.sent, host.client.sent) == (b"", b"")
        assert (host.server.state, host.client.state) == ("aborted", "aborted")
        assert host.counts == {"refused_evidence": 1}
        assert host.forgotten, "the worker would count this connection for ever"
        assert host.journal.summaries[relay.id]["reason"] == "evidence"

    run(story)


def test_an_answer_that_cannot_be_recorded_is_not_released_by_a_close_that_was_under_way() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()]),
                                        ProtocolError("garbage", "not HTTP")],
                           server_data=[Output(to_client=[b"secret"], records=[result()])]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        host.journal.answer_all()
        relay.from_server(b"secret")
        relay.from_client(b"\0\0\0")
        host.journal.failing = True
        host.journal.answer_all()
        assert host.client.sent == b""
        assert (host.server.state, host.client.state) == ("aborted", "aborted")
        assert host.forgotten

    run(story)


def test_observe_asks_for_best_effort_alone_and_passes_when_nothing_can_be_written() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent(1, "strict-sync")])],
                           server_data=[Output(to_client=[b"answer"], records=[result()])]))  # fmt: skip
        relay = await host.stand("observe")
        host.journal.failing = True
        relay.from_client(b"ask")
        relay.from_server(b"answer")
        host.journal.answer_all()
        assert [mode for _, mode in host.journal.puts] == ["best-effort", "best-effort"]
        assert (host.server.sent, host.client.sent) == (b"ask", b"answer")
        assert relay.is_open

    run(story)


# -- before the session stands --------------------------------------------------------------------


def test_what_a_client_sent_and_closed_before_it_was_identified_is_kept() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"])], client_eof=[Output(close="server-eof")]))
        host.identity = asyncio.get_running_loop().create_future()
        relay = host.accept()
        await turns()
        relay.from_client(b"ask")
        assert host.client.paused, "more would have to be kept"
        relay.client_eof()
        assert (host.server.sent, host.dialled) == (b"", [])
        host.identity.set_result(SUBJECT)
        await turns()
        assert host.session.calls == [("client_data", b"ask"), ("client_eof",)]
        assert (host.server.sent, host.server.state, host.client.paused) == (b"ask", "eof", False)
        assert relay.bytes_in == 3

    run(story)


def test_a_database_that_speaks_before_the_session_stands_is_heard() -> None:
    async def story() -> None:
        host = Host(Script(server_data=[Output(to_client=[b"hello"])]))
        relay = host.accept("observe")
        loop: Any = asyncio.get_running_loop()

        async def dial(factory: Callable[[], Any], _host: str, _port: int) -> None:
            side = factory()
            side.connection_made(host.server)
            side.data_received(b"hel")
            side.data_received(b"lo")

        loop.create_connection = dial
        await turns()
        assert host.session.calls == [("server_data", b"hello")]
        assert (host.client.sent, host.server.paused) == (b"hello", False)
        relay.end("killed")

    run(story)


def test_early_data_that_ends_the_connection_and_an_early_close_are_no_bug() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(close="both")]))
        host.identity = asyncio.get_running_loop().create_future()
        relay = host.accept()
        await turns()
        relay.from_client(b"\x16\x03\x01")
        relay.client_eof()
        host.identity.set_result(SUBJECT)
        await turns()
        assert host.bugs == []
        assert host.forgotten

    run(story)


def test_the_database_is_dialled_at_the_address_the_client_dialled() -> None:
    async def story() -> None:
        host = Host()
        relay = await host.stand()
        assert host.dialled == [("127.0.0.1", 6333)]
        assert (relay.client_addr, relay.server_addr) == (("127.0.0.1", 50000), ("127.0.0.1", 6333))
        relay.end("killed")

    run(story)


def test_a_caller_that_may_not_connect_is_on_record_and_never_dialled_for() -> None:
    async def story() -> None:
        host = Host()
        host.refusal = Refuse("unattributed", "no kernel record names this connection")
        relay = await host.stand()
        assert host.dialled == []
        assert host.client.state == "aborted"
        assert host.counts == {"refused_unattributed": 1}
        assert host.journal.cards == {relay.id: {"pid": 42}}
        assert host.journal.summaries[relay.id]["reason"] == "unattributed"
        assert host.forgotten

    run(story)


def test_a_database_that_refuses_is_a_refused_connection() -> None:
    async def story() -> None:
        host = Host(dials=False)
        relay = await host.stand("observe")
        assert host.client.state == "aborted"
        assert host.counts == {"refused_database-refused": 1}
        assert host.journal.summaries[relay.id]["reason"] == "database-refused"

    run(story)


def test_a_client_that_is_gone_before_it_was_identified_is_on_record_and_not_dialled_for() -> None:
    async def story() -> None:
        host = Host()
        host.identity = asyncio.get_running_loop().create_future()
        relay = host.accept()
        await turns()
        relay.client_lost()
        host.identity.set_result(SUBJECT)
        await turns()
        assert host.dialled == []
        assert host.forgotten
        assert host.journal.cards == {relay.id: {"pid": 42}}
        assert host.journal.summaries[relay.id]["reason"] == "client-gone"

    run(story)


def test_in_enforce_a_client_that_asks_nothing_is_closed_in_time() -> None:
    async def story() -> None:
        host = Host()
        relay = await host.stand()
        held = []
        for seconds in (host.first_request - 1, 2):
            await pass_time(seconds)
            held.append(relay.is_open)
        assert held == [True, False]
        assert host.journal.summaries[relay.id]["reason"] == "first-request-timeout"

        quiet = Host()
        observed = await quiet.stand("observe")
        await pass_time(quiet.first_request * 10)
        assert observed.is_open, "observe never breaks a client"

    run_still(story)


@pytest.mark.parametrize("record", [intent(), Opaque("a tunnel rule covers it", "unknown")])
def test_the_first_request_or_a_tunnel_ends_the_wait_for_the_first_request(record: Any) -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"x"], records=[record])]))
        relay = await host.stand()
        relay.from_client(b"x")
        host.journal.answer_all()
        await pass_time(host.first_request * 10)
        assert relay.is_open

    run_still(story)


# -- errors ---------------------------------------------------------------------------------------


def test_a_refusal_can_be_read_before_the_connection_closes() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[ProtocolError("bare-lf", "a bare LF")],
                           refuse_all=[Output(to_client=[b"HTTP/1.1 400 no\r\n\r\n"])]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"GET / HTTP/1.1\n")
        assert host.client.sent == b"HTTP/1.1 400 no\r\n\r\n"
        assert host.client.state == "eof", "an abort here would throw the refusal away"
        assert host.server.state == "closed"
        assert host.counts == {"protocol_client_bare-lf": 1}
        relay.from_client(b"the rest of the upload")  # read and dropped: unread, it would reset the answer
        assert [call[0] for call in host.session.calls] == ["client_data", "refuse_all", "abandon"]
        await pass_time(LINGER - 0.1)
        assert host.client.state == "eof", "it may still be reading"
        await pass_time(0.2)
        assert host.client.state == "aborted"

    run_still(story)


def test_a_slow_reader_gets_the_whole_of_a_last_answer() -> None:
    async def story() -> None:
        host = Host(Script(server_data=[Output(to_client=[b"x" * 100], close="both")]))
        relay = await host.stand("observe")
        host.client.waiting = 100
        relay.from_server(b"all of it")
        for left in (60, 30, 10):
            await pass_time(LINGER * 1.1)
            assert host.client.state == "eof", "it was still being read"
            host.client.waiting = left
        host.client.waiting = 0
        for _ in range(2):
            await pass_time(LINGER * 1.1)
        assert host.client.state == "aborted"

    run_still(story)


def test_a_broken_answer_resets_the_client_so_that_it_does_not_look_whole() -> None:
    async def story() -> None:
        host = Host(Script(server_data=[ProtocolError("cut", "the answer is cut", "server")]))
        relay = await host.stand()
        relay.from_server(b"HTTP/1.1 200")
        assert host.client.state == "aborted"
        assert host.counts == {"protocol_server_cut": 1}
        assert not relay.is_open

    run(story)


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("method", ["client_data", "server_data", "client_eof", "server_eof"])
def test_an_exception_closes_both_sides_and_is_reported(mode: str, method: str) -> None:
    async def story() -> None:
        host = Host(Script(**{method: [ZeroDivisionError()]}))
        relay = await host.stand(mode)
        feed: Any = getattr(
            relay, method.replace("client_data", "from_client").replace("server_data", "from_server")
        )
        feed(*([b"x"] if "data" in method else []))
        assert [type(bug) for bug in host.bugs] == [ZeroDivisionError]
        assert (host.client.state, host.server.state) == ("aborted", "aborted")
        assert host.journal.summaries[relay.id]["reason"] == "internal-error"
        assert host.forgotten

    run(story)


def test_an_exception_in_identity_closes_the_client_and_is_reported() -> None:
    async def story() -> None:
        host = Host()
        host.identity = asyncio.get_running_loop().create_future()
        host.identity.set_exception(RuntimeError("broken"))
        await host.stand()
        assert [type(bug) for bug in host.bugs] == [RuntimeError]
        assert host.client.state == "aborted"
        assert host.dialled == []

    run(story)


# -- how sides end --------------------------------------------------------------------------------


def test_a_database_lost_in_the_middle_of_an_answer_resets_the_client() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                           server_data=[Output(to_client=[b"half"],
                                               records=[Chunk(1, "response", b"half", b"", 4)])],
                           abandon=[Output(records=[Abort(1, "database-gone")])]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        host.journal.answer_all()
        relay.from_server(b"half")
        host.journal.answer_all()
        relay.server_lost()
        assert (host.client.sent, host.client.state) == (b"half", "aborted")
        host.journal.answer_all()
        assert host.journal.puts[-1][0] == [Abort(1, "database-gone")]
        assert host.forgotten

    run(story)


def test_a_client_that_waits_to_be_let_in_is_told_that_the_database_was_lost() -> None:
    class Opening(Script):
        is_opening = True

    async def story() -> None:
        host = Host(Opening(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                            server_eof=[Output(to_client=[b"lost"], records=[result()],
                                               close="both")]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        host.journal.answer_all()
        relay.server_lost(reset=True)
        assert host.client.sent == b"", "it is not on record yet"
        host.journal.answer_all()
        assert (host.client.sent, host.client.state) == (b"lost", "eof")
        assert host.journal.summaries[relay.id]["reason"] == "database-gone"
        assert host.forgotten

    run(story)


def test_a_database_lost_between_exchanges_closes_the_client_in_order() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                           server_data=[Output(to_client=[b"answer"], records=[result()])]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        relay.from_server(b"answer")
        relay.server_lost()
        assert host.client.sent == b"", "it is not on record yet"
        host.journal.answer_all()
        assert (host.client.sent, host.client.state) == (b"answer", "eof")
        assert host.events[-1] == ("end", "database-gone")

    run(story)


def test_a_client_that_resets_aborts_the_database_connection() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                           abandon=[Output(records=[Abort(1, "client-gone")])]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        host.journal.answer_all()
        relay.client_lost()
        assert host.server.state == "aborted"
        host.journal.answer_all()
        assert host.journal.summaries[relay.id]["reason"] == "client-gone"

    run(story)


def test_half_a_close_is_passed_on_as_half_a_close() -> None:
    async def story() -> None:
        host = Host(OpaqueSession("not read", "unknown"))
        relay = await host.stand("observe")
        relay.from_client(b"ping")
        relay.client_eof()
        host.journal.answer_all()
        assert (host.server.state, host.client.state) == ("eof", "open")
        relay.from_server(b"pong")
        relay.server_eof()
        host.journal.answer_all()
        assert host.client.sent == b"pong"
        assert not relay.is_open
        unread = host.journal.summaries[relay.id]["unread"]
        assert (unread["client"]["bytes"], unread["server"]["bytes"]) == (4, 4)

    run(story)


def test_the_end_of_a_session_is_recorded_once_and_after_everything_else() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                           server_data=[Output(to_client=[b"answer"], records=[result()],
                                               close="both")]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        relay.from_server(b"answer")
        host.journal.answer_all()
        relay.client_eof()
        relay.server_lost()
        relay.client_lost()
        relay.end("killed")
        assert [event for event in host.events if event[0] == "end"] == [("end", "closed")]
        assert host.events[-1] == ("end", "closed")
        summary = host.journal.summaries[relay.id]
        assert (summary["requests"], summary["allowed"], summary["bytes_in"], summary["bytes_out"]) == (
            1,
            1,
            3,
            6,
        )

    run(story)


@pytest.mark.parametrize(("lost", "state"), [(ConnectionResetError(), "aborted"), (None, "eof")])
def test_a_connection_that_passes_unread_ends_as_the_database_ended_it(
    lost: Exception | None, state: str
) -> None:
    async def story() -> None:
        host = Host(OpaqueSession("tls is not read", "tls"))
        relay = await host.stand("observe")
        relay.from_client(b"hello")
        host.journal.answer_all()
        relay.from_server(b"hello yourself")
        ServerSide(relay).connection_lost(lost)
        assert (host.client.sent, host.client.state) == (b"hello yourself", state)
        assert host.journal.summaries[relay.id]["reason"] == "database-gone"

    run(story)


def test_an_idle_connection_that_is_read_ends_in_order_when_the_database_resets_it() -> None:
    async def story() -> None:
        host = Host()
        relay = await host.stand("observe")
        ServerSide(relay).connection_lost(ConnectionResetError())
        assert host.client.state == "eof"

    run(story)


# -- backpressure and drain -----------------------------------------------------------------------


def test_a_full_side_pauses_the_other_and_room_lets_it_go_on() -> None:
    async def story() -> None:
        host = Host()
        relay = await host.stand()
        assert host.client.limit == host.server.limit == HIGH_WATER
        relay.client_full(True)
        assert (host.server.paused, host.client.paused) == (True, False)
        relay.client_full(False)
        assert not host.server.paused
        relay.server_full(True)
        assert (host.server.paused, host.client.paused) == (False, True)
        relay.server_full(False)
        assert not host.client.paused
        relay.end("killed")

    run(story)


def test_both_sides_wait_while_records_wait_for_the_disk() -> None:
    async def story() -> None:
        pieces = [Output([b"x"], records=[intent(1, "strict-sync")]) for _ in range(40)]
        host = Host(Script(client_data=pieces))
        relay = await host.stand()
        for n in range(40):
            assert n < 33 or (host.client.paused and host.server.paused), "memory would grow without bound"
            relay.from_client(b"x")
        relay.server_full(True)
        relay.server_full(False)
        assert host.client.paused, "the database has room, the disk has not"
        host.journal.answer_all()
        assert (host.client.paused, host.server.paused) == (False, False)
        assert host.server.sent == b"x" * 40
        relay.end("killed")

    run(story)


def test_a_refusal_waits_behind_the_record_of_the_exchange_that_it_ends() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()]),
                                        ProtocolError("pipelined", "too much waits")],
                           refuse_all=[Output(to_client=[b"no"],
                                              records=[Abort(1, "pipelined")])]))  # fmt: skip
        relay = await host.stand()
        relay.from_client(b"ask")
        host.journal.answer_all()
        relay.from_client(b"more")
        assert host.client.sent == b""
        host.journal.answer_all()
        assert (host.client.sent, host.client.state) == (b"no", "eof")
        assert host.bytes_events[-2:] == [("put", "Abort"), ("to-client", b"no")]

    run(story)


def test_a_drain_ends_an_idle_connection_at_once_and_a_busy_one_after_its_exchange() -> None:
    async def story() -> None:
        idle = Host()
        relay = await idle.stand()
        relay.drain()
        assert (idle.client.state, idle.events[-1]) == ("eof", ("end", "drained"))

        busy = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                           server_data=[Output(to_client=[b"answer"], records=[result()])]))  # fmt: skip
        relay = await busy.stand()
        relay.from_client(b"ask")
        relay.drain()
        busy.journal.answer_all()
        assert relay.is_open
        relay.from_server(b"answer")
        assert relay.is_open, "its answer is not on record yet"
        busy.journal.answer_all()
        assert (busy.client.sent, busy.client.state) == (b"answer", "eof")
        assert busy.events[-1] == ("end", "drained")

    run(story)


def test_a_drain_waits_for_a_request_whose_body_is_still_coming() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(), Output(), Output([b"ask"], records=[intent()])],
                           server_data=[Output(to_client=[b"answer"], records=[result()])]))  # fmt: skip
        relay = await host.stand()
        host.session.is_reading = True
        relay.from_client(b"head")
        relay.drain()
        relay.from_client(b"body")
        assert relay.is_open
        relay.from_client(b"body")
        host.journal.answer_all()
        assert host.server.sent == b"ask"
        host.session.is_reading = False
        relay.from_server(b"answer")
        host.journal.answer_all()
        assert (host.client.sent, host.client.state) == (b"answer", "eof")
        assert host.events[-1] == ("end", "drained")

    run(story)


def test_a_drain_does_not_lose_a_request_that_waits_for_identity() -> None:
    async def story() -> None:
        host = Host(Script(client_data=[Output(to_server=[b"ask"], records=[intent()])],
                           server_data=[Output(to_client=[b"answer"], records=[result()])]))  # fmt: skip
        host.identity = asyncio.get_running_loop().create_future()
        relay = host.accept()
        await turns()
        relay.from_client(b"ask")
        relay.drain()
        host.identity.set_result(SUBJECT)
        await turns()
        host.journal.answer_all()
        relay.from_server(b"answer")
        host.journal.answer_all()
        assert (host.client.sent, host.client.state) == (b"answer", "eof")

    run(story)
