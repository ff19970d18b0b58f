# SPDX-License-Identifier: Apache-2.0
"""Hashes, names, images and cgroup paths: cached, bounded, and refused when in doubt."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from agent.identity.container import read_image
from agent.identity.digest import RACY_NS, Digests
from agent.identity.hierarchy import Hierarchy
from agent.identity.users import KEEP_MISSING_S, KEEP_S, MAX_NAMES, Names
from agent.identity.veth import NotProven, Routes, join
from tests.unit.identity.fake_proc import FakeProc

ID = "0123456789abcdef" * 4


def digest(digests: Digests, path: Path) -> tuple[str | None, str | None]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return digests.digest(fd)
    finally:
        os.close(fd)


def test_a_file_is_hashed_and_hashed_again_when_it_changes(tmp_path: Path) -> None:
    path, digests = tmp_path / "app", Digests()
    for content in (b"one", b"two", b""):
        path.write_bytes(content)
        assert digest(digests, path) == (hashlib.sha256(content).hexdigest(), None)


def test_a_hash_is_kept_only_when_a_change_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, digests = tmp_path / "app", Digests()
    path.write_bytes(b"x")
    changed = path.stat().st_ctime_ns
    monkeypatch.setattr("agent.identity.digest.time.time_ns", lambda: changed + RACY_NS)
    digest(digests, path)
    assert digests.cached(path.stat()) is None, "its ctime is too young"
    monkeypatch.setattr("agent.identity.digest.time.time_ns", lambda: changed + RACY_NS + 1)
    digest(digests, path)
    assert digests.cached(path.stat()) == hashlib.sha256(b"x").hexdigest()
    os.utime(path, ns=(0, 0))
    assert digests.cached(path.stat()) is None


def test_bounds_of_hashing_are_said(tmp_path: Path) -> None:
    path = tmp_path / "app"
    path.write_bytes(b"x" * 100)
    assert digest(Digests(max_size=99), path) == (None, "larger than 99 bytes")
    found, why = digest(Digests(max_seconds=-1), path)
    assert found is None
    assert why is not None
    assert "longer" in why
    assert digest(Digests(), tmp_path)[1] == "not a regular file"


def test_names_are_kept_for_a_while_and_their_absence_for_less() -> None:
    now, asked = [0.0], []

    def look_up(number: int) -> str | None:
        asked.append(number)
        return "rag" if number == 1 else None

    names = Names(look_up, lambda: now[0])
    assert names.cached(1) == (False, None)
    assert [names.name(1), names.name(1), names.name(2), names.name(2)] == ["rag", "rag", None, None]
    assert asked == [1, 2]
    assert names.cached(2) == (True, None)
    now[0] = KEEP_MISSING_S + 1
    assert (names.cached(2)[0], names.cached(1)[0]) == (False, True)
    now[0] = KEEP_S + 1
    assert not names.cached(1)[0]
    for number in range(MAX_NAMES + 10):
        names.name(number)
    assert not names.cached(0)[0]


def put(root: Path, path: str, content: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def test_images_come_from_the_runtimes_state(tmp_path: Path) -> None:
    put(
        tmp_path,
        f"var/lib/docker/containers/{ID}/config.v2.json",
        {"Config": {"Image": "app:1"}, "Name": "/x"},
    )
    metadata = json.dumps({"image-name": "app:2"})
    listed = [{"id": "f" * 64}, {"id": ID, "metadata": metadata}]
    put(tmp_path, "var/lib/containers/storage/overlay-containers/containers.json", listed)
    cri = {"annotations": {"io.kubernetes.cri.image-name": "app:3"}}
    put(tmp_path, f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json", cri)
    crio = {"annotations": {"io.kubernetes.cri-o.ImageName": "app:4"}}
    put(tmp_path, f"run/containers/storage/overlay-containers/{ID}/userdata/config.json", crio)
    found = [read_image(str(tmp_path), kind, ID).name for kind in ("docker", "podman", "containerd", "cri-o")]
    assert found == ["app:1", "app:2", "app:3", "app:4"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"Config": {}}', '{"Config": {"Image": 5}}', "null"])
def test_state_that_is_not_understood_gives_a_reason(tmp_path: Path, content: str) -> None:
    put(tmp_path, f"var/lib/docker/containers/{ID}/config.v2.json", content)
    image = read_image(str(tmp_path), "docker", ID)
    assert (image.name, image.exists) == (None, True)
    assert image.reason


def test_only_an_id_becomes_part_of_a_path(tmp_path: Path) -> None:
    put(tmp_path, "var/lib/docker/config.v2.json", {"Config": {"Image": "stolen"}})
    assert read_image(str(tmp_path), "docker", "..").name is None
    assert not read_image(str(tmp_path), "lxc", ID).exists


def test_a_claimed_cgroup_path_counts_only_with_the_recorded_id(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    hierarchy = Hierarchy(str(tmp_path))
    try:
        inode = (tmp_path / "a" / "b").stat().st_ino
        assert hierarchy.path_of(inode + 1_000_000_007, "/a/b") is None
        assert hierarchy.path_of(inode, "/a/../a/b") in (None, "/a/b")
        assert hierarchy.path_of(inode, "/a/b") == "/a/b"
        assert hierarchy.path_of(inode) == "/a/b", "kept"
    finally:
        hierarchy.close()


def test_without_a_veth_no_candidate_is_believed(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)

    class Nowhere(Routes):
        def leads_to(self, address: str) -> frozenset[int]:
            raise NotProven("no veth")

    assert join("10.0.0.7", [fake.record(50, None)], fake.host, Nowhere()) == (None, False)
