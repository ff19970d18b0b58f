# SPDX-License-Identifier: Apache-2.0
"""The configuration: what it means, and that every error names its place and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import Config, ConfigError, load_config, policy_files
from agent.config_units import parse_duration, parse_size

GUARD = "- {name: q, engine: qdrant, ports: [6333]}"


def write(folder: Path, text: str, **drop_ins: str) -> Path:
    file = folder / "vecward.yaml"
    file.write_text(text)
    for name, content in drop_ins.items():
        (folder / "vecward.d").mkdir(exist_ok=True)
        (folder / "vecward.d" / f"{name}.yaml").write_text(content)
    return file


def load(folder: Path, text: str, **drop_ins: str) -> Config:
    return load_config(write(folder, text, **drop_ins))


def problems(folder: Path, text: str, **drop_ins: str) -> list[str]:
    """Each problem as "file name:line: message"."""
    with pytest.raises(ConfigError) as found:
        load(folder, text, **drop_ins)
    return [problem.removeprefix(f"{folder}/") for problem in found.value.problems]


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("10GiB", 10 << 30), (4096, 4096), ("1.5 kib", 1536), ("2MB", 2_000_000), ("0", 0)],
)
def test_sizes_are_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "64 Mibs", "1e9", True, None, 1.5, [], "9" * 400, "9" * 20]
)
def test_what_is_no_size_is_an_error(text: object) -> None:
    with pytest.raises(ValueError, match=r"not a size|too large"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("15m", 900), ("1h", 3600), ("90d", 7_776_000), (2.5, 2.5), ("250ms", 0.25)],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "-5s", "1 M", "1h30m", float("inf"), float("nan"), True, None, "9" * 400]
)
def test_what_is_no_duration_is_an_error(text: object) -> None:
    with pytest.raises(ValueError, match=r"not a duration|too large"):
        parse_duration(text)


def test_an_empty_file_is_a_configuration_without_guards(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config.guards == ()
    assert (config.evidence.mode, config.proxy.workers, config.steer.cgroup) == ("strict", "auto", "auto")


def test_a_guard_observes_and_passes_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    guard = load(tmp_path, f"guards:\n{GUARD}").guards[0]
    assert (guard.mode, guard.passes_on_failure, guard.remote_rule) == ("observe", True, "pass")
    enforced = load(tmp_path, "guards: [{name: q, engine: qdrant, ports: [1], mode: enforce}]").guards[0]
    assert (enforced.passes_on_failure, enforced.remote_rule) == (False, "judge")


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "policy: [rules.yaml, /etc/x.yaml]\nevidence: {dir: evidence}")
    assert config.policy == (tmp_path / "rules.yaml", Path("/etc/x.yaml"))
    assert config.evidence.dir == tmp_path / "evidence"


# -- places of errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("guard: []", "1: guard: unknown key; did you mean 'guards'?"),
        (f"guards:\n{GUARD[:-1]},\n   mod: enforce}}", "3: guards.0.mod: unknown key; did you mean 'mode'?"),
        ("policy: []\nproxy:\n  worker: 2", "3: proxy.worker: unknown key; did you mean 'workers'?"),
        ("evidence:\n  mode: strict\n  keeep: 1d", "3: evidence.keeep: unknown key; did you mean 'keep'?"),
        ("steer: {pin: /x}", "1: steer.pin: unknown key; did you mean 'pins'?"),
        ("control: {port: 1}", "1: control.port: unknown key; known here: socket, read_group, approve_group"),
        ("metrics: {listn: null}", "1: metrics.listn: unknown key; did you mean 'listen'?"),
        ("users: {agnt: x}", "1: users.agnt: unknown key; did you mean 'agent'?"),
        ("literal: 1", "1: literal: unknown key; known here: guards, policy, evidence, proxy"),
        ("files: [x]", "files: unknown key"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_what_was_meant(
    tmp_path: Path, text: str, problem: str
) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert problem in found[0]
    assert found[0].startswith("vecward.yaml:")


@pytest.mark.parametrize(
    "text",
    [
        "policy: []\npolicy: []",
        "evidence:\n  mode: strict\n  level: meta\n  mode: best-effort",
        "guards:\n- name: q\n  engine: qdrant\n  ports: [6333]\n  name: r",
    ],
)
def test_a_duplicate_key_is_an_error_at_every_level(tmp_path: Path, text: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(f"vecward.yaml:{text.count(chr(10)) + 1}: found duplicate key")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (
            "evidence:\n  dir: /e\n  reserve: 64 megs",
            3,
            "evidence.reserve: not a size: '64 megs'; write 64MiB",
        ),
        ("proxy:\n  drain: soon", 2, "proxy.drain: not a duration: 'soon'; write 60s, 15m"),
        ("proxy:\n  workers: 0", 2, "proxy.workers: "),
        ("proxy:\n  workers: many", 2, "proxy.workers: "),
        ("steer:\n\n  cgroup: [a]", 3, "steer.cgroup: "),
        ("metrics:\n  listen: 0.0.0.0:9100", 2, "metrics.listen: write unix:/PATH"),
        ("guards:\n- name: Q!\n  engine: qdrant\n  ports: [1]", 2, "guards.0.name: "),
        ("guards:\n- name: q\n  engine: mongo\n  ports: [1]", 3, "guards.0.engine: "),
        ("guards:\n- name: q\n  engine: qdrant\n  ports: []", 4, "guards.0.ports: "),
        ("guards:\n- name: q\n  engine: qdrant\n  ports: [70000]", 4, "guards.0.ports.0: "),
        ("guards:\n- name: q\n  engine: qdrant\n  ports: [1, 1]", 4, "guards.0.ports: the same port twice"),
        ("guards:\n- engine: qdrant\n  ports: [1]", 2, "guards.0.name: Field required"),
        (
            f"guards:\n{GUARD}\n- {{name: r, engine: qdrant, ports: [1],\n   address: here}}",
            4,
            "guards.1.address: ",
        ),
        ("evidence: strict", 1, "evidence: "),
        ("guards: qdrant", 1, "guards: "),
        ("1: x", 1, "1"),
        ("[]", 1, "a configuration is a mapping"),
        ("policy: [", 1, ""),
        ("a: b: c", 1, ""),
    ],
)
def test_what_cannot_be_understood_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    found = problems(tmp_path, text)
    assert found[0].startswith(f"vecward.yaml:{line}: {message}")


@pytest.mark.parametrize("key", ["on_failure", "remote"])
def test_a_guard_that_enforces_cannot_pass_what_it_did_not_judge(tmp_path: Path, key: str) -> None:
    text = f"guards:\n{GUARD}\n- name: r\n  engine: chroma\n  ports: [8000]\n  mode: enforce\n  {key}: pass"
    (found,) = problems(tmp_path, text)
    assert found.startswith("vecward.yaml:3: guards.1: a guard that enforces cannot pass")
    assert "drop `on_failure: pass`" in found
    assert load(tmp_path, text.replace("enforce", "observe")).guards[1].mode == "observe"


def two(first: str, second: str) -> str:
    return "guards:\n" + "\n".join(
        f"- {{name: {name}, engine: qdrant, ports: [6333]{', address: ' + repr(address) if address else ''}}}"
        for name, address in (("a", first), ("b", second))
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [("", ""), ("10.0.0.1", "10.0.0.1"), ("10.0.0.1", "::ffff:10.0.0.1"), ("fd00::1", "fd00:0:0::1")],
)
def test_two_guards_may_not_take_the_same_port_and_address(tmp_path: Path, first: str, second: str) -> None:
    (found,) = problems(tmp_path, two(first, second))
    assert found == "vecward.yaml:3: guards.1: guards 'a' and 'b' share port 6333; give each its `address:`"


@pytest.mark.parametrize(
    ("first", "second"), [("10.0.0.1", "10.0.0.2"), ("10.0.0.1", "fd00::1"), ("", "10.0.0.1")]
)
def test_two_guards_may_share_a_port_on_different_addresses(tmp_path: Path, first: str, second: str) -> None:
    assert [guard.address for guard in load(tmp_path, two(first, second)).guards] == [first or None, second]


def test_more_ports_than_the_kernel_can_hold_while_they_change_hands_are_an_error(tmp_path: Path) -> None:
    """Found by the kernel's refusal in the middle of a reload, which left half of it done."""

    def guards(last: int) -> str:
        ports = [list(range(1000 + 16 * n, 1000 + 16 * n + (16 if n < 7 else last))) for n in range(8)]
        lines = [f"  - {{name: g{n}, engine: qdrant, ports: {p}}}" for n, p in enumerate(ports)]
        return "guards:\n" + "\n".join(lines)

    assert len(load(tmp_path, guards(16)).guards) == 8
    (found,) = problems(tmp_path, guards(16) + "\n  - {name: more, engine: qdrant, ports: [9000]}")
    assert "more than 128 ports in all guards together" in found


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:0.0.0.0", "fe80::1%eth0"])
def test_an_address_that_no_connection_can_have_is_an_error(tmp_path: Path, address: str) -> None:
    (found,) = problems(tmp_path, two(address, "10.0.0.1"))
    assert "leave `address:` out" in found


