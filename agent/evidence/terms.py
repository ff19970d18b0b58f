# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: S608 - only columns of our own are put into statements, values are bound
"""Filters as SQL on the index's tables. Pure: text with ``?`` and the values for them."""

from __future__ import annotations

from agent.evidence.filter import Filter, is_glob


def _text(columns: tuple[str, ...], pattern: str) -> tuple[str, list[object]]:
    """A condition that one of the columns is the text, or matches the glob."""
    if is_glob(pattern):
        glob = pattern.replace("[!", "[^")
        return "(" + " OR ".join(f"s.{c} GLOB ?" for c in columns) + ")", [glob] * len(columns)
    return "(" + " OR ".join(f"s.{c} = ?" for c in columns) + ")", [pattern] * len(columns)


def _named(name: str, number: str, pattern: str | None) -> tuple[str, ...]:
    """A user is asked for by name, or by number where the pattern could be one."""
    return (name,) if pattern is None or any(c.isalpha() for c in pattern) else (name, number)


def session_terms(wanted: Filter, *, times: bool = True, exchanges: bool = True) -> tuple[str, list[object]]:
    """WHERE ... on `sessions s`, or "" for no condition."""
    terms: list[str] = []
    values: list[object] = []
    texts = (
        (wanted.exe, ("exe",)),
        (wanted.user, _named("user", "uid", wanted.user)),
        (wanted.login_user, _named("login_user", "login_uid", wanted.login_user)),
        (wanted.unit, ("unit", "user_unit")),
        (wanted.container, ("container",)),
        (wanted.guard, ("guard",)),
    )
    for pattern, columns in texts:
        if pattern is not None:
            term, more = _text(columns, pattern)
            terms.append(term)
            values += more
    if wanted.pid is not None:
        terms.append("s.pid = ?")
        values.append(wanted.pid)
    if wanted.client is not None:
        terms.append("client_is(?, s.client_addr, s.client_port)")
        values.append(wanted.client)
    if times and wanted.since is not None:
        terms.append("coalesce(s.ended, 9223372036854775807) >= ?")
        values.append(wanted.since)
    if times and wanted.until is not None:
        terms.append("coalesce(s.started, 0) <= ?")
        values.append(wanted.until)
    if exchanges and wanted.on_exchanges:
        term, more = _having_exchange(wanted, _is_narrow(wanted))
        terms.append(term)
        values += more
    return ("WHERE " + " AND ".join(terms) if terms else ""), values


def _shape_terms(wanted: Filter) -> tuple[str, list[object]]:
    """A SELECT of the shapes that match."""
    terms: list[str] = []
    values: list[object] = []
    if wanted.action is not None:
        terms.append("id IN (SELECT shape FROM shape_actions WHERE action = ?)")
        values.append(wanted.action)
    if wanted.collection is not None:
        like = "GLOB" if is_glob(wanted.collection) else "="
        terms.append(f"id IN (SELECT shape FROM shape_collections WHERE collection {like} ?)")
        values.append(wanted.collection.replace("[!", "[^") if like == "GLOB" else wanted.collection)
    if wanted.verdict in ("would", "masked"):
        terms.append(wanted.verdict)
    elif wanted.verdict is not None:
        terms.append("verdict = ?")
        values.append(wanted.verdict)
    return "SELECT id FROM shapes" + (" WHERE " + " AND ".join(terms) if terms else ""), values


def _is_narrow(wanted: Filter) -> bool:
    """Whether other conditions leave few sessions: a glob may fit them all."""
    names = (wanted.exe, wanted.user, wanted.login_user, wanted.unit, wanted.container)
    exact = any(name is not None and not is_glob(name) for name in names)
    return exact or wanted.pid is not None or wanted.since is not None


def _having_exchange(wanted: Filter, one_by_one: bool) -> tuple[str, list[object]]:
    """A condition that one exchange of the session matches, in the time wanted.

    `one_by_one`: few sessions are left by other conditions, so ask for each; else find all at once.
    """
    shapes, values = _shape_terms(wanted)
    term = f"u.count > 0 AND u.shape IN ({shapes})"
    if wanted.since is not None or wanted.until is not None:
        since, until = wanted.since or 0, wanted.until if wanted.until is not None else 2**63 - 1
        term += (
            " AND u.last >= ? AND u.first <= ? AND (u.first >= ? OR u.last <= ? OR EXISTS (SELECT 1 "
            "FROM exchanges e WHERE e.sid = u.sid AND e.shape = u.shape AND e.at BETWEEN ? AND ?))"
        )
        values += [since, until, since, until, since, until]
    if one_by_one:
        return f"EXISTS (SELECT 1 FROM session_shapes u WHERE u.sid = s.id AND {term})", values
    return f"s.id IN (SELECT u.sid FROM session_shapes u WHERE {term})", values


def exchange_terms(wanted: Filter) -> tuple[str, list[object]]:
    """AND ... on `exchanges e`, or "" for no condition."""
    terms: list[str] = []
    values: list[object] = []
    if wanted.on_exchanges:
        shapes, more = _shape_terms(wanted)
        terms.append(f"AND e.shape IN ({shapes})")
        values += more
    if wanted.since is not None:
        terms.append("AND e.at >= ?")
        values.append(wanted.since)
    if wanted.until is not None:
        terms.append("AND e.at <= ?")
        values.append(wanted.until)
    return " ".join(terms), values
