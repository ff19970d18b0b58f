# SPDX-License-Identifier: Apache-2.0
"""What an unprivileged user can try in order to be taken for somebody else: real processes, real records."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from agent.identity.convert import exec_record, kernel_record
from agent.identity.host import read_host
from agent.identity.identifier import Identifier, Sources
from agent.identity.record import KernelRecord
from agent.kernel.records import Address
from agent.kernel.steering import Steering
from policy.model import Subject
from tests.kernel.arena import Arena
from tests.kernel.cast import OBSERVE, PORT, Database, Worker, guard, plain

PYTHON = os.path.realpath("/usr/bin/python3")
NOBODY = 65534
ID = "0123456789abcdef" * 4
LOCAL: Address = plain("127.0.0.1")

# Connects, says its source port, then does what it reads from its standard input.
CLIENT = f"""
import os, socket, sys
sock = socket.create_connection(("127.0.0.1", {PORT}))
print(sock.getsockname()[1], flush=True)
exec(sys.stdin.readline())
sys.stdin.readline()
"""


@dataclass
class Scene:
    """An arena with a database, and a folder whose ``app`` is a copy of python that only it runs."""

    arena: Arena
    steering: Steering
    folder: Path
    callers: list[Caller] = field(default_factory=list)

    @property
    def app(self) -> str:
        return str(self.folder / "allowed" / "app")

    def caller(self, argv: list[str], user: int | None = NOBODY, group: str = "clients") -> Caller:
        process = self.arena.popen(
            argv, user=user, group=group, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        return Caller(self, process)

    def shell(self, script: str, *unshare: str, user: int = NOBODY) -> Caller:
        """`script` in namespaces of the user's own making; $CLIENT and $APP are there for it."""
        setup = f"APP={self.app}; PYTHON={PYTHON}; set -e; {script}"
        return self.caller(["unshare", *unshare, "sh", "-c", setup, "sh", CLIENT], user=user)

    def identify(self, record: KernelRecord, *, sha256: bool = False, owner: int | None = None) -> Subject:
        host = replace(read_host(), cgroup_mount=str(self.arena.cgroup))

        def executed(tgid: int, start: int) -> Any:
            found = self.steering.process(tgid, start)
            return exec_record(tgid, start, found) if found is not None else None

        async def ask() -> Subject:
            identifier = Identifier(Sources(lambda *_: record, lambda _: [], executed), host)
            try:
                return await identifier.identify(1, "127.0.0.1", 1, "127.0.0.1", PORT, sha256, owner)
            finally:
                identifier.close()

        return asyncio.run(ask())


