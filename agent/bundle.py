# SPDX-License-Identifier: Apache-2.0
"""A support bundle: what helps somebody elsewhere, and nothing that is not theirs to know.

Owns what goes into it and what is taken out. Bias: shown is only what is known to be harmless. Of the
configuration the values of a fixed list of keys; of the policy no rule; of the status no address and no text
that a person wrote; of the evidence no content. In the end every part is searched for the credentials that
the guards hold: a bundle that has one is not written.
"""

from __future__ import annotations

import io
import os
import platform
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from agent import __version__
from agent.config import Config, Control, Evidence, Metrics, Proxy, Steer, Users

REDACTED = "[redacted]"
MAX_PART = 4 * 1024 * 1024  # bytes of one part; a longer one is cut
LIBRARIES = (
    "click", "cryptography", "google-re2", "msgspec", "postgast", "prometheus-client", "psutil",
    "pydantic", "pyroute2", "rich", "ruamel.yaml", "uvloop", "zstandard",
)  # fmt: skip

# Keys of the configuration whose values are shown, by where they stand; `*` is any item of a list.
SHOWN: dict[str, Any] = {
    "guards": {
        "*": dict.fromkeys(
            ("name", "engine", "ports", "address", "mode", "on_failure", "remote", "netns", "auth"), True
        )
        | {
            "peers": {"*": {"port": True}},
            "tls": {"client_cert": True, "server": True},
        }
    },
    "policy": {"*": True},
    "evidence": dict.fromkeys(Evidence.model_fields, True),
    "proxy": dict.fromkeys(Proxy.model_fields, True),
    "steer": dict.fromkeys(Steer.model_fields, True),
    "control": dict.fromkeys(Control.model_fields, True),
    "metrics": dict.fromkeys(Metrics.model_fields, True),
    "users": dict.fromkeys(Users.model_fields, True),
}


class Leak(Exception):
    """A credential would have been in the bundle; the message names the part, never the value."""


def redact_config(tree: object, shown: object = None) -> object:
    """The tree with every value replaced that is not on the list. Keys stay; unknown ones too, as `?`."""
    known = SHOWN if shown is None else shown
    if known is True:
        return tree if _is_plain(tree) else REDACTED
    if isinstance(tree, Mapping) and isinstance(known, Mapping):
        return {
            (str(key) if key in known or str(key) in _KEYS else "?"): redact_config(
                value, known.get(key, False)
            )
            for key, value in tree.items()
        }
    if isinstance(tree, list) and isinstance(known, Mapping) and "*" in known:
        return [redact_config(value, known["*"]) for value in tree]
    return REDACTED


_KEYS = frozenset({"credential", "tls", "peers", "unix", "recipients"})


def _is_plain(tree: object) -> bool:
    """A word or number, or a list of them: what settings are made of."""
    if isinstance(tree, list):
        return all(not isinstance(value, list) and _is_plain(value) for value in tree)
    return tree is None or (isinstance(tree, str | int | float) and len(str(tree)) <= 256)


def config_part(file: Path) -> str:
    """One file of the configuration, redacted; comments are gone, for they may hold anything."""
    try:
        tree = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except OSError as error:
        return f"not read: {error.strerror}\n"
    except (YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        return f"not YAML: {type(error).__name__}\n"
    return _json(redact_config(tree)) if tree is not None else "empty\n"


def redact_status(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without clients' addresses, without reasons that people gave, without quoted lines of the policy."""
    made = dict(document)
    made["guards"] = [
        {**guard, "pre_existing_connections": len(guard.get("pre_existing_connections", ()))}
        | ({"off": {**guard["off"], "reason": REDACTED}} if guard.get("off") else {})
        for guard in document.get("guards", ())
    ]
    policy = dict(document.get("policy", {}))
    policy["problem"] = _first_lines(policy.get("problem"))
    policy["warnings"] = [_first_lines(warning) for warning in policy.get("warnings", ())]
    made["policy"] = policy
    return made


def _first_lines(text: object) -> str | None:
    """Of messages, `file:line` and what is wrong, up to the first word that a file could have chosen."""
    if text is None:
        return None
    lines = [line for line in str(text).splitlines() if line and not line.startswith(" ")]
    return "\n".join(line.partition("`")[0][:200] for line in lines)


def versions() -> dict[str, Any]:
    """Of Vecward, its libraries, Python, the kernel and the distribution."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        system = None
    return {
        "vecward": __version__, "python": sys.version.split()[0], "libraries": found,
        "kernel": platform.release(), "machine": platform.machine(), "system": system,
        "lsm": _line(Path("/sys/kernel/security/lsm")), "cpus": os.cpu_count(),
        "limits": _line(Path("/proc/sys/kernel/unprivileged_bpf_disabled")),
    }  # fmt: skip


def _line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()[:200]
    except (OSError, UnicodeDecodeError):
        return None


def files_part(config: Config) -> str:
    """Names, sizes, modes and times of the evidence's segments and the pins; nothing of what is in them."""
    lines = []
    for root in (config.evidence.dir / "ledger", config.evidence.dir / "streams", config.steer.pins):
        paths = sorted(root.rglob("*"))[:10_000] if root.is_dir() else []
        lines.append(f"{root}: {len(paths)} entries" if paths or root.is_dir() else f"{root}: not there")
        for path in paths:
            try:
                known = path.lstat()
            except OSError:
                continue
            name = path.relative_to(root)
            owner = f"{known.st_uid}:{known.st_gid}"
            lines.append(f"  {known.st_mode:o} {owner} {known.st_size} {known.st_mtime:.0f} {name}")
    return "\n".join(lines) + "\n"


def policy_part(files: Iterable[Path]) -> str:
    """Which files there are and how large; no rule."""
    lines = []
    for file in files:
        try:
            lines.append(f"{file}: {file.stat().st_size} bytes, mode {file.stat().st_mode & 0o7777:o}")
        except OSError as error:
            lines.append(f"{file}: {error.strerror}")
    return "\n".join(lines or ["none"]) + "\n"


def attempt(make: Callable[[], object]) -> str:
    """What a part's maker gives as text; why not, where it failed: a broken host needs a bundle most."""
    try:
        made = make()
    except Exception as error:  # whatever it was: the other parts still help
        return f"not available: {type(error).__name__}\n"
    return made if isinstance(made, str) else _json(made)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode() + "\n"


def check_secrets(parts: Mapping[str, str], secrets: Iterable[str]) -> None:
    """Raises Leak where a part holds one of the secrets (of 4 characters or more)."""
    known = [secret for secret in secrets if len(secret) >= 4]
    for name, text in parts.items():
        if any(secret in text for secret in known):
            raise Leak(f"{name} holds a credential of a guard")


def write_bundle(file: Path, parts: Mapping[str, str]) -> None:
    """A new file of mode 0600, gzipped tar, one folder in it. Raises FileExistsError, OSError."""
    folder = file.name.partition(".tar")[0]
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, text in parts.items():
            data = text.encode("utf-8", "replace")[:MAX_PART]
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))
