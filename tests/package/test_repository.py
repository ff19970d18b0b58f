# SPDX-License-Identifier: Apache-2.0
"""`make repo`: apt and dnf take from it what its key signed, and nothing else.

apt runs in a booted Debian 12, over HTTP on loopback, and installs for real. dnf (Debian's) runs on this host
into an empty root, without scriptlets: what the rpm needs of EL is there only as names in a stand-in package.
So what is tested is metadata, signatures, resolution and the transaction; the rpm's life is in test_rpm.py.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import FULL
from tests.package import builds, rig

SUITE = "bookworm"
MAKER = [sys.executable, "-B", str(rig.ROOT / "packaging" / "build"), "repo"]
KEYRING = "/usr/share/keyrings/vecward.asc"
SOURCES = "/etc/apt/sources.list.d/vecward.sources"
PORT = 8099  # in the container's own network
HEAD = """set -eux
fails() { if "$@"; then echo "it should have failed: $*"; exit 1; fi; }
until_so() { for _ in $(seq 300); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.1; done; "$@"; }
"""
STEPS = {
    "prepare": f"""
        rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/*
        cp -r /rig/repo /srv/repo
        systemd-run -q --unit=web python3 -m http.server -d /srv -b 127.0.0.1 {PORT}
        until_so python3 -c 'import socket; socket.create_connection(("127.0.0.1", {PORT}))'
        cp /srv/repo/vecward.sources {SOURCES}
    """,
    "no_key": f"""
        fails apt-get update --error-on=any
        fails apt-get install --yes vecward
        cp /rig/other.asc {KEYRING}
        fails apt-get update --error-on=any
        fails apt-get install --yes vecward
    """,
    "install": f"""
        cp /srv/repo/vecward.asc {KEYRING}
        apt-get update --error-on=any
        apt-get install --yes --no-install-recommends vecward=$(cat /rig/first)
        systemctl is-active vecward.target
        until_so vecward status
        dpkg -V vecward
    """,
    "upgrade": """
        apt-get upgrade --yes
        dpkg-query -W -f '${Version}\\n' vecward | grep -Fx "$(cat /rig/second)"
        until_so sh -c 'vecward status | grep "vecward $(sed s/-.*// /rig/second)"'
    """,
    "forged_list": """
        apt-get purge --yes vecward
        cp -r /srv/repo /srv/good
        for list in /srv/repo/apt/dists/stable/main/binary-*/Packages; do
            sed -i 's/^Section: .*/Section: games/' "$list"
            rm "$list".?z
        done
        rm -rf /var/lib/apt/lists/*
        fails apt-get update --error-on=any
        fails apt-get install --yes vecward
    """,
    "forged_package": """
        rm -rf /srv/repo /var/lib/apt/lists/*
        cp -r /srv/good /srv/repo
        apt-get update --error-on=any
        rm -f /var/cache/apt/archives/*.deb
        for deb in $(find /srv/repo/apt/pool -name '*.deb'); do
            printf x | dd of="$deb" bs=1 seek=9000 conv=notrunc status=none
        done
        fails apt-get install --yes vecward
        fails test -e /usr/bin/vecward
        rm -rf /srv/repo
        cp -r /srv/good /srv/repo
        apt-get install --yes vecward # and the same with what was not forged
    """,
}


@pytest.fixture(scope="module", autouse=True)
def _can_run() -> None:
    """Of the module, so that it is asked before packages are built."""
    if not FULL:
        pytest.skip("in `make soak` and `make test-package` only")
    for tool in ("apt-ftparchive", "createrepo_c", "rpmsign", "gpg"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (packaging/dev/setup repo)")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of both kinds in one folder."""
    folder = tmp_path_factory.mktemp("packages")
    for kind in ("deb", "rpm"):
        if why := builds.why_none(kind):
            pytest.skip(why)
        old, new = builds.pair(kind, tmp_path_factory.mktemp(kind) / "next")
        for package in (*old, *new):
            shutil.copy(package, folder)
    return folder


@pytest.fixture(scope="module")
def repository(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "repo"
    done = make(folder, packages, URL=f"http://127.0.0.1:{PORT}/repo")
    assert done.returncode == 0, done.stderr
    assert "NO KEY WAS GIVEN" in done.stderr
    return folder


def make(folder: Path, packages: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("KEY", "URL")}
    return subprocess.run(
        [*MAKER, folder, packages], capture_output=True, text=True, check=False, env=plain | environment
    )


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Path]:
    """A keyring as a publisher has it."""
    home = tmp_path / "keys"
    home.mkdir(mode=0o700)
    words = [
        "--passphrase",
        "",
        "--quick-generate-key",
        "Publisher <p@vecward.example>",
        "rsa3072",
        "sign",
        "0",
    ]
    subprocess.run(["gpg", "--homedir", home, "--batch", *words], check=True, capture_output=True)
    yield home
    end_agent(home)


def end_agent(home: Path) -> None:
    """gpg starts one for a keyring; it ends when it is told, in a moment."""
    agents = [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if f"\0{home}\0".encode() in _command_line(folder)
    ]
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    for pid in agents:  # one whose socket another one took hears nothing, and looks for it once a minute
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 60
    while any(_command_line(Path(f"/proc/{pid}")) for pid in agents):
        assert time.monotonic() < until, "gpg-agent does not end"
        time.sleep(0.02)


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def fingerprint(home: Path) -> str:
    done = subprocess.run(
        ["gpg", "--homedir", home, "--with-colons", "-K"], check=True, capture_output=True, text=True
    )
    return next(line.split(":")[9] for line in done.stdout.splitlines() if line.startswith("fpr"))


def verify(repo: Path, work: Path, *words: str | Path) -> str:
    """What gpg says with no other key than the repository's."""
    home = work / "verifier"
    home.mkdir(mode=0o700, exist_ok=True)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--no-autostart"]
    subprocess.run([*gpg, "--import", repo / "vecward.asc"], check=True, capture_output=True)
    done = subprocess.run(
        [*gpg, "--status-fd", "1", "--verify", *words], check=True, capture_output=True, text=True
    )
    return done.stdout


def test_the_publishers_key_signs_from_the_keyring_or_from_a_file(
    packages: Path, keys: Path, tmp_path: Path
) -> None:
    key = fingerprint(keys)
    exported = tmp_path / "key.asc"
    subprocess.run(
        ["gpg", "--homedir", keys, "--batch", "--armor", "-o", exported, "--export-secret-keys", key],
        check=True,
    )
    for name, environment in (("a", {"KEY": key, "GNUPGHOME": str(keys)}), ("b", {"KEY": str(exported)})):
        repo = tmp_path / name
        done = make(repo, packages, **environment)
        assert done.returncode == 0, done.stderr
        assert "NO KEY" not in done.stderr
        release = repo / "apt" / "dists" / "stable"
        assert f"VALIDSIG {key}" in verify(repo, tmp_path, release / "InRelease")
        assert f"VALIDSIG {key}" in verify(repo, tmp_path, release / "Release.gpg", release / "Release")
        data = repo / "rpm" / os.uname().machine / "repodata" / "repomd.xml"
        assert f"VALIDSIG {key}" in verify(repo, tmp_path, f"{data}.asc", data)
        assert "PRIVATE" not in "".join(path.read_text() for path in repo.glob("vecward.*"))


def test_no_repository_is_made_without_packages_or_with_a_key_that_is_not_there(
    packages: Path, keys: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    done = make(tmp_path / "repo", tmp_path / "none")
    assert (done.returncode, "no packages" in done.stderr) == (1, True)
    done = make(tmp_path / "repo", packages, KEY="0" * 40, GNUPGHOME=str(keys))
    assert done.returncode == 1
    assert not (tmp_path / "repo").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    done = make(tmp_path / "mine", packages)
    assert (done.returncode, (tmp_path / "mine" / "thesis").exists()) == (1, True)


@pytest.mark.limit(900)
def test_apt_installs_and_upgrades_from_it_and_takes_nothing_forged(
    repository: Path, keys: Path, packages: Path, tmp_path: Path
) -> None:
    if why := rig.why_no_base(SUITE):
        pytest.skip(why)
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copytree(repository, folder / "repo")
    with (folder / "other.asc").open("wb") as file:
        subprocess.run(["gpg", "--homedir", keys, "--armor", "--export"], check=True, stdout=file)
    asked = (["dpkg-deb", "-f", str(deb), "Version"] for deb in packages.glob("*.deb"))
    versions = sorted(
        subprocess.run(a, check=True, capture_output=True, text=True).stdout.strip() for a in asked
    )
    (folder / "first").write_text(versions[0])
    (folder / "second").write_text(versions[1])
    for name, text in STEPS.items():
        rig.write_steps(folder, boot=1, **{name: f"{HEAD}{text}"})
    boot = rig.container(SUITE, folder, {}, 300)
    print(boot.output)
    assert tuple(boot.check().steps) == tuple(STEPS)


@pytest.fixture
def served(repository: Path) -> Iterator[str]:
    """The dnf part over HTTP, from a copy that a test may forge."""
    handler = partial(Quiet, directory=str(repository))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


STAND_IN = """\
Name: el-stand-in
Version: 9
Release: 1
Summary: Names that EL has
License: Apache-2.0
BuildArch: noarch
{provides}
%description
Names.
%files
"""


def stand_in(folder: Path, repository: Path) -> Path:
    """A repository with one package that provides, by name only, what the rpm requires of EL."""
    build = next((repository / "rpm").rglob("vecward-[0-9]*.rpm"))
    asked = subprocess.run(
        ["rpm", "-qp", "--nosignature", "--requires", build], check=True, capture_output=True, text=True
    )
    names = {
        line.strip() for line in asked.stdout.splitlines() if not line.startswith(("rpmlib(", "config("))
    }
    provides = "\n".join(f"Provides: {name.replace('>=', '=')}" for name in sorted(names))
    (folder / "s.spec").write_text(STAND_IN.format(provides=provides))
    subprocess.run(
        ["rpmbuild", "-bb", "-D", f"_topdir {folder}/top", "-D", f"_dbpath {folder}/db", "s.spec"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["createrepo_c", "-q", folder / "top" / "RPMS"], check=True)
    return folder / "top" / "RPMS"


def dnf(work: Path, url: str, key: Path, el: Path, *words: str) -> subprocess.CompletedProcess[str]:
    root = work / "root"
    lists = work / "lists"
    for folder in (lists, root, work / "log", work / "persist", work / "none"):
        folder.mkdir(exist_ok=True)
    text = (work / "vecward.repo").read_text()
    text = text.replace(f"http://127.0.0.1:{PORT}/repo", url)
    text = text.replace("file:///etc/pki/rpm-gpg/RPM-GPG-KEY-vecward", key.as_uri())
    (lists / "vecward.repo").write_text(text)
    (lists / "el.repo").write_text(f"[el]\nname=el\nbaseurl={el.as_uri()}\nenabled=1\ngpgcheck=0\n")
    settings = {
        "reposdir": lists, "cachedir": work / "cache", "logdir": work / "log", "persistdir": work / "persist",
        "tsflags": "noscripts", "pluginpath": work / "none", "varsdir": work / "none",
    }  # fmt: skip
    options = [f"--setopt={name}={value}" for name, value in settings.items()]
    done = subprocess.run(
        ["dnf", "-y", "--installroot", root, "--releasever", "9", *options, *words],
        capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    for home in (work / "cache").glob("*/pubring"):
        end_agent(home)
    return done


