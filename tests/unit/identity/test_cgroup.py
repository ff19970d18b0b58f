# SPDX-License-Identifier: Apache-2.0
"""Units, slices and containers by cgroup path: systemd's rule, and what users can forge."""

from __future__ import annotations

import pytest

from agent.identity.cgroup import Place, is_unit, place_of

ID = "0123456789abcdef" * 4
POD = "pod11111111-2222-3333-4444-555555555555"
POD_SLICE = f"kubepods-besteffort-{POD.replace('-', '_')}.slice"


@pytest.mark.parametrize(
    ("path", "unit", "slice_"),
    [
        ("/system.slice/rag.service", "rag.service", "system.slice"),
        ("/system.slice/rag.service/worker/3", "rag.service", "system.slice"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", "system-getty.slice"),
        ("/init.scope", "init.scope", "-.slice"),
        ("/rag.service", "rag.service", "-.slice"),
        ("/a.slice/a-b.slice/x.scope", "x.scope", "a-b.slice"),
        ("/system.slice/_cgroup.service", "cgroup.service", "system.slice"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", "user-1000.slice"),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service", "user-1000.slice"),
    ],
)
def test_the_unit_is_the_first_component_after_the_slices(path: str, unit: str, slice_: str) -> None:
    place = place_of(path)
    assert (place.unit, place.slice) == (unit, slice_)


@pytest.mark.parametrize(
    "path",
    ["/", "", "/system.slice", "/system.slice/rag@.service", "/system.slice/rag", "/a/rag.service",
     "/system.slice/..", "/system.slice/x y.service", "/system.slice/.service",
     "/system.slice/" + "a" * 249 + ".service"],
)  # fmt: skip
def test_what_is_not_a_unit_name_is_no_unit(path: str) -> None:
    assert place_of(path).unit is None


@pytest.mark.parametrize(
    "below",
    ["rag.service", "app.slice/rag.service", "app.slice/app-x.slice/rag.service/deep"],
)
def test_a_user_unit_named_like_a_system_unit_is_only_a_user_unit(below: str) -> None:
    place = place_of(f"/user.slice/user-1000.slice/user@1000.service/{below}")
    assert (place.unit, place.user_unit, place.container) == ("user@1000.service", "rag.service", None)


def test_a_delegated_cgroup_with_a_unit_like_name_stays_its_own_unit() -> None:
    place = place_of("/system.slice/mallory.service/system.slice/rag.service")
    assert (place.unit, place.user_unit) == ("mallory.service", None)


@pytest.mark.parametrize(
    "path",
    [
        f"/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
        f"/user.slice/user-1000.slice/session-3.scope/docker/{ID}",
        f"/user.slice/docker-{ID}.scope",
        f"/system.slice/mallory.service/docker-{ID}.scope",
        f"/system.slice/mallory.service/kubepods/{POD}/{ID}",
        f"/user@1000.service/docker-{ID}.scope",
        f"/system.slice/user@1000.service/docker-{ID}.scope",
        f"/system.slice/docker/{ID}",
        f"/mine/docker/{ID}",
        f"/docker/{ID[:-1]}",
        f"/system.slice/docker-{ID[:-1]}.scope",
    ],
)
def test_a_container_like_name_where_users_can_make_one_is_no_container(path: str) -> None:
    assert place_of(path).container is None


@pytest.mark.parametrize(
    ("path", "runtime", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", "docker", ID),
        (f"/system.slice/docker-{ID}.scope/init", "docker", ID),
        (f"/docker/{ID}", "docker", ID),
        (f"/docker/{ID}/docker/{'f' * 64}", "docker", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman", ID),
        (f"/libpod_parent/libpod-{ID}", "podman", ID),
        (f"/kubepods.slice/kubepods-x.slice/{POD_SLICE}/cri-containerd-{ID}.scope", "containerd", ID),
        (f"/kubepods.slice/{POD_SLICE}/crio-{ID}.scope", "cri-o", ID),
        (f"/kubepods/burstable/{POD}/{ID}", "containerd", ID),
        (f"/kubepods/{POD}/{ID}", "containerd", ID),
        (f"/kubepods/besteffort/{POD}/crio-{ID}", "cri-o", ID),
        ("/machine.slice/machine-db\\x2d1.scope/payload", "nspawn", "db-1"),
        ("/machine.slice/systemd-nspawn@db.service/payload/system.slice/rag.service", "nspawn", "db"),
        ("/lxc.payload.web/system.slice/rag.service", "lxc", "web"),
        ("/lxc/web", "lxc", "web"),
    ],
)  # fmt: skip
def test_a_container_that_root_made_is_named(path: str, runtime: str, container: str) -> None:
    place = place_of(path)
    assert (place.runtime, place.container) == (runtime, container)


def test_a_unit_inside_a_container_is_not_a_unit_of_the_host() -> None:
    assert place_of("/lxc.payload.web/system.slice/rag.service").unit is None
    assert place_of(f"/docker/{ID}/system.slice/rag.service").unit is None


def test_a_session_scope_belongs_to_the_user_of_its_slice() -> None:
    place = place_of("/user.slice/user-1000.slice/session-c2.scope")
    assert place == Place(unit="session-c2.scope", slice="user-1000.slice", user_slice=1000, session=True)
    fake = place_of("/user.slice/user-1000.slice/user@1000.service/user-0.slice/session-1.scope")
    assert (fake.user_slice, fake.session) == (1000, False)


def test_templates_are_not_units_but_instances_are() -> None:
    assert is_unit("a@b.service")
    assert not is_unit("a@.service")
    assert not is_unit("a")
    assert not is_unit("a.service\n")
