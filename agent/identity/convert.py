# SPDX-License-Identifier: Apache-2.0
"""Turns what agent.kernel.records unpacks from the maps into the values identity works with."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from agent.identity.identifier import Sources
from agent.identity.record import UNSET_ID, ExecRecord, FileId, FourTuple, KernelRecord
from agent.kernel.records import Identity, IdentityFlag, ProcessRecord
from agent.kernel.steering import Steering

_address = lru_cache(maxsize=4096)(ip_address)


def kernel_record(identity: Identity) -> KernelRecord:
    """The record of one connect(2). Namespaces the kernel could not read (number 0) are None."""
    exe = None
    if not identity.flags & IdentityFlag.NO_EXE:
        exe = FileId(identity.exe_dev, identity.exe_ino, identity.exe_ctime or None)
    return KernelRecord(
        tgid=identity.tgid,
        start_ns=identity.start,
        uid=identity.uid,
        gid=identity.gid,
        euid=identity.euid,
        login_uid=UNSET_ID if identity.loginuid is None else identity.loginuid,
        audit_session=UNSET_ID if identity.sessionid is None else identity.sessionid,
        cgroup_id=identity.cgroup,
        netns_cookie=identity.netns,
        comm=identity.comm.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
        exe=exe,
        parent_tgid=identity.parent_tgid,
        parent_start_ns=identity.parent_start,
        connect_ns=identity.connected,
        mnt_ns=identity.mntns_inum or None,
        user_ns=identity.userns_inum or None,
        net_ns=identity.netns_inum or None,
        exchanged=bool(identity.flags & IdentityFlag.EXCHANGED),
    )


def exec_record(tgid: int, start_ns: int, process: ProcessRecord) -> ExecRecord:
    """The exec record of the process (tgid, start_ns)."""
    exe = FileId(process.exe_dev, process.exe_ino, process.exe_ctime or None) if process.exe_ino else None
    return ExecRecord(
        tgid=tgid,
        start_ns=start_ns,
        filename=process.filename,
        exe=exe,
        exec_ns=process.executed or None,
        parent_tgid=process.parent_tgid or None,
        parent_start_ns=process.parent_start or None,
    )


def sources(steering: Steering) -> Sources:
    """The kernel part's maps as the identifier asks them. A record that is looked up is taken: its
    entry is deleted, so that it can answer for one connection only."""

    def lookup(netns_cookie: int, flow: FourTuple) -> KernelRecord | None:
        client, server = _address(flow.client_addr), _address(flow.server_addr)
        netns_cookie = netns_cookie or steering.netns  # a worker before Linux 5.14 knows of no other
        # The kernel writes the accepted socket beside the entry of the guarded namespace alone.
        accepted = flow.accepted if netns_cookie == steering.netns else None
        found = steering.take_identity(
            netns_cookie, client, flow.client_port, server, flow.server_port, accepted
        )
        return kernel_record(found) if found is not None else None

    def candidates(flow: FourTuple) -> list[KernelRecord]:
        client, server = _address(flow.client_addr), _address(flow.server_addr)
        found = steering.candidates(client, flow.client_port, server, flow.server_port)
        return [kernel_record(identity) for identity in found]

    def executed(tgid: int, start_ns: int) -> ExecRecord | None:
        found = steering.process(tgid, start_ns)
        return exec_record(tgid, start_ns, found) if found is not None else None

    return Sources(lookup, candidates, executed, steering.process_mark)