def refuses(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert done.returncode != 0, done.stdout
    assert why in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.limit(300)
def test_dnf_installs_and_upgrades_from_it_and_takes_nothing_of_another_key(
    repository: Path, served: str, keys: Path, tmp_path: Path
) -> None:
    if shutil.which("dnf") is None:
        pytest.skip("needs dnf (packaging/dev/setup machines)")
    shutil.copy(repository / "vecward.repo", tmp_path)
    el = stand_in(tmp_path, repository)
    key, other = tmp_path / "right.asc", tmp_path / "wrong.asc"
    shutil.copy(repository / "vecward.asc", key)
    with other.open("wb") as file:
        subprocess.run(["gpg", "--homedir", keys, "--armor", "--export"], check=True, stdout=file)

    refused = dnf(tmp_path, served, other, el, "install", "vecward")
    refuses(refused, "Bad GPG signature")
    assert not (tmp_path / "root/usr/bin/vecward").exists()
    shutil.rmtree(tmp_path / "root")
    shutil.rmtree(tmp_path / "cache")

    versions = sorted(rpm.name.split("-")[1] for rpm in (repository / "rpm").rglob("vecward-[0-9]*.rpm"))
    done = dnf(tmp_path, served, key, el, "install", f"vecward-{versions[0]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "root/usr/bin/vecward").exists()
    done = dnf(tmp_path, served, key, el, "upgrade")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = ["rpm", "--root", str(tmp_path / "root"), "-q", "--qf", "%{VERSION}", "vecward"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == versions[1]


@pytest.mark.limit(300)
def test_dnf_takes_no_forged_package(repository: Path, tmp_path: Path) -> None:
    if shutil.which("dnf") is None:
        pytest.skip("needs dnf (packaging/dev/setup machines)")
    forged = tmp_path / "repo"
    shutil.copytree(repository, forged)
    shutil.copy(repository / "vecward.repo", tmp_path)
    el = stand_in(tmp_path, repository)
    for rpm in (forged / "rpm").rglob("vecward-[0-9]*.rpm"):
        with rpm.open("r+b") as file:
            file.seek(200_000)
            file.write(b"forged")
    done = dnf(tmp_path, forged.as_uri(), forged / "vecward.asc", el, "install", "vecward")
    refuses(done, "incorrect checksum")
    # The same with lists that fit the forged package, signed by nobody.
    subprocess.run(["createrepo_c", "-q", forged / "rpm" / os.uname().machine], check=True)
    shutil.rmtree(tmp_path / "cache")
    done = dnf(tmp_path, forged.as_uri(), forged / "vecward.asc", el, "install", "vecward")
    refuses(done, "Bad GPG signature")
    # And where the administrator does not look at the lists' signature: the package's own is looked at.
    text = (tmp_path / "vecward.repo").read_text()
    (tmp_path / "vecward.repo").write_text(text.replace("repo_gpgcheck=1", "repo_gpgcheck=0"))
    shutil.rmtree(tmp_path / "cache")
    done = dnf(tmp_path, forged.as_uri(), forged / "vecward.asc", el, "install", "vecward")
    refuses(done, "GPG check FAILED")
    assert not (tmp_path / "root/usr/bin/vecward").exists()
