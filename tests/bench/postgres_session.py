# SPDX-License-Identifier: Apache-2.0
"""What one prepared search costs in a worker between its two sockets: relay, session, engine, policy, record.

Run: ``python -m tests.bench.postgres_session [ROUNDS]``, in the tree of the compiled form for its cost. The
messages are libpq's for a prepared statement (Bind, Describe, Execute, Sync) and a server's answer of ten
rows. Prints microseconds of CPU per transaction, median of five; the record goes to a file in memory.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.engines import sql_catalog_queries as queries
from agent.engines.pgvector import PgvectorEngine
from agent.evidence.recorder import Recorder
from agent.evidence.segment import create_segment
from agent.judge import Bindings, SessionJudge
from agent.messages import GuardSettings
from agent.protocols.postgres_forms import (
    Bind,
    Execute,
    Named,
    Parse,
    write_bind,
    write_data_row,
    write_execute,
    write_named,
    write_parse,
    write_row_description,
)
from agent.protocols.postgres_messages import Back, Front, message
from agent.protocols.postgres_query import QueryPhase
from agent.protocols.session import Bounds
from agent.protocols.sql import Column, Where
from agent.relay import Relay
from policy.compile import Bound, Policy
from policy.context import GuardContext, GuardInfo
from policy.document import load_policy
from policy.login import Login
from policy.model import Attribution, RecordLevel, RecordMode, Subject
from tests.unit.engines.sql_recorded import recording

POLICY = """\
version: 1
rules:
  - {id: searches, what: {guard: pg, collection: documents, action: search}, limit: {top_k: 20}, allow: true}
  - {id: connects, what: {guard: pg, action: session}, allow: true}
"""
VECTOR = ",".join(f"{(n * 37 % 100) / 100:.2f}" for n in range(128))
SEARCH = "SELECT id, title FROM documents ORDER BY embedding <=> %s LIMIT 10"
SEARCHES: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "vector in the text": (SEARCH % f"'[{VECTOR}]'", ()),
    "vector as $1": (SEARCH % "$1", (f"[{VECTOR}]".encode(),)),
}
Scheduled = list[Callable[[], None]]


class Rules:
    """One policy, in force as long as the bench runs."""

    policy_hash = ""
    defaults: tuple[RecordLevel, RecordMode] = ("masked", "strict")

    def __init__(self) -> None:
        context = GuardContext((GuardInfo("pg", "pgvector", frozenset({"*"}), ()),), time.time())
        self.policy = Policy(load_policy([("bench", POLICY)], context).rules)
        self._bindings = Bindings()

    @property
    def in_force(self) -> object:
        return self.policy

    def bind(self, subject: Subject, guard: str, login: Login | None) -> Bound:
        return self._bindings.bind(self.policy, subject, guard, login)

    def guard_mode(self, guard: str) -> tuple[bool, bool]:
        return True, False

    def evidence_stands(self) -> bool:
        return True


class Wire(asyncio.Transport):
    """A side that takes everything at once."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 5432)})
        self.sent = 0
        self.last = b""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: Any) -> None:
        self.last = data
        self.sent += 1

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None: ...


class Host:
    """What a relay needs of its worker."""

    first_request = 60.0

    def __init__(self, journal: Recorder) -> None:
        self.journal = journal
        self.server = Wire()
        self.engine = PgvectorEngine("pg", hmac_key=b"k" * 32, clock=lambda: 0.0)
        self.rules = Rules()
        self.subject = Subject(Attribution.KERNEL, pid=42, uid=1000, start_time=7, exe="/usr/bin/app")
        self.sessions = 0

    def new_session_id(self) -> str:
        self.sessions += 1
        return f"s{self.sessions:015x}"

    async def identify(self, relay: Relay) -> Subject:
        return self.subject

    def admit(self, relay: Relay) -> None: ...

    def open_protocol(self, relay: Relay) -> QueryPhase:
        where = Where("app", "corpus", {"application_name": "bench"})
        conversation = self.engine.converse("pg", where)
        session = [[['["pg_catalog","public"]', "app", "on", "UTF8", None, "180004", "public"]], [], []]
        while (text := conversation.wants) is not None:
            whole = recording()["whole"] if text == queries.WHOLE_TEXT else []
            conversation.learn([*session, [["1"]], *whole] if text != queries.SESSION_TEXT else session)
        login = Login("app", "corpus")
        judge = SessionJudge(self.rules, self.subject, "pg", time.time, self.report_bug, login)
        return QueryPhase(self.engine, conversation, judge, "pg", where, Bounds(), 1)

    def card(self, relay: Relay) -> dict[str, Any]:
        return {"pid": 42}

    def count(self, name: str, by: int = 1) -> None:
        raise AssertionError(name)

    def report_bug(self, error: BaseException) -> None:
        raise error

    def forget(self, relay: Relay) -> None: ...

    def tls_layer(self, relay: Relay, side: str) -> Any: ...

    def secured(self, relay: Relay, secured: Any) -> None: ...


