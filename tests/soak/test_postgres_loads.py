# SPDX-License-Identifier: Apache-2.0
"""Sessions of PostgreSQL that are slow, many or long: memory is bounded, nothing is lost, all answer."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from agent.protocols.postgres_forms import read_notification, write_query
from agent.protocols.postgres_messages import Back, Front, message
from tests.conftest import FULL
from tests.kernel.arena import PATIENCE, Fork, say
from tests.servers.breaker import BEHIND, Plan
from tests.servers.postgres import OWNER, PORT, RUNS_AS, SECRET, PostgresStage
from tests.servers.postgres_line import Line, guarding, line, memory
from tests.servers.postgres_wire import MARK, Wire, errors
from tests.servers.raw import wait_until

Sized = Callable[[int, int], int]
STALLED = 4  # connections at once whose other side does not read
MAX_STALLED = 8 * 1024  # KiB that each of them may hold in a worker
MAX_IDLE = 40  # KiB that an idle session may take in a worker
# Idle sessions, and whether PgBouncer stands before the database: one of its processes takes 2 MiB.
IDLE = ((1000, False), (5000, True)) if FULL else ((60, False),)
ROW = b"x" * 1000


@pytest.fixture(scope="module")
def stage() -> Iterator[Line]:
    with line() as made:
        yield made


def stalled(
    stage: Line, hold: Callable[[], str], stall: Callable[[], object], release: Callable[[], object]
) -> float:
    """KiB that each of `STALLED` clients which run `hold` took in the workers when nothing moved any more.

    Before, as many run through: what they leave there (compressors, kept buffers) is no connection's.
    """
    release()
    with _children(stage, hold) as children:
        for child in children:
            while child.said(4 * PATIENCE) != "whole":
                pass
    stall()
    before, most, still = memory(stage), 0, 0
    with _children(stage, hold) as children:
        for child in children:
            assert child.said() == "stalled"
        while still < 10:  # times that nothing was added, 0.2 s apart
            time.sleep(0.2)
            now = memory(stage)
            still = still + 1 if now <= most else 0
            most = max(most, now)
        release()
        for child in children:
            assert child.said(4 * PATIENCE) == "whole"
    return (most - before) / STALLED


@contextlib.contextmanager
def _children(stage: Line, hold: Callable[[], str]) -> Iterator[list[Fork]]:
    children = [stage.arena.fork(hold, user="nobody") for _ in range(STALLED)]
    try:
        yield children
    finally:
        for child in children:
            child.kill()


def test_clients_that_do_not_read_are_waited_for_with_bounded_memory(stage: Line, sized: Sized) -> None:
    rows = sized(12_000, 100_000)
    stage.breaker.plan(Plan())
    go = stage.folder / "go"

    def hold() -> str:
        with Wire() as wire:
            wire.login()
            text = f"SELECT repeat('x', 1000) FROM generate_series(1, {rows})"
            wire.send(write_query(text.encode()))
            wire.until(Back.DATA_ROW)
            say("stalled")
            while not go.exists():
                time.sleep(0.1)
            found = wire.until(Back.READY_FOR_QUERY)
            assert sum(kind == Back.DATA_ROW for kind, _ in found) == rows - 1
            return "whole"

    with guarding(stage):
        each = stalled(stage, hold, go.unlink, go.touch)
    print(f"clients that do not read {rows / 1000:.0f} MB: {each:.0f} KiB each in the workers")
    assert each < MAX_STALLED


def test_a_database_that_does_not_read_is_waited_for_with_bounded_memory(stage: Line, sized: Sized) -> None:
    rows = sized(24_000, 100_000)

    def stall() -> None:
        stage.breaker.plan(Plan(mark=MARK, deaf=True))

    def hold() -> str:
        with Wire() as wire:
            wire.login().ask("CREATE TEMP TABLE t (x text)")
            wire.send(write_query(f"COPY t FROM STDIN {MARK}".encode()))
            wire.until(Back.COPY_IN)
            data, told = memoryview(message(Front.COPY_DATA, ROW + b"\n") * rows), False
            while data:
                if not told and not wire.writable(1.0):
                    told = True
                    say("stalled")
                data = data[wire.sock.send(data[: 1 << 16]) :]
            wire.send(message(Front.COPY_DONE))
            assert not errors(wire.until(Back.READY_FOR_QUERY))
            return "whole"

    with guarding(stage):
        stall()
        each = stalled(stage, hold, stall, stage.breaker.tell)
    print(f"a database that does not read {rows / 1000:.0f} MB: {each:.0f} KiB each in the workers")
    assert each < MAX_STALLED


def test_a_database_that_answers_byte_by_byte_is_understood(stage: Line) -> None:
    def ask() -> int:
        with Wire() as wire:
            wire.login()
            text = f"SELECT id, title, embedding {MARK} FROM documents ORDER BY id LIMIT 10"
            return sum(kind == Back.DATA_ROW for kind, _ in wire.ask(text))

    with guarding(stage):
        stage.breaker.plan(Plan(mark=MARK, piece=1, pause=0.0005))
        assert stage.arena.run(ask, user="nobody", timeout=4 * PATIENCE) == 10


# -- many --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pool(stage: PostgresStage) -> Iterator[None]:
    """PgBouncer where clients find the database, with few connections to it behind: a transaction each."""
    config, users = stage.folder / "pgbouncer.ini", stage.folder / "pgbouncer.txt"
    users.write_text(f'"{OWNER}" "{SECRET}"\n')
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={BEHIND}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {PORT}\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\n"
        f"max_client_conn = 6000\ndefault_pool_size = 20\nunix_socket_dir =\n"
    )
    for file in (config, users):
        os.chown(file, pwd.getpwnam(RUNS_AS).pw_uid, -1)
    process = stage.arena.popen(
        ["pgbouncer", "-q", str(config)], user=RUNS_AS, group="database", stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=stage.environment(PATH=f"{os.environ['PATH']}:/usr/sbin"),
    )  # fmt: skip
    try:
        wait_until(lambda: stage.arena.inside(_listens), what="PgBouncer listens")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


@pytest.mark.parametrize(("many", "pooled"), IDLE)
def test_many_idle_sessions_are_small_and_all_still_answer(many: int, pooled: bool) -> None:
    def hold() -> int:
        wanted = 2 * many + 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        wires = [Wire().login() for _ in range(many)]
        say("there")
        while not go.exists():
            time.sleep(0.1)
        return sum(not errors(wire.ask("SELECT 1")) for wire in wires)

    def warm() -> None:
        """Both workers know the catalog."""
        for _ in range(20):
            with Wire() as wire:
                wire.login().ask("SELECT 1")

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with PostgresStage() as stage:
        go = stage.folder / "ask"
        stage.port = BEHIND if pooled else PORT
        stage.start_postgres(f"max_connections={100 if pooled else many + 50}")
        stage.port = PORT
        try:
            with pool(stage) if pooled else contextlib.nullcontext(), guarding(stage):
                stage.arena.run(warm, user="nobody")
                before = memory(stage)
                child = stage.arena.fork(hold, user="nobody")
                assert child.said(1800) == "there"
                each = (memory(stage) - before) / many
                print(f"{many} idle sessions: {each:.1f} KiB each in the workers")
                go.touch()
                assert child.said(600) == many
                child.kill()
        finally:
            stage.stop_database()
    assert each <= MAX_IDLE


# -- long --------------------------------------------------------------------------------------------------


def test_who_listens_hears_everything_in_order_while_others_work(stage: Line, sized: Sized) -> None:
    seconds = sized(4, 1200)
    silence = sized(1, 120)  # at most, between two notifications
    stage.breaker.plan(Plan())

    def listen() -> int:
        with Wire() as wire:
            wire.login().ask("LISTEN news")
            say("there")
            heard = 0
            while True:
                wire.sock.settimeout(2 * silence + PATIENCE)
                kind, body = wire.take()
                assert kind == Back.NOTIFICATION
                text = read_notification(body).payload
                if text == b"end":
                    return heard
                assert text == str(heard).encode()
                heard += 1

    def tell() -> int:
        said, pause, deadline = 0, 0.01, time.monotonic() + seconds
        with Wire() as wire:
            wire.login()
            while time.monotonic() < deadline:
                for _ in range(20):
                    assert not errors(wire.ask(f"NOTIFY news, '{said}'"))
                    said += 1
                time.sleep(min(pause, silence, max(deadline - time.monotonic(), 0)))
                pause = pause * 2 if pause < silence else 0.01
            wire.ask("NOTIFY news, 'end'")
        return said

    def work() -> int:
        asked = 0
        while not done.exists():
            with Wire() as wire:
                wire.login()
                for number in range(50):
                    assert not errors(wire.ask(f"SELECT title FROM documents WHERE id = {number}"))
                    asked += 1
                time.sleep(0.05)
        return asked

    done = stage.folder / "done"
    with guarding(stage):
        listener = stage.arena.fork(listen, user="nobody")
        assert listener.said() == "there"
        worker = stage.arena.fork(work, user="nobody")
        said = stage.arena.run(tell, user="nobody", timeout=seconds + silence + PATIENCE)
        assert listener.said() == said
        done.touch()
        asked = worker.said()
        for child in (listener, worker):
            child.kill()
    print(f"{said} notifications in order in {seconds} s, beside {asked} queries")
