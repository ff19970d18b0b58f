# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL's framing and forms: what is cut anywhere comes out the same, and what cannot be is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocols import postgres_forms as forms
from agent.protocols.postgres_messages import (
    MAX_CANCEL_KEY,
    MAX_PARAMETERS,
    MAX_SMALL,
    MAX_STARTUP,
    Back,
    CancelRequest,
    EncryptionRequest,
    Framer,
    Front,
    Message,
    StartupMessage,
    client_limits,
    error_response,
    message,
    notice_response,
    parameter_status,
    read_startup,
    ready_for_query,
    server_limits,
    startup_message,
)
from agent.protocols.session import ProtocolError
from agent.protocols.sql import Column

BODY = 1 << 20
CONVERSATION = [
    message(Front.PARSE, b"s1\0select $1\0\0\1\0\0\0\x17"),
    message(Front.SYNC),
    message(Front.QUERY, b"select 1\0"),
    message(Front.COPY_DATA, bytes(300)),
    message(Front.TERMINATE),
]


def cut(stream: bytes, *sizes: int) -> list[bytes]:
    framer, at = Framer("client", client_limits(BODY)), 0
    found: list[bytes] = []
    while at < len(stream):
        size = sizes[len(found) % len(sizes)] if sizes else 1
        framer.feed(stream[at : at + size])
        at += size
        while (one := framer.take()) is not None:
            found.append(one.raw)
    assert framer.waiting == 0
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 299, 306, 4096])
def test_messages_come_out_the_same_wherever_they_are_cut(size: int) -> None:
    assert cut(b"".join(CONVERSATION), size) == CONVERSATION


def test_messages_come_out_the_same_when_cut_in_two_at_every_byte() -> None:
    stream = b"".join(CONVERSATION)
    for at in range(1, len(stream)):
        framer, found = Framer("client", client_limits(BODY)), []
        for part in (stream[:at], stream[at:]):
            framer.feed(part)
            while (one := framer.take()) is not None:
                found.append(one.raw)
        assert found == CONVERSATION


def test_messages_that_were_not_taken_wait_in_order() -> None:
    framer = Framer("client", client_limits(BODY))
    for part in CONVERSATION:
        framer.feed(part[:3])
        framer.feed(part[3:])
    assert framer.waiting == sum(map(len, CONVERSATION))
    assert framer.peek() == Front.PARSE
    assert [framer.take() for _ in CONVERSATION] == [Message(raw[0], raw) for raw in CONVERSATION]
    assert framer.take() is None
    assert framer.peek() is None
    assert framer.waiting == 0


def test_a_message_that_came_alone_is_not_copied() -> None:
    framer = Framer("client", client_limits(BODY))
    raw = bytes(bytearray(CONVERSATION[0]))
    framer.feed(raw)
    taken = framer.take()
    assert taken is not None
    assert taken.raw is raw
    assert bytes(taken.body) == raw[5:]


def test_a_run_of_rows_is_one_piece_up_to_its_bound_and_ends_before_another_kind() -> None:
    row = forms.write_data_row([b"1", None])
    end = forms.write_command_complete("SELECT 3")
    framer = Framer("server", server_limits(BODY))
    framer.feed(row * 3 + end + row[:4])
    assert framer.take_run(Back.DATA_ROW, len(row) * 2 + 1) == (row * 2, 2)
    assert framer.take_run(Back.DATA_ROW, 1) == (row, 1)  # one always, however small the bound
    assert framer.take_run(Back.DATA_ROW, 1000) == (b"", 0)
    assert framer.take() == Message(Back.COMMAND_COMPLETE, end)
    assert framer.take_run(Back.DATA_ROW, 1000) == (b"", 0)
    framer.feed(row[4:])
    assert framer.take_run(Back.DATA_ROW, 1000) == (row, 1)


