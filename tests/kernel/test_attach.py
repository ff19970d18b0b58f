# SPDX-License-Identifier: Apache-2.0
"""Attach is all or nothing, detach leaves nothing, and the agent needs no root in between."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from agent.kernel import attach, doctor, libbpf, load, sockdiag, syscalls
from agent.kernel.errors import SteeringError
from agent.kernel.records import Event, EventKind
from agent.kernel.steering import Steering
from tests.kernel.arena import OBJECT, Arena, say, sweep, wait_until
from tests.kernel.cast import ENFORCE, OBSERVE, PORT, Database, Worker, connect, guard, hold

NOBODY = 65534
CAPABILITIES = 1 << 39 | 1 << 12  # CAP_BPF, CAP_NET_ADMIN


def links(arena: Arena) -> int:
    """How many links of the system are attached to this arena's cgroup or namespace."""
    places = {arena.cgroup.stat().st_ino, os.fstat(arena.netns.fd).st_ino}
    found = 0
    for number in syscalls.link_ids():
        try:
            descriptor = syscalls.link_open(number)
        except OSError:
            continue  # went away meanwhile
        info = syscalls.link_info(descriptor)
        os.close(descriptor)
        kind, _, _, _, inode = struct.unpack_from("=IIIII", info)
        found += kind in (3, 5) and (struct.unpack_from("=Q", info, 16)[0] if kind == 3 else inode) in places
    return found


