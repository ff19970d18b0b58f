# SPDX-License-Identifier: Apache-2.0
"""The rpm for EL, by rpmbuild from the tree: the files of the deb, and the same bytes from the same commit.

Owns the list of files with what they are (configuration, documentation) and all settings of rpmbuild that its
host could change. packaging/rpm/vecward.spec owns relations and scriptlets. Bias: a macro that was not known
in a scriptlet ends the build, since it would be run as a command.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bill
import layout
from ground import MACHINE, ROOT, VENDOR, Refused, epoch, run, say, version

SPEC = ROOT / "packaging" / "rpm" / "vecward.spec"
# What is the package's own, so that it also owns the folders: others belong to the distribution.
OWN = (
    "/etc/vecward",
    "/usr/lib/vecward",
    "/usr/libexec/vecward",
    "/usr/share/vecward",
    "/usr/share/doc/vecward",
)
# And folders of several packages, each of which owns them: without that they stay when all are erased.
OWN_FOLDERS = (
    "/usr/lib/systemd/system/vecward.target.wants",
    "/usr/share/fish", "/usr/share/fish/vendor_completions.d",
    "/usr/share/zsh", "/usr/share/zsh/site-functions",
)  # fmt: skip
SCRIPTLETS = ("pre", "post", "preun", "postun", "pretrans", "posttrans", "preuntrans", "postuntrans")
# zstd, which EL 9 reads; 19 is a sixth smaller than 15 and takes twice as long. For tests: quickly.
PAYLOAD, QUICK_PAYLOAD = "w19.zstdio", "w3.zstdio"


def build(folder: Path) -> list[Path]:
    """Build it into `folder`; returns the packages. Refused when rpmbuild fails, or what it made is wrong."""
    with tempfile.TemporaryDirectory(prefix="vecward-rpm-") as made:
        tree = Path(made) / "tree"
        inside = layout.lay_out("rpm", tree)
        doc = tree / "usr/share/doc/vecward"
        bill.write_copyright(tree / VENDOR.lstrip("/"), inside, doc / "copyright")
        bill.write_bill(tree / VENDOR.lstrip("/"), inside, doc / "sbom.cdx.json")
        for name, source in (("NEWS", "packaging/debian/NEWS"), ("CHANGELOG.md", "CHANGELOG.md")):
            shutil.copyfile(ROOT / source, doc / name)
        return pack(tree, version(), folder)


def pack(tree: Path, number: str, folder: Path, payload: str = PAYLOAD) -> list[Path]:
    """A package of `tree` as version `number`. Refused as `build`."""
    if shutil.which("rpmbuild") is None:
        raise Refused("rpmbuild is missing: apt-get install rpm")
    folder.mkdir(parents=True, exist_ok=True)
    packages = []
    with tempfile.TemporaryDirectory(prefix="vecward-rpm-") as made:
        work = Path(made)
        (work / "list").write_text("\n".join(("%defattr(-,root,root,-)", *list_files(tree))) + "\n")
        _rpmbuild(work, tree, number, payload)
        for package in sorted((work / "top" / "RPMS").rglob("*.rpm")):
            check_scriptlets(package)
            packages.append(Path(shutil.copy(package, folder / package.name)))
            say(f"{package.name}: {package.stat().st_size / 1e6:.1f} MB")
    return packages


def list_files(tree: Path) -> Iterator[str]:
    """The lines of %files: every file, and the folders that are nobody else's."""
    for path in [tree, *sorted(tree.rglob("*"))]:
        name = "/" + str(path.relative_to(tree))
        quoted = '"' + name.replace("[", r"\[").replace("*", r"\*").replace("?", r"\?") + '"'
        if path.is_dir() and not path.is_symlink():
            if name.startswith(tuple(f"{own}/" for own in OWN)) or name in (*OWN, *OWN_FOLDERS):
                yield f"%dir {quoted}"
        elif name.startswith("/etc/"):
            yield f"%config(noreplace) {quoted}"
        elif name.startswith("/usr/share/man/"):
            yield f'"{name.removesuffix(".gz")}.gz"'
        elif name.startswith("/usr/share/doc/"):
            yield f"{'%license' if is_licence(name) else '%doc'} {quoted}"
        else:
            yield quoted


def is_licence(name: str) -> bool:
    return any(word in name.lower() for word in ("licen", "copyright", "copying", "notice"))


def _rpmbuild(work: Path, tree: Path, number: str, payload: str) -> None:
    moment = epoch()
    settings = {
        "_topdir": work / "top",
        "_dbpath": work / "db",
        "_tmppath": work,
        "_buildhost": "vecward",
        "use_source_date_epoch_as_buildtime": 1,
        "clamp_mtime_to_source_date_epoch": 1,
        "_binary_payload": payload,
        "_binary_filedigest_algorithm": 8,  # SHA-256: EL in FIPS mode takes no other
        "tree": tree,
        "list": work / "list",
        "selinux_source": ROOT / "packaging" / "selinux",
        "moment": moment,
        "ver": number,
    }
    words = [word for name, value in settings.items() for word in ("--define", f"{name} {value}")]
    more = ["--with", "selinux"] if os.environ.get("VECWARD_SELINUX") else []
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    run(
        "rpmbuild", "-bb", "--target", f"{MACHINE}-linux", *words, *more, SPEC,
        env=environment | {"SOURCE_DATE_EPOCH": str(moment)},
    )  # fmt: skip


def scriptlets(package: Path) -> dict[str, str]:
    """What the package runs, by name; only those that it has."""
    tags = {name: name.upper() for name in SCRIPTLETS} | {"pre": "PREIN", "post": "POSTIN"}
    found = {
        name: run("rpm", "-qp", "--nosignature", "--qf", f"%{{{tag}}}", package) for name, tag in tags.items()
    }
    return {name: text for name, text in found.items() if text != "(none)"}


def check_scriptlets(package: Path) -> None:
    """Refused where a scriptlet has a macro in it, or is not a shell's."""
    for name, text in scriptlets(package).items():
        if "%" in text:
            raise Refused(f"{package.name}: %{name} holds an unexpanded macro:\n{text}")
        run("sh", "-n", text=text)
