# SPDX-License-Identifier: Apache-2.0
"""What the control socket's commands check, and the switch that ends by itself."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from agent.commands import LONGEST_OFF, Switch, control_commands
from agent.config import Guard
from agent.control import Caller, ControlError
from agent.guards import FOREVER, Watched
from tests.unit.agent.turning import pass_time, run, run_still

ROOT = Caller(1, 0, 0, 1000)


class Keeper:
    """The keeper as the commands use it; also its guards, its notary and its crew."""

    def __init__(self) -> None:
        self.watched = [
            Watched(n, Guard(name=name, engine="qdrant", ports=(n + 1,))) for n, name in enumerate("ab")
        ]
        self.published: list[tuple[str, bool]] = []
        self.acts: list[tuple[str, Any, Any]] = []
        self.pushes = 0
        self.noted = 0
        self.live = {"s1"}
        keeper: Any = self
        self.guards = self.notary = self.crew = keeper
        self.switch = Switch(keeper, keeper, self._push)
        self.commands = control_commands(keeper, self.switch)

    def __iter__(self) -> Any:
        return iter(self.watched)

    def find(self, name: str) -> Watched | None:
        return next((w for w in self.watched if w.guard.name == name), None)

    def publish(self, watched: Watched) -> None:
        self.published.append((watched.guard.name, watched.off))

    def note_pre_existing(self) -> int:
        self.noted += 1
        return 0

    def admin(self, act: str, who: Any, detail: Any) -> None:
        self.acts.append((act, who, detail))

    def _push(self) -> None:
        self.pushes += 1

    async def kill(self, session: str) -> bool:
        return session in self.live

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return await self.commands[command].run(arguments, ROOT)


def test_what_changes_something_is_marked_so() -> None:
    changes = {name for name, command in Keeper().commands.items() if command.changes}
    assert changes == {"off", "on", "reload", "kill"}


def test_off_needs_a_reason_and_a_time_that_makes_sense() -> None:
    async def story() -> None:
        keeper = Keeper()
        for reason in (None, "", "   ", "x" * 1001):
            with pytest.raises(ControlError, match="a reason is needed"):
                await keeper.ask("off", reason=reason)
        wrong: list[Any] = [0, -1, LONGEST_OFF + 1, "60", True, [], float("nan")]
        for seconds in wrong:
            with pytest.raises(ControlError, match="one second to seven days"):
                await keeper.ask("off", reason="x", seconds=seconds)
        with pytest.raises(ControlError, match="no guard 'z'") as refused:
            await keeper.ask("off", reason="x", guard="z")
        assert refused.value.hint == "guards here: a, b"
        assert (keeper.published, keeper.acts) == ([], []), "a refused command changes nothing"

    run(story)


def test_off_is_told_to_the_kernel_the_workers_and_the_ledger_with_who_and_why() -> None:
    async def story() -> None:
        keeper = Keeper()
        before = time.time()
        done = await keeper.ask("off", guard="a", reason=" disk full ", seconds=60)
        assert done["guards"] == ["a"]
        assert before + 60 <= done["until"] <= time.time() + 60
        assert keeper.published == [("a", True)]
        assert keeper.acts == [
            ("off", ROOT.as_dict(), {"guard": "a", "reason": "disk full", "seconds": 60.0})
        ]
        assert keeper.pushes == 1
        await keeper.ask("on")
        assert keeper.published[-1] == ("a", False)
        assert keeper.acts[-1][0] == "on"
        assert keeper.noted == 1, "who connected meanwhile was never judged"

    run(story)


def test_off_ends_by_itself_and_on_ends_its_timer() -> None:
    async def story() -> None:
        keeper = Keeper()
        first, second = keeper.watched
        keeper.switch.off(first, 60, "x", {})
        keeper.switch.off(second, 60, "x", {})
        keeper.switch.on(second, {"uid": 0})
        keeper.switch.off(second, None, "longer", {})
        held = []
        for seconds in (59, 2):
            await pass_time(seconds)
            held.append(first.off)
        assert held == [True, False]
        assert second.off_until == FOREVER, "the earlier time must not end the later one"
        assert ("on", {"by": "time"}, {"guard": "a"}) in keeper.acts

    run_still(story)


def test_a_later_off_replaces_the_time_of_an_earlier_one() -> None:
    async def story() -> None:
        keeper = Keeper()
        keeper.switch.off(keeper.watched[0], 60, "x", {})
        keeper.switch.off(keeper.watched[0], 3600, "y", {})
        await pass_time(120)
        assert keeper.watched[0].off
        assert keeper.watched[0].off_reason == "y"
        keeper.switch.on(keeper.watched[0], {})

    run_still(story)


def test_on_of_what_is_on_is_no_act() -> None:
    async def story() -> None:
        keeper = Keeper()
        assert await keeper.ask("on") == {"guards": []}
        keeper.switch.on(keeper.watched[0], {})
        assert (keeper.acts, keeper.pushes) == ([], 0)

    run(story)


def test_a_kill_is_signed_only_where_it_killed() -> None:
    async def story() -> None:
        keeper = Keeper()
        assert await keeper.ask("kill", session="s1") == {"session": "s1"}
        with pytest.raises(ControlError, match="no live session 's2'"):
            await keeper.ask("kill", session="s2")
        assert keeper.acts == [("kill", ROOT.as_dict(), {"session": "s1"})]

    run(story)


def test_a_reload_is_asked_for_in_the_callers_name() -> None:
    async def story() -> None:
        keeper: Any = Keeper()
        keeper.reload = lambda who: SimpleNamespace(who=who)
        assert (await keeper.ask("reload")).who == ROOT.as_dict()

    run(story)