def test_what_was_not_taken_can_be_had_whole() -> None:
    framer = Framer("client", client_limits(BODY))
    framer.feed(CONVERSATION[0] + CONVERSATION[1][:2])
    framer.take()
    framer.feed(CONVERSATION[1][2:4])
    assert framer.rest() == CONVERSATION[1][:4]
    assert framer.waiting == 0


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"\x00", "unknown-message"),
        (b"GET / HTTP/1.1\r\n", "unknown-message"),
        (b"Q\0\0\0\3", "message-length"),
        (b"Q\0\0\0\0", "message-length"),
        (b"Q" + struct.pack(">I", BODY + 5), "message-too-large"),
        (b"Q\xff\xff\xff\xff", "message-too-large"),
        (b"S" + struct.pack(">I", MAX_SMALL + 5), "message-too-large"),
        (b"R\0\0\0\x08\0\0\0\0", "unknown-message"),  # of the server
    ],
)
def test_a_message_that_cannot_be_is_refused_before_it_is_whole(raw: bytes, reason: str) -> None:
    for size in (1, len(raw)):
        with pytest.raises(ProtocolError) as error:
            cut(raw, size)
        assert error.value.reason == reason


def test_a_message_may_be_as_large_as_its_bound() -> None:
    raw = message(Front.QUERY, b"x" * (BODY - 1) + b"\0")
    assert cut(raw, 65536) == [raw]


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_give_messages_or_a_protocol_error(data: bytes, size: int) -> None:
    framer = Framer("server", server_limits(BODY))
    out = b""
    try:
        for at in range(0, len(data), size):
            framer.feed(data[at : at + size])
            while (one := framer.take()) is not None:
                out += one.raw
    except ProtocolError:
        return
    assert out + framer.rest() == data


# -- startup ---------------------------------------------------------------------------------------------


def test_startup_packets_are_read_at_every_cut() -> None:
    raw = startup_message(2, {b"user": b"ada", b"database": b"vectors", b"application_name": b""})
    for at in range(len(raw)):
        assert read_startup(raw[:at]) is None
    found = read_startup(raw + b"rest")
    wanted = ((b"user", b"ada"), (b"database", b"vectors"), (b"application_name", b""))
    assert found == (StartupMessage(3, 2, wanted, raw), b"rest")
    assert isinstance(found[0], StartupMessage)
    assert found[0].get(b"database") == b"vectors"
    assert found[0].get(b"options") is None


def test_requests_without_a_version_are_told_apart() -> None:
    ssl = struct.pack(">II", 8, 80877103)
    gss = struct.pack(">II", 8, 80877104)
    cancel = struct.pack(">III", 16, 80877102, 4711) + b"abcd"
    long = struct.pack(">III", 12 + MAX_CANCEL_KEY, 80877102, 4711) + bytes(MAX_CANCEL_KEY)
    assert read_startup(ssl) == (EncryptionRequest("tls", ssl), b"")
    assert read_startup(gss + ssl) == (EncryptionRequest("gss", gss), ssl)
    assert read_startup(cancel) == (CancelRequest(4711, b"abcd", cancel), b"")
    assert read_startup(long) == (CancelRequest(4711, bytes(MAX_CANCEL_KEY), long), b"")


def packet(code: int, body: bytes) -> bytes:
    return struct.pack(">II", 8 + len(body), code) + body


V3 = 3 << 16


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not-postgres"),
        (b"\x16\x03\x01", "not-postgres"),
        (struct.pack(">I", 7), "not-postgres"),
        (struct.pack(">I", MAX_STARTUP + 1), "not-postgres"),
        (packet(2 << 16, b"user\0ada\0\0"), "version"),
        (packet(4 << 16, b"user\0ada\0\0"), "version"),
        (packet(80877103, b"x"), "startup-length"),
        (packet(80877102, b"pidd"), "cancel-length"),
        (packet(80877102, b"pidd" + bytes(MAX_CANCEL_KEY + 1)), "cancel-length"),
        (packet(V3, b""), "startup-layout"),
        (packet(V3, b"user\0ada"), "startup-layout"),
        (packet(V3, b"user\0ada\0"), "startup-layout"),
        (packet(V3, b"user\0\0"), "startup-layout"),
        (
            packet(V3, b"user\0ada\0\0database\0x\0\0"),
            "startup-layout",
        ),  # the server stops at the first empty name
        (packet(V3, b"user\0ada\0\0x\0\0"), "startup-layout"),
        (packet(V3, b"user\0ada\0user\0root\0\0"), "startup-parameters"),
        (
            packet(V3, b"".join(b"p%d\0\0" % n for n in range(MAX_PARAMETERS + 1)) + b"\0"),
            "startup-parameters",
        ),
    ],
)
def test_a_startup_packet_that_the_server_would_read_otherwise_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as error:
        read_startup(raw)
    assert error.value.reason == reason


