# SPDX-License-Identifier: Apache-2.0
"""The command itself: its table, its exit codes, its one line of error."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from agent import __version__
from agent.cli import main as entry
from agent.cli.failure import Code, Fail
from agent.cli.main import COMMANDS, main
from tests.unit.evidence.sample import Stream, asked, ended, opened


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(args))
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_command_without_loading_one() -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"  {name} " in out


@pytest.mark.parametrize("group", [(), ("policy",), ("index",)])
def test_no_command_is_answered_with_the_list_of_commands(group: tuple[str, ...]) -> None:
    assert run(*group) == run(*group, "--help")
    assert run(*group)[0] == 0


def test_the_version_is_one_line() -> None:
    assert run("--version") == (0, f"vecward {__version__}\n", "")
    assert __version__ == "0.1.0"


def test_no_command_module_is_imported_before_it_is_named() -> None:
    heavy = ("rich", "msgspec", "sqlite3", "pydantic", "agent.cli.sessions")
    probe = f"import sys, agent.cli.main; print([m for m in sys.modules if m in {heavy!r}])"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_unknown_command_is_a_usage_error_with_the_nearest_name() -> None:
    code, out, err = run("sesions")
    assert (code, out) == (2, "")
    assert err == "vecward: no such command: sesions (hint: did you mean 'sessions'?)\n"


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("sessions", "--nope"), "No such option"),
        (("sessions", "--pid", "x"), "not a valid integer"),
        (("sessions", "--since", "soonish"), "write it as journalctl takes it"),
        (("sessions", "--since", "now", "--until", "-1h"), "--since is after --until"),
        (("sessions", "--verdict", "perhaps"), "perhaps"),
        (("show",), "SESSION"),
        (("export", "--format", "html"), "needs -o"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(args: tuple[str, ...], what: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert what in err
    assert "hint:" in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_evidence_is_exit_1_with_a_hint(tmp_path: Path) -> None:
    code, _, err = run("sessions", "--dir", str(tmp_path / "none"))
    assert code == 1
    assert "no evidence there" in err
    assert "--dir DIR" in err


def test_a_folder_of_something_else_is_refused_and_nothing_is_put_into_it(tmp_path: Path) -> None:
    code, _, err = run("sessions", "--dir", str(tmp_path))
    assert (code, "is no evidence folder" in err) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_configuration_is_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "vecward.yaml"
    file.write_text("evidence: {dri: /x}\n")
    code, _, err = run("-c", str(file), "sessions")
    assert code == 1
    assert f"{file}:1" in err


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (Fail("agent does not answer", "systemctl status vecward", Code.UNREACHABLE), 3,
         "vecward: agent does not answer (hint: systemctl status vecward)\n"),
        (Fail("x\x1b[2J\ny"), 1, "vecward: x\\x1b[2J\\ny\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "vecward: /x: Permission denied (hint: "),
        (click.UsageError("no"), 2, "vecward: no (hint: vecward "),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_every_way_to_end_has_its_code(
    raised: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def failing() -> None:
        raise raised

    monkeypatch.setattr(entry.Commands, "get_command", lambda self, ctx, name: failing)
    got, _, err = run("status")
    assert got == code
    assert err.startswith(line)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_reader_that_has_enough_is_no_failure(tmp_path: Path, as_json: tuple[str, ...]) -> None:
    stream = Stream(tmp_path / "evidence")
    stream.block(opened("5e551001"), *(asked("5e551001", n) for n in range(1, 200)), ended("5e551001"))
    folder = ("--dir", str(tmp_path / "evidence"))
    command = [sys.executable, "-m", "agent", *folder, "replay", "5e551001", *as_json]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)  # less than the answer
        process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")


def test_a_command_whose_module_is_missing_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "status", entry.Entry("agent.cli.nowhere", "status", ""))
    code, _, err = run("status")
    assert (code, err) == (1, "vecward: status is not in this build (hint: vecward --help lists what is)\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_is_printed(shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_VECWARD_COMPLETE" in out


@pytest.mark.parametrize("name", ["sessions", "show", "replay", "tail", "seen", "export", "verify", "index"])
def test_every_reading_command_explains_itself(name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert len(out) > 200
