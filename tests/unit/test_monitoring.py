# SPDX-License-Identifier: Apache-2.0
"""Alerts, board, journal events, catalog and runbook speak of what is there: same names, ids and headings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agent.journal_ids import EVENTS
from agent.kernel.records import STATS
from agent.metrics import NAMES, VERDICTS, metrics_text
from tests.unit.agent.test_metrics import STATUS

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "packaging" / "monitoring"
ALERTS: list[dict[str, Any]] = YAML(typ="safe").load(MONITORING / "alerts.yaml")["groups"][0]["rules"]
BOARD: dict[str, Any] = json.loads((MONITORING / "grafana.json").read_text())
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()
CATALOG = (ROOT / "packaging" / "catalog" / "vecward.catalog").read_text()
EXPRESSIONS = [rule["expr"] for rule in ALERTS] + [t["expr"] for p in BOARD["panels"] for t in p["targets"]]
WORDS = {"sum", "by", "without", "rate", "increase", "absent", "event", "verdict", "guard"}


def headings() -> set[str]:
    """Anchors of the runbook, as GitHub makes them."""
    found = re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_uses_names_and_labels_that_are_emitted(expression: str) -> None:
    bare = re.sub(r'"[^"]*"', "", re.sub(r"\[\w+\]", "", expression))
    names = set(re.findall(r"[a-z_]{2,}", bare)) - WORDS
    assert names <= set(NAMES), names - set(NAMES)
    assert names
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    text = metrics_text(STATUS)
    for name, labels in re.findall(r"([a-z_]+)\{([^}]*)\}", expression):
        for label, kind, value in re.findall(r'(\w+)(=~?)"([^"]*)"', labels):
            known = {"event": known_events(name), "verdict": set(VERDICTS)}[label]
            assert f'{name}{{{label}="' in text
            fits = [k for k in known if (re.fullmatch(value, k) if kind == "=~" else value == k)]
            assert fits, f"{value} is no {label} of {name}"


def known_events(name: str) -> set[str]:
    if name == "vecward_kernel_total":
        return set(STATS)
    section = METRICS.split("## `vecward_proxy_total`")[1]
    return {
        word for row in re.findall(r"^\|([^|]*)\|", section, re.M) for word in re.findall(r"`([^`]+)`", row)
    }


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_has_a_runbook_entry_and_is_documented(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/runbook.md"
    assert anchor in headings()
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert f"| `{rule['alert']}` |" in METRICS
    assert re.fullmatch(r"\d+[smhd]", rule["for"])


def test_no_alert_is_documented_that_is_not_there() -> None:
    assert set(re.findall(r"\| `(Vecward\w+)` \|", METRICS)) == {rule["alert"] for rule in ALERTS}
    assert set(re.findall(r"`(Vecward[A-Z]\w+)`", RUNBOOK)) <= {rule["alert"] for rule in ALERTS}


def test_every_promised_metric_is_on_the_board_or_alarmed_on() -> None:
    used = " ".join(EXPRESSIONS)
    assert [name for name in NAMES if name not in used] == []


def test_the_board_has_one_place_a_panel_and_its_source_is_the_variable() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${source}"


def test_every_event_has_an_id_of_its_own() -> None:
    ids = [event.message_id for event in EVENTS.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_is_in_the_catalog_the_runbook_and_the_documentation(name: str) -> None:
    event = EVENTS[name]
    assert event.runbook.replace(" ", "-") in headings()
    assert f"| {name} | {event.message_id} | {event.priority} |" in METRICS
    entry = CATALOG.split(f"-- {event.message_id}\n")[1].split("\n-- ")[0]
    head, _, text = entry.partition("\n\n")
    assert head.startswith("Subject: ")
    assert "Defined-By: Vecward" in head
    assert f'runbook, "{event.runbook}"' in text


def test_every_event_is_announced_somewhere() -> None:
    """And no other: `announce` raises KeyError on a name that is none."""
    source = "".join(path.read_text() for path in sorted((ROOT / "agent").glob("*.py")))
    said = set(re.findall(r'(?:announce|self\._tell)\(\s*"([a-z-]+)"', source))
    assert said == set(EVENTS)


def test_the_catalog_explains_no_other_id() -> None:
    found = re.findall(r"^-- ([0-9a-f]+)$", CATALOG, re.MULTILINE)
    assert sorted(found) == sorted(event.message_id for event in EVENTS.values())
