# SPDX-License-Identifier: Apache-2.0
"""The deb as a file: what is in it, for which Pythons, that it is the same when built again.

Its life in a booted system is in test_debian12.py.
"""

from __future__ import annotations

import _imp
import email.parser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import deb as maker
import ground
import layout
import pytest
import wheels

from tests.conftest import FULL
from tests.package import builds, rig

ELF = b"\x7fELF"
GLIBC = (2, 36)  # Debian 12's
IMPORTS = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(root), str(root / "vendor")]
native = []
for top in ("agent", "policy"):
    for path in sorted((root / top).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            native.append(importlib.import_module(name).__file__.endswith(".so"))
outside = [m.__file__ for m in sys.modules.values() if "-packages" in (getattr(m, "__file__", None) or "")]
print(len(native), sum(native), outside)
"""


@pytest.fixture(scope="session")
def package() -> Path:
    if why := builds.why_none("deb"):
        pytest.skip(why)
    (path,) = builds.first("deb")
    return path


@pytest.fixture(scope="session")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its files, and DEBIAN/."""
    folder = tmp_path_factory.mktemp("deb") / "tree"
    subprocess.run(["dpkg-deb", "-R", str(package), str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def private(installed: Path) -> Path:
    return installed / ground.PRIVATE.lstrip("/")


def binaries(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.so*")):
        if path.read_bytes()[:4] == ELF:
            yield path


@pytest.mark.parametrize("version", ground.VERSIONS)
def test_every_module_is_there_for_each_python_with_nothing_but_what_is_inside(
    private: Path, version: str
) -> None:
    python = ground.pythons().get(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine")
    done = subprocess.run(
        [python, "-I", "-S", "-B", "-W", "error::ImportWarning", "-c", IMPORTS, str(private)],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, native, outside = done.stdout.split(" ", 2)
    assert int(count) > 200
    assert outside.strip() == "[]"
    compiled = list((private / "agent").rglob(f"*.cpython-{version.replace('.', '')}-*.so"))
    assert int(native) >= len(compiled)
    assert not compiled or int(native) > 40


def test_the_compiled_form_is_inside_for_the_python_of_debian_12(private: Path) -> None:
    names = {path.name.split(".")[0] for path in private.rglob("agent/**/*.cpython-311-*.so")}
    assert {"relay", "judge", "qdrant", "chroma", "http1"} <= names
    assert list(private.glob("vecward__mypyc.cpython-311-*.so"))


@pytest.mark.parametrize("version", ground.VERSIONS)
def test_byte_code_is_of_the_sources_beside_it(private: Path, version: str) -> None:
    tag = f"cpython-{version.replace('.', '')}"
    found = sorted(private.rglob(f"*.{tag}.pyc"))
    if not found and version != "3.11":
        pytest.skip(f"was built without Python {version}")
    for path in found:
        source = path.parent.parent / (path.name.removesuffix(f".{tag}.pyc") + ".py")
        head = path.read_bytes()[:16]
        assert int.from_bytes(head[4:8], "little") == 0b11, f"{path} is not compared with its source"
        assert head[8:] == _imp.source_hash(int.from_bytes(head[:4], "little"), source.read_bytes()), path
    assert len(found) == len(list(private.rglob("*.py")))


def test_no_file_names_the_machine_that_built_it(installed: Path) -> None:
    told = [str(rig.ROOT).encode(), b"/.pyenv/", b"vecward-deb-", str(ground.cache()).encode() + b"/"]
    for path in sorted(installed.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            assert not [word for word in told if word in data], path


def test_binary_modules_need_no_newer_glibc_than_debian_12_has_and_search_no_folder(private: Path) -> None:
    count = 0
    for path in binaries(private):
        said = subprocess.run(
            ["objdump", "-p", "-T", str(path)], capture_output=True, text=True, check=True
        ).stdout
        needed = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_(\d+\.\d+)", said)}
        assert max(needed, default=(0, 0)) <= GLIBC, path
        assert not re.search(r"R(UN)?PATH", said), path
        count += 1
    assert count > 20


def test_every_library_is_in_the_bill_of_materials_and_in_copyright_with_its_licence(installed: Path) -> None:
    vendor = installed / ground.VENDOR.lstrip("/")
    doc = installed / "usr/share/doc/vecward"
    bill = json.loads((doc / "sbom.cdx.json").read_text())
    listed = {(part["name"], part["version"]) for part in bill["components"]}
    there = set()
    for path in vendor.glob("*.dist-info"):
        name, version = path.name.removesuffix(".dist-info").split("-")
        there.add((name.replace("_", "-"), version))
    assert listed == there
    assert all(part["licenses"] for part in bill["components"])
    linked = {part["name"] for whole in bill["components"] for part in whole.get("components", [])}
    assert "openssl" in linked  # inside of cryptography
    copyright_text = (doc / "copyright").read_text()
    patterns = re.findall(r"usr/lib/vecward/vendor/(\S+)", copyright_text)
    for path in vendor.iterdir():
        if path.name != "__pycache__":
            assert any(path.match(p.removesuffix("/*")) for p in patterns), f"{path.name} has no copyright"


def test_what_is_left_out_is_not_there(installed: Path) -> None:
    vendor = installed / ground.VENDOR.lstrip("/")
    for name in wheels.read_plan().without:
        assert not list(vendor.glob(f"{name}*")), name


def test_the_sizes_in_the_document_are_those_of_the_package(package: Path) -> None:
    text = (rig.ROOT / "docs" / "packaging.md").read_text()
    found = re.search(r"The deb has ([\d.]+) MB, installed ([\d.]+) MB", text)
    assert found is not None
    assert abs(package.stat().st_size / 1e6 - float(found[1])) < 0.1 * float(found[1])


def test_control_data_says_what_is_needed_and_only_settings_are_conffiles(installed: Path) -> None:
    control = email.parser.HeaderParser().parsestr((installed / "DEBIAN" / "control").read_text())
    depends = [word.strip() for word in str(control["Depends"]).split(",")]
    assert any(word.startswith("libbpf1") for word in depends)
    assert {"python3 (>= 3.11~)", "python3 (<< 3.14~)"} <= set(depends)
    assert str(control["Version"]).startswith(f"{ground.version()}-")
    conffiles = (installed / "DEBIAN" / "conffiles").read_text().split()
    assert "/etc/vecward/vecward.yaml" in conffiles
    assert sorted(conffiles) == sorted(
        "/" + str(path.relative_to(installed)) for path in (installed / "etc").rglob("*") if path.is_file()
    )
    settings = (installed / "etc/vecward/vecward.yaml").read_text().splitlines()
    assert [line for line in settings if line and not line.startswith("#")] in ([], ["{}"])


def test_sums_are_of_the_files(installed: Path) -> None:
    done = subprocess.run(
        ["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], cwd=installed, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_everybody_may_read_it_and_nobody_else_may_write_it(package: Path) -> None:
    listing = subprocess.run(
        ["dpkg-deb", "-c", str(package)], capture_output=True, text=True, check=True
    ).stdout
    for line in listing.splitlines():
        mode, owner = line.split()[:2]
        assert owner == "root/root", line
        assert mode[0] == "l" or mode in ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"), line


def test_maintainer_scripts_are_shell_that_dash_reads(installed: Path) -> None:
    for name in maker.SCRIPTS:
        path = installed / "DEBIAN" / name
        if path.exists():
            assert "@" not in re.sub(r"vecward-proxy@|\$@", "", path.read_text()), "a name was not filled in"
            subprocess.run(["dash", "-n", str(path)], check=True)


def test_a_wheel_whose_hash_is_not_locked_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VECWARD_DEV", str(tmp_path))
    wheel = next(w for w in wheels.read_lock() if w.file.startswith("annotated_types"))
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / wheel.file).write_bytes(b"another")
    monkeypatch.setattr(wheels, "_download", lambda *_: None)
    with pytest.raises(ground.Refused, match="another hash"):
        wheels.fetch([wheel])


def test_wheels_that_differ_in_a_shared_file_are_refused(tmp_path: Path) -> None:
    wheel = wheels.Wheel("", "a-1-cp312-cp312-manylinux_2_17_x86_64.whl")
    wheels._put(tmp_path / "a" / "b.py", b"1", wheel)
    wheels._put(tmp_path / "a" / "b.py", b"1", wheel)
    with pytest.raises(ground.Refused, match="differs"):
        wheels._put(tmp_path / "a" / "b.py", b"2", wheel)


def test_a_lock_of_other_versions_than_those_that_are_tested_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "run.txt"
    other.write_text((rig.ROOT / "requirements" / "run.txt").read_text().replace("click==8", "click==9"))
    monkeypatch.setattr(wheels, "SOURCE", other)
    with pytest.raises(ground.Refused, match="make lock"):
        wheels.chosen()


def test_a_wheel_is_for_the_pythons_its_name_says() -> None:
    assert wheels.Wheel("", "a-1-cp312-cp312-manylinux_2_17_x86_64.whl").python == "3.12"
    assert wheels.Wheel("", "a-1-cp311-abi3-manylinux_2_28_x86_64.whl").python is None
    assert wheels.Wheel("", "a-1-py3-none-any.whl").python is None
    assert not wheels.Wheel("", "a-1-cp312-cp312-manylinux_2_17_x86_64.whl").fits("aarch64")


def test_the_changelog_becomes_debians_and_its_first_version_must_be_ours() -> None:
    newest = f"# C\n\n## {ground.version()} (unreleased)\n\n- One `x`\n  goes on.\n\n"
    text = newest + "## 0.0.9 (2026-01-02)\n\n- Old.\n"
    made = maker.changelog(text, 0)
    assert made.startswith(
        f"vecward ({ground.version()}-1) unstable; urgency=medium\n\n  * One x goes on.\n\n -- "
    )
    assert "Thu, 01 Jan 1970 00:00:00 +0000" in made
    assert "vecward (0.0.9-1)" in made
    assert "Fri, 02 Jan 2026 00:00:00 +0000" in made
    with pytest.raises(ground.Refused):
        maker.changelog("## 9.9.9\n\n- x\n", 0)


def test_a_folder_that_is_no_tree_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    with pytest.raises(ground.Refused, match="not touched"):
        layout.lay_out("deb", tmp_path)
    assert (tmp_path / "letters").exists()


def _tree_of(checkout: Path, target: Path, umask: int, zone: str) -> dict[str, tuple[int, str]]:
    """Path to mode and hash of what `packaging/build tree` lays out."""
    environment = os.environ | {"TZ": zone, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(
        [sys.executable, "-B", str(checkout / "packaging" / "build"), "tree", "deb", str(target)],
        check=True, env=environment, umask=umask, cwd="/", capture_output=True,
    )  # fmt: skip
    found = {}
    for path in sorted(target.rglob("*")):
        data = (
            os.readlink(path).encode() if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        )
        found[str(path.relative_to(target))] = path.lstat().st_mode, hashlib.sha256(data).hexdigest()
    return found


def _copy_checkout(target: Path) -> Path:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=rig.ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        source = rig.ROOT / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    (target / ".cache").mkdir()
    (target / ".cache" / "tool").symlink_to((rig.ROOT / ".cache" / "tool").resolve())
    return target


@pytest.mark.skipif(not FULL, reason="compiles everything twice: make soak, make test-package")
@pytest.mark.limit(3600)
def test_the_same_commit_makes_the_same_files_at_another_path_with_another_umask_and_time_zone(
    tmp_path: Path,
) -> None:
    trees = []
    for name, umask, zone in (("a", 0o022, "UTC"), ("a-longer/name", 0o077, "Asia/Kathmandu")):
        checkout = _copy_checkout(tmp_path / name)
        subprocess.run(["make", "-s", "-C", str(checkout / "bpf")], check=True)
        trees.append(_tree_of(checkout, tmp_path / f"tree-{umask}", umask, zone))
    differ = [
        path for path in sorted(set(trees[0]) | set(trees[1])) if trees[0].get(path) != trees[1].get(path)
    ]
    assert differ == []


def test_the_same_tree_makes_the_same_package(installed: Path, tmp_path: Path) -> None:
    """What dpkg-deb could let in: times, owners, order, umask, time zone; compressed for speed."""
    sums = set()
    for name, umask, zone in (("a", 0o022, "UTC"), ("longer", 0o077, "Asia/Kathmandu")):
        tree = tmp_path / name / "tree"
        shutil.copytree(installed, tree, symlinks=True)
        maker._set_times(tree)
        target = tmp_path / f"{name}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", str(tree), str(target)],
            check=True, umask=umask, env=maker._environment() | {"TZ": zone}, capture_output=True,
        )  # fmt: skip
        sums.add(hashlib.sha256(target.read_bytes()).hexdigest())
        shutil.rmtree(tree)
    assert len(sums) == 1


CHROOT = """
set -eu
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
mount -t proc proc "$2/root/proc"
cp "$3" "$2/root/tmp/vecward.deb"
chroot "$2/root" sh -euc '
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
    find / -xdev -path /proc -prune -o -print | sort >/tmp/before
    dpkg -i /tmp/vecward.deb </dev/null
    vecward --version
    test -L /etc/systemd/system/multi-user.target.wants/vecward.target
    id vecward-proxy
    test ! -e /run/vecward
    dpkg -i /tmp/vecward.deb </dev/null
    dpkg -V vecward
    dpkg -P vecward
    find / -xdev -path /proc -prune -o -print | sort >/tmp/after
    comm -13 /tmp/before /tmp/after | sed "s/^/left: /"
'
"""
# What dpkg and systemd-sysusers keep for themselves.
MAY_STAY = re.compile(r"/(tmp|var/log|var/lib/dpkg|var/cache|var/lib/systemd|etc/\.pwd\.lock|etc/\w+-)\b")


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_it_installs_where_no_systemd_runs_and_starts_nothing(
    package: Path, tmp_path: Path, suite: str
) -> None:
    if why := rig.why_no_base(suite):
        pytest.skip(why)
    base = subprocess.run([str(rig.RIG / "base"), suite], capture_output=True, text=True, check=True)
    for name in ("upper", "work", "root"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--propagation", "private", "sh", "-c", CHROOT, "sh",
         base.stdout.strip(), str(tmp_path), str(package)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"vecward {ground.version()}" in done.stdout
    left = [line for line in done.stdout.splitlines() if line.startswith("left: ")]
    assert [line for line in left if not MAY_STAY.search(line)] == []
