# SPDX-License-Identifier: Apache-2.0
"""The Python mirror of bpf/steer.h says what the C compiler says."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from agent.kernel import records
from tests.kernel.arena import ROOT

# struct of steer.h -> (its struct.Struct, the fields in order; those that start with "zero" are padding)
MIRRORS = {
    "flow": (records.FLOW, "netns saddr daddr sport dport zero"),
    "watch_key": (records.WATCH_KEY, "netns addr port zero zero2"),
    "guard": (records.GUARD, "index flags workers zero"),
    "up_key": (records.UP_KEY, "netns addr port lane zero"),
    "up": (records.UP, "cookie v6only zero"),
    "place": (records.PLACE, "netns addr port zero"),
    "identity": (
        records.IDENTITY,
        """version flags tgid tid uid gid euid loginuid sessionid start cgroup netns netns_inum mntns_inum
        userns_inum exe_dev exe_ino exe_ctime parent_start parent_tgid bucket cookie connected
        comm accepted""",
    ),
    "process_key": (records.PROCESS_KEY, "start tgid zero"),
    "process": (
        records.PROCESS,
        "executed exited exe_ino exe_ctime parent_start cgroup parent_tgid exe_dev uid zero comm filename",
    ),
    "event": (records.EVENT, "at cookie kind guard guard_flags known flow who"),
    "inflight": (records.INFLIGHT, "started closed"),
    "settings": (records.SETTINGS, "per_user total"),
}


def offsets(mirror: struct.Struct) -> list[int]:
    codes = [count + code for count, code in re.findall(r"(\d*)([a-zA-Z])", mirror.format)]
    flat = [
        c if c.endswith("s") else c[-1]
        for c in codes
        for _ in range(1 if c.endswith("s") else int(c[:-1] or 1))
    ]
    return [struct.calcsize("=" + "".join(flat[:index])) for index in range(len(flat))]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    compiler = shutil.which("cc") or shutil.which("clang") or pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("layout")
    lines = [
        f'P("{name}", sizeof(struct {name}));'
        + "".join(f'P("{name}.{field}", offsetof(struct {name}, {field}));' for field in fields.split())
        for name, (_, fields) in MIRRORS.items()
    ]
    lines += [f'P("{name}", {name});' for name in ("STATS", "MAX_GUARDS", "MAX_WORKERS", "UP_LANES")]
    lines += [f'P("STAT_{name.upper()}", STAT_{name.upper()});' for name in records.STATS]
    for prefix, enum in (
        ("GUARD", records.GuardFlag),
        ("IDENTITY", records.IdentityFlag),
        ("MARK", records.MarkKind),
        ("EVENT", records.EventKind),
    ):
        lines += [f'P("{prefix}_{member.name}", {prefix}_{member.name});' for member in enum]
    (folder / "layout.c").write_text(
        "#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f'#include "{ROOT}/bpf/steer.h"\n#define P(n, v) printf("%s %zu\\n", n, (size_t)(v))\n'
        "int main(void) {" + "\n".join(lines) + "return 0; }\n"
    )
    program = folder / "layout"
    subprocess.run([compiler, "-Wall", "-Wpadded", "-Werror", "-o", program, folder / "layout.c"], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("name", MIRRORS)
def test_sizes_and_offsets_are_the_compilers(compiled: dict[str, int], name: str) -> None:
    mirror, fields = MIRRORS[name]
    assert mirror.size == compiled[name]
    assert offsets(mirror) == [compiled[f"{name}.{field}"] for field in fields.split()]


def test_counters_flags_and_bounds_have_the_kernels_numbers(compiled: dict[str, int]) -> None:
    assert [compiled[f"STAT_{name.upper()}"] for name in records.STATS] == list(range(compiled["STATS"]))
    assert (compiled["MAX_GUARDS"], compiled["MAX_WORKERS"]) == (records.MAX_GUARDS, records.MAX_WORKERS)
    assert compiled["UP_LANES"] == records.UP_LANES
    for prefix, enum in (
        ("GUARD", records.GuardFlag),
        ("IDENTITY", records.IdentityFlag),
        ("MARK", records.MarkKind),
        ("EVENT", records.EventKind),
    ):
        assert [compiled[f"{prefix}_{member.name}"] for member in enum] == [int(member) for member in enum]


def test_the_mirror_knows_every_struct_that_user_space_reads() -> None:
    header = Path(ROOT / "bpf" / "steer.h").read_text()
    assert set(re.findall(r"^struct (\w+) \{", header, re.M)) - set(MIRRORS) == {"connecting", "ticket"}
