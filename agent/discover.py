# SPDX-License-Identifier: Apache-2.0
"""Which vector databases listen on this host: in its own network namespace and in all others it can see.

Owns the search (processes that listen, by /proc) and what is told of each find. Asks only ports that are
likely to be a database: by the program's name, or by the number. Changes nothing. Bias: what is not sure is
left None, and a port that is guarded already is not asked (the proxy would answer).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.discover_probe import Answer, Hint, probe
from agent.identity.cgroup import place_of
from agent.kernel.errors import SteeringError
from agent.kernel.namespaces import in_namespace

PORTS: dict[int, Hint] = {8000: "http", 8001: "http", 6333: "http", 5432: "postgres", 5433: "postgres"}
"""Ports that are asked whoever listens there: the engines' own defaults."""
PROGRAMS: dict[str, Hint] = {
    "chroma": "http",
    "qdrant": "http",
    "postgres": "postgres",
    "postmaster": "postgres",
}
"""What the name or a word of the command line of a database's process begins with."""
MAX_PROBES = 64
MAX_LISTED = 20
MAX_CALLERS = 1000

Ask = Callable[[str, int, Hint], Answer | None]


@dataclass(frozen=True, slots=True)
class Listener:
    """A process and the TCP places it listens on. `netns` is the inode number of its network namespace."""

    pid: int
    program: str
    exe: str | None
    user: str | None
    unit: str | None
    container: str | None
    netns: int
    places: tuple[tuple[str, int], ...]
    callers: tuple[tuple[str, int], ...] = ()  # (address of the other end, port here) of other hosts
    unix: tuple[str, ...] = ()
    hint: Hint | None = None


