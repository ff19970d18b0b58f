# SPDX-License-Identifier: Apache-2.0
"""The rpm: what is in it, what it runs, that it is the deb's sister, and its life in a booted system.

The system is Debian 12 with Debian's rpm: no root file system of EL can be had here. Not shown by it: dnf's
transaction on EL, SELinux, EL's systemd and its Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.package import builds, legs, rig

SUITE = "bookworm"
SPEC = rig.ROOT / "packaging" / "rpm" / "vecward.spec"
LINT = rig.ROOT / "packaging" / "rpm" / "rpmlint.toml"
SCRIPTLETS = ("PREIN", "POSTIN", "PREUN", "POSTUN", "PRETRANS", "POSTTRANS")

# Where one of the two has what the other has not, and why.
DEB_ONLY = {
    "/etc/apparmor.d/vecward": "EL has SELinux",
    "/etc/needrestart/conf.d/vecward.conf": "EL has no needrestart: dnf needs-restarting restarts nothing",
    "/usr/share/doc/vecward/NEWS.Debian.gz": "Debian's name and form of NEWS",
    "/usr/share/doc/vecward/changelog.gz": "Debian's name of CHANGELOG.md",
    "/usr/share/doc/vecward/changelog.Debian.gz": "Debian's form of it; the rpm has its own in its header",
    "/usr/share/lintian/overrides/vecward": "lintian is Debian's",
    "/usr/share/zsh/vendor-completions/_vecward": "Debian's folder",
}
RPM_ONLY = {
    "/usr/lib/systemd/system-preset/90-vecward.preset": "Debian's package enables by itself",
    "/usr/share/doc/vecward/NEWS": "NEWS.Debian.gz there",
    "/usr/share/doc/vecward/CHANGELOG.md": "changelog.gz there",
    "/usr/share/zsh/site-functions/_vecward": "EL's folder",
}
# What each has to do, as commands that stand in its scripts.
DUTIES = {
    "users": r"systemd-sysusers .*vecward\.conf",
    "folders": r"systemd-tmpfiles .*--create vecward\.conf",
    "new units are read": r"systemctl .*daemon-reload",
    "an upgrade asks whether it runs": r"systemctl .*is-active vecward\.target",
    "the agent is restarted": r"(deb-systemd-invoke|systemctl) restart vecward-agent\.service",
    "new workers are started": r'systemctl .*start "\$unit"',
    "they bear the version's name": r"vecward-proxy@",
    "removal stops all": r"stop vecward\.target vecward-agent\.service 'vecward-proxy@\*\.service' vecward",
    "removal detaches": r"^ *vecward unsteer",
    "removal forgets failures": r"systemctl reset-failed 'vecward\*'",
}
# What neither may do: cut, wait for sessions, ask, or make users in another way.
NEVER = (
    r"restart vecward-proxy",
    r"restart vecward\.target",
    r"sleep",
    r"dialog|debconf|read -",
    r"useradd|adduser",
)


@pytest.fixture(autouse=True)
def _can_run() -> None:
    if not FULL:
        pytest.skip("in `make soak` and `make test-package` only")
    if shutil.which("rpmbuild") is None:
        pytest.skip("needs rpm (packaging/dev/setup package)")
    if why := builds.why_none("rpm"):
        pytest.skip(why)


def asked(*words: str) -> str:
    package = str(builds.first("rpm")[0])
    done = subprocess.run(
        ["rpm", "-qp", "--nosignature", *words, package], check=True, capture_output=True, text=True
    )
    return done.stdout


def scriptlets() -> dict[str, str]:
    found = {name: asked("--qf", f"%{{{name}}}") for name in SCRIPTLETS}
    return {name: text for name, text in found.items() if text != "(none)"}


def deb_tree(folder: Path) -> Path:
    if why := builds.why_none("deb"):
        pytest.skip(why)
    subprocess.run(["dpkg-deb", "-R", str(builds.first("deb")[0]), str(folder)], check=True)
    return folder


def deb_files(tree: Path) -> dict[str, str]:
    """Path to mode and, of a link, its target; without DEBIAN and the distribution's own folders."""
    found = {}
    for path in tree.rglob("*"):
        name = "/" + str(path.relative_to(tree))
        link = os.readlink(path) if path.is_symlink() else ""
        if not name.startswith("/DEBIAN") and (link or not path.is_dir()):
            found[name] = f"{path.lstat().st_mode:o} {link}"
    return found


def rpm_files() -> dict[str, str]:
    lines = asked("--qf", r"[%{FILEMODES:octal}\t%{FILENAMES}\t%{FILELINKTOS}\n]").splitlines()
    found: dict[str, str] = {}
    for line in lines:
        mode, name, link = line.split("\t")
        if not mode.lstrip("0").startswith("40"):
            found[name] = f"{mode.lstrip('0')} {link}"
    return found


def test_it_is_the_debs_sister_file_by_file_and_mode_by_mode(tmp_path: Path) -> None:
    deb, rpm = deb_files(deb_tree(tmp_path / "deb")), rpm_files()
    assert len(rpm) > 500
    assert set(deb) - set(rpm) == set(DEB_ONLY)
    assert set(rpm) - set(deb) == set(RPM_ONLY)
    different = {name: (deb[name], rpm[name]) for name in set(deb) & set(rpm) if deb[name] != rpm[name]}
    assert not different


