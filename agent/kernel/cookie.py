# SPDX-License-Identifier: Apache-2.0
"""The cookie of a network namespace before Linux 5.14, which has no SO_NETNS_COOKIE.

Programs may ask for it since 5.7, so a small one is attached to the cgroup that this process is in, for
as long as it takes to call connect() on a UDP socket: nothing is sent. It writes for the socket it was made
for and lets everything pass; the link ends with its descriptor, also when this process is killed. Needs
CAP_BPF and CAP_NET_ADMIN. Before 5.12 the cookie is made when first asked for: who only reads it may find 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from agent.kernel import syscalls
from agent.kernel.errors import SteeringError

_CONNECT4, _SOCK_ADDR = 10, 18  # enum bpf_attach_type, bpf_prog_type
_ARRAY = 2
_UPDATE_ELEM, _SOCKET_COOKIE, _NETNS_COOKIE = 2, 46, 122  # enum bpf_func_id
_NOWHERE = ("127.0.0.1", 9)
_LICENSE = ctypes.create_string_buffer(b"Apache-2.0")


def learn_netns_cookie(probe: socket.socket, cgroup: Path | None = None) -> int:
    """The cookie of the namespace of ``probe``, an IPv4 UDP socket of ours that the caller closes.

    ``cgroup``: a folder of cgroup v2 that the calling thread is in or below; found when it is not given.
    Raises SteeringError.
    """
    wanted = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, 57, 8))[0]
    try:
        with contextlib.ExitStack() as held:

            def keep(descriptor: int) -> int:
                held.callback(os.close, descriptor)
                return descriptor

            answer = keep(syscalls.map_create(_ARRAY, 4, 8, 1))
            program = keep(syscalls.prog_load(_SOCK_ADDR, _CONNECT4, _program(wanted, answer), _LICENSE))
            group = keep(os.open(cgroup or _own_cgroup(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            keep(syscalls.link_create(program, group, _CONNECT4))
            with contextlib.suppress(OSError):  # no route to it: the program has run by then
                probe.connect(_NOWHERE)
            cookie = struct.unpack("=Q", syscalls.map_lookup(answer, bytes(4), 8) or bytes(8))[0]
    except OSError as error:
        raise SteeringError(f"network namespace cookies: {error.strerror}", "Linux 5.8 or newer") from error
    if not cookie:
        raise SteeringError("network namespace cookies: this process is outside of its cgroup", "Linux 5.14")
    return int(cookie)


def _own_cgroup() -> Path:
    root = next(
        (
            Path(fields[1].encode().decode("unicode_escape"))
            for fields in map(str.split, Path("/proc/mounts").read_text().splitlines())
            if fields[2] == "cgroup2"
        ),
        None,
    )
    for line in Path("/proc/thread-self/cgroup").read_text().splitlines():
        if root is not None and line.startswith("0::"):
            return root / line[4:]
    raise SteeringError("no cgroup v2 is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")


def _program(wanted: int, answer: int) -> bytes:
    """Return 1; if the socket's cookie is ``wanted``, first put its namespace's into element 0 of the map."""
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    return _assemble(
        (0xBF, 6, 1, 0, 0),                    # r6 = r1
        (0x85, 0, 0, 0, _SOCKET_COOKIE),       # call
        (0x18, 7, 0, 0, low), (0, 0, 0, 0, high),  # r7 = wanted
        (0x5D, 0, 7, 12, 0),                   # if r0 != r7 goto end
        (0xBF, 1, 6, 0, 0),                    # r1 = r6
        (0x85, 0, 0, 0, _NETNS_COOKIE),        # call
        (0x7B, 10, 0, -8, 0),                  # *(u64 *)(r10 - 8) = r0
        (0x62, 10, 0, -12, 0),                 # *(u32 *)(r10 - 12) = 0
        (0x18, 1, 1, 0, answer), (0, 0, 0, 0, 0),  # r1 = map
        (0xBF, 2, 10, 0, 0), (0x07, 2, 0, 0, -12),  # r2 = r10 - 12
        (0xBF, 3, 10, 0, 0), (0x07, 3, 0, 0, -8),   # r3 = r10 - 8
        (0xB7, 4, 0, 0, 0),                    # r4 = BPF_ANY
        (0x85, 0, 0, 0, _UPDATE_ELEM),         # call
        (0xB7, 0, 0, 0, 1),                    # end: r0 = 1
        (0x95, 0, 0, 0, 0),                    # exit
    )  # fmt: skip


def _assemble(*steps: Sequence[int]) -> bytes:
    """struct bpf_insn of each (code, destination, source, offset, immediate)."""
    return b"".join(
        struct.pack("=BBhI", code, to | of << 4, offset, value & 0xFFFFFFFF)
        for code, to, of, offset, value in steps
    )
