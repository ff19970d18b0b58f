# SPDX-License-Identifier: Apache-2.0
"""docs/metrics.md and docs/status.md name what the code offers, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

from agent.kernel.records import STATS
from agent.metrics import NAMES

ROOT = Path(__file__).resolve().parents[2]


def rows(page: str, heading: str | None = None) -> list[str]:
    """The first cells of the tables of a page, or of one section of it: what stands in backticks there."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if heading is not None:
        text = re.split(rf"^## {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
        text = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\|([^|\n]*)\|", text, flags=re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_metric_is_in_the_documentation_and_no_other() -> None:
    documented = [name for name in rows("metrics.md") if re.fullmatch(r"vecward_[a-z_]+", name)]
    assert sorted(documented) == sorted(NAMES)


def test_every_counter_of_the_kernel_part_is_in_the_documentation_and_no_other() -> None:
    assert sorted(rows("metrics.md", "`vecward_kernel_total`")) == sorted(STATS)


def test_every_counter_of_a_worker_is_in_the_documentation_and_no_other() -> None:
    documented = {name for name in rows("metrics.md", "`vecward_proxy_total`") if "REASON" not in name}
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "agent").glob("*.py")))
    counted = set(re.findall(r"""\bcount\(\s*"([a-z_]+)"\s*\)""", text))
    counted |= {f"refused_{reason}" for reason in re.findall(r'\bRefuse\(\s*"([a-z-]+)"', text)}
    assert {"accepted", "bugs", "refused_loop"} <= counted
    assert {name for name in documented if not name.startswith("evidence_")} == counted


def test_every_field_of_status_is_in_the_documentation_and_no_other() -> None:
    text = (ROOT / "agent" / "status.py").read_text(encoding="utf-8")
    evidence = re.search(
        r"def document\(.*?(?=^def )", (ROOT / "agent" / "notary.py").read_text(encoding="utf-8"), re.S | re.M
    )
    assert evidence is not None
    fields = set(re.findall(r'"([a-z_]+)":', text + evidence[0])) | {"until", "reason"}
    page = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
    assert {"coverage", "pre_existing", "append_only"} <= fields
    assert not [name for name in fields if f"`{name}`" not in page]
    assert not [name for name in rows("status.md") if name not in fields]
