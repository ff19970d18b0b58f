# SPDX-License-Identifier: Apache-2.0
"""The image of a container, from the state files of its runtime where that is one small file.

Reads files that only root can write; the id comes from an attested cgroup path and is checked to be
an id before it becomes part of a path. Never speaks to a runtime's socket. What is not cheap
(containerd's own database) is left out with a reason.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from typing import NamedTuple

import msgspec

MAX_STATE = 4 << 20
MAX_KEPT = 1024
RETRY_S = 5.0
_ID = re.compile(r"^[0-9a-f]{64}$")


class Image(NamedTuple):
    """An image name, or None with a reason; `exists` False = this kind of container has none."""

    name: str | None
    reason: str | None = None
    exists: bool = True


class _DockerConfig(msgspec.Struct, rename="pascal"):
    image: str = ""


class _DockerState(msgspec.Struct, rename="pascal"):
    config: _DockerConfig


class _Bundle(msgspec.Struct):
    annotations: dict[str, str] = {}


class _PodmanEntry(msgspec.Struct):
    id: str
    metadata: str = ""


class _PodmanMetadata(msgspec.Struct, rename="kebab"):
    image_name: str = ""


def _read(path: str) -> bytes:
    with open(path, "rb") as state:
        raw = state.read(MAX_STATE + 1)
    if len(raw) > MAX_STATE:
        raise ValueError(f"{path} is larger than {MAX_STATE} bytes")
    return raw


def _docker(root: str, container: str) -> str:
    raw = _read(f"{root}/var/lib/docker/containers/{container}/config.v2.json")
    return msgspec.json.decode(raw, type=_DockerState).config.image


def _podman(root: str, container: str) -> str:
    raw = _read(f"{root}/var/lib/containers/storage/overlay-containers/containers.json")
    for entry in msgspec.json.decode(raw, type=list[_PodmanEntry]):
        if entry.id == container:
            return msgspec.json.decode(entry.metadata, type=_PodmanMetadata).image_name
    raise ValueError("podman does not list this container")


def _containerd(root: str, container: str) -> str:
    tasks = f"{root}/run/containerd/io.containerd.runtime.v2.task/k8s.io"
    bundle = msgspec.json.decode(_read(f"{tasks}/{container}/config.json"), type=_Bundle)
    return bundle.annotations.get("io.kubernetes.cri.image-name", "")


def _crio(root: str, container: str) -> str:
    bundle = _read(f"{root}/run/containers/storage/overlay-containers/{container}/userdata/config.json")
    return msgspec.json.decode(bundle, type=_Bundle).annotations.get("io.kubernetes.cri-o.ImageName", "")


_SOURCES = {"docker": _docker, "podman": _podman, "containerd": _containerd, "cri-o": _crio}


def read_image(root: str, runtime: str, container: str) -> Image:
    """The image of `container` as `runtime` keeps it below `root`. Blocks on files; never raises."""
    source = _SOURCES.get(runtime)
    if source is None or not _ID.match(container):
        return Image(None, f"{runtime} containers have no image name", exists=False)
    try:
        name = source(root, container)
    except OSError as exc:
        return Image(None, f"state of {runtime} not readable: {os.strerror(exc.errno or 0)}")
    except (ValueError, msgspec.MsgspecError) as exc:
        return Image(None, f"state of {runtime} not understood: {exc}")
    return Image(name, None) if name else Image(None, f"{runtime} keeps no image name for it")


class Images:
    """Cache of image names by container: an id is never used again, a failure is tried again later."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._kept: OrderedDict[tuple[str, str], tuple[float, Image]] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, runtime: str, container: str) -> Image:
        key = (runtime, container)
        with self._lock:
            entry = self._kept.get(key)
        if entry is not None and (entry[1].name is not None or entry[0] > time.monotonic()):
            return entry[1]
        image = read_image(self._root, runtime, container)
        with self._lock:
            self._kept[key] = (time.monotonic() + RETRY_S, image)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return image
