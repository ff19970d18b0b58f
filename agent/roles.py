# SPDX-License-Identifier: Apache-2.0
"""The units' processes: steer, agent, and the workers of one generation, each started by systemd.

The units of ``systemd/`` give user, capabilities and folders; what starts here checks that it has just these
and adds what a unit cannot say. Bias: a process with a capability too many or too few does not start. `steer`
attaches and ends; only `vecward unsteer` takes away what it attached, so that a stopped agent refuses.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import time
from contextlib import suppress
from pathlib import Path

from agent import confine
from agent.config import Config, load_config
from agent.generations import UNIT_WORKERS, is_proxy_unit, own_cgroup
from agent.kernel.attach import Loaded, attach, check_ours, detach, find_cgroup2_root
from agent.notify import DescriptorStore, Notifier, received_descriptors, status_text, watchdog_seconds
from agent.places import RunError, claim
from agent.rulebook import load_rulebook
from agent.run import OBJECT, worker_count

RUN_DIR = Path("/run/vecward")  # RuntimeDirectory= of the agent's unit
STOP_DRAIN = 5.0  # seconds that exchanges under way get when a unit stops
BEAT_WITHOUT_WATCHDOG = 10.0
EX_CONFIG = 78  # sysexits.h: the unit does not try again


def unit_workers(config: Config) -> int:
    """Workers of one generation: as configured, but so that two generations fit the kernel's slots."""
    return min(UNIT_WORKERS, worker_count(config))


# -- steer -----------------------------------------------------------------------------------------


def steer(config: Config) -> Loaded | None:
    """Attach and pin; None where that was done before and stands. Raises SteeringError, RunError."""
    pins = config.steer.pins
    point = find_cgroup2_root() if config.steer.cgroup == "auto" else config.steer.cgroup
    uid, gid, _ = confine.user_ids(config.users.agent)
    check_ours(pins)
    if pins.exists():
        os.close(claim(pins, "steer.pins"))  # a `vecward run` that is under way keeps it
        if _stands(pins, uid):
            return None
        detach(pins)
    netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return attach(pins, point, netns, OBJECT, (uid, gid))
    finally:
        os.close(netns)


def _stands(pins: Path, uid: int) -> bool:
    """Whether all of it is there, and the agent's: an earlier one may have run as another user."""
    links, maps = pins / "links", pins / "maps"
    return all(
        folder.is_dir() and folder.stat().st_uid == uid and any(folder.iterdir()) for folder in (links, maps)
    )


def stopped_lines(config: Config) -> list[str]:
    """What is refused while nothing runs, and how it is opened."""
    refused = [g for g in config.guards if not g.passes_on_failure]
    passed = [g for g in config.guards if g.passes_on_failure]
    lines = [
        f"guard {g.name}: port {', '.join(map(str, g.ports))} REFUSES connections while vecward is stopped"
        for g in refused
    ]
    lines += [f"guard {g.name}: connections reach the database directly, unobserved" for g in passed]
    if refused:
        lines.append(
            "to open the ports: vecward unsteer. To guard them again: systemctl start vecward.target"
        )
    return lines


# -- agent -----------------------------------------------------------------------------------------


def run_agent(config_file: Path) -> int:
    """The agent's unit. Raises ConfigError, PolicyError, SteeringError, RunError, ConfineError."""
    import uvloop

    from agent.keeper import Keeper

    notifier = Notifier(os.environ.pop("NOTIFY_SOCKET", ""))
    every = watchdog_seconds(os.environ, os.getpid()) or BEAT_WITHOUT_WATCHDOG
    store = DescriptorStore(notifier, received_descriptors(os.environ, os.getpid()))
    config = load_config(config_file)
    load_rulebook(config, time.time())
    confine.raise_open_files()
    confine.settle(confine.AGENT_CAPABILITIES, umask=0o027)
    confine.forbid_spying()
    root = find_cgroup2_root()
    own = own_cgroup(root)
    proxy = _user(config.users.proxy)
    make_evidence(config)
    count = unit_workers(config)
    (RUN_DIR / "workers").write_text(f"{count}\n")
    keeper = Keeper(
        config_file,
        worker_listener(RUN_DIR / "worker.sock", proxy.pw_gid),
        workers=count,
        proxy_uid=proxy.pw_uid,
        proxy_cgroup=lambda path: is_proxy_unit(path, own),
        cgroup_root=root,
        notify=notifier.say,
        stop_drain=STOP_DRAIN,
        outlived=True,
        store=store,
    )

    async def run() -> int:
        from agent.status_line import status_line

        async def beat() -> None:
            """From the loop itself: an agent whose loop hangs is killed and started again."""
            while True:
                await asyncio.sleep(every)
                store.drop_rest()
                with suppress(OSError):
                    notifier.say("WATCHDOG=1\nSTATUS=" + status_text(status_line(keeper)))

        beating = asyncio.get_running_loop().create_task(beat())
        try:
            return await keeper.run()
        finally:
            beating.cancel()

    return uvloop.run(run())


def _user(name: str) -> pwd.struct_passwd:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise RunError(
            f"there is no user {name!r}", "systemd-sysusers makes the users of the package"
        ) from None
    if found.pw_uid in (0, os.getuid()):
        raise RunError(f"{name!r} must be a user of its own", "`users:` of the configuration names the two")
    return found


def worker_listener(path: Path, group: int) -> socket.socket:
    """The workers' socket: the unit makes the agent a member of their group, and nobody else opens it."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(before)
    os.chown(path, -1, group)
    path.chmod(0o660)
    listener.listen(128)
    return listener


def make_evidence(config: Config) -> None:
    """See that the folder is there, and for `control.read_group` to read. Raises RunError."""
    folder = config.evidence.dir
    try:
        if folder.is_dir():
            return
        folder.mkdir(parents=True, mode=0o750)
        readers = confine.group_id(config.control.read_group)
        if readers is not None and readers in os.getgroups():
            os.chown(folder, -1, readers)
        with suppress(PermissionError):  # RestrictSUIDSGID= of the unit: tmpfiles.d makes the usual folder so
            folder.chmod(0o2750)
    except OSError as error:
        raise RunError(
            f"{folder}: {error.strerror}",
            "elsewhere than below /var/lib/vecward it needs ReadWritePaths= in a drop-in of the unit",
        ) from None