@given(st.binary(max_size=200))
def test_any_startup_bytes_give_a_packet_or_a_protocol_error(data: bytes) -> None:
    for raw in (data, packet(V3, data)):
        try:
            found = read_startup(raw)
        except ProtocolError:
            continue
        if found is not None:
            assert found[0].raw + found[1] == raw


def test_a_startup_without_parameters_is_whole() -> None:
    found = read_startup(packet(V3, b"\0"))
    assert found is not None
    assert isinstance(found[0], StartupMessage)
    assert found[0].parameters == ()


# -- forms -----------------------------------------------------------------------------------------------


def test_an_error_has_the_fields_that_clients_read() -> None:
    raw = error_response("42501", "no", severity="FATAL", hint="ask")
    assert forms.read_report(Message(raw[0], raw).body) == {
        "S": "FATAL",
        "V": "FATAL",
        "C": "42501",
        "M": "no",
        "H": "ask",
    }
    raw = notice_response("cut\0off")
    assert forms.read_report(raw[5:]) == {"S": "NOTICE", "V": "NOTICE", "C": "00000", "M": "cutoff"}


def test_forms_of_the_query_phase_read_back_what_was_written() -> None:
    parse = forms.Parse(b"s", b"select $1", (23, 0))
    assert forms.read_parse(forms.write_parse(parse)[5:]) == parse
    bind = forms.Bind(b"", b"s", (1,), (b"\0\0\0\1", None), (0, 1))
    assert forms.read_bind(forms.write_bind(bind)[5:]) == bind
    assert bind.format_of(1) == 1
    assert bind.result_format(0) == 0
    execute = forms.Execute(b"p", 5)
    assert forms.read_execute(forms.write_execute(execute)[5:]) == execute
    named = forms.Named("portal", b"p")
    assert forms.read_named(forms.write_named(Front.CLOSE, named)[5:], "Close") == named
    assert forms.read_query(forms.write_query(b"select 1")[5:]) == b"select 1"


def test_forms_of_the_server_read_back_what_was_written() -> None:
    columns = (Column("embedding", 16385, 2, 16390, -1, 3, 1), Column("ctid", 16385, -1, 27, 6, -1, 0))
    assert forms.read_row_description(forms.write_row_description(columns)[5:]) == columns
    assert forms.read_data_row(forms.write_data_row([b"", None, b"x"])[5:]) == (b"", None, b"x")
    assert forms.read_command_complete(forms.write_command_complete("SELECT 1")[5:]) == "SELECT 1"
    assert forms.read_ready(ready_for_query("T")[5:]) == "T"
    assert forms.read_parameter_status(parameter_status("TimeZone", "UTC")[5:]) == ("TimeZone", "UTC")
    assert forms.read_backend_key(b"\0\0\0\7abcd") == (7, b"abcd")
    assert forms.read_negotiate_version(b"\0\3\0\0\0\0\0\1_pq_.x\0") == (0, (b"_pq_.x",))
    assert forms.read_copy_response(b"\1\0\2\0\1\0\1") == forms.CopyResponse(1, (1, 1))


@pytest.mark.parametrize(
    "read",
    [
        lambda b: forms.read_query(b),
        lambda b: forms.read_parse(b),
        lambda b: forms.read_bind(b),
        lambda b: forms.read_named(b, "Close"),
        lambda b: forms.read_execute(b),
        lambda b: forms.read_row_description(b),
        lambda b: forms.read_data_row(b),
        lambda b: forms.read_report(b),
        lambda b: forms.read_copy_response(b),
        lambda b: forms.read_backend_key(b),
        lambda b: forms.read_negotiate_version(b),
        lambda b: forms.read_ready(b),
    ],
)
@given(body=st.binary(max_size=80))
def test_a_body_that_is_not_exactly_of_its_form_is_a_protocol_error(read: object, body: bytes) -> None:
    try:
        read(body)  # type: ignore[operator]
    except ProtocolError:
        return


@pytest.mark.parametrize("body", [b"select 1", b"select 1\0x", b"select 1\0; drop table t\0", b""])
def test_a_query_ends_at_its_zero_byte_and_nothing_stands_behind(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        forms.read_query(body)
