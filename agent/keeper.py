# SPDX-License-Identifier: Apache-2.0
"""The agent: keeps the kernel's maps, the policy, the workers and the ledger in step.

Owns nothing a stranger wrote: no client byte comes here. It holds what workers must not have: BPF maps,
policy files, signing keys. Bias: a configuration, policy or key that is not right stops the start, and
at a reload leaves everything as it was; a check that cannot be made is a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Literal

from agent import confine
from agent.alarms import Alarms
from agent.commands import Switch, control_commands
from agent.config import Config, ConfigError, load_config
from agent.control import ControlError, ControlServer
from agent.crew import Crew
from agent.generations import outgoing
from agent.guards import Guards, Reserve, Store
from agent.held import Held, read_held
from agent.identity.convert import sources
from agent.identity.host import read_host
from agent.identity.identifier import Identifier
from agent.journal import Growth, announce, complain
from agent.kernel.links import Links
from agent.kernel.steering import Steering
from agent.losses import Losses
from agent.member import Member
from agent.messages import Drain, Identify, Present, Pressure, Settings, Snapshot
from agent.metrics import MetricsServer, metrics_text
from agent.notary import Notary
from agent.rulebook import Rulebook, load_rulebook
from agent.status import status_document
from agent.status_line import status_line
from agent.unanswered import Unanswered
from policy.model import Attribution, Subject
from policy.problem import PolicyError

TICK = 0.2  # seconds: how soon an epoch that is over (1 s, 256 frames) is signed
RECOVER_AFTER = 10.0
IDENTITY_KEPT = 15  # seconds a caller's name waits for a worker to ask; a worker asks within 10
RESYNC_EVERY = 1.0  # listeners and addresses that changed without an event


class Keeper:
    """Implements ``crew.Owner``. One instance a process."""

    def __init__(
        self,
        config_file: Path,
        listener: socket.socket,
        *,
        workers: int,
        proxy_uid: int,
        proxy_cgroup: Callable[[Path], bool],
        cgroup_root: Path,
        notify: Callable[[str], object],
        stop_drain: float,
        outlived: bool = False,
        store: Store | None = None,
    ) -> None:
        """``outlived``: the workers are units of their own and go on while this agent is restarted;
        ``store`` then holds the reserve listeners."""
        self._config_file = config_file
        self._listener = listener
        self._workers = workers
        self._notify = notify
        self._stop_drain = stop_drain
        self._outlived = outlived
        self.config: Config = load_config(config_file)
        self.rulebook: Rulebook = load_rulebook(self.config, time.time())
        self.rule_problem: str | None = None
        self.started = time.time()
        self.steering = Steering(self.config.steer.pins)
        self.notary = Notary(self.config.evidence)
        self._hmac_key = self.notary.masking_key()
        self.crew = Crew(
            self,
            self.steering,
            host=self.notary.host,
            boot=self.notary.boot,
            streams=self.notary.streams,
            proxy_uid=proxy_uid,
            cgroups=proxy_cgroup,
            cgroup_root=cgroup_root,
        )
        self.guards = Guards(self.steering, self.crew.adopt, store)
        self._alarms = Alarms(self.steering, self.guards, self.notary)
        self._growth = Growth()
        self._reserve = Reserve(self.guards)
        self.unanswered = Unanswered(self.notary.bypass, self.guards.name_at)
        self.losses = Losses(Links(self.config.steer.pins).find_lost, self.notary.bypass)
        self._identifier: Identifier | None = None
        self._stopping = asyncio.Event()
        self._ready = self._all_back = False  # back: the workers of an agent before, as far as they live
        self._version = 0
        self.pressure: Literal["ok", "alert", "meta", "full"] = "ok"
        self._switch = Switch(self.guards, self.notary, self.push)

    # -- crew.Owner --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        config = self.config
        settings = Settings(
            max_body=config.proxy.max_body,
            max_connections=config.proxy.max_connections,
            max_connections_per_subject=config.proxy.max_connections_per_subject,
            first_request=config.proxy.first_request,
            drain=config.proxy.drain,
            mode=config.evidence.mode,
            level=config.evidence.level,
            max_held=config.proxy.max_held,
        )
        return Snapshot(
            str(self._version), self.guards.settings(), self.rulebook.encoded, settings, self._hmac_key
        )

    def guard_index(self, name: str) -> int | None:
        watched = self.guards.find(name)
        return None if watched is None else watched.index

    def identify(self, question: Identify) -> Subject | Coroutine[Any, Any, Subject]:
        """Who connected. Never raises: what cannot be known is unattributed, with the reason."""
        if self._identifier is None:
            return _nobody("the agent is starting")
        try:
            found = self._identifier.ask(
                question.netns,
                *question.client,
                *question.server,
                want_sha256=question.sha256,
                owner_cgroup=self.guards.owner_cgroup(question.server),
                accepted=question.accepted,
            )
        except Exception as error:
            return _failed(error)
        return found if isinstance(found, Subject) else _find_out(found)

    def admitted(self, member: Member, fresh: bool) -> None:
        self.notary.stream_started(member.stream, fresh)
        if self.pressure != "ok":
            asyncio.get_running_loop().call_soon(member.send, Pressure(self.pressure))
        asyncio.get_running_loop().call_soon(self._turn_over)  # it may be of an older generation

    def present(self, member: Member, message: Present) -> None:
        self.notary.present(member.stream, message.blocks)

    def joined(self, member: Member) -> None:
        self._reserve.workers_changed(self._is_served, stopping=False)
        complete = sum(m.listening >= self._wanted() for m in self.crew.members.values())
        if not self._ready and complete >= self._workers:
            self._say_ready()
        self._turn_over()

    def _wanted(self) -> set[str]:
        return {w.guard.name for w in self.guards}

    def _say_ready(self) -> None:
        self._ready = True
        self._notify("READY=1\nSTATUS=" + status_line(self))

    def _turn_over(self) -> None:
        """A new generation that is complete takes the slots; older ones keep their sessions for a while."""
        for member in outgoing(self.crew.members.values(), self._wanted(), self._workers):
            self._dismiss(member, Drain(self._stop_drain, self.config.proxy.drain))
        self._notify("STATUS=" + status_line(self))

    def _dismiss(self, member: Member, how: Drain) -> None:
        member.draining = True
        for guard in member.listening:
            index = self.guard_index(guard)
            if index is not None:
                self.steering.clear_listener(index, member.slot)
        member.send(how)

    def left(self, member: Member) -> None:
        self.notary.stream_left(member.stream)
        if self._all_back:  # before, a worker may still be on its way back
            self.notary.recover(self._live_streams(), only=member.stream)
        self._reserve.workers_changed(self._is_served, stopping=self._stopping.is_set())

    def _recover(self) -> None:
        self._all_back = True
        self.notary.recover(self._live_streams())

    def _live_streams(self) -> set[str]:
        return {m.stream for m in self.crew.members.values()}

    def _is_served(self, guard: str) -> bool:
        return any(guard in m.listening and not m.draining for m in self.crew.members.values())

    # -- configuration and policy ------------------------------------------------------------------

    def _read_held(self, config: Config) -> dict[str, Held]:
        return {guard.name: read_held(guard, self._config_file.parent) for guard in config.guards}

    def _apply(self, held: dict[str, Held]) -> None:
        self.guards.apply(self.config.guards, held)
        for warning in (w for one in held.values() for w in one.warnings):
            complain(warning)
        self._version += 1

    def reload(self, who: Mapping[str, Any]) -> dict[str, Any]:
        """New configuration and policy, or everything as before. Raises ControlError."""
        try:
            config = load_config(self._config_file)
            fixed = _fixed_changes(self.config, config)
            if fixed:
                raise ConfigError(
                    [f"{self._config_file}: {name} changes with a restart only" for name in fixed]
                )
            rulebook = load_rulebook(config, time.time())
            held = self._read_held(config)
        except (ConfigError, PolicyError) as error:
            self.rule_problem = str(error)
            text = f"reload refused, everything is as before:\n{error}"
            announce("reload-refused", text, {"problem": error})
            self.notary.policy(self.rulebook.hash, {}, problem=str(error)[:4096])
            raise ControlError(
                f"reload refused, everything is as before:\n{error}", "mend it and reload again"
            ) from None
        self.config, self.rulebook, self.rule_problem = config, rulebook, None
        self._apply(held)
        self._record_policy()
        self.notary.admin("reload", dict(who), {"policy": rulebook.hash})
        # Who reached a database while nobody enforced, or a port that was not guarded, was never judged.
        self.guards.note_pre_existing()
        self.crew.broadcast(self.snapshot())
        self._reserve.workers_changed(self._is_served, stopping=False)
        self._notify("STATUS=" + status_line(self))
        return {
            "policy": rulebook.hash,
            "rules": len(rulebook.document.rules),
            "warnings": list(rulebook.warnings),
        }

    def _record_policy(self) -> None:
        self.notary.policy(self.rulebook.hash, dict(self.rulebook.texts))

    def push(self) -> None:
        """Send workers what holds now, and say it in one line."""
        self._version += 1
        self.crew.broadcast(self.snapshot())
        self._notify("STATUS=" + status_line(self))

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until SIGTERM. Returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self.notary.start()
        self._identifier = Identifier(sources(self.steering), read_host())
        self._apply(self._read_held(self.config))
        self.guards.note_pre_existing()
        self._record_policy()
        for warning in self.rulebook.warnings:
            complain(f"policy: {warning}")
        control = ControlServer(
            self.config.control.socket,
            confine.group_id(self.config.control.read_group),
            control_commands(self, self._switch),
        )
        await control.start()
        metrics = MetricsServer(self.config.metrics.listen, lambda: metrics_text(status_document(self)))
        await metrics.start()
        # Workers of the agent before come back within 5 s; streams that nobody claimed then are dead.
        loop.call_later(RECOVER_AFTER, self._recover)
        loop.add_reader(self._listener.fileno(), self._accept)
        loop.add_reader(self.steering.events.fileno(), self._alarms.read)
        self._reserve.workers_changed(self._is_served, stopping=False)
        ticking = [loop.create_task(self._checkpoints()), loop.create_task(self._resync())]
        if self._outlived:  # the workers start after it
            self._say_ready()
        await self._stopping.wait()
        await self._stop(loop, ticking)
        await control.close()
        await metrics.close()
        return 0

    def _hang_up(self) -> None:
        with contextlib.suppress(ControlError):
            self.reload({"by": "SIGHUP"})

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        self.crew.accept(sock)

    async def _checkpoints(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                await self._checkpoint()
            except Exception as error:  # signing goes on, or strict rules deny for ever after a minute
                complain(f"checkpoint: {type(error).__name__}: {error}")

    async def _checkpoint(self) -> None:
        counters = self._counters()
        signed = await self.notary.checkpoint(counters)
        for stream, seq in signed.items():
            self.crew.sign(stream, seq)
        self._growth.note(counters)
        pressure = self.notary.tend(counters)
        if pressure != self.pressure:
            self.pressure = pressure
            announce("disk", f"evidence disk: {pressure}", {"pressure": pressure})
            self.crew.broadcast(Pressure(pressure))

    def _counters(self) -> dict[str, int]:
        stats = self.steering.stats()
        totals: dict[str, int] = {f"kernel_{name}": value for name, value in stats.items()}
        totals |= {f"proxy_{name}": value for name, value in self.crew.counters().items()}
        return totals

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(RESYNC_EVERY)
            try:
                self.losses.check()
                await asyncio.to_thread(self.guards.resync)
                self.unanswered.note(self.steering.sweep_identities(older_than=IDENTITY_KEPT))
            except Exception as error:  # the tables that keep databases reachable are kept true for ever
                complain(f"resync: {type(error).__name__}: {error}")

    async def _stop(self, loop: asyncio.AbstractEventLoop, ticking: list[asyncio.Task[None]]) -> None:
        """Refuse what is new, let exchanges end, take the last frames, write CLOSE. Workers that outlive
        this agent are not told, and what the kernel holds of them stays."""
        self._notify("STOPPING=1\nSTATUS=" + self._last_words())
        if not self._outlived:
            self._reserve.workers_changed(self._is_served, stopping=True)
            for member in list(self.crew.members.values()):
                self._dismiss(member, Drain(self._stop_drain))
            for _ in range(int((self._stop_drain + 2) / 0.02)):
                if not self.crew.members:
                    break
                await asyncio.sleep(0.02)
        for task in ticking:
            task.cancel()
        await asyncio.gather(*ticking, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._checkpoint()
        self.notary.close(self._counters())
        loop.remove_reader(self._listener.fileno())
        loop.remove_reader(self.steering.events.fileno())
        await self.crew.close(self._outlived)
        if not self._outlived:
            self.guards.close()
        if self._identifier is not None:
            self._identifier.close()
        self.steering.close()
        self._listener.close()

    def _last_words(self) -> str:
        if self._outlived and any(not m.draining for m in self.crew.members.values()):
            return (
                "stopping; workers go on with the policy they have, new connections wait for the next agent"
            )
        return "stopping; guards in enforce refuse connections; `vecward unsteer` opens them"


async def _find_out(answer: Coroutine[Any, Any, Subject]) -> Subject:
    try:
        return await answer
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> Subject:
    complain(f"identity: {type(error).__name__}: {error}")
    return _nobody(f"identity failed: {type(error).__name__}")


def _nobody(reason: str) -> Subject:
    return Subject(Attribution.UNATTRIBUTED, null_reason={"pid": reason})


def _fixed_changes(old: Config, new: Config) -> list[str]:
    """Sections that only a restart can change."""
    pairs = {
        "evidence.dir": (old.evidence.dir, new.evidence.dir),
        "steer": (old.steer, new.steer),
        "control": (old.control, new.control),
        "users": (old.users, new.users),
        "proxy.workers": (old.proxy.workers, new.proxy.workers),
    }
    return [name for name, (before, after) in pairs.items() if before != after]
