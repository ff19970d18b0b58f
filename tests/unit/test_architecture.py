# SPDX-License-Identifier: Apache-2.0
"""The shape of the source tree, as docs/architecture.md gives it: directions, purity, size, names, licence.

Everything here is read from the syntax tree; nothing is imported, so a broken module is judged too.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = 400

# Modules that may be longer, each with the reason why cutting it would make it worse.
LONGER: dict[str, str] = {
    "agent/evidence/standalone.py": "shipped as one file that must run alone",
    "agent/kernel/steering.py": "one class over one set of maps; its methods are one to ten lines each",
}

# Packages whose code is bytes and values in, values out.
PURE = ("policy", "agent.protocols", "agent.engines")
IMPURE = (
    "asyncio", "concurrent", "ctypes", "fcntl", "glob", "http.client", "http.server", "io", "logging",
    "mmap", "multiprocessing", "os", "pathlib", "psutil", "pyroute2", "random", "sched", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "socketserver", "sqlite3", "ssl", "subprocess", "sys",
    "tempfile", "threading", "time", "urllib.request", "uvloop", "warnings",
)  # fmt: skip

# What a package of ours may import of ours. One that is not named may import anything of ours but tests.
ALLOWED: dict[str, tuple[str, ...]] = {
    "policy": ("policy",),
    "agent.protocols": ("policy", "agent.protocols"),
    "agent.engines": (
        "policy",
        "agent.engines",
        "agent.protocols.big_endian",
        "agent.protocols.http",
        "agent.protocols.session",
        "agent.protocols.sql",
        "agent.protocols.sql_made",
    ),
    "agent.kernel": ("policy.model", "agent.kernel", "agent.config"),
    "agent.identity": ("policy.model", "agent.identity", "agent.kernel"),
    "agent.evidence": ("policy", "agent.evidence", "agent.protocols.session"),
}

# Who parses the bytes of strangers has the signing key, the BPF maps and the policy files not even in reach.
WORKER = ("agent.worker", "agent.server", "agent.relay")
NOT_IN_WORKER = ("agent.kernel", "agent.keeper", "agent.evidence.keys", "agent.evidence.ledger")

# Only the programs themselves know the command line.
ONLY_CLI = ("click", "rich")

VAGUE = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "base", "misc", "core", "lib"}


def source_files(*folders: str) -> list[Path]:
    return sorted(
        path for folder in folders for path in (ROOT / folder).rglob("*.py") if "/build/" not in str(path)
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in the file, also inside functions; `from a import b` is `a.b`."""
    return imports_in(tree_of(path), list(path.relative_to(ROOT).parent.parts))


def imports_in(tree: ast.Module, package: list[str]) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*origin, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{start}.{alias.name}") for alias in node.names]
    return found


CODE = source_files("agent", "policy")


