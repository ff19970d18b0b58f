# SPDX-License-Identifier: Apache-2.0
"""Makes the Subject of a connection from the kernel's record and what was observed. Pure.

Bias: what an unprivileged user could have forged is not in an attested field. A field that cannot
exist for the caller is null; one that exists but was not obtained is named in `unobtained`, so that
a deny on it applies and an allow does not. Every null field has its reason.
"""

from __future__ import annotations

from typing import Any

from agent.identity.attest import Attested
from agent.identity.observe import Observation
from agent.identity.record import UNSET_ID, ConnectionFacts, HostFacts, KernelRecord
from agent.identity.users import MAX_GROUPS
from policy.model import Attribution, Subject

_PROCESS_FIELDS = (
    "pid", "start_time", "uid", "euid", "gid", "user", "group", "groups", "login_uid", "login_user",
    "audit_session", "comm", "exe", "exe_sha256", "parent_exe", "argv", "cwd", "script", "cgroup",
    "unit", "user_unit", "slice", "container", "image", "user_ns", "mnt_ns", "net_ns", "login_tty",
    "login_peer",
)  # fmt: skip

LOCAL = "the caller is on this host"
_REMOTE_REASONS = dict.fromkeys(_PROCESS_FIELDS, "the caller is on another host")
_UNKNOWN_REASONS = {
    **dict.fromkeys(_PROCESS_FIELDS, "no record of the kernel for this connection"),
    "remote": LOCAL,
}
_AMBIGUOUS_REASONS = dict.fromkeys(
    (*_PROCESS_FIELDS, "remote"), "records of two namespaces fit this connection"
)
_SLOW = "reading took too long"


class _Card:
    """Collects fields, reasons and what was not obtained, then becomes a Subject."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {"remote": LOCAL}
        self.unobtained: set[str] = set()

    def put(self, name: str, value: object, reason: str) -> None:
        """A value, or null because the field cannot exist for this caller."""
        self.values[name] = value
        if value is None:
            self.reasons[name] = reason

    def fail(self, name: str, reason: str) -> None:
        """Null although the field exists."""
        self.put(name, None, reason)
        self.unobtained.add(name)

    def attested(self, name: str, found: Attested | None) -> None:
        if found is None:
            self.fail(name, _SLOW)
        elif found.unobtained:
            self.fail(name, found.reason or _SLOW)
        else:
            self.put(name, found.value, found.reason or "")


def _contained(record: KernelRecord, seen: Observation, host: HostFacts) -> tuple[bool | None, str]:
    """Whether the host's names for users are not this caller's names, and why; None = cannot tell."""
    user_ns = record.user_ns or seen.reading.namespaces.get("user")
    pid_ns = record.pid_ns or seen.reading.namespaces.get("pid")
    if user_ns is None:
        return None, "its user namespace is not known"
    if user_ns != host.user_ns:
        return True, "it runs in a user namespace of its own"
    if seen.place is not None and seen.place.container is not None:
        return True, "it runs in a container"
    if pid_ns is not None and pid_ns != host.pid_ns:
        return True, "it runs in a pid namespace of its own"
    if record.mnt_ns == host.mnt_ns or pid_ns == host.pid_ns:
        return False, ""
    if seen.place is not None and seen.place.unit is not None:
        return False, ""  # a unit of the host with a file system view of its own (PrivateTmp=)
    return None, "it ended before it was known whether it ran in a container"


def _put_names(card: _Card, record: KernelRecord, seen: Observation, host: HostFacts) -> None:
    card.put("uid", record.uid, "")
    card.put("euid", record.euid, "")
    card.put("gid", record.gid, "")
    contained, why = _contained(record, seen, host)
    names = (("user", seen.user, record.uid), ("group", seen.group, record.gid))
    if contained or contained is None:
        for name in ("user", "group", "groups"):
            card.put(name, None, why) if contained else card.fail(name, why)
        return
    for name, found, number in names:
        if seen.names_read:
            card.put(name, found, f"the host has no name for {number}")
        else:
            card.fail(name, "the name service did not answer in time")
    gids = seen.reading.groups
    if seen.groups is not None:
        card.put("groups", seen.groups, "")
    elif gids is not None and len(gids) > MAX_GROUPS:
        card.fail("groups", f"more than {MAX_GROUPS} groups")
    elif gids is not None:
        card.fail("groups", "the name service did not answer in time")
    else:
        card.fail("groups", seen.reading.missing.get("groups", _SLOW))


def _put_login(card: _Card, record: KernelRecord, seen: Observation) -> None:
    """Any process without a login uid may write one of its choice, once (audit_set_loginuid).

    So it counts only where logind, which runs as root, put the process below that user's slice.
    """
    names = ("login_uid", "login_user", "audit_session")
    if record.login_uid == UNSET_ID:
        for name in (*names, "login_tty", "login_peer"):
            card.put(name, None, "no login stands behind it")
        return
    place = seen.place
    if place is None or place.user_slice != record.login_uid:
        why = f"claims login uid {record.login_uid} outside of that user's slice, where any process may"
        for name in names:
            card.fail(name, why)
        card.unobtained.add("login_session")
        card.put("login_tty", None, "no attested login")
        card.put("login_peer", None, "no attested login")
        return
    card.put("login_uid", record.login_uid, "")
    card.values["login_session"] = place.session
    session = None if record.audit_session == UNSET_ID else record.audit_session
    card.put("audit_session", session, "the login has no audit session")
    if seen.names_read:
        card.put("login_user", seen.login_user, f"the host has no name for {record.login_uid}")
    else:
        card.fail("login_user", "the name service did not answer in time")
    card.put("login_tty", seen.reading.tty, "it has no terminal")
    card.put("login_peer", seen.login_peer, "utmp names no address for its terminal")


def _put_place(card: _Card, seen: Observation) -> None:
    place = seen.place
    if place is None:
        why = "its cgroup is gone" if seen.complete else _SLOW
        for name in ("cgroup", "unit", "user_unit", "slice", "container", "image"):
            card.fail(name, why)
        return
    card.put("cgroup", seen.cgroup, "")
    card.put("unit", place.unit, "its cgroup belongs to no unit")
    card.put("user_unit", place.user_unit, "its cgroup is not below a user's service manager")
    card.put("slice", place.slice, "its cgroup is in no slice")
    card.put("container", place.container, "its cgroup is not a container's")
    if place.container is None:
        card.put("image", None, "its cgroup is not a container's")
    elif seen.image is None:
        card.fail("image", _SLOW)
    elif seen.image.name is None and seen.image.exists:
        card.fail("image", seen.image.reason or "")
    else:
        card.put("image", seen.image.name, seen.image.reason or "")


def _put_claims(card: _Card, seen: Observation) -> None:
    """What the process says of itself: in the record, never proof of anything."""
    reading = seen.reading
    for name, value in (("argv", reading.argv), ("cwd", reading.cwd)):
        if value is not None:
            card.put(name, value, "")
        else:
            card.fail(name, reading.missing.get(name, _SLOW))
    if reading.argv is not None or reading.script is not None:
        card.put("script", reading.script, reading.missing.get("script", ""))
    else:
        card.fail("script", reading.missing.get("script", _SLOW))


def _is_self(record: KernelRecord, connection: ConnectionFacts, seen: Observation, host: HostFacts) -> bool:
    """In the cgroup of the listener's owner, where that says something: not in the root of the tree
    or a login's scope, which hold processes that have nothing to do with each other."""
    if connection.owner_cgroup is None or record.cgroup_id != connection.owner_cgroup:
        return False
    if record.cgroup_id == host.root_cgroup or seen.place is None:
        return False
    return not seen.place.session