def columns() -> tuple[Column, ...]:
    """id and title, as a server describes them."""
    relations, attributes = recording()["whole"][0], recording()["whole"][2]
    table = next(row[0] for row in relations if row[2] == "documents")
    found = {row[2]: row for row in attributes if row[0] == table}
    return tuple(
        Column(name, int(table), int(found[name][1]), int(found[name][3]), size, -1, 0)
        for name, size in (("id", 8), ("title", -1))
    )


def conversation(text: str, values: tuple[bytes, ...]) -> tuple[list[bytes], list[bytes]]:
    """([what prepares, its answer], [one transaction, its answer])."""
    sync, ready = message(Front.SYNC), message(Back.READY_FOR_QUERY, b"I")
    prepare = write_parse(Parse(b"P0_0", text.encode(), ())) + sync
    ask = (
        write_bind(Bind(b"", b"P0_0", (), values, (0,)))
        + write_named(Front.DESCRIBE, Named("portal", b""))
        + write_execute(Execute(b"", 0))
        + sync
    )
    rows = b"".join(write_data_row((str(n * 311).encode(), f"title {n * 311}".encode())) for n in range(10))
    answer = (
        message(Back.BIND_COMPLETE)
        + write_row_description(columns())
        + rows
        + message(Back.COMMAND_COMPLETE, b"SELECT 10\0")
        + ready
    )
    return [prepare, message(Back.PARSE_COMPLETE) + ready], [ask, answer]


def transact(relays: Sequence[Relay], steps: list[bytes], scheduled: Scheduled, rounds: int) -> None:
    """`relays` take their turns together, so that a block of the record is shared by them."""
    ask, answer = steps
    for _ in range(rounds):
        for data, at in ((ask, 0), (answer, 1)):
            for relay in relays:
                (relay.from_server if at else relay.from_client)(data)
            for work in scheduled:
                work()
            scheduled.clear()


async def measure(folder: Path, name: str, clients: int, rounds: int) -> float:
    scheduled: Scheduled = []
    recorder = Recorder(
        "a" * 16, create_segment(folder, 1), create_segment(folder, 2), host="h", boot="b",
        schedule=scheduled.append, later=lambda work: None,
    )  # fmt: skip
    host = Host(recorder)
    wires = [Wire() for _ in range(clients)]
    loop: Any = asyncio.get_running_loop()

    async def dial(factory: Callable[[], Any], address: str, port: int) -> None:
        factory().connection_made(host.server)

    loop.create_connection = dial
    settings = GuardSettings("pg", 0, "pgvector", (5432,), None, "enforce", "judge")
    relays = [Relay(host, settings, wire) for wire in wires]
    for _ in range(10):
        await asyncio.sleep(0)
    prepare, search = conversation(*SEARCHES[name])
    transact(relays, prepare, scheduled, 1)
    transact(relays, search, scheduled, 20)
    took = []
    for _ in range(5):
        recorder.signed(recorder.seq)
        begin = time.process_time()
        transact(relays, search, scheduled, rounds // clients)
        took.append((time.process_time() - begin) / (rounds // clients * clients) * 1e6)
    answered = wires[0].sent
    assert answered == 1 + 20 + 5 * (rounds // clients), f"{answered} answers"
    assert wires[0].last == search[1], "another answer than the database gave"
    for relay in relays:
        relay.end("done")
    recorder.release_files()
    return statistics.median(took)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    for name in SEARCHES:
        for clients in (1, 4):
            with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
                spent = asyncio.run(measure(Path(folder), name, clients, rounds))
                print(f"{name:<20} {clients} together {spent:6.1f} us")


if __name__ == "__main__":
    main()
