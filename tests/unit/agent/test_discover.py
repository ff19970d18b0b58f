# SPDX-License-Identifier: Apache-2.0
"""What is asked and what is told of a host's listeners; the drafts are configurations that load."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.main import main
from agent.config import load_config
from agent.discover import Database, Listener, discover
from agent.discover_draft import draft, drafts, facts, file_name, warnings
from agent.discover_probe import Answer, Hint

OWN = os.stat("/proc/self/ns/net").st_ino
QDRANT = Listener(
    7, "qdrant", "/usr/bin/qdrant", "qdrant", "qdrant.service", None, OWN,
    (("0.0.0.0", 6333), ("0.0.0.0", 6334), ("0.0.0.0", 6335)), (("10.0.0.7", 6335), ("10.0.0.9", 6333)),
    hint="http",
)  # fmt: skip
SHOP = Listener(
    8, "nginx", "/usr/sbin/nginx", "root", "nginx.service", None, OWN, (("0.0.0.0", 80), ("::", 443))
)
CHROMA = Listener(9, "chroma", None, "chroma", None, None, OWN, (("127.0.0.1", 8000),), hint="http")


class Asked:
    """Answers as `answers` says, and remembers what it was asked."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        self.answers, self.calls = answers, list[tuple[str, int, Hint]]()

    def __call__(self, address: str, port: int, hint: Hint) -> Answer | None:
        self.calls.append((address, port, hint))
        return self.answers.get(port)


def find(*listeners: Listener, answers: dict[int, Answer], **more: object) -> tuple[list[Database], Asked]:
    asked = Asked(answers)
    return discover(found=lambda: iter(listeners), ask=asked, **more), asked  # type: ignore[arg-type]


@pytest.fixture
def qdrant() -> Database:
    return find(QDRANT, answers={6333: Answer("qdrant", "1.15.4", "none")})[0][0]


def test_a_port_of_something_else_is_never_asked() -> None:
    found, asked = find(SHOP, answers={80: Answer("chroma")})
    assert (found, asked.calls) == ([], [])


def test_a_port_is_asked_by_the_programs_name_by_its_number_or_when_it_is_named() -> None:
    other = replace(SHOP, places=(("127.0.0.1", 8000), ("127.0.0.1", 9999)))
    _, asked = find(CHROMA, other, answers={}, ports=[9999])
    assert asked.calls == [
        ("127.0.0.1", 8000, "http"),
        ("127.0.0.1", 8000, "http"),
        ("127.0.0.1", 9999, "any"),
    ]


def test_what_listens_everywhere_is_asked_on_the_loopback() -> None:
    _, asked = find(QDRANT, replace(CHROMA, places=(("::", 8000),)), answers={})
    assert {address for address, _, _ in asked.calls} == {"127.0.0.1", "::1"}


def test_a_port_that_is_guarded_is_not_asked_and_gets_no_draft() -> None:
    found, asked = find(CHROMA, answers={}, guarded=lambda port: "docs" if port == 8000 else None)
    assert asked.calls == []
    assert [one.guard for one in found] == ["docs"]
    assert drafts(found) == []


def test_hundreds_of_likely_ports_are_not_all_asked() -> None:
    crowd = replace(CHROMA, places=tuple(("127.0.0.1", 8000 + n) for n in range(200)))
    assert len(find(crowd, answers={})[1].calls) == 64


def test_one_process_is_one_database_with_side_ports(qdrant: Database) -> None:
    assert (qdrant.port, qdrant.side_ports, qdrant.open_to_hosts) == (6333, (6334, 6335), True)


def test_a_database_in_another_namespace_is_told_and_not_drafted() -> None:
    away = replace(CHROMA, netns=1, pid=2**22 + 1)  # no such process: its namespace cannot be entered
    assert find(away, answers={8000: Answer("chroma")})[0] == []
    one = Database(Answer("chroma"), 8000, ("127.0.0.1",), away, here=False)
    assert drafts([one]) == []
    assert "run vecward there" in next(warnings(one))