def by_module(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


def faults(path: Path, wrong: dict[int, str]) -> str:
    return "".join(f"\n  {path.relative_to(ROOT)}:{line}: {what}" for line, what in sorted(wrong.items()))


def test_there_is_something_to_judge() -> None:
    names = {module_name(path) for path in CODE}
    assert {"policy.model", "agent.protocols.session"} <= names
    assert len(names) > 20


def test_imports_are_read_from_every_form_of_the_statement(tmp_path: Path) -> None:
    text = (
        "import os.path as p\nfrom . import http\nfrom ..kernel import maps\nif x:\n from time import time\n"
    )
    found = [name for _, name in imports_in(ast.parse(text), ["agent", "protocols"])]
    assert found == ["os.path", "agent.protocols.http", "agent.kernel.maps", "time.time"]


@pytest.mark.parametrize("path", by_module([p for p in CODE if any(within(module_name(p), x) for x in PURE)]))
def test_pure_packages_touch_nothing_outside_themselves(path: Path) -> None:
    wrong = {line: f"imports {n}" for line, n in imports(path) if any(within(n, x) for x in IMPURE)}
    for node in ast.walk(tree_of(path)):
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called in ("open", "print", "input", "exec", "eval", "__import__", "breakpoint"):
            wrong[node.lineno] = f"calls {called}()"  # type: ignore[attr-defined]  # a call has a line
    assert not wrong, faults(path, wrong)


@pytest.mark.parametrize("path", by_module(CODE))
def test_imports_point_inwards(path: Path) -> None:
    module = module_name(path)
    wrong = {line: f"imports {name} of the tests" for line, name in imports(path) if within(name, "tests")}
    for package, allowed in ALLOWED.items():
        if not within(module, package):
            continue
        for line, name in imports(path):
            if name.split(".")[0] in ("agent", "policy") and not any(within(name, a) for a in allowed):
                wrong[line] = f"{package} may not import {name}; it may import {', '.join(allowed)}"
    assert not wrong, faults(path, wrong)


@pytest.mark.parametrize("path", by_module([p for p in CODE if module_name(p) in WORKER]))
def test_the_process_that_parses_strangers_bytes_reaches_no_key_map_or_policy_file(path: Path) -> None:
    seen: set[str] = set()
    reached = {module_name(path)}
    files = {module_name(p): p for p in CODE}
    while todo := reached - seen:
        for module in todo:
            seen.add(module)
            for _, name in imports(files[module]):
                reached |= {m for m in files if name == m or name.rpartition(".")[0] == m}
    wrong = sorted(m for m in reached if any(within(m, banned) for banned in NOT_IN_WORKER))
    assert not wrong, f"{module_name(path)} reaches {', '.join(wrong)}"


@pytest.mark.parametrize("path", by_module([p for p in CODE if not within(module_name(p), "agent.cli")]))
def test_only_the_command_line_knows_the_terminal(path: Path) -> None:
    wrong = {line: f"imports {name}" for line, name in imports(path) if name.split(".")[0] in ONLY_CLI}
    assert not wrong, faults(path, wrong)


@pytest.mark.parametrize("path", by_module(CODE))
def test_nothing_that_is_shipped_imports_scapy(path: Path) -> None:
    wrong = {line: f"imports {name} (GPL-2.0-only)" for line, name in imports(path) if within(name, "scapy")}
    assert not wrong, faults(path, wrong)


@pytest.mark.parametrize("path", by_module(CODE))
def test_a_module_is_one_thing_and_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    name = str(path.relative_to(ROOT))
    if name in LONGER:
        assert lines > LINES, f"{name} is short again: take it off the list"
    else:
        assert lines <= LINES, f"{name} has {lines} lines, more than {LINES}: it is two modules"


@pytest.mark.parametrize("path", by_module(CODE))
def test_a_module_says_what_it_is(path: Path) -> None:
    tree = tree_of(path)
    if tree.body or path.name != "__init__.py":
        assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"
    assert not VAGUE & set(path.relative_to(ROOT).with_suffix("").parts), "name it after what it owns"


def is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def sources_and_scripts() -> list[Path]:
    """Every file that can carry a licence line: Python, C, shell and make, by suffix or by its first line."""
    found = [ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in ("agent", "policy", "tests", "packaging", "bpf", "bin", "systemd", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if not path.is_file() or {"__pycache__", "data"} & set(path.parts):
                continue
            if path.suffix in (".py", ".c", ".h", ".sh") or path.name == "Makefile" or is_script(path):
                found.append(path)
    return sorted(found)


@pytest.mark.parametrize("path", by_module(sources_and_scripts()))
def test_every_source_file_names_its_licence(path: Path) -> None:
    in_kernel = path.parent.name == "bpf" and path.suffix in (".c", ".h")
    text = path.read_text()
    found = re.search(
        r"SPDX-License-Identifier: (.+?)(?: \*/)?$", "\n".join(text.splitlines()[:3]), re.MULTILINE
    )
    assert found or not text.strip(), f"{path.relative_to(ROOT)} has no SPDX line among its first three"
    if found:
        assert found.group(1) == ("GPL-2.0 OR BSD-2-Clause" if in_kernel else "Apache-2.0")


def test_lock_files_name_hashes_and_no_registry() -> None:
    locks = sorted((ROOT / "requirements").glob("*.txt"))
    asked = (ROOT / "tests").glob("*/requirements-*.txt")
    names = {"run", "dev", "native"} | {path.stem.removeprefix("requirements-") for path in asked}
    assert {lock.stem for lock in locks} == names, "make lock writes one for each, and nothing else"
    for lock in locks:
        text = lock.read_text()
        plain = re.sub(r"^\s+--hash=sha256:[0-9a-f]{64}(?: \\)?$", "", text, flags=re.MULTILINE)
        assert not re.search(r"^\s*-|://", plain, re.MULTILINE), f"{lock.name} holds an option or an address"
        for entry in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
            if not entry.startswith("#"):
                first = f"{lock.name}: {entry.splitlines()[0]}"
                assert re.match(r"[\w.\-]+(\[[\w,\-]+\])?==\S+", entry), first
                assert "--hash=sha256:" in entry, f"{first} has no hash"


def test_the_makefile_stays_a_page_of_doors() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "soak", "bench", "lint"} <= set(targets)
    assert len(targets) <= 20, "what is done seldom is a script, not a door"