class Caller:
    """A process that has connected, with the kernel's record of it."""

    def __init__(self, scene: Scene, process: subprocess.Popen[bytes]) -> None:
        self.scene, self.process = scene, process
        scene.callers.append(self)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = scene.steering.identity(scene.arena.netns.cookie, LOCAL, port, LOCAL, PORT)
        assert found is not None
        self.record = kernel_record(found)

    def do(self, code: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(code.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.end()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet written to it
                    pipe.close()

    def subject(self, **how: Any) -> Subject:
        return self.scene.identify(self.record, **how)


@pytest.fixture
def scene(arena: Arena, steering: Steering) -> Iterator[Scene]:
    Database(arena)
    guard(arena, steering, OBSERVE)
    Worker(arena, steering)
    with tempfile.TemporaryDirectory(prefix="vwtest-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for below in ("allowed", "venv"):
            (folder / below).mkdir()
        subprocess.run(["cp", PYTHON, str(folder / "allowed" / "app")], check=True)
        (folder / "venv" / "python").symlink_to(PYTHON)
        made = Scene(arena, steering, folder)
        try:
            yield made
        finally:
            for caller in made.callers:
                caller.close()


# ---- the executable ----


def test_a_process_runs_what_the_host_has_at_its_path(scene: Scene) -> None:
    subject = scene.caller([scene.app, "-c", CLIENT]).subject(sha256=True)
    assert subject.exe == scene.app
    assert subject.user == "nobody"
    digest = subprocess.run(["sha256sum", scene.app], capture_output=True, check=True).stdout.decode()
    assert subject.exe_sha256 == digest.split()[0]
    assert subject.parent_exe == PYTHON
    assert subject.parents[0].pid == os.getpid()
    assert subject.argv is not None
    assert subject.argv[0] == scene.app


def test_a_bind_mount_over_the_allowed_path_is_foreign(scene: Scene) -> None:
    caller = scene.shell('mount --bind $PYTHON $APP; exec $APP -c "$1"', "-Urm")
    subject = caller.subject()
    assert os.readlink(f"/proc/{subject.pid}/exe") == scene.app, "the attack works on /proc"
    assert subject.exe == f"foreign:{scene.app}"
    caller.end()
    assert scene.identify(caller.record).exe == f"foreign:{scene.app}"


def test_a_tmpfs_over_the_allowed_folder_is_foreign(scene: Scene) -> None:
    caller = scene.shell('mount -t tmpfs none $(dirname $APP); cp $PYTHON $APP; exec $APP -c "$1"', "-Urm")
    assert os.readlink(f"/proc/{caller.record.tgid}/exe") == scene.app, "the attack works on /proc"
    assert caller.subject().exe == f"foreign:{scene.app}"


def test_a_symbolic_link_to_the_right_file_does_not_lend_its_name(scene: Scene) -> None:
    alias = scene.folder / "venv" / "python"
    bind = f"mount -t tmpfs none {alias.parent}; touch {alias}; mount --bind $PYTHON {alias}"
    caller = scene.shell(f'{bind}; exec {alias} -c "$1"', "-Urm")
    assert os.readlink(f"/proc/{caller.record.tgid}/exe") == str(alias), "the attack works on /proc"
    assert caller.subject().exe == PYTHON


def test_a_name_and_arguments_of_ones_own_choice_change_nothing_attested(scene: Scene) -> None:
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'app', 0, 0, 0)"
    client = f"{rename}\n{CLIENT}"
    process = scene.arena.popen(
        [scene.app, "-c", client], user=NOBODY, executable=PYTHON, cwd="/",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    subject = Caller(scene, process).subject()
    assert (subject.comm, subject.argv and subject.argv[0]) == ("app", scene.app)
    assert subject.exe == PYTHON


def test_a_deleted_executable_is_foreign(scene: Scene) -> None:
    caller = scene.caller([scene.app, "-c", CLIENT])
    os.unlink(scene.app)
    assert caller.subject().exe == f"foreign:{scene.app} (deleted)"


def test_an_executable_replaced_by_another_is_foreign(scene: Scene) -> None:
    caller = scene.caller([scene.app, "-c", CLIENT])
    subprocess.run(["cp", PYTHON, scene.app + ".new"], check=True)
    os.rename(scene.app + ".new", scene.app)
    assert caller.subject().exe == f"foreign:{scene.app} (deleted)"
    caller.end()
    assert caller.subject().exe == f"foreign:{scene.app}"


def test_a_program_executed_after_the_connect_does_not_count(scene: Scene) -> None:
    caller = scene.caller([PYTHON, "-c", CLIENT])
    again = "import sys; print(1, flush=True); sys.stdin.readline()"
    caller.do(f"sock.set_inheritable(True); os.execv({scene.app!r}, ['x', '-c', {again!r}])")
    assert caller.process.stdout is not None
    caller.process.stdout.readline()
    assert os.readlink(f"/proc/{caller.record.tgid}/exe") == scene.app
    subject = caller.subject()
    assert subject.exe != scene.app
    assert (subject.exe, "exe" in subject.unobtained) in ((None, True), (PYTHON, False))
    assert subject.argv is None


def test_a_parent_that_executes_after_its_child_connected_does_not_count(scene: Scene) -> None:
    child = CLIENT.replace("exec(sys.stdin.readline())", "import time; time.sleep(60)")
    start = f"subprocess.Popen([{PYTHON!r}, '-c', sys.argv[1]], stdin=subprocess.DEVNULL)"
    later = "import sys; print(1, flush=True); sys.stdin.readline()"
    follow = f"os.execv({scene.app!r}, ['x', '-c', {later!r}])"
    parent = f"import os, subprocess, sys\n{start}\nsys.stdin.readline()\n{follow}"
    caller = scene.caller([PYTHON, "-c", parent, child])
    assert caller.subject().parent_exe == PYTHON
    caller.do("")
    assert caller.process.stdout is not None
    caller.process.stdout.readline()
    assert os.readlink(f"/proc/{caller.process.pid}/exe") == scene.app
    subject = caller.subject()
    assert subject.parent_exe is None
    assert "parent_exe" in subject.unobtained


# Puts another file where the kernel keeps the executable: copies its own program into anonymous memory in
# place (here the dynamic loader that was told to run python: a small one), then prctl(PR_SET_MM,
# PR_SET_MM_MAP) with the capability that it has in a user namespace of its own.
EXCHANGE = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
p, n = ctypes.c_void_p, ctypes.c_size_t
libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = p
libc.mmap.argtypes = [p, n, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [p, n, n, ctypes.c_int, p]
libc.mprotect.argtypes = [p, n, ctypes.c_int]
libc.memcpy.argtypes = [p, p, n]
own = os.readlink("/proc/self/exe")
for line in open("/proc/self/maps").read().splitlines():
    if line.endswith(" " + own):
        begin, end = (int(each, 16) for each in line.split()[0].split("-"))
        allowed = sum(bit for bit, flag in zip((1, 2, 4), "rwx") if flag in line.split()[1])
        copy = libc.mmap(None, end - begin, 3, 0x22, -1, 0)
        libc.memcpy(copy, begin, end - begin)
        libc.mprotect(copy, end - begin, allowed)
        assert libc.mremap(copy, end - begin, end - begin, 3, begin) == begin
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
at = lambda number: int(fields[number - 3])
assert libc.unshare(0x10000000) == 0
file = os.open(APP, os.O_RDONLY)
numbers = [at(26), at(27), at(45), at(46), at(47), libc.sbrk(0), at(28), at(48), at(49), at(50), at(51), 0]
layout = struct.pack("=12QIi", *numbers, 0, file)
if libc.prctl(35, 14, ctypes.create_string_buffer(layout, len(layout)), n(len(layout)), 0):
    print(-ctypes.get_errno(), flush=True)
    os._exit(1)
"""


@pytest.mark.parametrize("forks", [0, 1, 2])
def test_an_executable_exchanged_by_prctl_is_foreign(scene: Scene, forks: int) -> None:
    fork = "if os.fork(): os.wait(); os._exit(0)\n"
    loader = next(map(os.path.realpath, [*glob.glob("/lib64/ld-linux*"), *glob.glob("/lib/ld-linux*")]))
    attack = f"import os\nAPP = {scene.app!r}\n{EXCHANGE}\n{fork * forks}{CLIENT}"
    process = scene.arena.popen(
        [loader, PYTHON, "-c", attack], user=NOBODY, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    caller = Caller(scene, process)
    assert os.readlink(f"/proc/{caller.record.tgid}/exe") == scene.app, "the attack works on /proc"
    found = os.stat(scene.app)
    assert caller.record.exe is not None
    assert caller.record.exe.ino == found.st_ino, "and on the kernel's record"
    assert caller.subject().exe == f"foreign:{scene.app}"


@pytest.mark.parametrize("forks", [1, 2])
def test_an_executable_exchanged_by_an_ancestor_that_executed_on_is_foreign(scene: Scene, forks: int) -> None:
    """The record of who exchanged it is overwritten by then: a child's own must show what was executed."""
    later = "import sys; sys.stdin.read()"
    fork = f"if os.fork(): os.execv({PYTHON!r}, ['x', '-c', {later!r}])\n"
    wait = f"import time\nwhile os.readlink('/proc/%d/exe' % os.getppid()) != {PYTHON!r}: time.sleep(0.01)\n"
    loader = next(map(os.path.realpath, [*glob.glob("/lib64/ld-linux*"), *glob.glob("/lib/ld-linux*")]))
    attack = f"import os\nAPP = {scene.app!r}\n{EXCHANGE}\n{(fork + wait) * forks}{CLIENT}"
    process = scene.arena.popen(
        [loader, PYTHON, "-c", attack], user=NOBODY, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    caller = Caller(scene, process)
    assert os.readlink(f"/proc/{caller.record.tgid}/exe") == scene.app, "the attack works on /proc"
    assert caller.subject().exe == f"foreign:{scene.app}"


@pytest.mark.parametrize("program", ["APP", repr(PYTHON)])
def test_an_executable_exchanged_before_the_connect_is_foreign_whatever_is_executed_after(
    scene: Scene, program: str
) -> None:
    """The execve overwrites what the exec map said of it before the connection is asked for."""
    loader = next(map(os.path.realpath, [*glob.glob("/lib64/ld-linux*"), *glob.glob("/lib/ld-linux*")]))
    attack = f"import os\nAPP = {scene.app!r}\n{EXCHANGE}\n{CLIENT}"
    process = scene.arena.popen(
        [loader, PYTHON, "-c", attack], user=NOBODY, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    caller = Caller(scene, process)
    again = "import sys; print(1, flush=True); sys.stdin.readline()"
    caller.do(f"sock.set_inheritable(True); os.execv({program}, ['x', '-c', {again!r}])")
    assert caller.process.stdout is not None
    caller.process.stdout.readline()
    for _ in range(2):
        assert (caller.subject().exe or "").startswith("foreign:")
        caller.end()


# ---- processes that are gone ----


def test_a_process_that_is_gone_keeps_its_kernel_and_exec_record(scene: Scene) -> None:
    caller = scene.caller([scene.app, "-c", CLIENT])
    caller.end()
    subject = caller.subject(sha256=True)
    assert subject.exe == scene.app
    assert subject.exe_sha256 is not None
    assert (subject.uid, subject.user, subject.pid) == (NOBODY, "nobody", caller.process.pid)
    assert subject.parent_exe == PYTHON
    assert (subject.argv, subject.cwd, subject.groups) == (None, None, None)
    assert {"argv", "cwd", "groups"} <= subject.unobtained
    assert "ended" in subject.null_reason["argv"]


def test_a_script_that_is_gone_ran_in_the_interpreter_it_names(scene: Scene) -> None:
    script = scene.folder / "job"
    script.write_text(f"#!{scene.app}\n{CLIENT}")
    script.chmod(0o755)
    caller = scene.caller([str(script)])
    caller.end()
    assert caller.subject().exe == scene.app


def test_another_process_with_the_same_number_lends_nothing(scene: Scene) -> None:
    caller = scene.caller([scene.app, "-c", CLIENT])
    earlier = replace(caller.record, start_ns=caller.record.start_ns - 10_000_000_000)
    subject = scene.identify(earlier)
    assert subject.argv is None
    assert subject.cwd is None
    assert subject.exe is None
    assert "exe" in subject.unobtained
    assert "another one" in subject.null_reason["argv"]


# ---- users ----


def test_the_same_uid_in_a_user_namespace_has_no_name(scene: Scene) -> None:
    subject = scene.shell('exec $APP -c "$1"', "-U").subject()
    assert (subject.uid, subject.user, subject.group, subject.groups) == (NOBODY, None, None, None)
    assert "user namespace" in subject.null_reason["user"]
    assert "user" not in subject.unobtained


def test_root_of_a_user_namespace_is_not_root(scene: Scene) -> None:
    subject = scene.shell('exec $APP -c "$1"', "-Ur").subject()
    assert (subject.uid, subject.euid, subject.user) == (NOBODY, NOBODY, None)


def test_the_same_uid_in_a_container_has_no_name(scene: Scene) -> None:
    for below in ("system.slice", f"system.slice/docker-{ID}.scope"):
        scene.arena.subgroup(below)
    caller = scene.caller([scene.app, "-c", CLIENT], group=f"system.slice/docker-{ID}.scope")
    subject = caller.subject()
    assert (subject.container, subject.uid, subject.user) == (ID, NOBODY, None)
    caller.end()
    assert scene.identify(caller.record).user is None


def test_the_same_uid_in_a_pid_namespace_has_no_name(scene: Scene) -> None:
    argv = [
        "unshare",
        "-fp",
        "--kill-child",
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
    ]
    subject = scene.caller([*argv, scene.app, "-c", CLIENT], user=None).subject()
    assert (subject.uid, subject.user) == (NOBODY, None)
    assert "pid namespace" in subject.null_reason["user"]


def test_a_login_uid_that_a_process_gave_itself_is_not_attested(scene: Scene) -> None:
    forge = "open('/proc/self/loginuid', 'w').write('0')"
    caller = scene.caller([PYTHON, "-c", f"{forge}\n{CLIENT}"])
    assert caller.record.login_uid == 0, "the attack works on the kernel's record"
    subject = caller.subject()
    assert (subject.login_uid, subject.login_user, subject.login_session) == (None, None, False)
    assert {"login_uid", "login_user"} <= subject.unobtained


def test_a_login_in_its_own_session_scope_is_attested(scene: Scene) -> None:
    path = "user.slice"
    for name in (f"user-{NOBODY}.slice", "session-1.scope"):
        scene.arena.subgroup(path)
        path += "/" + name
    login = f"open('/proc/self/loginuid', 'w').write('{NOBODY}')"
    caller = scene.caller([PYTHON, "-c", f"{login}\n{CLIENT}"], group=path)
    subject = caller.subject()
    assert (subject.login_user, subject.login_session) == ("nobody", True)
    assert subject.slice == f"user-{NOBODY}.slice"


# ---- cgroups ----


def _delegate(scene: Scene) -> str:
    """A user manager's cgroup that belongs to nobody, as systemd delegates it."""
    path = "user.slice"
    for name in (f"user-{NOBODY}.slice", f"user@{NOBODY}.service"):
        scene.arena.subgroup(path)
        path += "/" + name
    made = scene.arena.subgroup(path)
    for file in (made, made / "cgroup.procs", made / "cgroup.subtree_control"):
        os.chown(file, NOBODY, NOBODY)
    scene.arena.subgroup("system.slice")
    scene.arena.subgroup("system.slice/rag.service")
    return path


@pytest.mark.parametrize(
    ("below", "user_unit"),
    [
        ("rag.service", "rag.service"),
        ("app.slice/rag.service", "rag.service"),
        (f"docker-{ID}.scope", f"docker-{ID}.scope"),
        (f"docker/{ID}", None),
    ],
)
def test_a_delegated_cgroup_is_neither_a_system_unit_nor_a_container(
    scene: Scene, below: str, user_unit: str | None
) -> None:
    group = _delegate(scene)
    own = scene.arena.cgroup / group / below
    move = f"import os; os.makedirs({str(own)!r}); open({str(own / 'cgroup.procs')!r}, 'w').write('0')"
    subject = scene.caller([PYTHON, "-c", f"{move}\n{CLIENT}"], group=group).subject()
    assert subject.cgroup == f"/{group}/{below}"
    assert (subject.unit, subject.user_unit) == (f"user@{NOBODY}.service", user_unit)
    assert subject.container is None
    assert subject.user == "nobody"


def test_a_user_cannot_move_into_a_system_unit(scene: Scene) -> None:
    group = _delegate(scene)
    unit = scene.arena.cgroup / "system.slice" / "rag.service" / "cgroup.procs"
    move = f"import contextlib\nwith contextlib.suppress(OSError): open({str(unit)!r}, 'w').write('0')"
    subject = scene.caller([PYTHON, "-c", f"{move}\n{CLIENT}"], group=group).subject()
    assert subject.unit == f"user@{NOBODY}.service"


def test_the_cgroup_at_connect_counts_not_a_later_one(scene: Scene) -> None:
    _delegate(scene)
    caller = scene.caller([PYTHON, "-c", CLIENT], group="system.slice/rag.service")
    (scene.arena.subgroup("system.slice/other.service") / "cgroup.procs").write_text(str(caller.record.tgid))
    assert caller.subject().unit == "rag.service"
    caller.end()
    assert caller.subject().unit == "rag.service"


def test_self_is_only_who_shares_the_cgroup_of_the_listeners_owner(scene: Scene) -> None:
    _delegate(scene)
    owner = scene.arena.cgroup_id("system.slice/rag.service")
    inside = scene.caller([PYTHON, "-c", CLIENT], group="system.slice/rag.service")
    outside = scene.caller([PYTHON, "-c", CLIENT])
    assert inside.subject(owner=owner).is_self
    assert not outside.subject(owner=owner).is_self
    assert not inside.subject(owner=None).is_self
