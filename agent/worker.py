# SPDX-License-Identifier: Apache-2.0
"""A proxy worker: the process that meets strangers' bytes, and holds nothing worth stealing but them.

Owns its relays and wires its listeners (``server``), its evidence (``stream``) and the agent (``link``).
Reads no file, opens no path but the agent's socket, starts no child, has no capability. It decides by the
last snapshot the agent pushed. Bias: a guard in enforce refuses whom it cannot identify or record; a guard
in observe never breaks a client.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from agent.bugs import say_bug
from agent.callers import is_peer, may_be_named, subject_key
from agent.card import session_card
from agent.evidence.recorder import Recorder
from agent.host import Refuse
from agent.in_force import InForce
from agent.judge import SessionJudge
from agent.leaving import Leaving
from agent.link import AWAY_TIMEOUT, IDENTITY_TIMEOUT, OBSERVED_TIMEOUT, AgentGone, AgentLink
from agent.messages import (
    VERSION,
    Adopt,
    AgentMessage,
    Counters,
    Drain,
    Ended,
    Hello,
    Identify,
    Kill,
    Listener,
    Pressure,
    Refused,
    Segment,
    Signed,
    Snapshot,
    Welcome,
)
from agent.protocols.budget import Budget
from agent.protocols.choose import open_tunnel
from agent.protocols.session import Bounds, ProtocolError, Secured, Session
from agent.relay import Relay
from agent.server import Served, Server
from agent.session_id import new_session_id
from agent.sides import address_of
from agent.stream import EvidenceStream
from agent.tls_layer import TlsLayer
from policy.login import first_login
from policy.model import Attribution, Subject, Verdict

PRESENT_EVERY = 0.25  # seconds between presentations of unsigned blocks
COUNT_EVERY = 1.0
GC_EVERY = 50_000  # allocations: an exchange leaves no cycle, and at 700 the search for them is a tenth of it


class Worker:
    """Implements ``relay.Host``."""

    def __init__(
        self,
        agent_socket: Path,
        generation: str,
        *,
        notify: Callable[[str], object] = lambda word: None,
        term_drain: float = 0.0,
    ) -> None:
        """``notify`` hears "ready" and "draining"; ``term_drain``: seconds for exchanges after a SIGTERM."""
        self._generation = generation
        self._notify = notify
        self._term_drain = term_drain
        self._refused = False
        self._link = AgentLink(agent_socket, self._hello, self._take, self._agent_lost)
        self._server = Server(self._accept, self._announce, self._spawn)
        self._relays: dict[str, Relay] = {}
        self._subjects: Counter[tuple[Any, ...]] = Counter()
        self._counters: Counter[str] = Counter()
        self._stream = EvidenceStream(self._link.send, self._spawn)
        self._rules = InForce(self._stream)
        self._slot = -1
        self._budget = Budget(note=lambda: self.count("held_refused"))
        self._leaving = Leaving(self._relays, self._server.close, self._server.waits, notify, self._spawn)
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- relay.Host --------------------------------------------------------------------------------

    @property
    def journal(self) -> Recorder:
        return self._stream.recorder

    @property
    def first_request(self) -> float:
        return self._rules.settings.first_request

    def new_session_id(self) -> str:
        return new_session_id(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(4)))

    async def identify(self, relay: Relay) -> Subject:
        guard = relay.guard.name
        served = self._server.find(guard)
        netns = 0 if served is None else served.netns
        sha256 = self._rules.names(guard, "exe_sha256")
        try:
            return await self._link.identify(
                lambda number: Identify(
                    number, guard, netns, relay.client_addr, relay.server_addr, sha256, relay.accepted, True
                ),
                IDENTITY_TIMEOUT if relay.enforcing else OBSERVED_TIMEOUT,
                AWAY_TIMEOUT if relay.enforcing else 0.0,
            )
        except AgentGone as error:
            if relay.enforcing:
                raise Refuse("agent-unreachable", str(error)) from None
            self.count("unattributed_agent_unreachable")
            return Subject(Attribution.UNATTRIBUTED, null_reason={"pid": "the agent was not reachable"})

    def admit(self, relay: Relay) -> None:
        subject = relay.subject
        if subject is None:
            raise Refuse("unattributed", "the caller was not identified")
        enforcing = relay.guard.mode == "enforce" and not relay.guard.off
        if subject.attribution is Attribution.UNATTRIBUTED and enforcing:
            raise Refuse("unattributed", "no kernel record names this connection")
        if subject.remote is not None and relay.guard.remote == "refuse":
            raise Refuse("remote", "callers of other hosts are refused here")
        if subject.pid == os.getpid():
            raise Refuse("loop", "the proxy's own connection came back to it")
        key = subject_key(subject)
        if enforcing and self._subjects[key] >= self._rules.settings.max_connections_per_subject:
            raise Refuse("too-many-connections", "this process has as many connections as one may have")
        self._subjects[key] += 1

    def open_protocol(self, relay: Relay) -> Session:
        held = self._server.find(relay.guard.name)
        subject = relay.subject
        if subject is None or held is None:
            raise RuntimeError("a session before its subject")
        if self._tunnel(relay, subject) is not None and (
            subject.remote is None or is_peer(relay.guard, relay.server_addr, subject.remote)
        ):
            relay.tunnelled = True
            return open_tunnel("a tunnel rule covers it")
        bounds = Bounds(body=self._rules.settings.max_body, budget=self._budget)
        relay.judge = self._judge(relay, subject)
        return held.open_session(relay.guard, relay.judge, bounds)

    def _judge(self, relay: Relay, subject: Subject) -> SessionJudge:
        guard = relay.guard
        return SessionJudge(
            self._rules, subject, guard.name, time.time, self.report_bug, first_login(guard.engine)
        )

    def tls_layer(self, relay: Relay, side: Literal["client", "server"]) -> TlsLayer:
        held = self._server.find(relay.guard.name)
        if held is None or held.tls is None:
            raise ProtocolError("guard-changed", "this guard has no TLS any more")
        return held.tls.layer(side, relay.server_addr[0], any(one.certificate for one in relay.tls))

    def secured(self, relay: Relay, secured: Secured) -> None:
        self.count(f"tls_{secured.side}")
        if secured.side == "client" and relay.subject is not None and secured.subject is not None:
            relay.subject = replace(relay.subject, tls_subject=secured.subject)
            if relay.judge is not None:
                relay.judge.rebind(relay.subject)

    def card(self, relay: Relay) -> dict[str, Any]:
        if relay.subject is None:
            raise RuntimeError("a card before its subject")
        return session_card(
            relay.id, self._stream.host, self._stream.boot, relay.guard, relay.subject, relay.client_addr,
            relay.server_addr, self._rules.policy_hash, relay.tls,
        )  # fmt: skip

    def count(self, name: str, by: int = 1) -> None:
        self._counters[name] += by

    def report_bug(self, error: BaseException) -> None:
        """An exception that should not be: counted, and said on stderr without any client byte."""
        self.count("bugs")
        say_bug(error)

    def forget(self, relay: Relay) -> None:
        if self._relays.pop(relay.id, None) is None:
            return
        if relay.subject is not None and relay.admitted:
            key = subject_key(relay.subject)
            self._subjects[key] -= 1
            if self._subjects[key] <= 0:
                del self._subjects[key]
        self._leaving.session_ended()

    # -- the agent ---------------------------------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(VERSION, os.getpid(), self._generation, self._stream.name, self._slot)

    def _agent_lost(self) -> None:
        self.count("agent_lost")

    def _take(self, message: AgentMessage, descriptors: list[int]) -> None:
        match message:
            case Segment():
                self._stream.take_segment(message, descriptors[0])
            case Snapshot():
                self._take_snapshot(message)
            case Welcome():
                self._take_welcome(message)
            case Signed():
                self.journal.signed(message.seq)
            case Pressure():
                self.journal.pressure = message.level
            case Kill():
                relay = self._relays.get(message.session)
                if relay is not None:
                    relay.end("killed")
                self._link.send(Ended(message.session, relay is not None))
            case Adopt():
                self._server.adopt(message.guard, descriptors[0])
            case Drain():
                self._spawn(self._leaving.drain(message.seconds, message.keep))
            case Refused():
                print(
                    f"vecward: the agent refuses this worker: {message.reason}", file=sys.stderr, flush=True
                )
                self._refused = True
                self._leaving.stopping.set()
            case _:
                raise TypeError(f"not for a worker: {type(message).__name__}")

    def _take_welcome(self, message: Welcome) -> None:
        self._slot = message.slot
        self._stream.begin(message)
        self._server.announce_all()
        self._serve()
        self._stream.present()
        self._say_ready()

    def _take_snapshot(self, snapshot: Snapshot) -> None:
        self._rules.take(snapshot)
        self._budget.limit = snapshot.settings.max_held
        if self._stream.is_begun:
            self._serve()
            for relay in list(self._relays.values()):
                self._recheck(relay)

    def _recheck(self, relay: Relay) -> None:
        """After a change: a guard gone or in another mode, a subject without any right left, or a tunnel
        that no rule covers any more (what passes unread has no next request to be judged by: every second).
        """
        held = self._server.find(relay.guard.name)
        if held is None or (relay.guard.mode, relay.guard.engine) != (
            held.settings.mode,
            held.settings.engine,
        ):
            relay.end("guard-changed")
            return
        if relay.subject is not None and held.settings.mode == "enforce" and not held.settings.off:
            judge = relay.judge or self._judge(relay, relay.subject)
            if not judge.has_rights() and not (may_be_named(held.settings) and relay.is_unnamed):
                relay.end("no-rights-left")
            elif relay.tunnelled and self._tunnel(relay, relay.subject) is None:
                relay.end("tunnel-withdrawn")

    def _tunnel(self, relay: Relay, subject: Subject) -> Verdict | None:
        guard = relay.guard
        bound = self._rules.bind(subject, guard.name, first_login(guard.engine))
        return bound.tunnel(guard.engine, time.time())

    def _serve(self) -> None:
        snapshot = self._rules.snapshot
        if snapshot is not None:
            self._server.sync(snapshot.guards, snapshot.hmac_key)

    def _announce(self, guard: str, descriptor: int) -> None:
        self._link.send(Listener(guard), descriptor)
        self._say_ready()

    def _say_ready(self) -> None:
        if self._server.is_complete and not self._leaving.begun:
            self._notify("ready")

    def _accept(self, served: Served, transport: asyncio.Transport) -> Relay | None:
        self.count("accepted")
        if transport.get_extra_info("peername") is None:
            self.count("gone")  # reset before it was accepted; the agent writes who it was
            return None
        if not self._stream.is_begun:
            self.count("refused_no_evidence")
            return None
        if len(self._relays) >= self._rules.settings.max_connections:
            self.count("refused_too_many_connections")
            return None
        # Steering keeps the port that was dialled: another one was dialled at the listener itself.
        if address_of(transport.get_extra_info("sockname"))[1] not in served.settings.ports:
            self.count("refused_not_steered")
            return None
        relay = Relay(self, served.settings, transport)
        self._relays[relay.id] = relay
        return relay

    # -- life --------------------------------------------------------------------------------------

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.report_bug(task.exception())  # type: ignore[arg-type]

    async def _tick(self) -> None:
        counted = 0.0
        while True:
            await asyncio.sleep(PRESENT_EVERY)
            if self._link.is_up:
                self._stream.present()
            now = time.monotonic()
            if now - counted >= COUNT_EVERY:
                counted = now
                if self._stream.is_begun:
                    self._stream.recorder.tick()
                values = {**self._counters, **self._stream.counters()}
                self._link.send(Counters(values, len(self._relays)))
                for relay in [r for r in self._relays.values() if r.tunnelled]:  # an `until` may have passed
                    asyncio.get_running_loop().call_soon(self._recheck, relay)

    async def run(self) -> int:
        """Serve until told to stop. Returns the exit code."""
        gc.freeze()
        gc.set_threshold(GC_EVERY)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leaving.terminate, self._term_drain)
        loop.add_signal_handler(
            signal.SIGINT, lambda: None
        )  # the terminal's ^C is the supervisor's to answer
        keeping = loop.create_task(self._link.keep())
        ticking = loop.create_task(self._tick())
        await self._leaving.stopping.wait()
        for relay in list(self._relays.values()):
            relay.end("stopped")
        self._link.drop_questions()  # nothing may be recorded once the stream is closed
        if self._stream.is_begun:
            await self._stream.close()
        self._link.close()
        for task in (keeping, ticking, *self._tasks):
            task.cancel()
        await asyncio.gather(keeping, ticking, *self._tasks, return_exceptions=True)
        return int(self._refused)
