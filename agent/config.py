# SPDX-License-Identifier: Apache-2.0
"""The configuration file as typed, frozen values.

Owns ``vecward.yaml`` and its drop-ins: YAML 1.2, duplicate and unknown keys are errors, every error
names file, line and a hint. Does not look at the host (``agent/kernel/doctor.py`` does). Nothing here
is guessed: a value that cannot be understood stops the start, and a reload keeps the old one.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from agent.config_auth import problem_of
from agent.config_tls import Tls
from agent.config_units import parse_duration, parse_size


class ConfigError(Exception):
    """A configuration that cannot be used. One line per problem, "file:line: message (hint)"."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Engine = Literal["qdrant", "chroma", "pgvector"]
MAX_GUARDS = 64  # slots in the kernel's maps (bpf/maps.h)
MAX_WORKERS = 64
MAX_SOCKET_PATH = 107  # sun_path of unix(7), and its closing zero
MAX_PLACES = 128  # the kernel's map has 256: while ports change hands, old and new stand there together


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Peer(_Model):
    """A cluster peer whose traffic a rule with `tunnel` may pass unread."""

    remote: str
    port: Port | None = None  # the guarded port it dials; None: any of the guard's

    @pydantic.field_validator("remote")
    @classmethod
    def _remote(cls, value: str) -> str:
        return str(ipaddress.ip_network(value))


class Guard(_Model):
    """One protected database: an engine and the ports by which clients can reach it."""

    name: Name
    engine: Engine
    ports: tuple[Port, ...] = Field(min_length=1, max_length=16)
    address: str | None = None
    mode: Literal["observe", "enforce"] = "observe"
    on_failure: Literal["pass", "refuse"] | None = None
    remote: Literal["pass", "judge", "refuse"] | None = None
    peers: tuple[Peer, ...] = Field(default=(), max_length=256)
    netns: Literal["host"] = "host"
    credential: dict[str, str] = Field(default_factory=dict)
    auth: Literal["relay", "identity", "password"] | None = None
    tls: Tls = Tls()

    @pydantic.field_validator("address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        address = ipaddress.ip_address(value)
        address = getattr(address, "ipv4_mapped", None) or address  # one address, one spelling
        if address.is_unspecified or getattr(address, "scope_id", None):
            raise ValueError("name one address without a zone; leave `address:` out for every address")
        return str(address)

    @pydantic.field_validator("ports")
    @classmethod
    def _ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("the same port twice")
        return value

    @pydantic.model_validator(mode="after")
    def _closed(self) -> Guard:
        for peer in self.peers:
            if peer.port is not None and peer.port not in self.ports:
                raise ValueError(f"peer {peer.remote}: port {peer.port} is none of the guard's ports")
        if (problem := problem_of(self.engine, self.auth, self.credential)) is not None:
            raise ValueError(problem)
        if self.mode == "enforce" and "pass" in (self.on_failure, self.remote):
            raise ValueError(
                "a guard that enforces cannot pass what it did not judge; "
                "drop `on_failure: pass` and `remote: pass`"
            )
        return self

    @property
    def passes_on_failure(self) -> bool:
        return (self.on_failure or ("pass" if self.mode == "observe" else "refuse")) == "pass"

    @property
    def remote_rule(self) -> Literal["pass", "judge", "refuse"]:
        return self.remote or ("pass" if self.mode == "observe" else "judge")


class Evidence(_Model):
    dir: Path = Path("/var/lib/vecward/evidence")
    mode: Literal["best-effort", "strict", "strict-sync"] = "strict"
    level: Literal["meta", "hashes", "masked", "full"] = "masked"
    reserve: Size = 64 * 2**20
    keep: Duration = 90 * 86400.0
    max_size: Size = 10 * 2**30


class Proxy(_Model):
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=MAX_WORKERS)] = "auto"
    max_body: Size = 64 * 2**20
    max_held: Size = 512 * 2**20  # bodies of all connections of one worker
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000  # of one worker
    max_connections_per_subject: Annotated[int, Field(ge=1, le=1_000_000)] = 4_096  # one process, one worker
    first_request: Duration = 60.0
    drain: Duration = 3600.0


