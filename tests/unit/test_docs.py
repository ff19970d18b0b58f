# SPDX-License-Identifier: Apache-2.0
"""What can be typed or configured is in the manual and in the documentation."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
from pydantic import BaseModel

from agent.cli.main import COMMANDS
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
    command = ["groff", "-man", "-Tutf8", "-ww", "-z", *sorted(map(str, (built / "man").iterdir()))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not run.stderr, run.stderr


def test_completion_is_made_for_every_shell(built: Path) -> None:
    for name in ("vecward", "_vecward", "vecward.fish"):
        assert "_VECWARD_COMPLETE" in (built / "completion" / name).read_text()
