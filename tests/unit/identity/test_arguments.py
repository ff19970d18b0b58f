# SPDX-License-Identifier: Apache-2.0
"""Argument lists: bounded, without secrets, and what script an interpreter runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.identity.arguments import CUT, HIDDEN, MAX_ARG, MAX_ARGS, find_script, parse_cmdline, redact


@pytest.mark.parametrize(
    "args",
    [
        ["--api-key", "hunter2"],
        ["--api-key=hunter2"],
        ["--qdrant-api-key=hunter2"],
        ["-password", "hunter2"],
        ["PGPASSWORD=hunter2"],
        ["QDRANT_API_KEY=hunter2"],
        ["-H", "Authorization: Bearer hunter2"],
        ["-H", "api-key: hunter2"],
        ["X-Chroma-Token: hunter2"],
        ["postgres://rag:hunter2@db/x"],
        ["host=db password=hunter2 user=x"],
        ["dbname=x password='hunter2 hunter2'"],
        ["--token", "hunter2", "x"],
        ["eyJhbGciOiJI.hunter2.sig"],
    ],
)
def test_a_credential_in_an_argument_is_cut_out(args: list[str]) -> None:
    shown = redact(["curl", *args])
    assert not any("hunter2" in arg for arg in shown)
    assert any(HIDDEN in arg for arg in shown)


def test_ordinary_arguments_stay_as_they_are() -> None:
    args = ["python3", "-m", "app.keys", "--top-k", "5", "/srv/tokens.txt", "http://db:6333/a@b", "monkey=1"]
    assert redact(args) == args


def test_bounds_are_kept_and_shown() -> None:
    many = parse_cmdline(b"\0".join([b"a"] * 500))
    assert len(many) == MAX_ARGS + 1
    assert many[-1] == CUT
    assert parse_cmdline(b"x" * 5000)[0] == "x" * MAX_ARG + CUT


def test_bytes_that_are_not_text_are_shown_escaped() -> None:
    assert parse_cmdline(b"a\xffb\0") == ("a\\xffb",)


@given(st.binary(max_size=20_000))
def test_any_bytes_give_bounded_encodable_text(raw: bytes) -> None:
    args = parse_cmdline(raw)
    assert len(args) <= MAX_ARGS + 1
    "".join(args).encode()
    find_script(args, "/")


@pytest.mark.parametrize(
    ("argv", "cwd", "script"),
    [
        (("python3", "/srv/app.py", "-c"), "/", "/srv/app.py"),
        (("/usr/bin/python3.11", "-u", "-W", "error", "app.py"), "/srv", "/srv/app.py"),
        (("python", "-m", "rag.main"), "/", "-m rag.main"),
        (("bash", "../x.sh"), "/srv/a", "/srv/x.sh"),
        (("node", "-r", "ts", "app.js"), None, "app.js"),
        (("python3", "-c", "print()"), "/", None),
        (("python3", "-Ic", "print()"), "/", None),
        (("perl", "-e", "1"), "/", None),
        (("curl", "x"), "/", None),
        (("-bash",), "/", None),
        ((), "/", None),
    ],
)
def test_the_script_is_what_the_interpreter_was_told(
    argv: tuple[str, ...], cwd: str | None, script: str | None
) -> None:
    found, why = find_script(argv, cwd)
    assert found == script
    assert (why is None) == (script is not None)
