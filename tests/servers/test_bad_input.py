# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong when `vecward run` starts: exit 1, a clear message, and nothing left attached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.arena import PATIENCE, ROOT
from tests.servers.raw import request, say
from tests.servers.stage import ALLOW_ALL, Stage

HEARTBEAT = request("/api/v2/heartbeat")
Config = dict[str, Any]
Change = Callable[[Stage, Config], None]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage("chroma") as made:
        made.start_database()
        yield made


def launch(stage: Stage, *before: str) -> tuple[int, str]:
    """Run it to its end; exit code and what it said. `before`: a program that starts it."""
    process = stage.arena.popen(
        [*before, sys.executable, "-m", "agent", "run", "-c", str(stage.config)],
        group=None,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        out, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, _ = process.communicate()
        raise AssertionError(f"it started: {out.decode()}") from None
    return process.returncode, out.decode()


def refused(stage: Stage, *before: str) -> str:
    """Its message, after checking that it is one for a person and that nothing stays."""
    code, said = launch(stage, *before)
    assert code == 1, said
    assert "Traceback" not in said
    assert said.startswith("vecward: "), said
    assert not stage.arena.pins.exists(), "something is still attached"
    assert not list(stage.arena.cgroup.glob("vecward-*"))
    assert say(stage, HEARTBEAT).status == 200  # the port is as it was
    return said


def guard(**keys: Any) -> Change:
    def change(stage: Stage, config: Config) -> None:
        config["guards"][0].update(keys)

    return change


def section(name: str, **keys: Any) -> Change:
    def change(stage: Stage, config: Config) -> None:
        config[name] = {**config.get(name, {}), **keys}

    return change


def second_guard(stage: Stage, config: Config) -> None:
    config["guards"].append({"name": "other", "engine": "chroma", "ports": [stage.port]})


def policy(text: str) -> Change:
    def change(stage: Stage, config: Config) -> None:
        (stage.folder / "policy.yaml").write_text(text)

    return change


def evidence_is_a_file(stage: Stage, config: Config) -> None:
    file = stage.folder / "a-file"
    file.write_text("x")
    config["evidence"]["dir"] = str(file)


def evidence_is_something_else(stage: Stage, config: Config) -> None:
    folder = stage.folder / "photos"
    folder.mkdir(exist_ok=True)
    (folder / "cat.jpg").write_text("x")
    config["evidence"]["dir"] = str(folder)


RULE = "version: 1\nrules:\n  - id: a\n    what: {action: search}\n    allow: true\n"
BROKEN: dict[str, tuple[Change, tuple[str, ...]]] = {
    "an unknown key": (section("proxy", worker=2), ("vecward.yaml:", "did you mean 'workers'")),
    "an unknown section": (section("prxoy", workers=2), ("unknown key", "did you mean 'proxy'")),
    "a bad size": (section("evidence", reserve="many"), ("evidence.reserve", "not a size", "64MiB")),
    "a bad duration": (section("proxy", drain="soon"), ("proxy.drain", "not a duration")),
    "a bad engine": (guard(engine="oracle"), ("engine", "'qdrant'")),
    "a bad port": (guard(ports=[70000]), ("ports", "65535")),
    "no port": (guard(ports=[]), ("ports",)),
    "a bad mode": (guard(mode="watch"), ("mode", "observe")),
    "two guards on one port": (second_guard, ("share port 8000", "address:")),
    "enforce that passes": (guard(mode="enforce", on_failure="pass"), ("cannot pass what it did not judge",)),
    "a bad address": (guard(address="localhost"), ("address",)),
    "no policy file": (
        lambda stage, config: config.update(policy=["nothing.yaml"]),
        ("nothing.yaml", "no such policy file"),
    ),
    "a policy that is not YAML": (policy("rules: ["), ("policy.yaml:1",)),
    "a policy with a duplicate key": (policy(RULE + "    allow: true\n"), ("policy.yaml:6",)),
    "a policy with an unknown action": (
        policy(RULE.replace("search", "serach")),
        ("policy.yaml:4", "search"),
    ),
    "a policy with an unknown key": (policy(RULE + "    limt: {top_k: 1}\n"), ("policy.yaml:6", "limit")),
    "two rules with one id": (
        policy(RULE + RULE.split("rules:\n")[1]),
        ("policy.yaml:6", "two rules have the id", "policy.yaml:3"),
    ),
    "a policy key of a later build": (policy(RULE + "    rate: {queries: 1/s}\n"), ("policy.yaml:6", "rate")),
    "evidence that is a file": (evidence_is_a_file, ("a-file",)),
    "evidence that is something else": (evidence_is_something_else, ("photos",)),
    "evidence where nobody may write": (section("evidence", dir="/proc/vecward"), ("/proc/vecward",)),
    "no such cgroup": (section("steer", cgroup="/sys/fs/cgroup/no-such"), ("no-such", "cgroup")),
    "a control socket with a long path": (
        section("control", socket="/tmp/" + "x" * 120 + "/control.sock"),
        ("control.socket", "long"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said_with_its_place(stage: Stage, name: str) -> None:
    change, words = BROKEN[name]
    stage.write_config()
    config = json.loads(stage.config.read_text())
    change(stage, config)
    stage.config.write_text(json.dumps(config, indent=1))
    said = refused(stage)
    for word in words:
        assert word in said, said
    assert "\\n" not in said, said
    assert len(said.splitlines()) <= 3, said


def test_a_configuration_that_is_not_yaml_or_not_there_is_said(stage: Stage) -> None:
    stage.write_config()
    stage.config.write_text("guards: [}\n")
    assert "vecward.yaml:1" in refused(stage)
    stage.config.unlink()
    assert "no such file" in refused(stage)


def test_a_damaged_ledger_is_said_at_the_start_in_status_and_by_verify(stage: Stage) -> None:
    """It does not keep the host without guard: the break is recorded, and cannot be overlooked."""
    stage.vecward()
    assert stage.stop() == 0
    ledger = stage.folder / "evidence" / "ledger"
    segment = max(ledger.glob("*.seg"), key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    try:
        stage.start()
        assert "a key break is recorded" in stage.tail()
        assert stage.status["evidence"]["key_break"] is True
        assert stage.stop() == 0
        report = stage.cli("verify", str(stage.folder / "evidence"), "--json", check=False)
        assert report.returncode == 4
        kinds = {finding["kind"] for finding in json.loads(report.stdout)["findings"]}
        assert "key-break" in kinds or "key_break" in kinds or "tampered" in kinds
    finally:
        stage.stop()
        shutil.rmtree(stage.folder / "evidence")


def test_a_second_run_says_that_one_runs(stage: Stage) -> None:
    stage.vecward()
    code, said = launch(stage)
    assert code == 1
    assert "another vecward runs" in said
    assert say(stage, HEARTBEAT).status == 200
    assert stage.stop() == 0
    shutil.rmtree(stage.folder / "evidence")


def test_a_guard_without_its_database_starts_and_refuses(stage: Stage) -> None:
    stage.vecward(ports=[9999])
    try:
        assert stage.status["guards"][0]["up"] is False
    finally:
        assert stage.stop() == 0
        shutil.rmtree(stage.folder / "evidence")


def test_a_user_without_rights_is_told_to_use_sudo(stage: Stage) -> None:
    stage.write_config()
    # It keeps the right to read, so that it is not the checkout's permissions that are tested.
    caps = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    said = refused(stage, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps)
    assert "root" in said
    assert "sudo" in said


def test_root_without_capabilities_is_told_which(stage: Stage) -> None:
    """uid 0 in a user namespace of its own, as in a rootless container."""
    stage.write_config()
    said = refused(stage, "unshare", "--user", "--map-root-user")
    assert "user namespace" in said


def test_root_without_bpf_is_told_what_is_missing(stage: Stage) -> None:
    stage.write_config()
    said = refused(stage, "setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin")
    assert "missing capability: CAP_BPF " in said


def test_a_missing_kernel_object_is_said(stage: Stage) -> None:
    stage.write_config()
    hide = f'mount -t tmpfs none {ROOT / "bpf"} && exec "$@"'
    said = refused(stage, "unshare", "--mount", "sh", "-c", hide, "sh")
    assert "steer.bpf.o" in said


def test_a_host_without_cgroup2_is_said(stage: Stage) -> None:
    stage.write_config()
    root = next(
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line
    )
    said = refused(stage, "unshare", "--mount", "sh", "-c", f'umount -l {root} && exec "$@"', "sh")
    assert "cgroup" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status"], 3, "no agent answers"),
        (["reload"], 3, "no agent answers"),
        (["kill", "x"], 3, "no agent answers"),
        (["off", "--reason", "x"], 3, "no agent answers"),
        (["off"], 2, "--reason"),
        (["off", "--for", "soon", "--reason", "x"], 2, "not a duration"),
        (["sttaus"], 2, "did you mean 'status'"),
        (["status", "--no-such"], 2, "--no-such"),
        (["verify", "/nonexistent"], 1, "/nonexistent"),
        (["sessions", "--since", "whenever"], 2, "whenever"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(
    stage: Stage, arguments: list[str], code: int, words: str
) -> None:
    stage.write_config(ALLOW_ALL)
    os.makedirs(stage.folder / "evidence" / "streams", exist_ok=True)
    done = stage.cli(*arguments, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("vecward: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
