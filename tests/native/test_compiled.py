# SPDX-License-Identifier: Apache-2.0
"""The compiled form, as the packages hold it, does what the sources do: their own tests are run on it.

A compiled module checks types where Python does not, so a wrong annotation is a refusal there. The tests run
in the copy of the tree that holds the compiled files, in a process of their own.
"""

from __future__ import annotations

import ast
import faulthandler
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.kernel.arena import ROOT

pytestmark = pytest.mark.limit(900)  # whichever test comes first has the tree compiled
PYTHON = "{}.{}".format(*sys.version_info[:2])
TREE = ROOT / "build" / f"native-{PYTHON}"
BUILD_SECONDS = 600
_LISTED = (
    "import importlib, sys; sys.path.insert(0, '.'); sys.path.insert(0, 'packaging/dev'); import native;"
    "names = [p[:-3].replace('/', '.') for p in native.modules()];"
    "files = [importlib.import_module(n).__file__ for n in names];"
    "print([f for f in files if not f.endswith('.so')], len(files))"
)

_PATHS = "import sys; sys.path.insert(0, 'packaging/dev'); import native; print(*native.modules())"
_WRITTEN_IN_C = frozenset(
    {"Counter", "OrderedDict", "defaultdict", "deque", "dict", "list", "set", "frozenset", "bytes"}
)


def listed() -> list[tuple[str, ast.Module]]:
    done = subprocess.run(
        [sys.executable, "-c", _PATHS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [(path, ast.parse((ROOT / path).read_text())) for path in done.stdout.split()]


def test_no_compiled_class_extends_a_container_of_the_interpreter() -> None:
    """mypyc lays its own fields over the container's (measured: a crash at the first append to a deque's)."""
    for path, tree in listed():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases}
                assert bases.isdisjoint(_WRITTEN_IN_C), f"{path}: {node.name}"


def test_a_compiled_function_gives_a_caught_exceptions_name_to_one_class() -> None:
    """Compiled, a name has the type of its first use: to catch another class under it is a TypeError."""
    for path, tree in listed():
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            caught: dict[str, str] = {}
            for node in ast.walk(function):
                if isinstance(node, ast.ExceptHandler) and node.name is not None and node.type is not None:
                    kind = ast.unparse(node.type)
                    assert caught.setdefault(node.name, kind) == kind, f"{path}:{node.lineno}: {node.name}"


@pytest.fixture(scope="module")
def tree() -> Path:
    if shutil.which("cc") is None or not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("no C compiler or no Python headers: the compiled form cannot be made here")
    faulthandler.cancel_dump_traceback_later()  # minutes in here are no hang; the build has its own limit
    made = subprocess.run(
        [sys.executable, "-B", ROOT / "packaging" / "build", "native", PYTHON],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    if not TREE.exists():
        pytest.skip(f"the packages have no compiled form for Python {PYTHON}")
    return TREE


def run_here(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"VECWARD_TEST_SIZE": "small"},
    )


def test_every_listed_module_is_the_compiled_one(tree: Path) -> None:
    done = run_here(tree, "-c", _LISTED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] "), done.stdout


@pytest.mark.parametrize(
    "suite",
    [
        "tests/unit/protocols",
        "tests/unit/engines",
        "tests/unit/policy",
        "tests/unit/evidence",
        " ".join(f"tests/unit/agent/test_{name}.py" for name in ("relay", "stream", "tally", "worker")),
        "tests/wire",
    ],
)
def test_the_compiled_form_passes_the_tests_of_its_sources(tree: Path, suite: str) -> None:
    done = run_here(tree, "-m", "pytest", "-q", "--color=no", *suite.split())
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("file", ["test_main_job.py", "test_equal.py", "test_failures.py"])
def test_the_compiled_form_does_the_main_job(tree: Path, file: str) -> None:
    done = run_here(tree, "-m", "pytest", "-q", "--color=no", f"tests/servers/{file}")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_compiled_form_does_the_main_job_of_postgresql(tree: Path) -> None:
    wanted = "same or gets_what or pgbench or cancel or no_rule"
    done = run_here(tree, "-m", "pytest", "-q", "--color=no", "tests/servers/test_postgres.py", "-k", wanted)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
