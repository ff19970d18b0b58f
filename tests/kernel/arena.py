# SPDX-License-Identifier: Apache-2.0
"""A cgroup, a network namespace and a pin directory of one's own, gone afterwards whatever happens.

For every test that needs the kernel; knows nothing of pytest. Everything is named ``vwtest-PID-N``: what a
killed test run left is swept by the next `Arena`. Processes started here join a cgroup of the arena and its
namespace before they run, and die with the process that started them.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import pickle
import pwd
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent.kernel import attach as kernel
from agent.kernel.namespaces import in_namespace, netns_cookie
from agent.kernel.steering import Steering

ROOT = Path(__file__).resolve().parents[2]
OBJECT = Path(os.environ.get("VECWARD_TEST_OBJECT") or ROOT / "bpf" / "steer.bpf.o")  # see mutate.py
PATIENCE = 90.0  # seconds for what takes milliseconds: a busy machine is no failure
_PREFIX = "vwtest-"
_NEWNET, _NEWUSER, _NEWNS = 0x40000000, 0x10000000, 0x00020000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()
_Result = TypeVar("_Result")


def why_not() -> str | None:
    """Why an arena cannot be made here (a reason to skip), or None."""
    if os.geteuid() != 0:
        return "needs root: cgroups, network namespaces and BPF"
    try:
        kernel.find_cgroup2_root()
        kernel.mount_bpffs()
        build()
    except Exception as error:
        return str(error)
    return None


def build() -> Path:
    """The compiled object, made again if a source is newer."""
    if OBJECT.parent != ROOT / "bpf":
        return OBJECT
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT / "bpf")], capture_output=True, text=True, check=False
    )
    if done.returncode and not OBJECT.exists():
        raise RuntimeError(f"bpf/ does not build: {done.stderr.strip()[-300:]}")
    return OBJECT


class Failed(AssertionError):
    """What a function run in the arena raised, with its traceback as text."""


class Namespace:
    """A network namespace kept by a sleeping child. ``cookie`` is how the kernel part knows it."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _die_with_parent()
            _libc.unshare(_NEWNET)
            _loopback_up()
            os.write(writer, b"!")
            while True:
                signal.pause()
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        self.fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.cookie = netns_cookie(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        _end(self.pid)


class Arena:
    """``with Arena() as arena``: ``arena.attach()`` steers, ``arena.run``/``popen`` run things inside.

    Attributes: ``name``, ``cgroup`` (its root, where programs are attached), ``pins``, ``netns`` (Namespace).
    """

    def __init__(self, name: str | None = None) -> None:
        """`name`: another one than ``vwtest-PID-N``; its maker then calls `sweep` with its prefix."""
        if name is None:
            sweep()
        self.name = name or f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self.cgroup = kernel.find_cgroup2_root() / self.name
        self.pins = kernel.BPFFS / self.name
        self._stack = contextlib.ExitStack()
        self._steering: Steering | None = None

    def __enter__(self) -> Arena:
        try:
            kernel.mount_bpffs()
            self.cgroup.mkdir()
            self._stack.callback(remove_cgroup, self.cgroup)
            self._stack.callback(kernel.detach, self.pins)
            self.netns = self.namespace()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- places ----

    def namespace(self) -> Namespace:
        """One more network namespace with its loopback up, closed with the arena."""
        space = Namespace()
        self._stack.callback(space.close)
        return space

    def veth(self, one: Namespace, other: Namespace, net: str = "10.88.0", net6: str = "fd88::") -> None:
        """Join two namespaces: ``net.1``/``net6 1`` in ``one`` and ``.2`` in ``other``. Gone with either."""
        near, far = f"vw{one.pid}a", f"vw{one.pid}b"
        _ip("link", "add", near, "netns", str(one.pid), "type", "veth", "peer", far, "netns", str(other.pid))
        for space, name, number in ((one, near, 1), (other, far, 2)):
            inside = ["nsenter", f"--net=/proc/{space.pid}/ns/net", "ip"]
            for command in (
                ["addr", "add", f"{net}.{number}/24", "dev", name],
                ["addr", "add", f"{net6}{number}/64", "dev", name, "nodad"],
                ["link", "set", name, "up"],
            ):
                subprocess.run([*inside, *command], check=True, capture_output=True)
        for space, name in ((one, near), (other, far)):
            wait_until(lambda space=space, name=name: _usable(space, name), f"{name} is up")  # type: ignore[misc]

    def subgroup(self, name: str) -> Path:
        """A child cgroup, made when first asked for."""
        path = self.cgroup / name
        path.mkdir(exist_ok=True)
        return path

    def cgroup_id(self, name: str) -> int:
        """What `Steering.exempt` wants for a child cgroup."""
        return self.subgroup(name).stat().st_ino

    # ---- steering ----

    def attach(self, owner: tuple[int, int] | None = None) -> Steering:
        """Attach the kernel part to this arena and open it; closed and detached with the arena."""
        kernel.attach(self.pins, self.cgroup, self.netns.fd, OBJECT, owner)
        steering = Steering(self.pins, self.netns.cookie)
        self._stack.callback(steering.close)
        return steering

    # ---- running things ----

    def fork(
        self,
        function: Callable[[], object],
        *,
        user: str | int | None = None,
        group: str | None = "clients",
        netns: Namespace | None = None,
        unshare: bool = False,
    ) -> Fork:
        """Start ``function`` in a child of the arena.

        ``group``: child cgroup, None for outside of the arena's. ``unshare``: in a user and network
        namespace of its own besides, as ``unshare -Urn`` makes them, with its loopback up.
        """
        return Fork(self._entry(user, group, netns or self.netns, unshare), function, self._stack)

    def run(self, function: Callable[[], _Result], timeout: float = PATIENCE, **where: Any) -> _Result:
        """`fork`, wait, and give back what it returned (picklable). Raises `Failed`."""
        result: _Result = self.fork(function, **where).result(timeout)
        return result

    def popen(
        self,
        argv: Sequence[str],
        *,
        user: str | int | None = None,
        group: str | None = "clients",
        netns: Namespace | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """A command inside; killed with the arena if it still runs."""
        entry = self._entry(user, group, netns or self.netns, False)
        process = subprocess.Popen(argv, preexec_fn=entry, **options)
        self._stack.callback(_stop, process)
        return process

    def inside(self, function: Callable[[], _Result]) -> _Result:
        """Call a function in this process with its thread in the arena's namespace (not its cgroup)."""
        return in_namespace(self.netns.fd, function)

    def _entry(
        self, user: str | int | None, group: str | None, netns: Namespace, unshare: bool
    ) -> Callable[[], None]:
        cgroup = self.subgroup(group) if group is not None else None
        ids = _ids(user)

        def enter() -> None:
            _die_with_parent()
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(os.getpid()))
            if _libc.setns(netns.fd, _NEWNET):
                raise OSError(ctypes.get_errno(), "entering the arena's namespace")
            if ids is not None:
                os.setgroups([])
                os.setresgid(ids[1], ids[1], ids[1])
                os.setresuid(ids[0], ids[0], ids[0])
                _die_with_parent()  # changing credentials clears it
            if unshare:
                if _libc.unshare(_NEWUSER | _NEWNET):
                    raise OSError(ctypes.get_errno(), "unshare -Urn")
                _loopback_up()

        return enter


class Fork:
    """A child of the arena. It can say things before it ends: see `said` and `say`."""

    def __init__(
        self, enter: Callable[[], None], function: Callable[[], object], stack: contextlib.ExitStack
    ) -> None:
        self._reader, writer = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(enter, function, writer)
        os.close(writer)
        self._file = os.fdopen(self._reader, "rb")
        self._ended = False
        stack.callback(self.kill)

    def said(self, timeout: float = PATIENCE) -> Any:
        """The next thing the child said. Raises `Failed` if it failed, EOFError if it died."""
        import select

        if not select.select([self._file], [], [], timeout)[0]:
            raise TimeoutError(f"child {self.pid} said nothing for {timeout} s")
        kind, value = pickle.load(self._file)  # noqa: S301 - from our own child
        if kind == "failed":
            raise Failed(value)
        return value

    def result(self, timeout: float = PATIENCE) -> Any:
        try:
            return self.said(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Nothing happens the second time."""
        if not self._ended:
            self._ended = True
            self._file.close()
            _end(self.pid)


_mouth: int | None = None


def say(value: object) -> None:
    """In a forked child: tell the parent something and go on."""
    assert _mouth is not None, "only in a child of an arena"
    os.write(_mouth, pickle.dumps(("said", value)))


def _child(enter: Callable[[], None], function: Callable[[], object], writer: int) -> None:
    global _mouth
    _mouth = writer
    code = 0
    try:
        enter()
        message: tuple[str, object] = ("returned", function())
    except BaseException:
        message, code = ("failed", traceback.format_exc()), 1
    with contextlib.suppress(OSError):
        os.write(writer, pickle.dumps(message))
    os._exit(code)


def sweep(prefix: str = _PREFIX) -> None:
    """Remove what dead test processes left: pins first, so that nothing is steered to nobody."""
    for directory in kernel.BPFFS.glob(f"{prefix}*") if kernel.is_bpffs(kernel.BPFFS) else ():
        if _is_dead(directory.name, prefix):
            kernel.remove_pins(directory)
    for directory in kernel.find_cgroup2_root().glob(f"{prefix}*"):
        if _is_dead(directory.name, prefix):
            remove_cgroup(directory)


def _is_dead(name: str, prefix: str) -> bool:
    number = name.removeprefix(prefix).split("-")[0]
    return number.isdigit() and not Path("/proc", number).exists()


def remove_cgroup(path: Path) -> None:
    if not path.exists():
        return
    (path / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + PATIENCE
    for directory in (*sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True), path):
        while True:
            try:
                directory.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Until `holds()`; raises AssertionError when it has not come about in `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not after {PATIENCE:g} s: {what}"
        time.sleep(0.005)


def _usable(space: Namespace, name: str) -> bool:
    """The link carries and the addresses given to it may be bound: the kernel does both in its own time."""
    command = ["nsenter", f"--net=/proc/{space.pid}/ns/net", "ip", "-j", "addr", "show", "dev", name]
    [link] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    given = [one for one in link["addr_info"] if one["scope"] == "global"]
    return link["operstate"] == "UP" and not any(one.get("tentative") for one in given)


def _ids(user: str | int | None) -> tuple[int, int] | None:
    if user is None:
        return None
    if isinstance(user, int):
        return user, user
    entry = pwd.getpwnam(user)
    return entry.pw_uid, entry.pw_gid


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _loopback_up() -> None:
    """ip link set lo up, without a program (SIOCGIFFLAGS, SIOCSIFFLAGS)."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        flags = struct.unpack("16sh", fcntl.ioctl(probe, 0x8913, struct.pack("16sh22x", b"lo", 0))[:18])[1]
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh22x", b"lo", flags | 1))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
