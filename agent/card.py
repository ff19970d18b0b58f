# SPDX-License-Identifier: Apache-2.0
"""The identity card of a session: what its first evidence frame says of who connected.

Owns the mapping from a `Subject` to the session fields that are promised (docs/evidence-format.md), and to
what beside them lets a recorded exchange be judged again by the whole Subject.
No credential, no environment, no file content; argv is bounded by identity and is unattested.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent.messages import GuardSettings
from agent.protocols.session import Secured
from policy.model import Subject

_COPIED = (
    "pid", "start_time", "comm", "exe", "exe_sha256", "argv", "uid", "euid", "user", "gid", "groups",
    "login_uid", "login_user", "audit_session", "unit", "user_unit", "slice", "container", "cgroup",
    "user_ns", "mnt_ns", "net_ns", "tls_subject",
)  # fmt: skip
_BESIDE = ("group", "parent_exe", "cwd", "script", "image", "login_session", "is_self", "remote")


def session_card(
    session: str,
    host: str,
    boot: str,
    guard: GuardSettings,
    subject: Subject,
    client: tuple[str, int],
    server: tuple[str, int],
    policy: str,
    tls: Iterable[Secured] = (),
) -> dict[str, Any]:
    """Values as msgpack takes them; a null field's reason is in ``null_reason``."""
    card: dict[str, Any] = {
        "session": session,
        "host": host,
        "boot": boot,
        "guard": guard.name,
        "engine": guard.engine,
        "mode": guard.mode,
        "policy": policy,
        "attribution": subject.attribution.value,
        "login_from": {"tty": subject.login_tty, "peer": subject.login_peer},
        "parents": [{"pid": p.pid, "exe": p.exe} for p in subject.parents],
        "client_addr": client[0],
        "client_port": client[1],
        "server_addr": server[0],
        "server_port": server[1],
        "null_reason": dict(subject.null_reason),
        "unobtained": sorted(subject.unobtained),
    }
    for name in (*_COPIED, *_BESIDE):
        card[name] = getattr(subject, name)
    for secured in tls:
        if secured.side == "client":
            card["tls"] = True
            card["tls_version"], card["tls_cipher"] = secured.version, secured.cipher
        else:
            card["server_tls_version"], card["server_tls_cipher"] = secured.version, secured.cipher
    return card