def test_the_draft_guards_every_port_in_observe_and_says_what_it_does_not_cover(
    qdrant: Database, tmp_path: Path
) -> None:
    text = draft(qdrant)
    (tmp_path / "vecward.d").mkdir()
    (tmp_path / "vecward.yaml").write_text("")
    (tmp_path / "vecward.d" / file_name(qdrant)).write_text(text)
    (guard,) = load_config(tmp_path / "vecward.yaml").guards
    assert (guard.name, guard.engine, guard.ports, guard.mode) == (
        "qdrant-6333", "qdrant", (6333, 6334, 6335), "observe",
    )  # fmt: skip
    assert "# peers: [{remote: 10.0.0.7, port: 6335}]" in text
    assert "10.0.0.9" not in text
    for words in ("open to other hosts", "asks nobody for a credential", "6334 is gRPC"):
        assert words in text


def test_two_databases_on_one_port_are_told_apart_by_address(tmp_path: Path) -> None:
    other = replace(CHROMA, pid=10, places=(("127.0.0.2", 8000),))
    found, _ = find(CHROMA, other, answers={8000: Answer("chroma")})
    texts = [draft(one, found) for one in found]
    assert ['address: "127.0.0.1"' in texts[0], 'address: "127.0.0.2"' in texts[1]] == [True, True]


def test_unix_sockets_of_a_postgres_are_named() -> None:
    pg = replace(CHROMA, program="postgres", unix=("/run/postgresql/.s.PGSQL.5432", "/run/systemd/notify"))
    one = Database(Answer("pgvector", auth="scram", tls=True), 5432, ("127.0.0.1",), pg, here=True)
    said = " ".join(warnings(one))
    assert "Unix sockets are not guarded: /run/postgresql/.s.PGSQL.5432" in said
    assert "notify" not in said
    assert "offers TLS" in said


def test_names_of_strangers_stay_in_their_comment() -> None:
    odd = replace(CHROMA, program="x\n  - name: evil\x1b[2J", user=None)
    text = draft(Database(Answer("chroma"), 8000, ("127.0.0.1",), odd, here=True))
    assert "\n  - name: evil" not in text
    assert text.replace("\n", "").isprintable()
    assert facts(Database(Answer("chroma"), 8000, ("127.0.0.1",), odd, here=True))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qdrant: Database) -> Path:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("agent.discover.discover", lambda guarded, ports: [qdrant])
    file = tmp_path / "vecward.yaml"
    file.write_text("")
    return file


def run(file: Path, *args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["-c", str(file), "discover", *args])
    return result.exit_code, result.stdout, result.stderr


def test_nothing_is_written_without_being_asked_to(host: Path) -> None:
    code, out, _ = run(host)
    assert code == 0
    assert "engine: qdrant" in out
    assert list(host.parent.iterdir()) == [host]


def test_a_drop_in_is_written_once_and_a_changed_one_stays_and_is_compared(host: Path) -> None:
    file = host.parent / "vecward.d" / "discovered-qdrant-6333.yaml"
    code, _, err = run(host, "--write")
    assert (code, f"wrote {file}" in err) == (0, True)
    assert (run(host, "--write")[0], "as it would be written" in run(host, "--write")[2]) == (0, True)
    mine = file.read_text().replace("observe", "enforce")
    file.write_text(mine)
    code, out, err = run(host, "--write")
    assert (code, file.read_text()) == (1, mine)
    assert "-    mode: enforce" in out
    assert "+    mode: observe" in out
    assert "is there and stays" in err


def test_a_draft_that_breaks_the_configuration_is_taken_back(host: Path) -> None:
    host.write_text("guards: [{name: qdrant-6333, engine: chroma, ports: [8000]}]\n")
    code, _, err = run(host, "--write")
    assert code == 1
    assert "two guards are named" in err
    assert list((host.parent / "vecward.d").iterdir()) == []


def test_without_a_configuration_nothing_is_written(host: Path) -> None:
    host.unlink()
    code, _, err = run(host, "--write")
    assert code == 1
    assert "an empty one is enough" in err