def test_its_scriptlets_have_the_duties_of_the_debs_scripts(tmp_path: Path) -> None:
    tree = deb_tree(tmp_path / "deb")
    scripts: Mapping[str, str] = {
        "deb": "\n".join(path.read_text() for path in sorted((tree / "DEBIAN").glob("p*[mt]"))),
        "rpm": "\n".join(scriptlets().values()),
    }
    for kind, text in scripts.items():
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        missing = [duty for duty, pattern in DUTIES.items() if not re.search(pattern, code, re.MULTILINE)]
        assert not missing, f"{kind}: {missing}"
        assert not [pattern for pattern in NEVER if re.search(pattern, code)], kind


def test_no_macro_stands_unexpanded_in_what_it_runs() -> None:
    found = scriptlets()
    assert set(found) == {"POSTIN", "POSTTRANS", "PREUN", "POSTUN"}
    for name, text in found.items():
        assert "%" not in text, name
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert set(asked("--qf", "[%{TRIGGERSCRIPTS}]").split()) <= {"(none)"}


def test_rpmlint_finds_nothing_that_has_no_reason() -> None:
    if shutil.which("rpmlint") is None:
        pytest.skip("needs rpmlint (packaging/dev/setup package)")
    folder = builds.first("rpm")[0].parent
    done = subprocess.run(
        ["rpmlint", "-c", LINT, *sorted(folder.glob("vecward-*.rpm")), SPEC],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout, done.stdout


def test_it_needs_what_el_9_has_and_nothing_of_debian() -> None:
    """glibc 2.34, libstdc++ of GCC 11, rpm 4.16: EL 9's. EL 10 has newer ones."""
    needs = asked("--requires").split("\n")
    assert "/usr/bin/python3.12" in needs
    assert "libbpf.so.1()(64bit)" in needs
    for need in needs:
        for name, most in (("GLIBC", (2, 34)), ("GLIBCXX", (3, 4, 29)), ("CXXABI", (1, 3, 13))):
            if found := re.search(rf"\({name}_([\d.]+)\)", need):
                assert tuple(map(int, found[1].split("."))) <= most, need
    libraries = {need.partition("(")[0] for need in needs if ".so." in need}
    known = {"c", "m", "dl", "rt", "pthread", "gcc_s", "stdc++", "bpf", "util"}
    assert {name for name in libraries if name.startswith("lib")} <= {
        f"lib{name}.so.{n}" for name in known for n in range(10)
    }
    assert not [p for p in asked("--provides").split("\n") if ".so" in p], (
        "libraries of its own are offered to others"
    )


def test_its_configuration_is_kept_and_its_folders_are_its_own() -> None:
    assert asked("-c").split() == ["/etc/vecward/vecward.yaml"]
    flags = asked("--qf", r"[%{FILEFLAGS:fflags} %{FILENAMES}\n]").splitlines()
    assert "cn /etc/vecward/vecward.yaml" in flags
    lines = asked("--qf", r"[%{FILEMODES:octal}\t%{FILENAMES}\n]").splitlines()
    owned = {line.split("\t")[1] for line in lines if line.lstrip("0").startswith("40")}
    assert {"/etc/vecward", "/usr/lib/vecward", "/usr/libexec/vecward"} <= owned
    assert not owned & {
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/share",
        "/usr/share/man/man8",
        "/usr/lib/systemd/system",
    }


def test_the_selinux_module_compiles_where_a_policy_is_there(tmp_path: Path) -> None:
    makefile = Path("/usr/share/selinux/devel/Makefile")
    if not makefile.exists():
        pytest.skip("needs selinux-policy-dev (packaging/dev/setup package)")
    (source,) = builds.first("rpm")[0].parent.glob("vecward-selinux-*.rpm")
    shutil.copy(source, tmp_path / "selinux.rpm")
    subprocess.run(["rpm2archive", "-n", "selinux.rpm"], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["tar", "-xf", "selinux.rpm.tar"], cwd=tmp_path, check=True)
    folder = tmp_path / "usr/share/selinux/packages/vecward"
    subprocess.run(["make", "-f", makefile, "vecward.pp"], cwd=folder, check=True, capture_output=True)
    assert (folder / "vecward.pp").stat().st_size > 1000


@pytest.mark.limit(1800)
def test_the_same_commit_makes_the_same_rpm(tmp_path: Path) -> None:
    maker = [sys.executable, "-B", str(rig.ROOT / "packaging" / "build"), "rpm"]
    made = []
    for name in ("one", "another-folder"):
        subprocess.run([*maker, str(tmp_path / name)], check=True, timeout=builds.BUILD_SECONDS)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.rpm")})
    assert len(made[0]) == 2
    assert made[0] == made[1]


@pytest.mark.limit(legs.CONTAINER_LIMIT)
def test_the_rpm_lives_from_install_to_erasure(tmp_path: Path) -> None:
    if why := rig.why_no_base(SUITE):
        pytest.skip(why)
    binds = legs.lay_out(tmp_path / "in", legs.LIFE, kind="rpm")
    boot = rig.container(SUITE, tmp_path / "in", binds, legs.CONTAINER_SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == legs.LIFE
    assert {"install", "start", "memory"} <= set(legs.measures(boot))


@pytest.mark.limit(legs.CONTAINER_LIMIT)
def test_what_the_rpm_installed_comes_back_from_what_goes_wrong_and_from_a_reboot(tmp_path: Path) -> None:
    if why := rig.why_no_base(SUITE):
        pytest.skip(why)
    binds = legs.lay_out(tmp_path / "in", legs.FAILURES, ["after_reboot"], kind="rpm")
    boot = rig.container(SUITE, tmp_path / "in", binds, legs.CONTAINER_SECONDS)
    print(boot.output)
    assert tuple(boot.check().steps) == (*legs.FAILURES, "after_reboot")
