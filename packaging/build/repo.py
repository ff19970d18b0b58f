# SPDX-License-Identifier: Apache-2.0
"""Signed repositories of the packages in one folder that any web server can serve, or a path can name.

    FOLDER/vecward.asc          the public key
    FOLDER/apt/                 for apt: suite `stable`, component `main`
    FOLDER/rpm/ARCH/            for dnf
    FOLDER/vecward.sources, FOLDER/vecward.repo   what a host needs beside the key (docs/howto/install.md)

Owns the signatures: apt's Release, dnf's repomd.xml and each rpm. Bias: a repository is whole and signed or
it is not there; without a key of the publisher it is signed with one that is thrown away, and that is said.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from ground import Refused, epoch, run, say

SUITE, COMPONENT = "stable", "main"
KEY_FILE = "vecward.asc"
THROWAWAY = "Vecward throwaway key (not for publishing) <throwaway@vecward.example>"
_HASHES = ("-o", "APT::FTPArchive::MD5=no", "-o", "APT::FTPArchive::SHA1=no")
_NEEDED = {"apt-ftparchive": "apt-utils", "createrepo_c": "createrepo-c", "rpmsign": "rpm", "gpg": "gnupg"}


def build(packages: Path, folder: Path, key: str = "", url: str = "") -> None:
    """Make `folder` anew from the packages in `packages`.

    `key`: fingerprint of a secret key in the caller's keyring, or a file with an exported one. `url`: where
    the folder will be served, for the two files that name it. Refused without a tool, packages or the key.
    """
    if missing := sorted({package for tool, package in _NEEDED.items() if shutil.which(tool) is None}):
        raise Refused(f"missing: apt-get install {' '.join(missing)}")
    debs, rpms = sorted(packages.glob("vecward*.deb")), sorted(packages.glob("vecward*.rpm"))
    if not debs and not rpms:
        raise Refused(f"no packages in {packages}: make deb rpm")
    if folder.exists() and any(folder.iterdir()) and not (folder / KEY_FILE).exists():
        raise Refused(f"{folder} is not a repository of an earlier build: it is not touched")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vecward-repo-") as made:
        work, signer = Path(made) / "repo", Signer(key, Path(made))
        try:
            work.mkdir()
            (work / KEY_FILE).write_text(signer.public())
            make_apt(work / "apt", debs, signer)
            make_dnf(work / "rpm", rpms, signer)
            write_lists(work, url or folder.absolute().as_uri())
        finally:
            signer.close()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work, folder)
    say(f"{folder}: {len(debs)} deb, {len(rpms)} rpm, signed by {signer.fingerprint}")


class Signer:
    """gpg with one key. One from a file, or a throwaway one, is in a keyring that goes at the end."""

    def __init__(self, key: str, work: Path) -> None:
        self._own = not key or Path(key).is_file()
        self.home = work / "gnupg" if self._own else None
        self._environment = dict(os.environ)
        if self.home is not None:
            self.home.mkdir(mode=0o700)
            self._environment["GNUPGHOME"] = str(self.home)
        if not key:
            say("NO KEY WAS GIVEN: signed with a throwaway key, not for publishing (KEY=FINGERPRINT or FILE)")
            self._gpg("--passphrase", "", "--quick-generate-key", THROWAWAY, "rsa3072", "sign", "0")
        elif self._own:
            self._gpg("--import", key)
        self.fingerprint = self._find("" if self._own else key)

    def _find(self, key: str) -> str:
        listed = self._gpg("--with-colons", "--list-secret-keys", *([key] if key else []))
        found = re.findall(r"^sec:.*\n(?:.*\n)*?fpr:+([0-9A-F]{40}):", listed, re.MULTILINE)
        if len(found) != 1:
            raise Refused(f"{key or 'the key file'}: {len(found)} secret keys, and it takes one")
        return str(found[0])

    def _gpg(self, *words: str | Path) -> str:
        return run("gpg", "--batch", "--yes", "--no-tty", *words, env=self._environment)

    def public(self) -> str:
        return self._gpg("--armor", "--export", self.fingerprint)

    def sign(self, source: Path, target: Path, *how: str) -> None:
        self._gpg(
            "--local-user", self.fingerprint, "--digest-algo", "SHA512", *how, "--output", target, source
        )

    def sign_rpm(self, package: Path) -> None:
        gpg = shutil.which("gpg") or "gpg"
        settings = {"_gpg_name": self.fingerprint, "_gpg_digest_algo": "sha256", "__gpg": gpg}
        words = [word for name, value in settings.items() for word in ("--define", f"{name} {value}")]
        run("rpmsign", *words, "--addsign", package, env=self._environment)

    def close(self) -> None:
        if self._own:
            run("gpgconf", "--kill", "all", env=self._environment)


def make_apt(folder: Path, debs: list[Path], signer: Signer) -> None:
    """pool/ and dists/ of one suite. Lists have the files' hashes, Release the lists'; it is signed."""
    pool = folder / "pool" / COMPONENT / "v" / "vecward"
    pool.mkdir(parents=True)
    for deb in debs:
        shutil.copy(deb, pool)
    architectures = sorted({deb.stem.rpartition("_")[2] for deb in debs} - {"all"}) or ["amd64"]
    dist = folder / "dists" / SUITE
    for architecture in architectures:
        lists = dist / COMPONENT / f"binary-{architecture}"
        lists.mkdir(parents=True)
        text = run("apt-ftparchive", *_HASHES, "--arch", architecture, "packages", "pool", cwd=folder)
        (lists / "Packages").write_text(text)
        run("xz", "--keep", lists / "Packages")
        run("gzip", "-n9", "--keep", lists / "Packages")
    about = {
        "Origin": "Vecward", "Label": "Vecward", "Suite": SUITE, "Codename": SUITE, "Components": COMPONENT,
        "Architectures": " ".join(architectures), "Description": "Vecward, guard of vector databases",
    }  # fmt: skip
    options = [
        word for name, value in about.items() for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")
    ]
    release = run("apt-ftparchive", *_HASHES, *options, "release", dist, cwd=folder)
    (dist / "Release").write_text(release)
    signer.sign(dist / "Release", dist / "InRelease", "--clearsign")
    signer.sign(dist / "Release", dist / "Release.gpg", "--armor", "--detach-sign")


def make_dnf(folder: Path, rpms: list[Path], signer: Signer) -> None:
    """One folder for each architecture; what runs on any is in each."""
    machines = sorted({rpm.suffixes[-2].lstrip(".") for rpm in rpms} - {"noarch"})
    for machine in machines:
        target = folder / machine
        target.mkdir(parents=True)
        for rpm in rpms:
            if rpm.suffixes[-2].lstrip(".") in (machine, "noarch"):
                signer.sign_rpm(Path(shutil.copy(rpm, target)))
        stamp = ("--revision", str(epoch()), "--set-timestamp-to-revision")
        run("createrepo_c", "--quiet", "--no-database", *stamp, target)
        data = target / "repodata" / "repomd.xml"
        signer.sign(data, data.with_name("repomd.xml.asc"), "--armor", "--detach-sign")


def write_lists(folder: Path, url: str) -> None:
    """What goes into /etc/apt/sources.list.d and /etc/yum.repos.d."""
    (folder / "vecward.sources").write_text(
        f"Types: deb\nURIs: {url}/apt\nSuites: {SUITE}\nComponents: {COMPONENT}\n"
        "Signed-By: /usr/share/keyrings/vecward.asc\n"
    )
    (folder / "vecward.repo").write_text(
        f"[vecward]\nname=Vecward\nbaseurl={url}/rpm/$basearch\nenabled=1\n"
        "gpgcheck=1\nrepo_gpgcheck=1\ngpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-vecward\n"
    )
