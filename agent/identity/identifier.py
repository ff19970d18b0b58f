# SPDX-License-Identifier: Apache-2.0
"""Answers, for one accepted connection, who made it: the only module of identity with an event loop.

Bias: fail closed in what is attested, never wait long. What cannot be read within its time is left
out of the Subject with a reason and named in `unobtained`. Nothing that may block runs on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeVar

from agent.identity.attest import KnownExecutables
from agent.identity.container import Images
from agent.identity.hierarchy import Hierarchy
from agent.identity.observe import Observation, Observer
from agent.identity.readers import Full, Job, Readers
from agent.identity.recent import Attempt, Mark, Recent
from agent.identity.record import (
    ConnectionFacts,
    ExecRecord,
    FourTuple,
    HostFacts,
    KernelRecord,
)
from agent.identity.subject import build_subject
from agent.identity.veth import NotProven, Routes, join
from policy.model import Subject

T = TypeVar("T")
Lookup = Callable[[int, FourTuple], KernelRecord | None]
Candidates = Callable[[FourTuple], Sequence[KernelRecord]]
Executed = Callable[[int, int], ExecRecord | None]

READ_S = 0.5  # all of /proc for one process; usually 0.2 ms
NAMES_S = 2.0  # the name service (a directory server may be behind it)
HASH_S = 6.0  # a little more than digest.MAX_SECONDS
ROUTE_S = 1.0
NOBODY = -1  # owner of reads that belong to no user


@dataclass(frozen=True, slots=True)
class Sources:
    """What the kernel part must supply. Called on the event loop: map look-ups, nothing slower.

    `lookup(netns_cookie, tuple)`: the record of that namespace for that tuple.
    `candidates(tuple)`: the records of *other* namespaces with the same addresses and ports.
    `executed(tgid, start_ns)`: the last execve of that process; called from reader threads.
    `mark(tgid, start_ns)`: what changes with each execve of it, cheaper; on the loop. None: `executed`.
    """

    lookup: Lookup
    candidates: Candidates
    executed: Executed
    mark: Mark | None = None


@lru_cache(maxsize=4096)
def plain(address: str) -> str:
    """An address without v4-mapping or scope, as the kernel part's keys have it.

    :raises ValueError: it is no IP address.
    """
    parsed = ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped if mapped is not None else parsed)


class Identifier:
    """Identifies connections. Make it inside the running loop; `close` it at the end."""

    def __init__(self, sources: Sources, host: HostFacts) -> None:
        self._sources = sources
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._hierarchy = Hierarchy(host.cgroup_mount) if host.cgroup_mount is not None else None
        self._observer = Observer(
            host,
            self._hierarchy,
            images=Images(host.root),
            known=KnownExecutables(),
            executed=sources.executed,
        )
        self._recent = Recent(host, sources.executed, sources.mark or sources.executed)
        self._routes = Routes()
        self._process_readers = Readers("identity-proc", threads=2)
        self._name_readers = Readers("identity-names", threads=2)
        self._hash_readers = Readers("identity-hash", threads=1)
        self._route_readers = Readers("identity-routes", threads=1)

    def close(self) -> None:
        """Stop the threads that are idle. Reads that hang do not keep the process alive."""
        for readers in (self._process_readers, self._name_readers, self._hash_readers, self._route_readers):
            readers.close()
        self._routes.close()
        self._recent.close()
        if self._hierarchy is not None:
            self._hierarchy.close()

    def ask(
        self,
        netns_cookie: int,
        client_addr: str,
        client_port: int,
        server_addr: str,
        server_port: int,
        want_sha256: bool = False,
        owner_cgroup: int | None = None,
        accepted: int | None = None,
    ) -> Subject | Coroutine[Any, Any, Subject]:
        """The Subject of the connection that arrived in the namespace `netns_cookie`, or what finds it out.

        `owner_cgroup` is the cgroup id of the process that owns the database's listener; `accepted` the
        SO_COOKIE of the accepted socket, where it is known. The kernel's record is taken by this call.

        :raises ValueError: an address is not an IP address.
        """
        flow = FourTuple(plain(client_addr), client_port, plain(server_addr), server_port, accepted)
        record = self._sources.lookup(netns_cookie, flow)
        if record is not None and not want_sha256 and self._routes.known_local(flow.client_addr):
            known = self._recent.recall(record, owner_cgroup)
            if known is not None:
                return known
        return self._find_out(flow, record, want_sha256, owner_cgroup)

    async def identify(self, *question: Any, **how: Any) -> Subject:
        """`ask`, and wait for the answer."""
        found = self.ask(*question, **how)
        return found if isinstance(found, Subject) else await found

    async def _find_out(
        self, flow: FourTuple, record: KernelRecord | None, want_sha256: bool, owner_cgroup: int | None
    ) -> Subject:
        local = self._routes.known_local(flow.client_addr)
        ambiguous = False
        if not local:
            local, record, ambiguous = await self._trace(flow, record)
        facts = ConnectionFacts(flow.client_addr, local, owner_cgroup, ambiguous)
        if record is None:
            return build_subject(None, facts, self._host)
        attempt: Attempt | None = None
        if not want_sha256 and not ambiguous:  # a hash is of the file as it is now: it is looked at each time
            known = self._recent.recall(record, owner_cgroup)
            if known is not None:
                return known
            attempt = self._recent.begin(record)
        seen = await self._observe(record, want_sha256)
        subject = build_subject(record, facts, self._host, seen)
        if attempt is not None:
            self._recent.keep(attempt, record, owner_cgroup, seen, subject)
        return subject

    async def _trace(
        self, flow: FourTuple, record: KernelRecord | None
    ) -> tuple[bool, KernelRecord | None, bool]:
        """(whether the source is this namespace's own, the record that counts, whether two could)."""
        try:
            local = await self._in_thread(
                self._route_readers, NOBODY, partial(self._routes.is_local, flow.client_addr), ROUTE_S
            )
        except NotProven:
            local = False
        if local is None:
            return True, None, False  # no answer: nobody, rather than a caller of another host
        if local:
            return True, record, False
        candidates = self._sources.candidates(flow)
        if not candidates:
            return False, None, False
        proof = partial(join, flow.client_addr, candidates, self._host, self._routes)
        joined = await self._in_thread(self._route_readers, NOBODY, proof, ROUTE_S)
        found, ambiguous = joined if joined is not None else (None, False)
        if found is not None:
            self._sources.lookup(found.netns_cookie, flow)  # it has answered: take it from its table
        return False, found, ambiguous

    async def _observe(self, record: KernelRecord, want_sha256: bool) -> Observation:
        seen, owner, observer = Observation(), record.uid, self._observer
        memory = not self._process_readers.hung(owner)
        read = partial(observer.observe, record, seen, memory=memory)
        if await self._in_thread(self._process_readers, owner, read, READ_S) is None:
            seen = seen.snapshot()
        if not observer.name_from_cache(record, seen):
            named = partial(observer.name, record, seen.snapshot())
            seen = await self._in_thread(self._name_readers, owner, named, NAMES_S) or seen
        if want_sha256 and not observer.hash_from_cache(seen):
            hashed = partial(observer.hash, record, seen.snapshot())
            seen = await self._in_thread(self._hash_readers, owner, hashed, HASH_S) or seen
        return seen

    async def _in_thread(
        self, readers: Readers, owner: int, work: Callable[[], T], seconds: float
    ) -> T | None:
        """The result of `work`, or None when it took longer than `seconds` or no thread is free."""
        future: asyncio.Future[T | None] = self._loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def done(result: T | None, error: BaseException | None) -> None:
            try:
                self._loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        try:
            job: Job[T] = readers.submit(owner, work, done)
        except Full:
            return None
        timer = self._loop.call_later(seconds, settle, None, None)
        try:
            return await future
        finally:
            timer.cancel()
            readers.abandon(job)
