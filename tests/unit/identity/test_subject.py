# SPDX-License-Identifier: Apache-2.0
"""What becomes of records and observations: names, logins, containers, and what is not obtained."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from agent.identity.attest import Attested
from agent.identity.cgroup import place_of
from agent.identity.container import Image
from agent.identity.digest import Digest
from agent.identity.observe import Observation
from agent.identity.process import Reading
from agent.identity.record import ConnectionFacts, HostFacts, KernelRecord
from agent.identity.subject import build_subject
from policy.model import Attribution, Subject
from tests.unit.identity.fake_proc import PID_NS, FakeProc

LOCAL = ConnectionFacts("127.0.0.1", True)
ID = "0123456789abcdef" * 4


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def seen(fake: FakeProc, cgroup: str | None = "/system.slice/app.service", **changes: Any) -> Observation:
    reading = Reading(state="live", argv=("app",), cwd="/", groups=(4,), tty="pts/0")
    reading.namespaces["pid"] = fake.space(PID_NS)
    reading.missing["script"] = "not an interpreter"
    made = Observation(
        reading=reading, exe=Attested("/bin/app"), parent_exe=Attested("/bin/sh"), cgroup=cgroup,
        place=place_of(cgroup) if cgroup is not None else None, user="rag", group="rag", groups=("adm",),
        login_user="bob", names_read=True, complete=True,
    )  # fmt: skip
    return replace(made, **changes)


def build(
    fake: FakeProc,
    observed: Observation,
    owner: int | None = None,
    host: HostFacts | None = None,
    **changes: Any,
) -> Subject:
    record: KernelRecord = fake.record(50, None, **changes)
    return build_subject(record, replace(LOCAL, owner_cgroup=owner), host or fake.host, observed)


def assert_explained(subject: Subject) -> None:
    """Every null field has a reason, only null fields have one, and what is not obtained is null."""
    skip = {"attribution", "tls_subject", "db_user", "database", "null_reason", "unobtained"}
    nulls = {
        each.name for each in fields(subject) if each.name not in skip and getattr(subject, each.name) is None
    }
    assert nulls <= set(subject.null_reason)
    assert all(getattr(subject, name) is None for name in subject.null_reason)
    assert all(reason for reason in subject.null_reason.values())
    assert all(getattr(subject, name) is None for name in subject.unobtained - {"login_session"})


def test_an_ordinary_service_is_known_whole(fake: FakeProc) -> None:
    subject = build(fake, seen(fake, digest=Digest("ab")))
    assert (subject.user, subject.group, subject.groups) == ("rag", "rag", ("adm",))
    assert (subject.unit, subject.slice, subject.container) == ("app.service", "system.slice", None)
    assert (subject.exe, subject.attribution) == ("/bin/app", Attribution.KERNEL)
    assert not subject.unobtained - {"exe_sha256"}
    assert_explained(subject)


def test_nothing_observed_leaves_everything_unobtained_but_the_kernels_record(fake: FakeProc) -> None:
    subject = build(fake, Observation())
    assert (subject.uid, subject.pid) == (1000, 50)
    assert {"user", "group", "groups", "exe", "parent_exe", "unit", "container", "argv"} <= subject.unobtained
    assert_explained(subject)


@pytest.mark.parametrize(("local", "attribution"), [(True, "unattributed"), (False, "remote")])
def test_without_a_record_it_is_the_address_that_decides(
    fake: FakeProc, local: bool, attribution: str
) -> None:
    subject = build_subject(None, ConnectionFacts("10.0.0.7", local), fake.host)
    assert subject.attribution == attribution
    assert subject.remote == (None if local else "10.0.0.7")
    assert ("unit" in subject.unobtained) == local
    assert_explained(subject)


def test_two_possible_callers_are_nobody(fake: FakeProc) -> None:
    subject = build_subject(None, ConnectionFacts("10.0.0.7", False, ambiguous=True), fake.host)
    assert (subject.attribution, subject.remote) == (Attribution.UNATTRIBUTED, None)
    assert "user" in subject.unobtained
    assert_explained(subject)


def test_names_are_withheld_in_a_user_namespace_and_in_a_container(fake: FakeProc) -> None:
    foreign = build(fake, seen(fake), user_ns=fake.space("other"))
    boxed = build(fake, seen(fake, f"/system.slice/docker-{ID}.scope", image=Image("app:1")))
    for subject in (foreign, boxed):
        assert (subject.user, subject.group, subject.groups, subject.uid) == (None, None, None, 1000)
        assert not {"user", "group", "groups"} & subject.unobtained
        assert_explained(subject)
    assert (boxed.container, boxed.image) == (ID, "app:1")


def test_names_are_withheld_in_a_pid_namespace(fake: FakeProc) -> None:
    observed = seen(fake)
    observed.reading.namespaces["pid"] = fake.space("other")
    assert build(fake, observed).user is None
    observed.reading.namespaces.clear()
    assert build(fake, observed, pid_ns=fake.space("other")).user is None


def test_a_gone_process_keeps_its_name_only_where_it_cannot_have_been_in_a_container(fake: FakeProc) -> None:
    other = fake.space("other")
    inside: dict[str, Any] = {"reading": Reading(state="gone")}
    assert build(fake, seen(fake, **inside)).user == "rag"
    assert build(fake, seen(fake, **inside), mnt_ns=other).user == "rag", "a unit with a view of its own"
    for cgroup in (None, "/made/by/hand"):
        subject = build(fake, seen(fake, cgroup, **inside), mnt_ns=other)
        assert subject.user is None
        assert "user" in subject.unobtained


def test_a_silent_name_service_is_an_error_and_a_missing_name_is_not(fake: FakeProc) -> None:
    silent = build(fake, seen(fake, names_read=False, user=None, group=None, groups=None))
    missing = build(fake, seen(fake, user=None, group=None))
    assert {"user", "group", "groups"} <= silent.unobtained
    assert not {"user", "group"} & missing.unobtained
    assert missing.null_reason["user"] == "the host has no name for 1000"


def test_a_login_counts_only_in_that_users_slice(fake: FakeProc) -> None:
    session = "/user.slice/user-1000.slice/session-4.scope"
    manager = "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service"
    good = build(fake, seen(fake, session), login_uid=1000, audit_session=4)
    assert (good.login_uid, good.login_user, good.audit_session) == (1000, "bob", 4)
    assert (good.login_session, good.login_tty) == (True, "pts/0")
    assert not build(fake, seen(fake, manager), login_uid=1000).login_session
    for cgroup, claimed in ((session, 0), ("/system.slice/app.service", 1000), (None, 1000)):
        bad = build(fake, seen(fake, cgroup), login_uid=claimed)
        assert (bad.login_uid, bad.login_user, bad.login_session) == (None, None, False)
        assert {"login_uid", "login_user", "login_session"} <= bad.unobtained
        assert_explained(bad)


def test_self_is_no_cgroup_that_strangers_share(fake: FakeProc) -> None:
    host = fake.host
    assert build(fake, seen(fake), owner=77).is_self
    assert not build(fake, seen(fake), owner=78).is_self
    assert not build(fake, seen(fake), owner=None).is_self
    assert not build(fake, seen(fake, "/"), owner=1, cgroup_id=1).is_self, "the root of the tree"
    assert not build(fake, seen(fake, None), owner=77).is_self
    session = seen(fake, "/user.slice/user-1000.slice/session-4.scope")
    assert not build(fake, session, owner=77, host=host).is_self


def test_an_image_that_could_not_be_read_is_an_error(fake: FakeProc) -> None:
    boxed = f"/system.slice/docker-{ID}.scope"
    failed = build(fake, seen(fake, boxed, image=Image(None, "unreadable")))
    assert "image" in failed.unobtained
    nspawn = build(
        fake, seen(fake, "/machine.slice/machine-a.scope", image=Image(None, "has none", exists=False))
    )
    assert "image" not in nspawn.unobtained
    assert nspawn.container == "a"
    assert_explained(nspawn)
