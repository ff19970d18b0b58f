# SPDX-License-Identifier: Apache-2.0
"""Which workers take connections while two versions of them live."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.generations import instance_problem, is_proxy_unit, outgoing, own_cgroup, parent_start


@dataclass(eq=False)
class _Worker:
    cgroup_id: int
    born: int
    listening: set[str] = field(default_factory=lambda: {"db"})
    draining: bool = False


def test_a_complete_new_generation_takes_over() -> None:
    old, new = [_Worker(1, 100), _Worker(1, 100)], [_Worker(2, 200), _Worker(2, 200)]
    assert outgoing([*old, *new], {"db"}, expected=2) == old


def test_nothing_is_taken_from_the_old_while_the_new_is_not_complete() -> None:
    old = [_Worker(1, 100), _Worker(1, 100)]
    assert outgoing([*old, _Worker(2, 200)], {"db"}, expected=2) == []
    assert outgoing([*old, _Worker(2, 200), _Worker(2, 200, set())], {"db"}, expected=2) == []


def test_one_generation_alone_never_goes() -> None:
    assert outgoing([_Worker(1, 100), _Worker(1, 90)], {"db"}, expected=1) == []
    assert outgoing([], {"db"}, expected=1) == []


def test_who_drains_already_is_not_told_again() -> None:
    old = _Worker(1, 100, draining=True)
    assert outgoing([old, _Worker(2, 200)], {"db"}, expected=1) == []


def test_the_younger_generation_counts_whatever_came_back_first_after_a_restart_of_the_agent() -> None:
    old, new = _Worker(9, 100), _Worker(3, 200)
    for order in ([old, new], [new, old]):
        assert outgoing(order, {"db"}, expected=1) == [old]


def test_a_replaced_worker_of_the_old_generation_goes_too() -> None:
    late = _Worker(1, 100, set())
    assert outgoing([_Worker(2, 200), late], {"db"}, expected=1) == [late]


def test_without_guards_a_generation_is_complete_when_its_workers_are_there() -> None:
    old = _Worker(1, 100, set())
    assert outgoing([old, _Worker(2, 200, set())], set(), expected=1) == [old]


OWN = Path("/cg/system.slice/vecward-agent.service")


@pytest.mark.parametrize(
    ("cgroup", "is_one"),
    [
        ("/cg/system.slice/vecward-proxy@1.0.0-1.service", True),
        ("/cg/system.slice/vecward-proxy@1.0\\x7erc1.service", True),
        ("/cg/system.slice/vecward-proxy@.service", False),
        ("/cg/system.slice/vecward-agent.service", False),
        ("/cg/system.slice/vecward-proxy@1.service/below", False),
        ("/cg/user.slice/vecward-proxy@1.service", False),
        ("/cg/user.slice/user-1000.slice/system.slice/vecward-proxy@1.service", False),
        ("/cg/system.slice/vecward-proxy@1.service\n", False),
    ],
)
def test_a_worker_is_in_a_proxy_unit_beside_the_agent(cgroup: str, is_one: bool) -> None:
    assert is_proxy_unit(Path(cgroup), OWN) is is_one


def test_the_parents_start_orders_by_what_the_kernel_says() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        text = Path(f"/proc/{os.getppid()}/stat").read_text()
        assert parent_start(os.getpid(), pidfd) == int(text[text.rindex(")") + 1 :].split()[19])
    finally:
        os.close(pidfd)


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    pidfd = os.pidfd_open(child)
    try:
        os.waitpid(child, 0)
        assert parent_start(child, pidfd) == 0
    finally:
        os.close(pidfd)


def test_its_own_cgroup_is_below_the_root() -> None:
    assert own_cgroup(Path("/cg")).is_relative_to("/cg")


@pytest.mark.parametrize("name", ["", "a" * 65, "a/b", "a\nb"])
def test_a_generation_needs_a_plain_name(name: str) -> None:
    assert instance_problem(name) is not None
    assert instance_problem("1.0.0-1") is None
