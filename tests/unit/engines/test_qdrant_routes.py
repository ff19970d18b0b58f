# SPDX-License-Identifier: Apache-2.0
"""Every route of the server's source is in the table, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.engines.qdrant_routes import TABLE
from policy.model import Action
from tests.unit.engines.calls import ask, engine, request

LINES = (Path(__file__).parents[2] / "data" / "qdrant_routes.txt").read_text().splitlines()
ROUTES = [re.fullmatch(r'(\w+)\("([^"]+)"\)\]', line).groups() for line in LINES]  # type: ignore[union-attr]


@pytest.mark.parametrize(("verb", "path"), ROUTES)
def test_every_route_of_the_server_has_a_class(verb: str, path: str) -> None:
    call = request(verb.upper(), re.sub(r"\{\w+\}", "x", path), b"{}" if verb != "get" else None)
    route = engine("qdrant").route(call)
    line = TABLE.named(route)
    assert route.known
    assert line is not None
    assert line.actions
    assert Action.UNKNOWN not in line.actions


def test_the_table_holds_the_routes_of_the_server_and_no_more() -> None:
    served = {f"{verb.upper()} {re.sub(r'{[^}]+}', '{}', path)}" for verb, path in ROUTES}
    listed = {re.sub(r"{[^}]+}", "{}", line.route.method) for line in TABLE.specs}
    assert listed == served


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/collections/x/points/1/2"),
        ("POST", "/collections/x/points/querY"),
        ("POST", "/Collections/x/points/query"),
        ("OPTIONS", "/collections"),
        ("TRACE", "/"),
        ("GET", "/dashboard"),
        ("POST", "/collections/x/points/query/batch/groups"),
        ("QUERY", "/collections/x/points/query"),
    ],
)
def test_what_is_not_listed_is_unknown_and_touches_everything(verb: str, path: str) -> None:
    call = request(verb, path)
    asked = engine("qdrant")
    assert not asked.route(call).known
    operation = ask(asked, call)
    assert operation.actions == {Action.UNKNOWN}
    assert operation.collections == {"*"}


@pytest.mark.parametrize(
    ("verb", "path", "actions"),
    [
        ("GET", "/collections/x/snapshots/s", {Action.SNAPSHOT}),
        ("PUT", "/collections/x/snapshots/recover", {Action.SNAPSHOT, Action.WRITE}),
        ("POST", "/collections/x/shards/0/points/scroll", {Action.ADMIN, Action.SCAN}),
        ("GET", "/collections/x/shards/0/wal", {Action.ADMIN, Action.SNAPSHOT}),
        ("GET", "/telemetry", {Action.ADMIN}),
        ("DELETE", "/collections/x", {Action.SCHEMA, Action.DELETE}),
        ("GET", "/collections/x", {Action.SESSION}),
        ("HEAD", "/collections/x", {Action.SESSION}),
    ],
)
def test_routes_are_what_they_do(verb: str, path: str, actions: set[Action]) -> None:
    assert ask(engine("qdrant"), request(verb, path)).actions == actions
