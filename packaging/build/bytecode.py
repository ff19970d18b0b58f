# SPDX-License-Identifier: Apache-2.0
"""Byte-code of every module for each Python, made at build time, so that a start reads it and writes none.

Owns `__pycache__` in the tree. The files hold the hash of their source (PEP 552, checked; 2 % of a start): a
time would be the package's, and a changed source is what runs. They name the installed paths. A Python that
the building machine does not have gets none; its starts take twice as long (docs/packaging.md).
"""

from __future__ import annotations

from pathlib import Path

from ground import PRIVATE, VERSIONS, pythons, run, say

# Run by each Python. Not with -I: what varies from run to run (the seed of hashes) is set by the environment.
_CODE = """
import py_compile, sys
root, installed = sys.argv[1:]
for line in sys.stdin:
    name = line.rstrip("\\n")
    py_compile.compile(f"{root}/{name}", dfile=f"{installed}/{name}", doraise=True, quiet=2,
                       invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
"""


def compile_below(private: Path) -> None:
    """For every source below `private`, which becomes /usr/lib/vecward."""
    names = sorted(str(path.relative_to(private)) for path in private.rglob("*.py"))
    found = pythons()
    for version in VERSIONS:
        if version not in found:
            say(f"no byte-code for Python {version}: there is none on this machine; it starts slower there")
            continue
        run(
            found[version], "-S", "-s", "-W", "ignore", "-c", _CODE, private, PRIVATE,
            env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            text="\n".join(names) + "\n",
        )  # fmt: skip
