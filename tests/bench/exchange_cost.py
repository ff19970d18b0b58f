# SPDX-License-Identifier: Apache-2.0
"""What one exchange costs from the client's bytes to the released answer, without sockets.

    python -m tests.bench.exchange_cost [CASE ...]

Relay, session, engine, policy and a recorder that writes a real file; transports that take everything. A
turn serves several connections, as a loaded worker does. Prints the least of 7 runs in microseconds of CPU,
kernel included: what is left beside the sockets. A case is size:connections-a-turn:guard.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.engines import make_http_engine
from agent.evidence.recorder import Recorder
from agent.evidence.segment import create_segment, new_stream_id
from agent.judge import Bindings, SessionJudge
from agent.protocols.http import Engine
from agent.protocols.http1 import Http1Session
from agent.relay import Relay
from policy.compile import Bound, Policy
from policy.context import GuardContext
from policy.document import load_policy
from policy.login import Login
from policy.model import Attribution, RecordLevel, RecordMode, Subject
from tests.bench import peers
from tests.bench.test_proxies import POLICY
from tests.unit.agent.side import Host

ROUNDS = {"small": 400, "large": 40}
CASES = [
    f"{size}:{many}:{name}"
    for size in ROUNDS
    for many in (1, 16)
    for name in ("masked", "full", "stripped", "cut")
]
SUBJECT = Subject(Attribution.KERNEL, pid=42, uid=0, start_time=7, user="root", exe="/usr/bin/app")
READ = 65536  # bytes that a transport gives at a time


class Rules:
    """What a worker's snapshot tells a judge."""

    policy_hash = "h"
    defaults: tuple[RecordLevel, RecordMode] = ("masked", "strict")

    def __init__(self) -> None:
        self._policy = Policy(load_policy([("rules.yaml", POLICY)], GuardContext(None, time.time())).rules)
        self._bindings = Bindings()
        self.in_force: object = self._policy

    def bind(self, subject: Subject, name: str, login: Login | None) -> Bound:
        return self._bindings.bind(self._policy, subject, name, login)

    def guard_mode(self, name: str) -> tuple[bool, bool]:
        return True, False

    def evidence_stands(self) -> bool:
        return True


class Sink(asyncio.Transport):
    """Takes what it is given."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50000), "sockname": ("127.0.0.1", 8000)})
        self.taken = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.taken += len(data)

    def writelines(self, list_of_data: Any) -> None:
        self.taken += sum(map(len, list_of_data))

    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Worker(Host):
    """The relay's host, with a recorder behind it."""

    def __init__(self, recorder: Recorder, open_session: Callable[[], Http1Session]) -> None:
        super().__init__()
        self.journal: Any = recorder
        self._open = open_session
        self._made = 0

    def new_session_id(self) -> str:
        self._made += 1
        return f"s{self._made:015d}"

    def open_protocol(self, relay: Relay) -> Http1Session:
        return self._open()

    def forget(self, relay: Relay) -> None: ...


def begin_recorder(folder: Path) -> Recorder:
    stream = new_stream_id()
    number = 0

    def spare() -> None:
        nonlocal number
        number += 1
        for old in (folder / stream).glob("*.seg"):
            old.unlink()
        made.give_spare(create_segment(folder / stream, number))

    made = Recorder(
        stream, create_segment(folder / stream, 0), None, host="bench", boot="bench",
        schedule=lambda work: None, need_spare=spare,
    )  # fmt: skip
    spare()
    return made


def request(size: str) -> bytes:
    path = f"{peers.API}/{peers.UUID % (1 if size == 'small' else 2)}/query"
    body = peers.question(size == "large")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer(body: bytes) -> bytes:
    head = (
        "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 29 Nov 2026 17:00:00 GMT\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: keep-alive\r\n"
        'Last-Modified: Sun, 29 Nov 2026 16:00:00 GMT\r\nETag: "6-1"\r\nAccept-Ranges: bytes\r\n\r\n'
    )
    return head.encode() + body


def known(size: str) -> bytes:
    number = 1 if size == "small" else 2
    return answer(
        b'{"id":"%s","name":"papers%d","tenant":"default_tenant","database":"default_database"}'
        % ((peers.UUID % number).encode(), number)
    )


async def measure(size: str, many: int, name: str) -> float:
    rules = Rules()
    engine: Engine = make_http_engine("chroma", name, hmac_key=b"k" * 32, clock=lambda: 0.0)

    def open_session() -> Http1Session:
        judge = SessionJudge(rules, SUBJECT, name, time.time, lambda error: sys.exit(f"a bug: {error!r}"))
        return Http1Session(engine, judge, name)

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        recorder = begin_recorder(Path(folder))
        host = Worker(recorder, open_session)
        relays: list[tuple[Relay, Sink]] = []
        for _ in range(many):
            host.client, host.server = Sink(), Sink()  # type: ignore[assignment]
            relay = host.accept("enforce", name=name, engine="chroma")
            for _turn in range(5):
                await asyncio.sleep(0)
            relays.append((relay, host.client))  # type: ignore[arg-type]
        asked = request(size)
        body = peers.answer(*((10, 118, False) if size == "small" else (18, 230, True)))
        came = answer(body)
        reads = [came[at : at + READ] for at in range(0, len(came), READ)]
        relay = relays[0][0]
        relay.from_client(asked)  # its collection is looked up
        relay.from_server(known(size))
        recorder.flush()
        for read in reads:
            relay.from_server(read)
        recorder.flush()
        taken = relays[0][1].taken
        if taken < 1000 or host.bugs:
            sys.exit(f"no answer was released: {host.bugs or host.counts}")

        def turn() -> None:
            for relay, _client in relays:
                relay.from_client(asked)
            recorder.flush()
            for read in reads:
                for relay, _client in relays:
                    relay.from_server(read)
            recorder.flush()
            for block in recorder.unsigned(1_000_000)[-1:]:
                recorder.signed(block.first + block.frames - 1)

        rounds = max(1, ROUNDS[size] // many) * 2
        took = []
        for _ in range(7):
            begin = time.process_time()
            for _ in range(rounds):
                turn()
            took.append((time.process_time() - begin) / rounds / many * 1e6)
        if host.bugs or host.counts or not all(relay.is_open for relay, _client in relays):
            sys.exit(f"a connection was closed: {host.bugs or host.counts}")
        for relay, _client in relays:
            relay.end("done")
        recorder.flush()
        recorder.release_files()
    return min(took)


def main() -> None:
    for case in sys.argv[1:] or CASES:
        size, many, name = case.split(":")
        print(f"{case:<24}{asyncio.run(measure(size, int(many), name)):>8.1f} µs", flush=True)


if __name__ == "__main__":
    main()
