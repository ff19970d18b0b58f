# SPDX-License-Identifier: Apache-2.0
"""What the packages bring beside the program: judged by the tools that read it, compared with the units."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.config import Config, load_config

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
PROFILES = (PACKAGING / "apparmor" / "vecward").read_text()
SERVICES = {path.stem.rstrip("@"): path.read_text() for path in (ROOT / "systemd").glob("*.service")}


def tool(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def capabilities(unit: str) -> set[str]:
    words = re.findall(r"^CapabilityBoundingSet=(.*)$", SERVICES[unit], re.MULTILINE)[0].split()
    return {word.removeprefix("CAP_").lower() for word in words}


def test_the_configuration_that_is_installed_is_the_same_as_none(tmp_path: Path) -> None:
    shutil.copy(PACKAGING / "conf" / "vecward.yaml", tmp_path)
    config = load_config(tmp_path / "vecward.yaml")
    assert config.model_dump(exclude={"files"}) == Config().model_dump(exclude={"files"})


def test_the_example_in_the_configuration_is_one(tmp_path: Path) -> None:
    text = (PACKAGING / "conf" / "vecward.yaml").read_text()
    example = "\n".join(line.removeprefix("# ") for line in text.partition("#\n# guards:")[2].splitlines())
    (tmp_path / "vecward.yaml").write_text("guards:" + example)
    assert [guard.mode for guard in load_config(tmp_path / "vecward.yaml").guards] == ["observe"]


def test_apparmor_reads_the_profiles() -> None:
    parser = tool("apparmor_parser")
    done = subprocess.run(
        [parser, "-Q", "-K", PACKAGING / "apparmor" / "vecward"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def profile(unit: str) -> str:
    found = re.search(rf"^profile {unit} (.*?)^}}", PROFILES, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no profile of {unit}"
    return found[1]


@pytest.mark.parametrize("unit", sorted(SERVICES))
def test_a_profile_attaches_to_what_its_unit_starts_and_allows_its_capabilities(unit: str) -> None:
    text = profile(unit)
    command = re.findall(r"^ExecStart=(\S+)", SERVICES[unit], re.MULTILINE)[0]
    assert text.split()[0] == command
    assert set(re.findall(r"^  capability (\w+),", text, re.MULTILINE)) == capabilities(unit)
    assert "complain" in text.splitlines()[0]
    assert " deny " not in text  # would hold in complain mode too


@pytest.mark.parametrize("unit", sorted(SERVICES))
def test_selinux_has_a_domain_for_each_unit_with_its_capabilities(unit: str) -> None:
    domain = unit.replace("-", "_") + "_t"
    policy = (PACKAGING / "selinux" / "vecward.te").read_text()
    assert f"permissive {domain};" in policy
    found: set[str] = set()
    for words in re.findall(rf"^allow {domain} self:capability2? (.*);$", policy, re.MULTILINE):
        found |= set(words.strip("{} ").split())
    assert found == capabilities(unit)
    contexts = (PACKAGING / "selinux" / "vecward.fc").read_text()
    assert re.search(
        rf"^/usr/libexec/vecward/{unit}\s+--\s.*:{unit.replace('-', '_')}_exec_t,s0", contexts, re.M
    )


def test_needrestart_leaves_the_units_alone_and_no_other() -> None:
    perl = tool("perl")
    script = (
        "our %nrconf; do $ARGV[0] or die $@; my ($rule) = keys %{$nrconf{override_rc}};"
        "print map { $_ =~ $rule ? 1 : 0 } @ARGV[1..$#ARGV];"
    )
    file = PACKAGING / "needrestart" / "vecward.conf"
    names = ["vecward-agent", "vecward-proxy@0.1.0", "vecward-steer", "ssh", "chroma"]
    done = subprocess.run(
        [perl, "-e", script, file, *(f"{name}.service" for name in names)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "11100"


def test_the_news_are_in_the_form_that_apt_reads() -> None:
    parser = tool("dpkg-parsechangelog")
    news = PACKAGING / "debian" / "NEWS"
    done = subprocess.run([parser, "-l", news, "--all"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not done.stderr, done.stderr
    assert "Source: vecward" in done.stdout