def drop_to(uid: int, capabilities: int) -> None:
    """Become ``uid`` with exactly these capabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    header = struct.pack("=Ii", 0x20080522, 0)
    if libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)):
        raise OSError(ctypes.get_errno(), "capset")


def test_detach_ends_steering_and_leaves_nothing(arena: Arena) -> None:
    steering = arena.attach()
    Database(arena)
    guard(arena, steering, ENFORCE)
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"
    assert links(arena) == 4
    removed = attach.detach(arena.pins)
    assert f"link steer-{arena.netns.cookie}" in removed
    assert arena.run(lambda: connect("127.0.0.1")) == "db"
    assert not arena.pins.exists()
    assert links(arena) == 0
    assert attach.detach(arena.pins) == []


def test_attaching_twice_is_refused_and_harms_nothing(arena: Arena, steering: Steering) -> None:
    Database(arena)
    guard(arena, steering, ENFORCE)
    with pytest.raises(SteeringError, match="already attached"):
        arena.attach()
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"


def test_a_failure_half_way_takes_everything_back(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load.load_program

    def failing(*arguments: object) -> None:
        if arguments[2] == "steer":
            raise SteeringError("sk_lookup is not there")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attach, "load_program", failing)
    with pytest.raises(SteeringError, match="sk_lookup is not there"):
        arena.attach()
    assert links(arena) == 0
    assert list(attach.BPFFS.glob(f"{arena.name}*")) == []


def test_a_kernel_without_tracepoints_loses_only_them(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load.load_program

    def failing(*arguments: object) -> None:
        if str(arguments[2]).startswith("process_"):
            raise SteeringError("no tp_btf")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attach, "load_program", failing)
    loaded = attach.attach(arena.pins, arena.cgroup, arena.netns.fd, OBJECT)
    assert set(loaded.lost) == {"process_exec", "process_fork", "process_exit"}
    assert loaded.programs == ("track", "connect4", "connect6", "steer")


def test_what_a_killed_loader_left_is_removed(arena: Arena) -> None:

    def half() -> None:
        attach.BPFFS.joinpath(arena.name).mkdir()
        staging = attach.BPFFS / f"{arena.name}~{os.getpid()}"
        (staging / "links").mkdir(parents=True)
        (staging / "maps").mkdir()
        with attach._directory(arena.cgroup) as cgroup_fd:
            target = load.Target(cgroup_fd, arena.netns.fd, arena.netns.cookie)
            load.load_program(libbpf.Library(), OBJECT, "connect4", staging, target)
        say("half")
        signal.pause()

    child = arena.fork(half)
    assert child.said() == "half"
    child.kill()
    assert links(arena) == 1
    assert "link connect4" in attach.detach(arena.pins)
    assert links(arena) == 0
    assert list(attach.BPFFS.glob(f"{arena.name}*")) == []


def test_a_missing_or_broken_object_is_a_clear_error(arena: Arena, tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match="no object file"):
        attach.attach(arena.pins, arena.cgroup, arena.netns.fd, tmp_path / "none.o")
    (tmp_path / "bad.o").write_bytes(b"\x7fELF, or so it says")
    with pytest.raises(SteeringError, match="cannot be matched to their callers"):
        attach.attach(arena.pins, arena.cgroup, arena.netns.fd, tmp_path / "bad.o")
    with pytest.raises(SteeringError, match="no cgroup"):
        attach.attach(arena.pins, tmp_path / "none", arena.netns.fd, OBJECT)
    with pytest.raises(SteeringError, match="not on a bpf file system"):
        attach.attach(tmp_path / "pins", arena.cgroup, arena.netns.fd, OBJECT)
    assert list(attach.BPFFS.glob(f"{arena.name}*")) == []


def test_the_agent_works_without_root(arena: Arena) -> None:
    """Guards, listeners, exemption, identities, counters and events as nobody with two capabilities."""
    arena.attach(owner=(NOBODY, NOBODY))
    Database(arena)

    def agent() -> dict[str, int]:
        drop_to(NOBODY, CAPABILITIES)
        with Steering(arena.pins) as steering:
            steering.set_guard(0, PORT, None, OBSERVE)
            sockdiag.resync_up(steering, [PORT])
            steering.set_local_addresses(sockdiag.local_addresses())
            steering.exempt(4711)
            say(steering.exempted())
            os.write(go, b"!")
            client.said()
            events: list[Event] = []

            def look() -> bool:
                events.extend(steering.read_events())
                return bool(events)

            wait_until(look, "an event")
            [event] = events
            say((event.who, event.kind))
            assert sockdiag.destroy(sockdiag.connections(PORT)[0]) in (True, False)
            return steering.stats()

    # the client starts when the guard stands; the agent's child inherits its pipe
    stands, go = os.pipe()

    def late() -> None:
        os.read(stands, 1)
        hold("127.0.0.1")

    client = arena.fork(late, user=1)
    child = arena.fork(agent, group="agent")
    assert child.said() == {4711}
    who, kind = child.said()
    assert (who.uid, kind) == (1, EventKind.UNOBSERVED)
    assert child.result()["established_unobserved"] == 1
    os.close(stands)
    os.close(go)


def test_a_worker_can_be_placed_without_root(arena: Arena) -> None:
    arena.attach(owner=(NOBODY, NOBODY))
    Database(arena)

    def agent() -> list[str]:
        drop_to(NOBODY, CAPABILITIES)
        from tests.kernel.cast import listen

        with Steering(arena.pins) as steering, listen("::", 0) as listener:
            steering.set_guard(0, PORT, None, ENFORCE)
            sockdiag.resync_up(steering, [PORT])
            steering.set_listener(0, 0, listener.fileno())
            steering.set_reserve(0, listener.fileno())
            steering.clear_reserve(0)
            say("ready")
            peer, _ = listener.accept()
            peer.sendall(b"agent")
            peer.close()
            steering.clear_listener(0, 0)
            say([steering.listeners(0)])
            signal.pause()
        return []

    child = arena.fork(agent, group="agent")
    assert child.said() == "ready"
    assert arena.run(lambda: connect("127.0.0.1")) == "agent"
    assert child.said() == [{}]
    assert arena.run(lambda: connect("127.0.0.1")) == "ECONNREFUSED"


def test_an_agent_without_the_right_to_the_pins_is_told_so(arena: Arena) -> None:
    arena.attach()

    def agent() -> str:
        drop_to(NOBODY, CAPABILITIES)
        try:
            Steering(arena.pins).close()
        except SteeringError as error:
            return f"{error.missing}: {error.hint}"
        return "opened"

    assert "must own the pins" in arena.run(agent)


def test_a_restarted_agent_finds_everything_as_it_was(arena: Arena, steering: Steering) -> None:
    Database(arena)
    guard(arena, steering, ENFORCE)
    Worker(arena, steering)
    steering.close()
    assert arena.run(lambda: connect("127.0.0.1")) == "worker 0"
    with Steering(arena.pins, arena.netns.cookie) as again:
        assert list(again.listeners(0)) == [0]
        assert again.stats()["established_steered"] == 1


def test_one_more_namespace_steers_with_the_same_maps(arena: Arena, steering: Steering) -> None:
    other = arena.namespace()
    Database(arena, netns=other)
    cookie = attach.attach_namespace(arena.pins, other.fd, OBJECT)
    assert cookie == other.cookie
    with Steering(arena.pins, cookie) as second:
        second.set_guard(1, PORT, None, ENFORCE)
        assert arena.run(lambda: connect("127.0.0.1"), netns=other) == "ECONNREFUSED"
    Database(arena)
    assert arena.run(lambda: connect("127.0.0.1")) == "db"


def test_connections_older_than_the_guard_are_listed_and_cut(arena: Arena, steering: Steering) -> None:
    def sleepy() -> None:
        from tests.kernel.cast import listen

        with listen("127.0.0.1", PORT) as sock:
            say("listening")
            peers = [sock.accept()]
            signal.pause()
            del peers

    database = arena.fork(sleepy)
    database.said()

    def patient() -> str:
        import socket

        sock = socket.create_connection(("127.0.0.1", PORT))
        say(sock.getsockname()[1])
        try:
            return repr(sock.recv(1))
        except ConnectionError as error:
            return type(error).__name__

    client = arena.fork(patient, user=NOBODY)
    sport = client.said()
    [old] = arena.inside(lambda: sockdiag.connections(PORT))
    assert (old.remote_port, old.local_port, str(old.remote)) == (sport, PORT, "127.0.0.1")
    [caller] = arena.inside(lambda: sockdiag.callers(PORT))
    assert (caller.local_port, caller.uid, caller.cgroup) == (sport, NOBODY, arena.cgroup_id("clients"))
    assert arena.inside(lambda: sockdiag.find(caller.local, sport, caller.remote, PORT)) == caller
    assert arena.inside(lambda: sockdiag.destroy(old))
    assert client.result() == "ConnectionResetError"
    assert not arena.inside(lambda: sockdiag.destroy(old))


def test_the_doctor_finds_everything_here_and_says_what_is_lost_elsewhere(
    arena: Arena, tmp_path: Path
) -> None:
    found = doctor.checks(OBJECT, arena.pins)
    assert [check for check in found if not check.ok and "foreign" not in check.name] == []
    assert {f"program {name}" for name in (*load.REQUIRED, *load.OPTIONAL)} <= {check.name for check in found}
    broken = {check.name: check for check in doctor.checks(tmp_path / "none.o", arena.pins)}["object file"]
    assert (broken.ok, broken.lost) == (False, "steering")
    assert "make -C bpf" in (broken.hint or "")
    assert links(arena) == 0


def test_the_doctor_names_a_foreign_sk_lookup_program(arena: Arena, steering: Steering) -> None:
    [link] = (arena.pins / "links").glob("steer-*")
    descriptor = syscalls.object_get(link)
    number = struct.unpack_from("=II", syscalls.link_info(descriptor))[1]
    os.close(descriptor)
    by_us = {check.name: check for check in doctor.checks(OBJECT, arena.pins)}["foreign sk_lookup programs"]
    assert f" {number}" not in (by_us.lost or "")
    by_others = {check.name: check for check in doctor.checks(OBJECT, Path("/sys/fs/bpf/none"))}
    foreign = by_others["foreign sk_lookup programs"]
    assert not foreign.ok
    assert str(number) in (foreign.lost or "")


def test_what_a_killed_test_left_is_swept(arena: Arena) -> None:
    """An arena in a process that is killed with SIGKILL: the next arena removes its cgroup and pins."""
    sleep = shutil.which("sleep") or "sleep"

    def doomed() -> None:
        inner = Arena().__enter__()
        inner.attach()
        subprocess.Popen([sleep, "60"], preexec_fn=inner._entry(None, "clients", inner.netns, False))
        say((str(inner.cgroup), str(inner.pins)))
        signal.pause()

    child = arena.fork(doomed)
    cgroup, pins = map(Path, child.said())
    assert cgroup.exists()
    assert pins.exists()
    child.kill()
    sweep()
    assert not cgroup.exists()
    assert not pins.exists()
