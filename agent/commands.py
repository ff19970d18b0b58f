# SPDX-License-Identifier: Apache-2.0
"""What the control socket's commands do, and the switch that lets traffic pass for a while.

Owns the checks of what was asked; what it means for guards and workers is the keeper's. Every act that
changes something is signed in the ledger with who asked. Bias: a guard that is off ends by itself where a
time was given; an agent that restarts judges again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.control import Caller, Command, ControlError
from agent.guards import FOREVER, Guards, Watched
from agent.journal import announce
from agent.metrics import metrics_text
from agent.notary import Notary
from agent.status import status_document

if TYPE_CHECKING:
    from agent.keeper import Keeper

LONGEST_OFF = 7 * 86400
MAX_REASON = 1000


class Switch:
    """`vecward off` and `on`."""

    def __init__(self, guards: Guards, notary: Notary, push: Callable[[], None]) -> None:
        self._guards = guards
        self._notary = notary
        self._push = push
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def off(self, watched: Watched, seconds: float | None, reason: str, who: Mapping[str, Any]) -> None:
        until = FOREVER if seconds is None else time.time() + seconds
        watched.off_until, watched.off_reason = until, reason
        self._guards.publish(watched)
        detail = {"guard": watched.guard.name, "reason": reason, "seconds": seconds}
        self._notary.admin("off", dict(who), detail)
        ends = "vecward on" if seconds is None else f"{seconds:.0f} s are over"
        text = f"off: guard {watched.guard.name} passes traffic unjudged until {ends}: {reason}"
        announce("off", text, {**detail, "until": ends, "uid": who.get("uid"), "pid": who.get("pid")})
        self._end_off_timer(watched)
        if seconds is not None:
            loop = asyncio.get_running_loop()
            ended = partial(self.on, watched, {"by": "time"})
            self._timers[watched.guard.name] = loop.call_later(seconds, ended)
        self._push()

    def on(self, watched: Watched, who: Mapping[str, Any]) -> None:
        if not watched.off or self._guards.find(watched.guard.name) is not watched:
            return  # on already, or gone with a reload: its ports are not ours any more
        watched.off_until, watched.off_reason = None, ""
        self._end_off_timer(watched)
        self._guards.publish(watched)
        self._notary.admin("on", dict(who), {"guard": watched.guard.name})
        announce("on", f"on: guard {watched.guard.name} judges again", {"guard": watched.guard.name})
        # Who connected to the database itself while the guard was off was never judged.
        self._guards.note_pre_existing()
        self._push()

    def _end_off_timer(self, watched: Watched) -> None:
        timer = self._timers.pop(watched.guard.name, None)
        if timer is not None:
            timer.cancel()


def control_commands(keeper: Keeper, switch: Switch) -> dict[str, Command]:
    """The table that ``agent/control.py`` serves."""
    return _Commands(keeper, switch).table()


class _Commands:
    def __init__(self, keeper: Keeper, switch: Switch) -> None:
        self._keeper = keeper
        self._switch = switch

    def table(self) -> dict[str, Command]:
        return {
            "status": Command(self._status),
            "metrics": Command(self._metrics),
            "off": Command(self._off, changes=True),
            "on": Command(self._on, changes=True),
            "reload": Command(self._reload, changes=True),
            "kill": Command(self._kill, changes=True),
        }

    async def _status(self, request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        return {"status": status_document(self._keeper)}

    async def _metrics(self, request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        return {"text": metrics_text(status_document(self._keeper))}

    async def _reload(self, request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        return self._keeper.reload(caller.as_dict())

    def _named(self, request: Mapping[str, Any]) -> list[Watched]:
        name = request.get("guard")
        if name is None:
            return list(self._keeper.guards)
        found = self._keeper.guards.find(str(name))
        if found is None:
            known = ", ".join(w.guard.name for w in self._keeper.guards) or "none"
            raise ControlError(f"there is no guard {name!r}", f"guards here: {known}")
        return [found]

    async def _off(self, request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        reason = str(request.get("reason") or "").strip()
        if not reason or len(reason) > MAX_REASON:
            raise ControlError(
                "a reason is needed, of at most 1000 characters", "--reason TEXT; it is signed in evidence"
            )
        seconds = request.get("seconds")
        if seconds is not None and (type(seconds) not in (int, float) or not 1 <= seconds <= LONGEST_OFF):
            raise ControlError("--for takes one second to seven days")
        named = self._named(request)
        for watched in named:
            self._switch.off(watched, None if seconds is None else float(seconds), reason, caller.as_dict())
        return {
            "guards": [w.guard.name for w in named],
            "until": None if seconds is None else time.time() + seconds,
        }

    async def _on(self, request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        named = [w for w in self._named(request) if w.off]
        for watched in named:
            self._switch.on(watched, caller.as_dict())
        return {"guards": [w.guard.name for w in named]}

    async def _kill(self, request: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        session = str(request.get("session"))
        if not await self._keeper.crew.kill(session):
            raise ControlError(
                f"no live session {session!r}", "vecward sessions lists them; an ended one cannot be killed"
            )
        self._keeper.notary.admin("kill", caller.as_dict(), {"session": session})
        return {"session": session}
