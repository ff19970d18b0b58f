# SPDX-License-Identifier: Apache-2.0
"""A worker's listeners, one a guard: made, announced to the agent, served and closed.

Owns nothing of a connection after it was accepted. Only this process holds its listeners: its death
empties their slots in the kernel, so no descriptor is kept anywhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from agent.custody import make_custody
from agent.engines import is_http, is_sql, make_engine
from agent.listener import make_listener, netns_cookie
from agent.messages import GuardSettings
from agent.protocols.choose import open_session, open_sql_session
from agent.protocols.http import Engine
from agent.protocols.postgres_auth import Custody
from agent.protocols.session import Bounds, LoginJudge, Session
from agent.protocols.sql import SqlEngine
from agent.relay import Relay
from agent.sides import ClientSide
from agent.tls_contexts import make_contexts

BACKLOG = 4096


class Served:
    """A guard as this worker serves it."""

    __slots__ = ("custody", "engine", "listener", "netns", "server", "settings", "tls")

    def __init__(self, settings: GuardSettings, engine: Engine | SqlEngine, custody: Custody) -> None:
        self.settings = settings
        self.custody = custody
        self.tls = make_contexts(settings, None)
        self.engine = engine
        self.listener = make_listener(BACKLOG)
        self.netns = netns_cookie(self.listener)
        self.server: asyncio.Server | None = None

    def open_session(self, guard: GuardSettings, judge: LoginJudge, bounds: Bounds) -> Session:
        """The session of a new connection, for the guard as it was when the connection was accepted."""
        terms = self.tls.terms if self.tls is not None else None
        engine = self.engine
        if is_http(engine):
            held = guard.credential or None
            return open_session(engine, judge, guard.name, guard.mode, bounds, held, terms)
        if is_sql(engine):
            return open_sql_session(
                engine, judge, guard.name, guard.mode, bounds, self.custody, os.urandom, terms
            )
        raise RuntimeError("an engine of no protocol")

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        else:
            self.listener.close()


class Server:
    """`accept` makes the relay of an accepted connection, or refuses it with None."""

    def __init__(
        self,
        accept: Callable[[Served, asyncio.Transport], Relay | None],
        announce: Callable[[str, int], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._accept = accept
        self._announce = announce
        self._spawn = spawn
        self._served: dict[str, Served] = {}
        self._closed = False

    def find(self, guard: str) -> Served | None:
        return self._served.get(guard)

    def sync(self, guards: Iterable[GuardSettings], hmac_key: bytes) -> None:
        """Serve exactly these guards."""
        wanted = {settings.name: settings for settings in guards}
        for name in [name for name in self._served if name not in wanted]:
            self._served.pop(name).close()
        for name, settings in wanted.items():
            known = self._served.get(name)
            if known is not None and known.settings.engine == settings.engine:
                known.tls = make_contexts(settings, known.tls)
                if (known.settings.credential, known.settings.auth) != (settings.credential, settings.auth):
                    known.custody = make_custody(settings, hmac_key)
                known.settings = settings
                continue
            if self._closed and known is None:
                continue  # sessions that stand follow the policy; nothing new is served
            engine = make_engine(settings.engine, name, hmac_key=hmac_key, clock=time.monotonic)
            if (
                known is not None
            ):  # the listener stays; connections of the other engine are ended by the worker
                known.tls = make_contexts(settings, known.tls)
                known.settings, known.engine = settings, engine
                known.custody = make_custody(settings, hmac_key)
                continue
            self._served[name] = Served(settings, engine, make_custody(settings, hmac_key))
            self._spawn(self._listen(self._served[name]))

    async def _listen(self, served: Served) -> None:
        loop = asyncio.get_running_loop()
        served.server = await loop.create_server(
            lambda: ClientSide(lambda transport: self._accept(served, transport)),
            sock=served.listener,
            backlog=BACKLOG,
        )
        self._announce(served.settings.name, served.listener.fileno())

    def announce_all(self) -> None:
        """Tell an agent that was started again of every listener."""
        for served in self._served.values():
            if served.server is not None and not self._closed:
                self._announce(served.settings.name, served.listener.fileno())

    def adopt(self, guard: str, descriptor: int) -> None:
        """Serve a connection that was accepted elsewhere (it waited while no worker lived)."""
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        served = self._served.get(guard)
        if served is None:
            sock.close()
            return

        async def connect() -> None:
            loop = asyncio.get_running_loop()
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(
                    lambda: ClientSide(lambda t: self._accept(served, t)), sock
                )

        self._spawn(connect())

    @property
    def is_complete(self) -> bool:
        """Whether every guard of the last `sync` is listened for."""
        return all(served.server is not None for served in self._served.values())

    def waits(self) -> bool:
        """Whether a connection is established and not accepted yet."""
        poll = select.poll()
        for served in self._served.values():
            if served.listener.fileno() >= 0:
                poll.register(served.listener, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Take nothing new; what was accepted goes on."""
        self._closed = True
        for served in self._served.values():
            served.close()
