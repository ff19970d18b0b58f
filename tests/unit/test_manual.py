# SPDX-License-Identifier: Apache-2.0
"""Pages of the files, the units and the fields, and completion as each shell loads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import COMMANDS, INTERNAL
from agent.evidence.frames import Frame
from agent.evidence.views import Exchange, Message, Session
from tests.unit.test_docs import ROOT, load_manual

MAN = ROOT / "packaging" / "man"
SHELLS = {
    # Each asks its own completion for what may follow `vecward ver`, as at a prompt.
    "bash": "source {file}; COMP_WORDS=(vecward ver); COMP_CWORD=1; _vecward_completion vecward ver vecward; "
    'printf "%s\\n" "${{COMPREPLY[@]}}"; complete -p vecward >&2',
    "zsh": "autoload -Uz compinit; fpath=({folder} $fpath); compinit -D; print -r -- $_comps[vecward] >&2; "
    'source {file}; compadd() {{ print -l -- "${{(@P)5}}"; }}; _describe() {{ print -l -- "${{(@P)3}}"; }}; '
    "words=(vecward ver); CURRENT=2; _vecward_completion",
    "fish": "source {file}; complete -C 'vecward ver'",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manual")
    assert load_manual().build(out) == []
    return out


def names_of(value: Mapping[str, Any]) -> set[str]:
    """All keys, those of the objects in it too."""
    found = set(value)
    for each in value.values():
        if isinstance(each, Mapping):
            found |= names_of(each)
    return found


def an_exchange() -> Exchange:
    empty: dict[str, Any] = dict.fromkeys(Exchange.__dataclass_fields__)
    lists: dict[str, Any] = dict.fromkeys(("actions", "collections", "limits", "masks"), ())
    return Exchange(**empty | lists | {"request": Message(), "response": Message()})


def test_every_field_that_programs_read_is_in_its_page() -> None:
    page = (MAN / "vecward-json.5").read_text()
    fields = names_of(Session("id").as_dict()) | names_of(an_exchange().as_dict())
    assert {"login_user", "released_sha256", "ids"} <= fields
    assert not [name for name in sorted(fields) if f"\\fB{name}\\fR" not in page]


def test_every_kind_of_frame_is_in_the_page_of_the_evidence() -> None:
    page = (MAN / "vecward-evidence.5").read_text()
    kinds = {str(kind.__struct_config__.tag) for kind in Frame.__subclasses__()}
    assert {"intent", "checkpoint", "tombstone"} <= kinds
    assert not [name for name in sorted(kinds) if f"\\fB{name}\\fR" not in page]


def test_every_unit_has_a_page(built: Path) -> None:
    units = [path.name for path in (ROOT / "systemd").iterdir() if path.suffix in (".service", ".target")]
    assert len(units) == 4
    for unit in units:
        text = (built / "man" / f"{unit}.8").read_text()
        if text.startswith(".so "):
            text = (built / "man" / Path(text.split()[1]).name).read_text()
        assert unit.replace("-", r"\-") in text.split(".SH SYNOPSIS")[0]


def test_no_page_is_of_what_people_do_not_type(built: Path) -> None:
    pages = {path.name for path in (built / "man").iterdir()}
    assert pages.isdisjoint(f"vecward-{name}.8" for name in INTERNAL)
    commands = {name.removeprefix("vecward-").removesuffix(".8") for name in pages if name.endswith(".8")}
    assert commands >= set(COMMANDS)


def test_what_a_page_refers_to_is_there(built: Path) -> None:
    pages = {path.name for path in (built / "man").iterdir()}
    for path in (built / "man").iterdir():
        for name, section in re.findall(r"\\fB(vecward[^\\ ]*(?:\\-[a-z]+)*)\\fR\((\d)\)", path.read_text()):
            wanted = f"{name}.{section}".replace("\\-", "-")
            assert wanted in pages, f"{path.name} refers to {wanted}"


def test_the_index_of_the_manual_finds_each_page(built: Path) -> None:
    """mandb reads NAME with lexgrog: a page that it cannot read is in no `man -k`."""
    if shutil.which("lexgrog") is None:
        pytest.skip("needs lexgrog (man-db)")
    pages = [path for path in (built / "man").iterdir() if not path.read_text().startswith(".so ")]
    done = subprocess.run(["lexgrog", *pages], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_with_the_file_that_is_installed(built: Path, tmp_path: Path, shell: str) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"needs {shell}")
    command = tmp_path / "vecward"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m agent "$@"\n')
    command.chmod(0o755)
    file = built / "completion" / {"bash": "vecward", "zsh": "_vecward", "fish": "vecward.fish"}[shell]
    script = SHELLS[shell].format(file=file, folder=file.parent)
    plain = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [program, *plain, "-c", script],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert "verify" in done.stdout, done.stdout + done.stderr
    assert "sessions" not in done.stdout
    if shell == "zsh":
        assert "_vecward" in done.stderr  # compinit registered it from its first line