def build_subject(
    record: KernelRecord | None, connection: ConnectionFacts, host: HostFacts, seen: Observation | None = None
) -> Subject:
    """The Subject for `record` and what was `seen` of its process; without a record, who it may be.

    No record: a source on another host is ``remote`` with its address, a local one is
    ``unattributed`` with every field of the process in `unobtained`.
    """
    if connection.ambiguous or (record is None and connection.source_local):
        reasons = _AMBIGUOUS_REASONS if connection.ambiguous else _UNKNOWN_REASONS
        return Subject(Attribution.UNATTRIBUTED, unobtained=frozenset(_PROCESS_FIELDS), null_reason=reasons)
    if record is None:
        return Subject(Attribution.REMOTE, remote=connection.source, null_reason=_REMOTE_REASONS)
    seen = seen if seen is not None else Observation()
    card = _Card()
    _put_names(card, record, seen, host)
    _put_login(card, record, seen)
    _put_place(card, seen)
    _put_claims(card, seen)
    card.attested("exe", seen.exe)
    card.attested("parent_exe", seen.parent_exe)
    if seen.digest is not None and seen.digest.sha256 is not None:
        card.put("exe_sha256", seen.digest.sha256, "")
    elif record.exe is None:
        card.put("exe_sha256", None, "a kernel thread has no executable")
    else:
        card.fail("exe_sha256", (seen.digest and seen.digest.reason) or "no rule or record asked for it")
    for name, number in (("user_ns", record.user_ns), ("mnt_ns", record.mnt_ns), ("net_ns", record.net_ns)):
        card.put(name, number, "the kernel part does not record it")
    return Subject(
        Attribution.KERNEL,
        pid=record.tgid,
        start_time=record.start_ns,
        comm=record.comm,
        parents=seen.parents,
        is_self=_is_self(record, connection, seen, host),
        unobtained=frozenset(card.unobtained),
        null_reason=card.reasons,
        **card.values,
    )
