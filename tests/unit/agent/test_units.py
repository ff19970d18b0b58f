# SPDX-License-Identifier: Apache-2.0
"""The units: what they promise, and that what they start is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import confine, roles
from agent.config import load_config
from agent.generation import worker_number
from agent.generations import UNIT_WORKERS
from agent.kernel.records import MAX_WORKERS

ROOT = Path(__file__).resolve().parents[3]
UNITS = ("vecward-steer.service", "vecward-agent.service", "vecward-proxy@.service")


def _unit(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (ROOT / "systemd" / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_script_of_the_package(name: str) -> None:
    program = Path(_unit(name)["ExecStart"][0].split()[0])
    script = ROOT / "packaging" / "libexec" / program.name
    assert program.parent == Path("/usr/libexec/vecward")
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1].startswith("exec /usr/bin/vecward unit ")


@pytest.mark.parametrize("name", [*UNITS, "vecward.target"])
def test_no_unit_is_ordered_before_anything_or_required_by_a_database(name: str) -> None:
    unit = _unit(name)
    assert not {"Before", "RequiredBy", "BindsTo", "PartOf"} & set(unit) or unit.get("PartOf") == [
        "vecward.target"
    ]
    assert not {"Before", "RequiredBy", "BindsTo"} & set(unit)
    assert unit.get("WantedBy", []) == (["multi-user.target"] if name == "vecward.target" else [])


def test_the_agent_gets_just_the_capabilities_it_checks_for() -> None:
    unit = _unit("vecward-agent.service")
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert {getattr(confine, name) for name in unit[key][0].split()} == confine.AGENT_CAPABILITIES


def test_the_workers_get_no_capability() -> None:
    unit = _unit("vecward-proxy@.service")
    assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]


def test_the_workers_stand_beside_the_agent_whatever_their_instance_is() -> None:
    assert _unit("vecward-proxy@.service")["Slice"] == [
        "system.slice"
    ]  # the default of an instance is another


def test_two_generations_fit_the_slots_of_the_kernel() -> None:
    assert 2 * UNIT_WORKERS <= MAX_WORKERS


def test_a_generation_has_as_many_workers_as_the_agent_wrote(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("3\n")
    assert worker_number(tmp_path) == 3
    (tmp_path / "workers").write_text("4000")
    assert worker_number(tmp_path) == UNIT_WORKERS
    assert 1 <= worker_number(tmp_path / "nowhere") <= UNIT_WORKERS


def test_stopping_says_what_is_refused_and_how_to_open_it(tmp_path: Path) -> None:
    file = tmp_path / "vecward.yaml"
    file.write_text(
        "guards:\n"
        "  - {name: a, engine: qdrant, ports: [6333, 6334], mode: enforce}\n"
        "  - {name: b, engine: chroma, ports: [8000]}\n"
    )
    lines = roles.stopped_lines(load_config(file))
    assert lines[0] == "guard a: port 6333, 6334 REFUSES connections while vecward is stopped"
    assert lines[1] == "guard b: connections reach the database directly, unobserved"
    assert "vecward unsteer" in lines[2]


def test_without_a_guard_stopping_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "vecward.yaml"
    file.write_text("# nothing\n")
    assert roles.stopped_lines(load_config(file)) == []


def test_a_process_that_is_root_or_has_other_capabilities_does_not_start() -> None:
    with pytest.raises(confine.ConfineError):
        confine.settle(frozenset({confine.CAP_BPF, confine.CAP_NET_ADMIN, 21}), umask=0o077)
