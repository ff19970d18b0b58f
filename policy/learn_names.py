# SPDX-License-Identifier: Apache-2.0
"""By what a proposed rule names a caller: attested fields only, as patterns that match just that value.

Bias: a caller that nothing attested and lasting names is not named. `unit` counts for services only (scopes
and transient units have another name tomorrow); `comm`, `argv`, `cwd`, `script`, `user_unit` never.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from policy.globs import MAX_PATTERN
from policy.model import Attribution, Scalar, Subject
from policy.rules import Condition

if TYPE_CHECKING:
    from policy.learn import Proposal

_TRANSIENT = re.compile(r"run-.*\.service|user@\d+\.service")
FOREIGN = "foreign:"


@dataclass(frozen=True, slots=True)
class Named:
    """`who` of its rules, how it is told to people, the middle of its rules' ids, and why it has none."""

    who: tuple[Condition, ...]
    text: str
    slug: str
    notes: tuple[str, ...] = ()
    why: str | None = None


def pattern(value: str) -> str:
    """A glob for just this text: there is no escape, so each `*`, `?` or control character becomes `?`."""
    return "".join("?" if c in "*?" or not c.isprintable() else c for c in value)


def plain(value: object) -> str:
    """Text that was a stranger's, on one line and without control characters."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(value))


def name_caller(subject: Subject) -> Named:
    """How rules name it."""
    if subject.attribution in (Attribution.UNATTRIBUTED, Attribution.PRE_EXISTING):
        return Named(
            (), "somebody", "", why=f"{subject.attribution.value}: the kernel did not say who it was"
        )
    if subject.is_self:
        return Named((Condition("self", (True,)),), "the database itself", "self")
    if subject.remote is not None:
        return _remote(subject)
    keys, notes = _local(subject)
    if subject.tls_subject is not None:
        keys["tls_subject"] = pattern(subject.tls_subject)
    dropped = [key for key, value in keys.items() if isinstance(value, str) and not is_writable(value)]
    for key in dropped:
        del keys[key]
    text = " ".join(f"{key}={plain(value)}" for key, value in keys.items())
    if not keys:
        return Named((), text or "somebody", "", why="nothing attested names it")
    return Named(conditions(keys), text, _slug(keys), tuple(notes))


def _local(subject: Subject) -> tuple[dict[str, Scalar], list[str]]:
    keys: dict[str, Scalar] = {}
    notes: list[str] = []
    if subject.image is not None or subject.container is not None:
        kind, value = ("image", subject.image) if subject.image else ("container", subject.container)
        keys[kind] = pattern(str(value))
        if kind == "container":
            notes.append("its image is not known: a new container of it has another id")
        if subject.uid is not None:
            keys["uid"] = subject.uid
        return keys, notes
    if (
        subject.unit is not None
        and subject.unit.endswith(".service")
        and not _TRANSIENT.fullmatch(subject.unit)
    ):
        keys["unit"] = pattern(subject.unit)
    if subject.user is not None:
        keys["user"] = pattern(subject.user)
    elif subject.uid is not None:
        keys["uid"] = subject.uid
    if subject.login_user is not None and subject.login_user != subject.user:
        keys["login_user"] = pattern(subject.login_user)
    if subject.exe is not None and subject.exe.startswith("/"):
        keys["exe"] = pattern(subject.exe)
    elif keys:
        why = "is of another mount namespace" if subject.exe else "was not obtained"
        notes.append(
            f"its executable {why}: any program of that {'service' if 'unit' in keys else 'user'} fits"
        )
    return keys, notes


def _remote(subject: Subject) -> Named:
    address = ipaddress.ip_address(str(subject.remote).partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    keys: dict[str, Scalar] = {"remote": str(ipaddress.ip_network(mapped or address))}
    notes = ["an address is as good as the network it comes from"]
    if subject.tls_subject is not None and is_writable(subject.tls_subject):
        keys["tls_subject"] = pattern(subject.tls_subject)
        notes = []
    shown = str(mapped or address)
    text = f"remote={shown}" + (f" tls_subject={plain(subject.tls_subject)}" if subject.tls_subject else "")
    return Named(conditions(keys), text, _clean(f"remote-{shown}"), tuple(notes))


def conditions(keys: dict[str, Scalar]) -> tuple[Condition, ...]:
    return tuple(Condition(key, (value,)) for key, value in keys.items())


def is_writable(value: str) -> bool:
    return 0 < len(value) <= MAX_PATTERN and not (value.startswith("/") and "//" in value)


def _slug(keys: dict[str, Scalar]) -> str:
    if "unit" in keys:
        return _clean(str(keys["unit"]).removesuffix(".service"))
    if "image" in keys or "container" in keys:
        return _clean(str(keys.get("image") or keys.get("container")).rpartition("/")[2])
    who = str(keys.get("login_user") or keys.get("user") or keys.get("uid") or "tls")
    program = str(keys.get("exe", "")).rpartition("/")[2]
    return _clean(f"{who}-{program}" if program else who)


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:36] or "caller"


def rule_ids(drafts: Iterable[tuple[str, Proposal]]) -> list[Proposal]:
    """``learned-GUARD-CALLER``, numbered where one is not enough; at most 64 characters."""
    made, used = [], set()
    for slug, one in drafts:
        base = f"learned-{_clean(one.rule.what.guard[0] if one.rule.what.guard else '')[:14]}-{slug}"
        name, number = base, 1
        while name in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name)
        made.append(replace(one, rule=replace(one.rule, id=name)))
    return made
