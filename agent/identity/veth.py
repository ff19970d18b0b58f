# SPDX-License-Identifier: Apache-2.0
"""Proves by netlink which namespace a source address belongs to, for callers in other namespaces.

Any user can make a namespace and in it a connection with any addresses, so a record of another
namespace counts only if packets to the source address would leave through a veth (or a bridge that
has such a port) whose other end is in exactly the namespace of the recorded process. Works in the
agent's own namespace. Blocking: reader threads only.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.identity.process import ProcessGone, open_process, ticks_of
from agent.identity.record import HostFacts, KernelRecord

RTN_LOCAL = 2
KEEP_S = 2.0
MAX_KEPT = 1024
MAX_LINKS = 4096
MAX_NAMED = 1024  # namespaces bound to a name that are looked through
NAMED = ("/run/netns", "/run/docker/netns", "/var/run/netns")


@lru_cache(maxsize=4096)
def _is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback


class NotProven(Exception):
    """Netlink did not answer, or what it said proves nothing; the text says why."""


class Routes:
    """Questions to the routing and link tables of the agent's own namespace; one at a time."""

    def __init__(self) -> None:
        self._netlink: IPRoute | None = None
        self._lock = threading.Lock()
        self._local: dict[str, float] = {}

    def close(self) -> None:
        with self._lock:
            if self._netlink is not None:
                self._netlink.close()
                self._netlink = None

    def _ask(self, command: str, *args: object, **kwargs: object) -> list[Any]:
        with self._lock:
            if self._netlink is None:
                self._netlink = IPRoute()
            try:
                answer = getattr(self._netlink, command)(*args, **kwargs)
                return list(answer.values() if isinstance(answer, dict) else answer)
            except NetlinkError as exc:
                raise NotProven(f"netlink {command}: {exc}") from exc
            except OSError as exc:
                self._netlink.close()
                self._netlink = None
                raise NotProven(f"netlink {command}: {exc}") from exc

    def known_local(self, address: str) -> bool:
        """Whether it is this namespace's own without asking: loopback, or asked in the last 2 s."""
        return _is_loopback(address) or self._local.get(address, 0.0) > time.monotonic()

    def is_local(self, address: str) -> bool:
        """Whether the address is this namespace's own. Yes is kept for 2 s, no is asked every time.

        :raises NotProven: the kernel has no route to the address or does not answer.
        """
        if self.known_local(address):
            return True
        if ip_address(
            address
        ).is_link_local:  # no route without its interface, which the socket's name has lost
            local = any(found.get_attr("IFA_ADDRESS") == address for found in self._ask("get_addr"))
        else:
            local = bool(self._route(address)["type"] == RTN_LOCAL)
        if local:
            if len(self._local) >= MAX_KEPT:
                self._local.clear()
            self._local[address] = time.monotonic() + KEEP_S
        return local

    def _route(self, address: str) -> Any:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        found = self._ask("route", "get", dst=address, family=family)
        if not found:
            raise NotProven(f"no route to {address}")
        return found[0]

    def leads_to(self, address: str) -> frozenset[int]:
        """Namespace ids (as this namespace numbers them) at the far ends of where `address` is.

        :raises NotProven: it does not leave through a veth or a bridge with veth ports.
        """
        index = self._route(address).get_attr("RTA_OIF")
        links = self._ask("get_links", index) if index is not None else []
        if not links:
            raise NotProven(f"no interface leads to {address}")
        kind = _kind(links[0])
        if kind == "bridge":
            every = self._ask("get_links")[:MAX_LINKS]
            links = [
                link for link in every if link.get_attr("IFLA_MASTER") == index and _kind(link) == "veth"
            ]
        elif kind != "veth":
            raise NotProven(f"{address} is behind a {kind or 'device'}, not a veth")
        ids = frozenset(found for link in links if (found := link.get_attr("IFLA_LINK_NETNSID")) is not None)
        if not ids:
            raise NotProven(f"no veth to another namespace leads to {address}")
        return ids

    def namespace_id(self, netns_fd: int) -> int | None:
        """The id this namespace has for the one at `netns_fd` (RTM_GETNSID); None = it has none."""
        answer = self._ask("get_netnsid", fd=netns_fd)
        number = answer[0] if answer else None
        return number if isinstance(number, int) and number >= 0 else None


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    return kind if isinstance(kind, str) else None


def _open_checked(path: str, inode: int, dir_fd: int | None = None) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        return None
    found = os.fstat(fd)
    if found.st_ino == inode and found.st_dev == os.stat("/proc/self/ns/net").st_dev:
        return fd
    os.close(fd)
    return None


def open_namespace(record: KernelRecord, host: HostFacts) -> int | None:
    """A descriptor of the network namespace the process connected in; None = not to be had.

    From the process while it lives, else from a name that `ip netns` or docker bound it to. Its
    inode must be the kernel record's (a process can change its namespace after connecting).
    """
    if record.net_ns is None:
        return None
    try:
        with open_process(host.proc, record.tgid, ticks_of(record.start_ns, host.ticks)) as (process, _):
            if (fd := _open_checked("ns/net", record.net_ns, process)) is not None:
                return fd
    except ProcessGone:
        pass
    for folder in NAMED:
        try:
            names = os.listdir(host.root + folder)[:MAX_NAMED]
        except OSError:
            continue
        for name in names:
            if (fd := _open_checked(f"{host.root}{folder}/{name}", record.net_ns)) is not None:
                return fd
    return None


def join(
    address: str, candidates: Sequence[KernelRecord], host: HostFacts, routes: Routes
) -> tuple[KernelRecord | None, bool]:
    """(the record whose namespace is proven to own `address`, False), (None, True) when two are, else
    (None, False). `candidates` are the records of other namespaces with the connection's own tuple."""
    try:
        ids = routes.leads_to(address)
    except NotProven:
        return None, False
    proven = []
    for record in candidates:
        fd = open_namespace(record, host)
        if fd is None:
            continue
        try:
            if routes.namespace_id(fd) in ids:
                proven.append(record)
        except NotProven:
            continue
        finally:
            os.close(fd)
    return (proven[0], False) if len(proven) == 1 else (None, len(proven) > 1)
