# SPDX-License-Identifier: Apache-2.0
"""What a session's card says, field by field.

Pure. Cards come from a worker, so each field is taken by its type: what has the wrong type is left out and
said in the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INTS = frozenset(
    {
        "pid",
        "start_time",
        "uid",
        "euid",
        "gid",
        "login_uid",
        "audit_session",
        "user_ns",
        "mnt_ns",
        "net_ns",
        "client_port",
        "server_port",
    }
)
_TEXTS = frozenset(
    {
        "host",
        "boot",
        "guard",
        "engine",
        "attribution",
        "comm",
        "exe",
        "exe_sha256",
        "user",
        "login_user",
        "unit",
        "user_unit",
        "slice",
        "container",
        "cgroup",
        "client_addr",
        "server_addr",
        "protocol",
        "tls_subject",
    }
)
_LISTS = frozenset({"argv", "groups"})
_BESIDE: Mapping[str, type] = {
    **dict.fromkeys(("group", "parent_exe", "cwd", "script", "image", "remote"), str),
    **dict.fromkeys(("login_session", "is_self"), bool),
}
"""What a card tells a judge beside the promised fields."""


def read_card(card: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A card's fields that have their type, and why others are null."""
    known: dict[str, Any] = {}
    reasons = {str(k): str(v) for k, v in _mapping(card.get("null_reason")).items()}
    for name, value in card.items():
        if value is None:
            continue
        number = isinstance(value, int) and not isinstance(value, bool)
        if (name in _INTS and number) or (name in _TEXTS and isinstance(value, str)):
            known[name] = value
        elif name in _LISTS and isinstance(value, list | tuple):
            known[name] = tuple(str(v) for v in value)
        elif name == "tls" and isinstance(value, bool):
            known[name] = value
        elif name in _INTS or name in _TEXTS or name in _LISTS or name == "tls":
            reasons[name] = f"recorded with a wrong type ({type(value).__name__})"
    origin = _mapping(card.get("login_from"))
    tty, peer = origin.get("tty", card.get("login_tty")), origin.get("peer", card.get("login_peer"))
    if tty is not None or peer is not None:
        known["login_from"] = {
            "tty": None if tty is None else str(tty),
            "peer": None if peer is None else str(peer),
        }
    parents = card.get("parents")
    if isinstance(parents, list | tuple):
        known["parents"] = tuple(_parent(p) for p in parents if isinstance(p, Mapping | list | tuple))
    beside = {name: card[name] for name, kind in _BESIDE.items() if isinstance(card.get(name), kind)}
    unobtained = card.get("unobtained")
    if isinstance(unobtained, list | tuple):  # absent: the card is of a writer that did not say it
        wrong = {name for name in _BESIDE.keys() - beside.keys() if card.get(name) is not None}
        beside["unobtained"] = frozenset(map(str, unobtained)) | wrong
    if beside:
        known["beside"] = beside
    return known, reasons


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _parent(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...]) -> Mapping[str, Any]:
    pid, exe = (
        (value.get("pid"), value.get("exe")) if isinstance(value, Mapping) else (*value, None, None)[:2]
    )
    return {"pid": pid if isinstance(pid, int) else None, "exe": None if exe is None else str(exe)}
