# SPDX-License-Identifier: Apache-2.0
"""``vecward run``: everything in the foreground, and nothing left behind.

The root process that starts the others, each in a cgroup of its own and without the privilege it does
not need, starts again what dies, and takes everything down at the end. It opens no network socket,
parses no client's byte and holds no key. Under systemd the units do what this module does.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO, cast

from agent import confine
from agent.config import Config
from agent.kernel.attach import attach, check_ours, detach, find_cgroup2_root
from agent.places import (
    Places,
    RunError,
    Unbroken,
    claim,
    make_evidence_dir,
    make_run_dir,
    remove_folder,
    run_dir_names,
    sweep_cgroups,
)

READY_TIMEOUT = 60.0  # from start to the last listener, on a slow and loaded host
STOP_TIMEOUT = 15.0
DRAIN = 5.0  # what a foreground run gives exchanges under way
RESPAWN_FIRST, RESPAWN_LAST = 0.1, 5.0
OBJECT = Path(__file__).resolve().parent.parent / "bpf" / "steer.bpf.o"


@dataclass
class _Child:
    name: str
    start: Callable[[], int]
    pid: int = 0
    started: float = 0.0
    delay: float = RESPAWN_FIRST
    due: float = 0.0
    restarts: int = 0


# What starting takes. CAP_SYS_ADMIN holds CAP_BPF and CAP_PERFMON in it (capabilities(7)).
_NEEDED = {
    0: "CAP_CHOWN",
    confine.CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
    6: "CAP_SETGID",
    7: "CAP_SETUID",
    8: "CAP_SETPCAP",
    confine.CAP_NET_ADMIN: "CAP_NET_ADMIN",
    confine.CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
    38: "CAP_PERFMON",
    confine.CAP_BPF: "CAP_BPF",
}
_CAP_SYS_ADMIN = 21
_INITIAL_USER_NAMESPACE = ["0", "0", "4294967295"]


def _check_privilege() -> None:
    """Say which capability is missing, before the kernel says only that something is not permitted."""
    if Path("/proc/self/uid_map").read_text().split() != _INITIAL_USER_NAMESPACE:
        raise RunError(
            "root of a user namespace cannot attach to the kernel: its capabilities end there",
            "run it as root of the host, or in a container without user namespace",
        )
    held = confine.effective_capabilities()
    implied = {38, confine.CAP_BPF} if _CAP_SYS_ADMIN in held else set()
    missing = [name for cap, name in _NEEDED.items() if cap not in held | implied]
    if missing:
        raise RunError(
            f"missing capability: {', '.join(missing)}",
            "run it as root with its capabilities; a container needs `--cap-add` for each",
        )


def worker_count(config: Config) -> int:
    if config.proxy.workers == "auto":
        return min(64, len(os.sched_getaffinity(0)))
    return config.proxy.workers


@dataclass
class Supervisor:
    """Starts, watches and stops. One instance a process."""

    config: Config
    config_file: Path
    say: Callable[[str], None] = field(default=lambda line: print(line, flush=True))

    def run(self) -> int:
        """Until SIGTERM or SIGINT. Raises RunError, ConfigError or SteeringError where it cannot start."""
        if os.geteuid() != 0:
            raise RunError(
                "vecward run needs root to attach to the kernel", "run it with sudo; it gives root up at once"
            )
        _check_privilege()
        self._stopping = 0
        self._children: list[_Child] = []
        self._made: list[Path] = []
        self._attached = False
        self._locks: list[int] = []
        self._ours = False  # nothing of another run's is touched before it is known that there is none
        places = self._prepare()
        self._install_signals()
        streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (cast("TextIO", Unbroken(stream)) for stream in streams)
        try:
            self._lock(places)
            self._attach(places)
            self._start(places)
            self._watch()
            return self._stop()
        finally:
            self._clean(places)
            sys.stdout, sys.stderr = streams

    # -- setting up --------------------------------------------------------------------------------

    def _prepare(self) -> Places:
        root = find_cgroup2_root()
        point = root if self.config.steer.cgroup == "auto" else self.config.steer.cgroup
        if not (point / "cgroup.procs").exists():
            raise RunError(
                f"{point} is not a cgroup of the v2 hierarchy", "set steer.cgroup, or leave it at auto"
            )
        try:
            (agent_uid, agent_gid), (proxy_uid, proxy_gid) = confine.two_users(
                self.config.users.agent, self.config.users.proxy
            )
        except confine.ConfineError as error:
            raise RunError(str(error), "`users:` of the configuration names the two") from None
        return Places(
            config_file=self.config_file,
            run_dir=self.config.control.socket.parent,
            base_cgroup=point / f"vecward-{os.getpid()}",
            agent_uid=agent_uid, agent_gid=agent_gid, proxy_uid=proxy_uid, proxy_gid=proxy_gid,
            cgroup_root=root, read_group=self.config.control.read_group,
        )  # fmt: skip

    def _lock(self, places: Places) -> None:
        """One run a run, evidence and pin directory; what a crashed one left is taken away first."""
        if make_run_dir(places, self.config):
            self._made.append(places.run_dir)
        make_evidence_dir(places, self.config)
        pins = self.config.steer.pins
        check_ours(pins)
        self._locks.append(claim(places.run_dir, "control.socket"))
        self._locks.append(claim(self.config.evidence.dir, "evidence.dir"))
        if pins.exists():
            self._locks.append(claim(pins, "steer.pins"))
        self._ours = True
        gone = detach(pins)
        if gone:
            self.say(f"vecward: took away what an earlier run left attached ({len(gone)} pins)")
        sweep_cgroups(places.base_cgroup.parent)
        for folder in (places.base_cgroup, places.agent_cgroup, places.proxy_cgroup):
            folder.mkdir()
            self._made.append(folder)

    def _attach(self, places: Places) -> None:
        point = places.base_cgroup.parent
        netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            loaded = attach(
                self.config.steer.pins, point, netns, OBJECT, (places.agent_uid, places.agent_gid)
            )
        finally:
            os.close(netns)
        self._attached = True
        self._locks.append(claim(self.config.steer.pins, "steer.pins"))
        for program, why in loaded.lost.items():
            self.say(f"vecward: not loaded: {program}: {why}")

    def _install_signals(self) -> None:
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        signal.signal(signal.SIGHUP, self._asked_to_reload)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _asked_to_stop(self, *_: object) -> None:
        self._stopping += 1

    def _asked_to_reload(self, *_: object) -> None:
        agent = self._children[0] if self._children else None
        if agent is not None and agent.pid:
            os.kill(agent.pid, signal.SIGHUP)

    # -- children ----------------------------------------------------------------------------------

    def _start(self, places: Places) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notes = ours
        count = worker_count(self.config)
        self._children.append(
            _Child("agent", lambda: self._fork(places.agent_cgroup, lambda: _agent(places, count, theirs)))
        )
        for number in range(count):
            self._children.append(
                _Child(f"proxy {number}", lambda: self._fork(places.proxy_cgroup, lambda: _proxy(places)))
            )
        import agent.keeper
        import agent.worker  # noqa: F401 - loaded once here, shared by every fork

        gc.freeze()
        for child in self._children:
            self._spawn(child)
        deadline = time.monotonic() + READY_TIMEOUT
        while not self._stopping:
            if self._read_notes():
                self.say("vecward: ready")
                return
            self._reap()
            failed = next((c for c in self._children if c.restarts >= 3), None)
            if failed is not None:
                raise RunError(f"{failed.name} ends as soon as it starts", "its own message stands above")
            if time.monotonic() > deadline:
                raise RunError(f"not ready after {READY_TIMEOUT:.0f} s", "see the messages above")
            self._sleep(0.2)

    def _fork(self, cgroup: Path, main: Callable[[], int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # The terminal's signals go to the whole group: they are the supervisor's to answer.
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            (cgroup / "cgroup.procs").write_text("0")
            for lock in self._locks:
                os.close(lock)
            code = main()
        except KeyboardInterrupt:
            code = 0
        except BaseException as error:
            print(f"vecward: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if os.environ.get("VECWARD_TRACEBACK"):
                import traceback

                traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _spawn(self, child: _Child) -> None:
        child.pid = child.start()
        child.started = time.monotonic()

    def _reap(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.pid:
                try:
                    pid, status = os.waitpid(child.pid, os.WNOHANG)
                except ChildProcessError:
                    pid, status = child.pid, 0
                if pid:
                    self._note_death(child, status, now)
            elif not self._stopping and now >= child.due:
                self._spawn(child)

    def _note_death(self, child: _Child, status: int, now: float) -> None:
        child.pid = 0
        if self._stopping:
            return
        long_enough = now - child.started > 10
        child.delay = RESPAWN_FIRST if long_enough else min(child.delay * 2, RESPAWN_LAST)
        child.restarts = 0 if long_enough else child.restarts + 1
        child.due = now + child.delay
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.say(f"vecward: {child.name} ended ({how}); starting it again in {child.delay:.1f} s")

    def _read_notes(self) -> bool:
        ready = False
        while True:
            try:
                note = self._notes.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return ready
            ready = ready or b"READY=1" in note

    def _sleep(self, seconds: float) -> None:
        select.select([self._wake_r, self._notes.fileno()], [], [], seconds)
        with suppress(BlockingIOError):
            os.read(self._wake_r, 512)

    def _watch(self) -> None:
        while not self._stopping:
            self._reap()
            self._read_notes()
            due = [c.due for c in self._children if not c.pid]
            self._sleep(max(0.0, min(due) - time.monotonic()) if due else 3600.0)

    # -- taking down -------------------------------------------------------------------------------

    def _stop(self) -> int:
        """The agent drains the workers and writes the last checkpoint; then everything goes."""
        self.say("vecward: stopping")
        agent = self._children[0] if self._children else None
        if agent is not None and agent.pid:
            os.kill(agent.pid, signal.SIGTERM)
        asked = self._stopping
        deadline = time.monotonic() + STOP_TIMEOUT
        while any(c.pid for c in self._children) and time.monotonic() < deadline and self._stopping == asked:
            self._reap()
            if agent is not None and not agent.pid:
                for child in self._children:
                    if child.pid:
                        os.kill(child.pid, signal.SIGTERM)
            self._sleep(0.05)
        return 0

    def _clean(self, places: Places) -> None:
        for child in self._children:
            if child.pid:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(child.pid, 0)
        if self._attached:
            detach(self.config.steer.pins)
            self.say("vecward: detached; the ports reach the database directly")
        for name in run_dir_names(self.config) if self._ours else ():
            with suppress(OSError):
                (places.run_dir / name).unlink()
        for folder in reversed(self._made):
            remove_folder(folder)
        for lock in self._locks:
            os.close(lock)


def _agent(places: Places, workers: int, notes: socket.socket) -> int:
    import uvloop

    from agent.keeper import Keeper

    confine.raise_open_files()
    # The workers' socket is made here, before the user changes, so that only the proxy's group opens it.
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    places.worker_socket.unlink(missing_ok=True)
    listener.bind(os.fspath(places.worker_socket))
    os.chown(places.worker_socket, places.agent_uid, places.proxy_gid)
    places.worker_socket.chmod(0o660)
    listener.listen(128)
    readers = confine.group_id(places.read_group)
    confine.become(
        places.agent_uid,
        places.agent_gid,
        confine.AGENT_CAPABILITIES,
        (readers,) if readers is not None else (),
        umask=0o027,  # evidence is for `control.read_group` too; keys are made 0600 by who makes them
    )
    confine.forbid_spying()
    keeper = Keeper(
        places.config_file,
        listener,
        workers=workers,
        proxy_uid=places.proxy_uid,
        proxy_cgroup=lambda path: path == places.proxy_cgroup,
        cgroup_root=places.cgroup_root,
        notify=lambda text: _note(notes, text),
        stop_drain=DRAIN,
    )
    return uvloop.run(keeper.run())


def _proxy(places: Places) -> int:
    import uvloop

    from agent.worker import Worker

    confine.raise_open_files()
    confine.become(places.proxy_uid, places.proxy_gid, frozenset())
    return uvloop.run(Worker(places.worker_socket, generation="run").run())


def _note(notes: socket.socket, text: str) -> None:
    with suppress(OSError):  # a line that has no room is not worth an error
        notes.send(text.encode(), socket.MSG_DONTWAIT)
