# SPDX-License-Identifier: Apache-2.0
"""The Debian package: the tree, Debian's own tools over it, and lintian at the end.

Owns what is Debian's alone: control data, maintainer scripts (packaging/debian), compressed manual pages, the
changelog in Debian's form. The same commit makes the same bytes: its time is that of all files.
"""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import bill
import layout
from ground import PRIVATE, ROOT, VENDOR, Refused, epoch, run, say, version

DEBIAN = ROOT / "packaging" / "debian"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
REVISION = "1"
DOC = "usr/share/doc/vecward"
_FAILS_ON = "error,warning"


def build(folder: Path) -> Path:
    """Build into `folder`; the newest package there is then this one, if lintian finds nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vecward-deb-") as temporary:
        tree = Path(temporary, "tree")
        inside = layout.lay_out("deb", tree)
        doc = tree / DOC
        bill.write_copyright(tree / VENDOR.lstrip("/"), inside, doc / "copyright")
        bill.write_bill(tree / VENDOR.lstrip("/"), inside, doc / "sbom.cdx.json")
        _write_changelogs(doc)
        for path in sorted((tree / "usr/share/man").rglob("*.[0-9]")):
            _compress(path)
        overrides = tree / "usr/share/lintian/overrides/vecward"
        overrides.parent.mkdir(parents=True)
        shutil.copyfile(DEBIAN / "lintian-overrides", overrides)
        name = _write_control(tree, Path(temporary))
        _set_times(tree)
        made = Path(temporary, name)
        os.umask(0o022)
        run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, made, env=_environment())
        _tell(tree, made)
        _judge(made)
        return Path(shutil.move(made, folder / name))


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    return kept | {"SOURCE_DATE_EPOCH": str(epoch()), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _write_control(tree: Path, work: Path) -> str:
    """DEBIAN/ in the tree; returns the package's file name."""
    target = tree / "DEBIAN"
    target.mkdir()
    (work / "debian").mkdir()
    shutil.copyfile(DEBIAN / "control", work / "debian" / "control")
    with gzip.open(tree / DOC / "changelog.Debian.gz", "rb") as packed:
        (work / "debian" / "changelog").write_bytes(packed.read())
    modules = sorted((tree / PRIVATE.lstrip("/")).rglob("*.so"))
    found = run("dpkg-shlibdeps", "-O", "--warnings=0", *(f"-e{path}" for path in modules), cwd=work)
    (work / "debian" / "substvars").write_text(found)
    words = (f"-P{tree}", f"-O{target / 'control'}", "-fdebian/files")
    run("dpkg-gencontrol", *words, cwd=work, env=_environment())
    for name in SCRIPTS:
        if (DEBIAN / name).exists():
            script = (DEBIAN / name).read_text().replace("@VERSION@", version())
            (target / name).write_text(script)
            (target / name).chmod(0o755)
    settings = (f"/{path}\n" for path in _files(tree) if path.startswith("etc/"))
    (target / "conffiles").write_text("".join(settings))
    sums = (f"{_md5(tree / path)}  {path}\n" for path in _files(tree) if not path.startswith("etc/"))
    (target / "md5sums").write_text("".join(sums))
    for name in ("control", "conffiles", "md5sums"):
        (target / name).chmod(0o644)
    fields = dict(re.findall(r"^(\S+): (.*)$", (target / "control").read_text(), re.MULTILINE))
    return f"vecward_{fields['Version']}_{fields['Architecture']}.deb"


def _files(tree: Path) -> Iterator[str]:
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        if path.is_file() and not path.is_symlink() and not name.startswith("DEBIAN/"):
            yield name


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _write_changelogs(doc: Path) -> None:
    """CHANGELOG.md as it is, and in Debian's form."""
    text = (ROOT / "CHANGELOG.md").read_text()
    (doc / "changelog").write_text(text)
    (doc / "changelog.Debian").write_text(changelog(text, epoch()))
    _compress(doc / "changelog")
    _compress(doc / "changelog.Debian")
    if (DEBIAN / "NEWS").exists():
        shutil.copyfile(DEBIAN / "NEWS", doc / "NEWS.Debian")
        _compress(doc / "NEWS.Debian")


def changelog(text: str, now: int) -> str:
    """CHANGELOG.md in Debian's form; without a date it is `now`. Refused when the newest is another."""
    maintainer = re.findall(r"^Maintainer: (.*)$", (DEBIAN / "control").read_text(), re.MULTILINE)[0]
    made = []
    for heading, body in re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.MULTILINE):
        number, _, rest = heading.partition(" ")
        said = re.search(r"\d{4}-\d\d-\d\d", rest)
        date = run("date", "-R", "-u", "-d", said[0]).strip() if said else email.utils.formatdate(now)
        points = re.findall(r"^- ((?:.+\n?)(?:^  .+\n?)*)", body, re.MULTILINE)
        texts = (" ".join(point.replace("`", "").split()) for point in points)
        lines = "".join(
            textwrap.fill(
                text,
                78,
                initial_indent="  * ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            + "\n"
            for text in texts
        )
        made.append(f"vecward ({number}-{REVISION}) unstable; urgency=medium\n\n{lines}\n"
                    f" -- {maintainer}  {date.replace('-0000', '+0000')}\n")  # fmt: skip
    if not made or not made[0].startswith(f"vecward ({version()}-"):
        raise Refused(f"CHANGELOG.md does not begin with {version()}, which agent/__init__.py says")
    return "\n".join(made)


def _compress(path: Path) -> None:
    packed = gzip.compress(path.read_bytes(), 9, mtime=0)
    path.with_name(path.name + ".gz").write_bytes(packed)
    path.unlink()


def _set_times(tree: Path) -> None:
    """All that the build wrote is as old as the commit, and readable."""
    for path in [*tree.rglob("*"), tree]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
        os.utime(path, (epoch(), epoch()), follow_symlinks=False)


def _tell(tree: Path, target: Path) -> None:
    """What fills it."""
    private = tree / PRIVATE.lstrip("/")
    vendor = tree / VENDOR.lstrip("/")
    parts: dict[str, int] = {}
    for path in tree.rglob("*"):
        if path.is_symlink() or not path.is_file() or "DEBIAN" in path.parts:
            continue
        if path.suffix == ".pyc":
            part = "byte-code"
        elif vendor in path.parents:
            part = f"libraries: {path.relative_to(vendor).parts[0].split('-')[0].split('.')[0].lstrip('_')}"
        elif private in path.parents:
            part = "compiled form" if path.suffix == ".so" else f"{path.relative_to(private).parts[0]}"
        else:
            part = "documents, pages, units"
        parts[part] = parts.get(part, 0) + path.stat().st_size
    for part, size in sorted(parts.items(), key=lambda item: -item[1]):
        if size > 100_000:
            say(f"{size / 1e6:8.1f} MB  {part}")
    say(f"{sum(parts.values()) / 1e6:8.1f} MB  installed")
    say(f"{target.stat().st_size / 1e6:8.1f} MB  {target.name}")
    say(f"sha256 {hashlib.sha256(target.read_bytes()).hexdigest()}")


def _judge(target: Path) -> None:
    if shutil.which("lintian") is None:
        raise Refused("lintian is not installed: packaging/dev/setup deb")
    run("lintian", "--allow-root", "--fail-on", _FAILS_ON, target)
    say(f"lintian: nothing of {_FAILS_ON}")