def test_two_guards_of_one_name_are_an_error_with_the_line_of_the_second(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, f"guards:\n{GUARD}\n{GUARD.replace('6333', '1')}")
    assert found == "vecward.yaml:3: guards.1: two guards are named 'q'"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "proxy: {drain: x}\nevidence: {keep: y}\nguardz: []")
    assert sorted(problem.split(":")[1] for problem in found) == ["1", "2", "3"]


# -- drop-ins -------------------------------------------------------------------------------------


def test_drop_ins_replace_sections_in_name_order_and_add_guards(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        f"guards:\n{GUARD}\nproxy: {{workers: 1, drain: 5s}}",
        b10="proxy: {workers: 3}",
        a20=f"guards:\n{GUARD.replace('q,', 'r,').replace('6333', '1')}\nproxy: {{workers: 2}}",
    )
    assert [guard.name for guard in config.guards] == ["q", "r"]
    assert (config.proxy.workers, config.proxy.drain) == (3, 3600.0)
    assert [file.name for file in config.files] == ["vecward.yaml", "a20.yaml", "b10.yaml"]


def test_an_error_in_a_drop_in_is_named_with_the_drop_in(tmp_path: Path) -> None:
    base = f"guards:\n{GUARD}\nproxy: {{workers: 1}}"
    good = GUARD.replace("q,", "r,").replace("6333", "1")
    bad = "# theirs\nguards:\n- name: s\n  engine: qdrant\n  ports: [2]\n  moed: enforce"
    assert problems(tmp_path, base, a=bad) == [
        "vecward.d/a.yaml:6: guards.1.moed: unknown key; did you mean 'mode'?"
    ]
    # The file's own guards stay the file's, however many drop-ins have some.
    broken = base.replace("qdrant", "qdrnt")
    assert problems(tmp_path, broken, a=f"guards:\n{good}")[0].startswith("vecward.yaml:2: guards.0.engine: ")
    assert problems(tmp_path, base, a="\nproxy: {worker: 1}")[0].startswith(
        "vecward.d/a.yaml:2: proxy.worker: "
    )
    clash = problems(tmp_path, base, a=f"\nguards:\n{GUARD}")
    assert clash == ["vecward.d/a.yaml:3: guards.1: two guards are named 'q'"]
    assert problems(tmp_path, base, a="proxy: [")[0].startswith("vecward.d/a.yaml:")


# -- files ----------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_or_is_no_text_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.yaml: no such file; write it, or name another with -c"):
        load_config(tmp_path / "missing.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.yaml: cannot be read"):
        load_config(binary)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    binary.write_bytes(b"policy: []\0")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(binary)


def test_policy_files_are_read_in_order_and_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("b.yaml", "a.yaml", "c.txt"):
        (tmp_path / "d" / name).touch()
    (tmp_path / "own.yaml").touch()
    config = load(tmp_path, "policy: [own.yaml, d]")
    assert [file.name for file in policy_files(config)] == ["own.yaml", "a.yaml", "b.yaml"]
    with pytest.raises(ConfigError, match="gone: no such policy file or folder"):
        policy_files(load(tmp_path, "policy: [gone]"))
