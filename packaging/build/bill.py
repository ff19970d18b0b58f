# SPDX-License-Identifier: Apache-2.0
"""What is inside, for those who must know: a bill of materials (CycloneDX 1.5 JSON) and all licences (DEP-5).

Owns both documents. They are made from packaging/vendor.lock and from what the wheels say of themselves; the
bills that wheels bring for what was compiled into them (Rust crates) are taken over. Bias: a library whose
licence is not known stops the build.
"""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import wheels
from ground import PRIVATE, ROOT, Refused, cache, epoch, version

_NAMESPACE = uuid.UUID("9c1b8f6e-3e1c-5d2a-8f0c-6e6f2d9b5a10")
# What METADATA does not say in SPDX's words; read from the licence files.
_LICENCES = {
    "google_re2": "BSD-3-Clause",
    "protobuf": "BSD-3-Clause",
    "psutil": "BSD-3-Clause",
    "rich": "MIT",
    "ruamel_yaml": "MIT",
    "uvloop": "MIT OR Apache-2.0",
}
_COMMON = {
    "Apache": "Licensed under the Apache License, Version 2.0:"
    " /usr/share/common-licenses/Apache-2.0 on Debian.",
    "GNU": "Licensed under the GNU General Public License, version 2 or later:"
    " /usr/share/common-licenses/GPL-2 on Debian.",
}
_FITTING = {"MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0"}


def licence(vendor: Path, name: str) -> str:
    """SPDX expression of one library. Refused when it is not known, or nothing in it fits Apache-2.0."""
    said = wheels.metadata(vendor, name).get("License-Expression") or _LICENCES.get(name)
    if said is None:
        raise Refused(f"{name}: no License-Expression in its METADATA; look, and name it in bill.py")
    for choice in said.split(" OR "):
        if set(choice.split(" AND ")) <= _FITTING:
            return said
    raise Refused(f"{name}: {said} does not fit Apache-2.0")


def write_bill(vendor: Path, inside: list[wheels.Wheel], target: Path) -> None:
    """The bill of materials of one package."""
    components = [_component(vendor, name, inside) for name in sorted({wheel.name for wheel in inside})]
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch(), UTC).isoformat().replace("+00:00", "Z"),
            "component": {
                "bom-ref": "vecward",
                "type": "application",
                "name": "vecward",
                "version": version(),
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": components,
        "dependencies": [{"ref": "vecward", "dependsOn": [part["bom-ref"] for part in components]}],
    }
    digest = uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True))
    document["serialNumber"] = f"urn:uuid:{digest}"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")


def write_copyright(vendor: Path, inside: list[wheels.Wheel], target: Path) -> None:
    """packaging/debian/copyright, and a paragraph for every library."""
    head = (ROOT / "packaging" / "debian" / "copyright").read_text()
    bsd = (ROOT / "bpf" / "LICENSES" / "BSD-2-Clause.txt").read_text()
    head = head.replace("@BSD2@", _folded(bsd))
    first, _, last = head.rstrip("\n").rpartition("\n\n")
    paragraphs = [_paragraph(vendor, name) for name in sorted({wheel.name for wheel in inside})]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n\n".join([first, *paragraphs, last]) + "\n")


def _component(vendor: Path, name: str, inside: list[wheels.Wheel]) -> dict[str, Any]:
    files = [wheel for wheel in inside if wheel.name == name]
    purl = f"pkg:pypi/{name.replace('_', '-')}@{files[0].version}"
    said = licence(vendor, name)
    made: dict[str, Any] = {
        "bom-ref": purl,
        "type": "library",
        "name": name.replace("_", "-"),
        "version": files[0].version,
        "purl": purl,
        "licenses": [{"expression": said}] if " " in said else [{"license": {"id": said}}],
        "properties": [{"name": f"vecward:wheel:{w.file}", "value": f"sha256:{w.sha256}"} for w in files],
    }
    compiled_in = {part["purl"]: part for wheel in files for part in _compiled_in(wheel)}
    if compiled_in:
        made["components"] = [compiled_in[key] for key in sorted(compiled_in)]
    return made


def _compiled_in(wheel: wheels.Wheel) -> Iterator[dict[str, Any]]:
    """Of the bills in one wheel: what was linked into its binary modules."""
    with zipfile.ZipFile(cache() / "wheels" / wheel.file) as archive:
        for member in sorted(
            name for name in archive.namelist() if "/sboms/" in name and name.endswith(".json")
        ):
            document = json.loads(archive.read(member))
            for part in document.get("components", []):
                if purl := part.get("purl"):
                    kept = ("type", "name", "version", "purl", "licenses")
                    yield {"bom-ref": f"{wheel.name}:{purl}"} | {k: part[k] for k in kept if k in part}


def _paragraph(vendor: Path, name: str) -> str:
    (info,) = vendor.glob(f"{name}-*.dist-info")
    found = sorted(
        path for path in info.rglob("*")
        if path.is_file() and ("licenses" in path.parts or path.name.startswith("LICENSE"))
    )  # fmt: skip
    if not found:
        raise Refused(f"{name}: its wheel brings no licence")
    texts = [_shortened(path.read_text()) for path in found]
    holders = sorted({line for path in found for line in _holders(path.read_text())})
    tops = sorted(_tops(vendor, info))
    short = licence(vendor, name).replace(" OR ", "-or-").replace(" AND ", "-and-")
    return "\n".join(
        (
            "Files: " + "\n ".join(f"{PRIVATE.lstrip('/')}/vendor/{top}" for top in tops),
            "Copyright: " + "\n ".join(holders or [f"The authors of {name.replace('_', '-')}"]),
            f"License: {short}-{name.replace('_', '-')}",
            _folded("\n\n".join(texts)),
        )
    )  # fmt: skip


def _tops(vendor: Path, info: Path) -> Iterator[str]:
    """What one library put into the folder; of the namespace `google` its part."""
    yield f"{info.name}/*"
    name = info.name.split("-")[0]
    said = {
        "cffi": ["_cffi_backend.*"], "google_re2": ["re2/*"], "protobuf": ["google/*"],
        "ruamel_yaml": ["ruamel/*"], "typing_extensions": ["typing_extensions.py"],
    }.get(name, [f"{name}/*"])  # fmt: skip
    for pattern in said:
        if not list(vendor.glob(pattern)):
            raise Refused(f"{name}: {pattern} is not there; name in bill.py what it installs")
        yield pattern


def _holders(text: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.strip(" \t*#")
        if words.lower().startswith(("copyright (c)", "copyright ©", "copyright 2", "copyright 1", "© ")):
            yield words


def _shortened(text: str) -> str:
    """A licence that every Debian system has is named, not repeated."""
    flat = " ".join(text.split())
    if flat.startswith("Apache License") or "Apache License Version 2.0, January 2004" in flat[:200]:
        return _COMMON["Apache"]
    if flat.startswith("GNU GENERAL PUBLIC LICENSE Version 2"):
        return _COMMON["GNU"]
    return text


def _folded(text: str) -> str:
    """As the field of a control file: each line indented, empty ones as a dot."""
    return "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in text.strip("\n").splitlines())