class Steer(_Model):
    cgroup: Literal["auto"] | Path = "auto"
    loader: Literal["auto", "core"] = "auto"
    pins: Path = Path("/sys/fs/bpf/vecward")


class Control(_Model):
    socket: Path = Path("/run/vecward/control.sock")
    read_group: str = "vecward-audit"
    approve_group: str = "vecward-approve"

    @pydantic.field_validator("socket")
    @classmethod
    def _socket(cls, value: Path) -> Path:
        longest = max(len(os.fsencode(value)), len(os.fsencode(value.parent / "worker.sock")))
        if longest > MAX_SOCKET_PATH:
            raise ValueError(f"too long: the path of a Unix socket has at most {MAX_SOCKET_PATH} bytes")
        return value


class Metrics(_Model):
    listen: str | None = "unix:/run/vecward/metrics.sock"

    @pydantic.field_validator("listen")
    @classmethod
    def _listen(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"unix:/.+", value):
            raise ValueError("write unix:/PATH; a TCP listener would offer the counters to every local user")
        return value


class Users(_Model):
    """The two system users. Where they do not exist, ``vecward run`` takes two unused ids instead."""

    agent: str = "vecward"
    proxy: str = "vecward-proxy"


class _Clash(ValueError):
    """Two guards that cannot both be; `index` is the second one's."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class Config(_Model):
    guards: tuple[Guard, ...] = Field(default=(), max_length=MAX_GUARDS)
    policy: tuple[Path, ...] = (Path("/etc/vecward/policy.d"),)
    evidence: Evidence = Evidence()
    proxy: Proxy = Proxy()
    steer: Steer = Steer()
    control: Control = Control()
    metrics: Metrics = Metrics()
    users: Users = Users()
    files: tuple[Path, ...] = Field(default=(), exclude=True)  # what it was read from

    @pydantic.model_validator(mode="after")
    def _distinct(self) -> Config:
        seen: dict[tuple[int, str | None], str] = {}
        names: set[str] = set()
        if sum(len(guard.ports) for guard in self.guards) > MAX_PLACES:
            raise ValueError(f"more than {MAX_PLACES} ports in all guards together")
        for index, guard in enumerate(self.guards):
            if guard.name in names:
                raise _Clash(f"two guards are named {guard.name!r}", index)
            names.add(guard.name)
            for port in guard.ports:
                # One guard may take what no other guard of the port names an address for.
                other = seen.setdefault((port, guard.address), guard.name)
                if other != guard.name:
                    raise _Clash(
                        f"guards {other!r} and {guard.name!r} share port {port}; give each its `address:`",
                        index,
                    )
        return self

    def guard(self, name: str) -> Guard | None:
        return next((g for g in self.guards if g.name == name), None)


def _line_of(tree: Any, path: Sequence[int | str]) -> int:
    """The line (from 1) where a path of keys stands, or the nearest parent's."""
    line = 1
    for key in path:
        try:
            if isinstance(tree, CommentedMap):
                line = tree.lc.key(key)[0] + 1
            elif isinstance(tree, CommentedSeq):
                line = tree.lc.item(key)[0] + 1
            tree = tree[key]
        except (KeyError, IndexError, TypeError, AttributeError):
            return line
    return line