@dataclass(frozen=True, slots=True)
class Database:
    """One database. `side_ports`: what else its process listens on; `guard`: who guards the port already."""

    answer: Answer
    port: int
    addresses: tuple[str, ...]
    listener: Listener
    here: bool  # in the network namespace of the caller
    side_ports: tuple[int, ...] = ()
    guard: str | None = None

    @property
    def open_to_hosts(self) -> bool:
        return any(not ipaddress.ip_address(a).is_loopback for a in self.addresses)


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of /proc/PID/net/tcp (proc_net_tcp.rst in the kernel's documentation)."""

    local: tuple[str, int]
    remote: tuple[str, int]
    listens: bool
    inode: int


def listeners() -> Iterator[Listener]:
    """Every process that listens on TCP, the oldest first; of several with one socket, the first."""
    tables: dict[int, dict[int, _Row]] = {}
    taken: set[tuple[int, int]] = set()
    for pid in sorted(psutil.pids()):
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            netns = os.stat(f"/proc/{pid}/ns/net").st_ino
            if netns not in tables:
                tables[netns] = _read_table(pid)
            rows = tables[netns]
            mine = [i for i in _inodes(pid) if i in rows and rows[i].listens and (netns, i) not in taken]
            if mine:
                taken |= {(netns, inode) for inode in mine}
                yield _listener(pid, netns, [rows[inode] for inode in mine], rows.values())


def _read_table(pid: int) -> dict[int, _Row]:
    """Sockets of the process's network namespace by inode: those that listen or are established."""
    found = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/net/{name}", encoding="ascii") as file:
            next(file, None)
            for line in file:
                fields = line.split()
                if fields[3] in ("0A", "01"):  # TCP_LISTEN, TCP_ESTABLISHED
                    inode = int(fields[9])
                    row = _Row(_address(fields[1]), _address(fields[2]), fields[3] == "0A", inode)
                    found[inode] = row
    return found


def _address(text: str) -> tuple[str, int]:
    """``0100007F:1F40``: words of 32 bits in the host's order."""
    words, port = text.split(":")
    raw = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def _inodes(pid: int) -> Iterator[int]:
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:["):
                    yield int(target[8:-1])


def _listener(pid: int, netns: int, mine: Sequence[_Row], all_rows: Iterable[_Row]) -> Listener:
    ports = {row.local[1] for row in mine}
    callers = {
        (row.remote[0], row.local[1])
        for row in all_rows
        if not row.listens and row.local[1] in ports and not _is_own(row.remote[0], row.local[0])
    }
    place = place_of(_cgroup(pid))
    process = psutil.Process(pid)
    with process.oneshot():
        words = [process.name(), *process.cmdline()[:3]]
        user = process.username()
    unix: tuple[str, ...] = ()
    with contextlib.suppress(psutil.Error, OSError):
        unix = tuple(sorted({str(c.laddr) for c in process.net_connections("unix") if c.laddr}))
    exe = None
    with contextlib.suppress(OSError):
        exe = os.readlink(f"/proc/{pid}/exe")
    return Listener(
        pid, words[0], exe, user, place.unit, place.container, netns, tuple(sorted({r.local for r in mine})),
        tuple(sorted(callers)[:MAX_CALLERS]), unix[:MAX_LISTED], _hint(words),
    )  # fmt: skip


def _is_own(remote: str, local: str) -> bool:
    return remote == local or ipaddress.ip_address(remote.partition("%")[0]).is_loopback


def _cgroup(pid: int) -> str:
    """The path in the unified hierarchy, else in systemd's own."""
    paths: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, name, path = line.split(":", 2)
        paths[name] = path
    unified = paths.get("", "/")
    return unified if unified != "/" else paths.get("name=systemd", "/")


def _hint(words: Sequence[str]) -> Hint | None:
    for word in words:
        name = word.rpartition("/")[2]
        for program, hint in PROGRAMS.items():
            if name.startswith(program):
                return hint
    return None


def discover(
    guarded: Callable[[int], str | None] = lambda port: None,
    ports: Collection[int] = (),
    found: Callable[[], Iterator[Listener]] = listeners,
    ask: Ask = probe,
) -> list[Database]:
    """Every database that answers, by port; `ports` are asked besides. `guarded` names a port's guard.

    One process is one database: its other ports are side ports.
    """
    own = os.stat("/proc/self/ns/net").st_ino
    made = []
    probes = 0
    for listener in found():
        asked: list[tuple[int, Answer, str | None]] = []
        for port in sorted({port for _, port in listener.places}):
            hint = listener.hint or PORTS.get(port) or ("any" if port in ports else None)
            if hint is None or probes >= MAX_PROBES:
                continue
            guard = guarded(port) if listener.netns == own else None
            if guard is not None:
                asked.append((port, Answer("guarded"), guard))
                continue
            probes += 1
            answer = _ask(listener, port, hint, own, ask)
            if answer is not None:
                asked.append((port, answer, None))
        if asked:
            made.append(_database(listener, asked[0], own))
    return sorted(made, key=lambda one: (not one.here, one.port, one.listener.pid))


def _database(listener: Listener, first: tuple[int, Answer, str | None], own: int) -> Database:
    port, answer, guard = first
    return Database(
        answer,
        port,
        tuple(sorted({address for address, p in listener.places if p == port})),
        listener,
        listener.netns == own,
        tuple(sorted({p for _, p in listener.places} - {port})),
        guard,
    )


def _ask(listener: Listener, port: int, hint: Hint, own: int, ask: Ask) -> Answer | None:
    address = _reachable([a for a, p in listener.places if p == port])
    if listener.netns == own:
        return ask(address, port, hint)
    try:
        descriptor = os.open(f"/proc/{listener.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return in_namespace(descriptor, lambda: ask(address, port, hint))
    except (OSError, SteeringError):
        return None
    finally:
        os.close(descriptor)


def _reachable(addresses: Sequence[str]) -> str:
    """Where to dial what listens on these: loopback where it listens on everything."""
    plain = sorted(addresses, key=lambda a: (":" in a, a))
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(plain[0], plain[0])  # noqa: S104 - what it listens on
