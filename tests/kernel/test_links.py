# SPDX-License-Identifier: Apache-2.0
"""What somebody takes away of the kernel part is found by the next look."""

from __future__ import annotations

import os

import pytest

from agent.kernel import syscalls
from agent.kernel.links import Links
from agent.kernel.steering import Steering
from tests.kernel.arena import Arena


def links(arena: Arena) -> Links:
    made = Links(arena.pins)
    assert made.find_lost() == {}
    return made


def test_all_is_attached_as_long_as_nobody_touches_it(arena: Arena, steering: Steering) -> None:
    assert links(arena).find_lost() == {}


@pytest.mark.parametrize("program", ["steer", "track", "connect4", "connect6"])
def test_a_detached_program_is_found(arena: Arena, steering: Steering, program: str) -> None:
    look = links(arena)
    (pin,) = (arena.pins / "links").glob(f"{program}*")
    descriptor = syscalls.object_get(pin)
    syscalls.link_detach(descriptor)
    os.close(descriptor)
    assert look.find_lost() == {pin.name: "detached"}


def test_a_removed_pin_is_found(arena: Arena, steering: Steering) -> None:
    look = links(arena)
    (arena.pins / "links" / "connect4").unlink()
    assert look.find_lost() == {"connect4": "unpinned"}


def test_when_everything_is_unpinned_all_of_it_is_lost(arena: Arena, steering: Steering) -> None:
    look = links(arena)
    expected = {path.name for path in (arena.pins / "links").iterdir()}
    for path in (arena.pins / "links").iterdir():
        path.unlink()
    (arena.pins / "links").rmdir()
    assert set(look.find_lost()) == expected


def test_without_pins_at_the_start_nothing_is_taken_for_whole(arena: Arena) -> None:
    assert Links(arena.pins).find_lost() == {"all": "no pins"}