def _known_keys(path: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Config
    for key in path[:-1]:
        if isinstance(key, int):
            continue
        entry = model.model_fields.get(str(key))
        annotation = entry.annotation if entry else None
        nested = Guard if str(key) == "guards" else annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            model = nested
    return [k for k in model.model_fields if k != "files"]


_UNIONS = {("proxy", "workers"), ("steer", "cgroup")}


def _source(
    path: Sequence[int | str], trees: Sequence[tuple[Path, Any]]
) -> tuple[Path, Any, list[int | str]]:
    """The file that a path of the merged configuration came from, its tree, and the path in that tree."""
    if len(path) > 1 and path[0] == "guards" and isinstance(path[1], int):
        index = path[1]
        for file, tree in trees:
            guards = tree.get("guards")
            if isinstance(guards, list):
                if index < len(guards):
                    return file, tree, ["guards", index, *path[2:]]
                index -= len(guards)
    for file, tree in reversed(trees):
        if path and path[0] in tree:
            return file, tree, list(path)
    return *trees[0], list(path)


def _explain(error: pydantic.ValidationError, trees: Sequence[tuple[Path, Any]]) -> list[str]:
    problems = []
    for item in error.errors():
        path = list(item["loc"])
        if tuple(path[:2]) in _UNIONS:
            del path[2:]  # which member of the union it was tried as
        clash = item.get("ctx", {}).get("error")
        if isinstance(clash, _Clash):
            path = ["guards", clash.index]
        file, tree, place = _source(path, trees)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _known_keys(path)
            close = difflib.get_close_matches(str(path[-1]), known, 1)
            message = (
                f"unknown key; did you mean {close[0]!r}?"
                if close
                else f"unknown key; known here: {', '.join(known)}"
            )
        problems.append(
            f"{file}:{_line_of(tree, place)}: {'.'.join(str(p) for p in path) or 'config'}: {message}"
        )
    return list(dict.fromkeys(problems))


def _read_tree(file: Path) -> Any:
    yaml = YAML(typ="rt")
    yaml.version = (1, 2)
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{file}: no such file; write it, or name another with -c FILE"]) from None
    except PermissionError:
        raise ConfigError(
            [f"{file}: may not be read by this user; run as root or as the agent's user"]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: cannot be read: {error}"]) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([f"{file}:{line}: {error.problem or 'not YAML'}"]) from None
    except YAMLError as error:
        raise ConfigError([f"{file}: not YAML: {error}"]) from None
    if tree is None:
        return CommentedMap()
    if not isinstance(tree, CommentedMap):
        raise ConfigError([f"{file}:1: a configuration is a mapping, like `guards: [...]`"])
    return tree


def load_config(file: Path) -> Config:
    """Read FILE and the drop-ins of ``FILE-without-suffix.d/*.yaml`` in name order.

    A drop-in's top-level key replaces the file's, but its `guards` are added. Relative paths are
    taken from FILE's folder. Raises ConfigError.
    """
    files = [file, *sorted(file.with_suffix(".d").glob("*.yaml"))]
    trees = [(f, _read_tree(f)) for f in files]
    merged: dict[str, Any] = {}
    for _, tree in trees:
        for key, value in tree.items():
            if key == "guards" and isinstance(value, list) and isinstance(merged.get("guards"), list):
                merged["guards"] = [*merged["guards"], *value]
            else:
                merged[key] = value
    if "files" in merged:
        raise ConfigError([f"{file}: files: unknown key"])
    try:
        config = Config.model_validate(merged)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, trees)) from None
    here = file.resolve().parent
    return config.model_copy(
        update={
            "policy": tuple(here / p for p in config.policy),
            "evidence": config.evidence.model_copy(update={"dir": here / config.evidence.dir}),
            "files": tuple(f.resolve() for f in files),
        }
    )


def policy_files(config: Config) -> list[Path]:
    """The policy files in the order they are read. Raises ConfigError where one is not there."""
    found: list[Path] = []
    for path in config.policy:
        if path.is_dir():
            found.extend(sorted(path.glob("*.yaml")))
        elif path.exists():
            found.append(path)
        else:
            raise ConfigError(
                [f"{path}: no such policy file or folder; `policy:` in the configuration names it"]
            )
    return found
