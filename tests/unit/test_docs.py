# SPDX-License-Identifier: Apache-2.0
"""What can be typed or configured is in the manual and in the documentation."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import click
import pytest
from pydantic import BaseModel

from agent import __version__
from agent.cli.main import COMMANDS, main
from agent.config import Config

ROOT = Path(__file__).resolve().parents[2]


def load_manual() -> ModuleType:
    """packaging/ is no package of ours (a library has that name), so its one module is loaded by path."""
    spec = importlib.util.spec_from_file_location("manual", ROOT / "packaging" / "man" / "manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manual")
    load_manual().build(out)
    return out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_manual_page(built: Path, name: str) -> None:
    page = built / "man" / f"vecward-{name}.8"
    assert page.exists(), f"vecward {name} cannot be loaded, so there is no page of it"
    text = page.read_text()
    assert f"\\fBvecward {name}".replace("-", "\\-") in text
    assert len(re.split(r"^\.SH DESCRIPTION\n", text, flags=re.MULTILINE)[1].splitlines()[0]) > 20


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_in_the_documentation(name: str) -> None:
    texts = [
        path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.exists()
    ]
    assert any(re.search(rf"\bvecward {name}\b", text) for text in texts), (
        f"no document shows `vecward {name}`"
    )


def shown_commands() -> list[tuple[str, str]]:
    """(document, command line) of every `vecward ...` that a document tells its reader to type."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        if "**Not in this build.**" in text:
            continue  # it names what is not there
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines = [match[1] for line in lines if (match := re.match(r"[#$] (?:sudo )?(\S*\bvecward .*)", line))]
        found += [(path.name, line) for line in lines + re.findall(r"`((?:bin/)?vecward [^`\n]*)`", text)]
    return found


@pytest.mark.parametrize(("document", "line"), sorted(set(shown_commands())))
def test_a_command_that_is_shown_can_be_typed(document: str, line: str) -> None:
    """The command is there and has every option it is shown with."""
    words = re.split(r"\s+#\s|[|;>]|\s\.\.\.", line.replace("…", "..."))[0].split()[1:]
    command: click.Command = main
    options = {name for option in main.params for name in option.opts}
    for word in words:
        word = word.strip("[]").partition("=")[0]
        if isinstance(command, click.Group) and re.fullmatch(r"[a-z]+", word):
            found = command.get_command(click.Context(command), word)
            assert found is not None, f"{document}: {line}: no command {word}"
            command = found
            options |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        elif re.match("-[a-z-]", word):
            assert word in options | {"--help", "-h"}, f"{document}: {line}: no option {word}"


def test_enough_commands_are_shown_for_the_test_above_to_mean_something() -> None:
    lines = [line for _, line in shown_commands()]
    assert len(lines) > 40
    assert any(line.startswith("bin/vecward ") for line in lines)


def test_the_command_of_a_checkout_runs_with_its_own_venv_only(tmp_path: Path) -> None:
    """bin/vecward finds the checkout through links, and says what to do where there is no venv."""
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "bin" / "vecward", tmp_path / "bin" / "vecward")
    (tmp_path / "link").symlink_to(tmp_path / "bin" / "vecward")
    run = subprocess.run([tmp_path / "link"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"vecward: no venv in this checkout: run make setup in {tmp_path} first\n"
    tools = tmp_path / ".cache" / "tool" / "bin"
    tools.mkdir(parents=True)
    (tmp_path / "agent").symlink_to(ROOT / "agent")
    (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tools / "python").chmod(0o755)
    run = subprocess.run(
        [tmp_path / "link", "--version"], capture_output=True, text=True, check=False, cwd=tmp_path / "bin"
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, f"vecward {__version__}\n", "")


def config_fields(model: type[BaseModel] = Config) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        found.append(name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found += config_fields(part)
    return found


def test_every_key_of_the_configuration_is_in_its_manual_page() -> None:
    page = (ROOT / "packaging" / "man" / "vecward.yaml.5").read_text()
    fields = config_fields()
    assert {"guards", "ports", "max_body"} <= set(fields)
    missing = [name for name in fields if f"\\fB{name}\\fR" not in page]
    assert not missing, f"vecward.yaml(5) does not explain {', '.join(missing)}"


def test_every_page_is_sound_roff(built: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs groff, which formats manual pages")
    pages = [path for path in sorted((built / "man").iterdir()) if not path.read_text().startswith(".so ")]
    command = ["groff", "-man", "-Tutf8", "-ww", "-z", *map(str, pages)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not run.stderr, run.stderr


def test_completion_is_made_for_every_shell(built: Path) -> None:
    for name in ("vecward", "_vecward", "vecward.fish"):
        assert "_VECWARD_COMPLETE" in (built / "completion" / name).read_text()
